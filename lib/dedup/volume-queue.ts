// VolumeQueue: a queue of a volume, as the driver that HPDI sees. Blocks of 4096 bytes.
//
// READ goes from the device to the caller's buffer, with neighbours on the device in one request;
// WRITE is gathered to sets; nothing of either is copied.
//
// Invariants
// 1. Every request that was taken has a slot until its completion is in `done`.
// 2. Sets are made of writes of one `submit` that follow each other; a request may lie in several.

import {
  Access,
  CompletionRing,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type DeviceInfo,
  type QueueDriver,
} from '../hpdi/index.js';
import { native } from '../native.js';
import type { VolumeRecord } from './catalogue.js';
import { SLOT_BITS, type Engine } from './engine.js';
import { Io } from './io.js';
import { Node, Page, SetMax } from './layout.js';
import { Miss } from './pages.js';
import { Fifo } from './sets.js';
import { HOLE } from './trees.js';

const TWO_32 = 4294967296;
const FILLS = 256;
/** Blocks of the largest request: it needs no more sets than there are. */
export const TRANSFER_BLOCKS_MAX = 4096;
/** Leaves that one round unmaps. */
const UNMAPS = 32;

export class VolumeQueue implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  readonly number: number;
  private readonly engine: Engine;
  readonly volume: VolumeRecord;
  readonly check: RequestCheck;
  private readonly readOnly: boolean;
  private readonly done: CompletionRing;
  private readonly free: Int32Array;
  private freeCount: number;
  private readonly tags: Uint32Array;
  /** Parts that are not complete: reads of the device, sets. One more while it is taken. */
  private readonly parts: Int32Array;
  private readonly statuses: Uint32Array;
  private readonly parities: Uint8Array;
  /** 1: with FUA, and not flushed yet. */
  private readonly flushes: Uint8Array;
  private readonly lbns: Float64Array;
  private readonly addresses: Float64Array;
  private readonly counts: Float64Array;
  /** Blocks of a read, or an unmap, that are dealt with. */
  private readonly progress: Float64Array;
  private readonly seqs: Float64Array;
  private readonly parked: Fifo;
  private readonly unmaps: Fifo;
  private readonly unmapped: Fifo;
  private readonly fills = new Uint32Array(FILLS * 4);
  private fillCount = 0;
  /** The set that the writes of this submit go to; -1: none. */
  private set = -1;
  private armed = false;
  private signalled = false;
  private readonly fd: number;
  private closed = false;

  constructor(engine: Engine, volume: VolumeRecord, depth: number, info: DeviceInfo) {
    this.engine = engine;
    this.volume = volume;
    this.readOnly = info.readOnly;
    this.check = new RequestCheck(info);
    this.done = new CompletionRing(depth);
    this.free = Int32Array.from({ length: depth }, (_, i) => depth - 1 - i);
    this.freeCount = depth;
    this.tags = new Uint32Array(depth);
    this.parts = new Int32Array(depth);
    this.statuses = new Uint32Array(depth);
    this.parities = new Uint8Array(depth);
    this.flushes = new Uint8Array(depth);
    this.lbns = new Float64Array(depth);
    this.addresses = new Float64Array(depth);
    this.counts = new Float64Array(depth);
    this.progress = new Float64Array(depth);
    this.seqs = new Float64Array(depth);
    this.parked = new Fifo(depth);
    this.unmaps = new Fifo(depth);
    this.unmapped = new Fifo(depth);
    this.fd = native.eventfdCreate();
    const gap = engine.numbered.indexOf(null);
    this.number = gap < 0 ? engine.numbered.length : gap;
    engine.numbered[this.number] = this;
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    const wanted = (tail - head) | 0;
    let taken = 0;
    for (; taken < wanted && this.freeCount > 0; taken++) {
      if (!this.accept(sq, ((head + taken) & mask) * Req.words)) break;
    }
    this.closeSet();
    this.fill();
    this.counters.doorbells++;
    this.engine.run();
    return taken;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    if (this.signalled) this.unsignal();
    if (this.done.length === 0) this.engine.run();
    const count = this.done.drain(cq, 0, max);
    // Who polls in vain after it armed goes to sleep now, and is to be woken.
    if (count > 0) this.armed = false;
    return count;
  }

  /** A read of the device for a slot has ended. */
  readEnded(slot: number, status: number): void {
    if (status !== Status.OK && this.statuses[slot] === 0) this.statuses[slot] = status;
    this.partEnded(slot);
  }

  /** A set with requests of this queue is complete, or has failed. */
  setEnded(set: number): void {
    const { sets } = this.engine.parts;
    const status = sets.statuses[set]!;
    const base = set * SetMax.blocks;
    const count = sets.counts[set]!;
    for (let b = 0; b < count; b++) {
      const slot = sets.requests[base + b]!;
      if (slot < 0) continue;
      if (status !== 0 && this.statuses[slot] === 0) this.statuses[slot] = status;
      this.partEnded(slot);
    }
  }

  /** False: there is no room for it now. */
  private accept(sq: Uint32Array, at: number): boolean {
    const op = sq[at]! & 0xff;
    const slot = this.free[this.freeCount - 1]!;
    this.tags[slot] = sq[at + Req.tag]!;
    this.statuses[slot] = 0;
    this.flushes[slot] = (sq[at]! & Flag.FUA) !== 0 && op !== Op.READ && op !== Op.FLUSH ? 1 : 0;
    let status: number = Status.OK;
    if ((sq[at]! & Flag.mask & ~Flag.FUA) !== 0) status = Status.BAD_REQUEST;
    else if (op === Op.READ) status = this.check.transfer(sq, at, Access.write);
    else if (op === Op.WRITE) status = this.check.transfer(sq, at, Access.read);
    else if (op === Op.DISCARD || op === Op.WRITE_ZEROES) status = this.check.range(sq, at);
    else if (op !== Op.FLUSH) status = Status.UNSUPPORTED;
    if (status === Status.OK && op !== Op.READ && op !== Op.FLUSH) {
      if (this.readOnly) status = Status.READ_ONLY;
      else if (this.engine.failed !== null) status = Status.DEVICE_ERROR;
    }
    if (status !== Status.OK) {
      this.done.push(sq[at + Req.tag]!, status, 0, 0);
      return true;
    }
    // By the slot, not as arguments: an address as such would be an object of the heap.
    this.lbns[slot] = sq[at + Req.lbaHi]! * TWO_32 + sq[at + Req.lbaLo]!;
    this.counts[slot] = sq[at + Req.blocks]!;
    this.addresses[slot] = sq[at + Req.addressHi]! * TWO_32 + sq[at + Req.addressLo]!;
    if (op === Op.WRITE) return this.write(slot);
    this.freeCount--;
    this.parts[slot] = 1;
    if (op === Op.FLUSH) this.flush(slot);
    else {
      this.progress[slot] = 0;
      if (op === Op.READ) {
        this.begin(slot);
        if (!this.read(slot)) this.parked.push(slot);
      } else {
        this.unmaps.push(slot);
      }
    }
    return true;
  }

  /** Puts a write's blocks to sets. False: there are not enough. */
  private write(slot: number): boolean {
    const { sets } = this.engine.parts;
    const lbn = this.lbns[slot]!;
    const blocks = this.counts[slot]!;
    const address = this.addresses[slot]!;
    if (sets.freeSets < Math.ceil(blocks / SetMax.blocks) + 1) return false;
    this.freeCount--;
    this.parts[slot] = 1;
    for (let b = 0; b < blocks; b++) {
      let { set } = this;
      const follows = set >= 0 && sets.lbns[set]! + sets.counts[set]! === lbn + b;
      const isNew = !follows || sets.counts[set] === SetMax.blocks;
      if (isNew) {
        this.closeSet();
        set = sets.take(this.volume, this, lbn + b);
        this.set = set;
      }
      const at = set * SetMax.blocks + sets.counts[set]!;
      sets.counts[set] = sets.counts[set]! + 1;
      sets.addresses[at] = address + b * Page.bytes;
      sets.requests[at] = -1;
      if (isNew || b === 0) {
        sets.requests[at] = slot;
        this.parts[slot] = this.parts[slot]! + 1;
      }
    }
    this.partEnded(slot);
    return true;
  }

  private closeSet(): void {
    if (this.set < 0) return;
    const { set } = this;
    this.set = -1;
    this.engine.add(set);
  }

  /** Goes on with a read; false: pages of the map are on their way. */
  private read(slot: number): boolean {
    const { trees, io, space } = this.engine.parts;
    const { volume } = this;
    const lbn = this.lbns[slot]!;
    const count = this.counts[slot]!;
    const address = this.addresses[slot]!;
    const owner = (this.number << SLOT_BITS) | slot;
    for (let b = this.progress[slot]!; b < count;) {
      const leaf = Math.floor((lbn + b) / Node.entries);
      const frame = trees.mapLeaf(volume, leaf);
      if (frame === Miss.wait) {
        this.progress[slot] = b;
        return false;
      }
      let e = (lbn + b) & (Node.entries - 1);
      const here = Math.min(count - b, Node.entries - e);
      const to = address + b * Page.bytes;
      if (frame === Miss.bad) {
        if (this.statuses[slot] === 0) this.statuses[slot] = this.engine.pageStatus();
        break;
      }
      if (frame === HOLE) {
        this.zero(to | 0, (to / TWO_32) | 0, here);
        b += here;
        continue;
      }
      const pbn = trees.entry(frame, e);
      let length = 1;
      while (length < here && trees.entry(frame, e + length) === (pbn === 0 ? 0 : pbn + length)) {
        length++;
      }
      if (pbn === 0) {
        this.zero(to | 0, (to / TWO_32) | 0, length);
      } else if (!space.holdsBlocks(pbn, length)) {
        if (this.statuses[slot] === 0) this.statuses[slot] = Status.MEDIA_ERROR;
      } else {
        this.parts[slot] = this.parts[slot]! + 1;
        const hi = (pbn / TWO_32) | 0;
        const toHi = (to / TWO_32) | 0;
        io.askWords(Op.READ, pbn | 0, hi, length, to | 0, toHi, Io.read, owner);
      }
      e += length;
      b += length;
    }
    this.progress[slot] = count;
    this.partEnded(slot);
    return true;
  }

  private zero(addressLo: number, addressHi: number, blocks: number): void {
    if (this.fillCount === FILLS) this.fill();
    const at = this.fillCount++ * 4;
    this.fills[at] = addressLo;
    this.fills[at + 1] = addressHi;
    this.fills[at + 2] = blocks * Page.bytes;
    this.fills[at + 3] = 0;
  }

  private fill(): void {
    if (this.fillCount === 0) return;
    native.fillList(this.fills, this.fillCount);
    this.fillCount = 0;
  }

  private begin(slot: number): void {
    const { checkpoint, space } = this.engine.parts;
    const parity = space.generation & 1;
    this.parities[slot] = parity + 1;
    checkpoint.readers[parity] = checkpoint.readers[parity]! + 1;
  }

  private partEnded(slot: number): void {
    const left = this.parts[slot]! - 1;
    this.parts[slot] = left;
    if (left > 0) return;
    if (this.flushes[slot] !== 0) {
      // FUA: it is complete when it is durable, with all that was complete before.
      this.flushes[slot] = 0;
      if (this.statuses[slot] === 0) {
        this.parts[slot] = 1;
        this.flush(slot);
        return;
      }
    }
    const parity = this.parities[slot]! - 1;
    if (parity >= 0) {
      const { readers } = this.engine.parts.checkpoint;
      readers[parity] = readers[parity]! - 1;
      this.parities[slot] = 0;
    }
    this.free[this.freeCount++] = slot;
    this.done.push(this.tags[slot]!, this.statuses[slot]!, 0, 0);
    if (this.armed) this.signal();
  }

  // hot:end

  /** What waits in this queue goes on; called once a round. */
  step(): void {
    for (let left = this.parked.length; left > 0; left--) {
      const slot = this.parked.shift();
      if (!this.read(slot)) this.parked.push(slot);
    }
    this.fill();
    this.unmap();
    const { journal } = this.engine.parts;
    const { failed } = this.engine;
    while (this.unmapped.length > 0) {
      const slot = this.unmapped.head;
      if (this.seqs[slot]! > journal.completed && failed === null) break;
      this.unmapped.shift();
      if (this.seqs[slot]! > journal.completed) this.statuses[slot] = Status.DEVICE_ERROR;
      this.partEnded(slot);
    }
  }

  private unmap(): void {
    const { engine, volume } = this;
    for (let rounds = 0; this.unmaps.length > 0 && rounds < UNMAPS; rounds++) {
      const slot = this.unmaps.head;
      const at = this.progress[slot]!;
      const left = this.counts[slot]! - at;
      if (left > 0 && engine.failed === null) {
        if (!engine.mayEnter) return;
        engine.parts.allocator.full = false;
        const done = engine.entering.unmap(volume, this.lbns[slot]! + at, left);
        if (done === Miss.wait && !engine.isFull()) return;
        if (done > 0) {
          this.progress[slot] = at + done;
          continue;
        }
        this.statuses[slot] = done === Miss.wait ? Status.NO_SPACE : engine.pageStatus();
      }
      this.unmaps.shift();
      if (engine.failed !== null) this.statuses[slot] = Status.DEVICE_ERROR;
      this.seqs[slot] = engine.entering.seq;
      this.unmapped.push(slot);
    }
  }

  private flush(slot: number): void {
    const { journal, io } = this.engine.parts;
    this.seqs[slot] = journal.completed;
    io.ask(Op.FLUSH, 0, 0, 0, Io.flush, (this.number << SLOT_BITS) | slot);
  }

  /** The device has flushed. */
  flushed(slot: number, status: number): void {
    const { journal } = this.engine.parts;
    if (status !== Status.OK) this.statuses[slot] = status;
    else journal.durable = Math.max(journal.durable, this.seqs[slot]!);
    this.partEnded(slot);
  }

  /** Requests were taken that are not complete. */
  get busy(): boolean {
    return this.freeCount < this.free.length;
  }

  arm(): void {
    this.armed = true;
    if (this.done.length > 0) this.signal();
    this.engine.kick();
  }

  eventFd(): number {
    return this.fd;
  }

  /** Blocks this thread until something may be complete. */
  park(timeoutUs: number): void {
    this.engine.run();
    if (this.done.length > 0) return;
    this.engine.parts.io.park(timeoutUs);
    this.engine.run();
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    while (this.busy) {
      this.engine.run();
      if (!this.busy) break;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async close(): Promise<void> {
    if (this.closed) return;
    await this.drain();
    this.closed = true;
    this.engine.numbered[this.number] = null;
    native.fileClose(this.fd);
  }

  private signal(): void {
    this.armed = false;
    this.signalled = true;
    native.eventfdSignal(this.fd);
  }

  private unsignal(): void {
    this.signalled = false;
    native.eventfdDrain(this.fd);
  }
}
