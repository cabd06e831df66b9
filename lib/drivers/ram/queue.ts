// A ram device's queue: a batch becomes one list of copies, done by one native call; its
// comparisons, where it has any, another.

import {
  Access,
  CompletionRing,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type DeviceInfo,
  type QueueCounters,
  type QueueDriver,
} from '../../hpdi/index.js';
import { GRANULE_BYTES } from '../../memory/index.js';
import { native } from '../../native.js';
import type { Chunks } from './chunks.js';

/**
 * Words of an entry of native copyList and compareList: two addresses, bytes, what the comparison
 * found. Words 6 and 7 are free for us: the operation, and where in its data the entry begins.
 */
const enum Copy {
  toLo = 0,
  toHi = 1,
  fromLo = 2,
  fromHi = 3,
  bytes = 4,
  difference = 5,
  operation = 6,
  start = 7,
  words = 8,
}

/** Of `difference`. */
const EQUAL = 0xffffffff;

const ENTRIES = 1024;

/** What is to be copied, or compared, in one native call. */
interface Entries {
  readonly words: Uint32Array;
  count: number;
}

const TWO_32 = 4294967296;

export class RamQueue implements QueueDriver {
  readonly counters: QueueCounters = { doorbells: 0, polls: 0 };
  private readonly done: CompletionRing;
  private readonly check: RequestCheck;
  private readonly depth: number;
  private readonly blockSize: number;
  private readonly chunks: Chunks;
  private readonly known: Int32Array;
  private readonly chunkBytes: number;
  /**
   * Address of 2 MiB of zeros: what chunks without memory read as, and what zeroing copies from.
   */
  private readonly zeroes: number;
  private readonly copies: Entries = { words: new Uint32Array(ENTRIES * Copy.words), count: 0 };
  private readonly compares: Entries = { words: new Uint32Array(ENTRIES * Copy.words), count: 0 };
  /** Tag, status and first difference of each operation of the batch. */
  private readonly tags: Uint32Array;
  private readonly statuses: Uint32Array;
  private readonly differences: Uint32Array;

  constructor(info: DeviceInfo, chunks: Chunks, zeroes: number, depth: number) {
    this.check = new RequestCheck(info);
    this.done = new CompletionRing(depth);
    this.depth = depth;
    this.blockSize = info.blockSize;
    this.chunks = chunks;
    this.known = chunks.known;
    this.chunkBytes = chunks.chunkBytes;
    this.zeroes = zeroes;
    this.tags = new Uint32Array(depth);
    this.statuses = new Uint32Array(depth);
    this.differences = new Uint32Array(depth);
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    const room = this.depth - this.done.length;
    const wanted = (tail - head) | 0;
    const count = wanted < room ? wanted : room;
    for (let i = 0; i < count; i++) {
      const at = ((head + i) & mask) * Req.words;
      this.tags[i] = sq[at + Req.tag]!;
      // A full list is executed while a request is planned, and may fail it already.
      this.statuses[i] = Status.OK;
      this.differences[i] = 0;
      const status = this.plan(sq, at, i);
      if (status !== Status.OK) this.statuses[i] = status;
    }
    this.execute(this.copies);
    this.execute(this.compares);
    for (let i = 0; i < count; i++) {
      this.done.push(this.tags[i]!, this.statuses[i]!, this.differences[i]!, 0);
    }
    this.counters.doorbells++;
    return count;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    return this.done.drain(cq, 0, max);
  }

  /** Adds one request's copies to the list. */
  private plan(sq: Uint32Array, at: number, operation: number): Status {
    const word = sq[at]!;
    if ((word & (Flag.mask & ~Flag.FUA)) !== 0) return Status.BAD_REQUEST;
    const op = word & 0xff;
    if (op === Op.FLUSH) return Status.OK;
    let status = Status.UNSUPPORTED;
    if (op === Op.READ) status = this.check.transfer(sq, at, Access.write);
    else if (op === Op.WRITE || op === Op.COMPARE)
      status = this.check.transfer(sq, at, Access.read);
    else if (op === Op.DISCARD || op === Op.WRITE_ZEROES) status = this.check.range(sq, at);
    if (status !== Status.OK) return status;
    let position = (sq[at + Req.lbaHi]! * 4294967296 + sq[at + Req.lbaLo]!) * this.blockSize;
    let left = sq[at + Req.blocks]! * this.blockSize;
    let memory = sq[at + Req.addressHi]! * 4294967296 + sq[at + Req.addressLo]!;
    const { copies, compares } = this;
    let start = 0;
    while (left > 0) {
      const chunk = Math.floor(position / this.chunkBytes);
      const offset = position - chunk * this.chunkBytes;
      let bytes = this.chunkBytes - offset;
      if (bytes > left) bytes = left;
      let address = this.known[chunk]! * GRANULE_BYTES;
      if (address === 0) {
        address = op === Op.WRITE ? this.chunks.ensure(chunk) : this.chunks.locate(chunk);
        if (address === 0 && op === Op.WRITE) return Status.NO_SPACE;
      }
      const near = address + offset;
      const nearHi = (near / TWO_32) | 0;
      const memoryHi = (memory / TWO_32) | 0;
      if (op === Op.WRITE) {
        this.add(copies, near | 0, nearHi, memory | 0, memoryHi, bytes, operation, start);
      } else if (op === Op.READ || op === Op.COMPARE) {
        const list = op === Op.READ ? copies : compares;
        if (address > 0) {
          this.add(list, memory | 0, memoryHi, near | 0, nearHi, bytes, operation, start);
        } else {
          this.addZeroes(list, memory | 0, memoryHi, bytes, operation, start);
        }
      } else if (address > 0) this.addZeroes(copies, near | 0, nearHi, bytes, operation, start);
      position += bytes;
      memory += bytes;
      start += bytes;
      left -= bytes;
    }
    return Status.OK;
  }

  /** `start`: where in its operation's data an entry begins. */
  private addZeroes(
    list: Entries,
    toLo: number,
    toHi: number,
    bytes: number,
    operation: number,
    start: number,
  ): void {
    const zeroesHi = (this.zeroes / TWO_32) | 0;
    for (let done = 0; done < bytes; done += GRANULE_BYTES) {
      const to = toHi * TWO_32 + (toLo >>> 0) + done;
      const hi = (to / TWO_32) | 0;
      const rest = bytes - done < GRANULE_BYTES ? bytes - done : GRANULE_BYTES;
      this.add(list, to | 0, hi, this.zeroes | 0, zeroesHi, rest, operation, start + done);
    }
  }

  /**
   * Words of 32 bits with a sign: a number above 2^31 would be an object of the heap in each call
   * that V8 does not inline.
   */
  private add(
    list: Entries,
    toLo: number,
    toHi: number,
    fromLo: number,
    fromHi: number,
    bytes: number,
    operation: number,
    start: number,
  ): void {
    if (list.count === ENTRIES) this.execute(list);
    const { words } = list;
    const at = list.count * Copy.words;
    words[at] = toLo;
    words[at + Copy.toHi] = toHi;
    words[at + Copy.fromLo] = fromLo;
    words[at + Copy.fromHi] = fromHi;
    words[at + Copy.bytes] = bytes;
    words[at + Copy.operation] = operation;
    words[at + Copy.start] = start;
    list.count++;
  }

  /** Does a list, in one native call. */
  private execute(list: Entries): void {
    const { count, words } = list;
    list.count = 0;
    if (count === 0) return;
    const done = this.call(list, words, count);
    if (done < count) this.resume(list, done, count);
  }

  /** How many entries were done from the first of `words` on: the next one's memory is gone. */
  private call(list: Entries, words: Uint32Array, count: number): number {
    if (list === this.copies) return native.copyList(words, count);
    const { statuses } = this;
    const done = native.compareList(words, count);
    for (let at = 0; at < done * Copy.words; at += Copy.words) {
      const difference = words[at + Copy.difference]!;
      const operation = words[at + Copy.operation]!;
      // Of an operation's entries the first that fails is what the operation gives.
      if (difference === EQUAL || statuses[operation] !== Status.OK) continue;
      statuses[operation] = Status.MISCOMPARE;
      this.differences[operation] = words[at + Copy.start]! + difference;
    }
    return done;
  }

  // hot:end

  /**
   * An entry whose memory went away since the check fails its operation alone; the rest goes on.
   */
  private resume(list: Entries, failed: number, count: number): void {
    const { statuses } = this;
    for (let at = failed; at < count;) {
      const operation = list.words[at * Copy.words + Copy.operation]!;
      if (statuses[operation] === Status.OK) statuses[operation] = Status.BAD_ADDRESS;
      at++;
      if (at < count) at += this.call(list, list.words.subarray(at * Copy.words), count - at);
    }
  }

  arm(): void {
    // Everything completes at submit: there is nothing to wait for.
  }

  eventFd(): number {
    return -1;
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    // Nothing is ever in flight.
  }

  async close(): Promise<void> {
    // The memory is the device's.
  }
}
