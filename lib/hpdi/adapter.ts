// Adapter: takes any request and fits it to the device: splits, bounces, and does in software what the
// device lacks (READ_LOAN, COMPARE, COPY, WRITE_ZEROES, SG lists).
//
// A request that fits is passed on untouched, in runs, so that the ordinary case costs a look at each
// record. Any other becomes a parent with children in slots of their own; children carry bit 31 in
// their tag.
//
// Invariants
// 1. A parent completes once, when none of its children is in flight, with the status of the failing
//    child that lies first in the request.
// 2. No part is issued before the whole request's range and addresses were checked.
// 3. A bounce buffer belongs to one child from issue to completion.
// 4. A parent that cannot go on for lack of slots or bounce buffers waits in `waiting` and is taken up
//    again by poll; order among parents is kept only in who is tried first.

import { native } from '../native.js';
import { addressSpace, type DmaBuffer, type Memory } from '../memory/index.js';
import { fence } from '../wire/index.js';
import { Access, RequestCheck } from './check.js';
import { CompletionRing } from './completions.js';
import type { QueueCounters, QueueDriver } from './driver.js';
import type { DeviceInfo } from './info.js';
import { LoanTable } from './loans.js';
import { Cpl, Flag, Op, Req, Sg, Status } from './records.js';
import { changes, emulates, passMasks } from './adapter-table.js';

const CHILD = 0x80000000;
const CHILDREN = 64;
const BOUNCE_BYTES = 128 * 1024;
const BOUNCES = 16;
const SG_ENTRIES_MAX = 4096;

/** One request that did not fit. */
class Parent {
  op = 0;
  flags = 0;
  tag = 0;
  lba = 0;
  blocks = 0;
  /** Source LBA of a COPY. */
  source = 0;
  /** The data, as ranges: addresses and byte counts (one range without SG). */
  addresses: number[] = [];
  lengths: number[] = [];
  /** Blocks given to children so far, and children not completed. */
  issued = 0;
  inFlight = 0;
  status = 0;
  /** Block at which the first failing child began. */
  failedAt = Infinity;
  result = 0;
  loan = -1;
  give = 0;
}

/** One piece of a parent. */
class Child {
  parent: Parent | null = null;
  start = 0;
  blocks = 0;
  bounce: DmaBuffer | null = null;
  /** COPY: the read is done, the write is under way. */
  writing = false;
}

export class Adapter implements QueueDriver {
  // What every batch touches stands first, together.
  private readonly inner: QueueDriver;
  private readonly slowMask: number;
  private readonly sizedMask: number;
  private readonly transferMask: number;
  private readonly maxBlocks: number;
  private readonly alignMask: number;
  private readonly boundary: number;
  /** Parents that have not completed. */
  private live = 0;
  private doneCount = 0;
  /** A signal was asked for since the last completion was handed out. */
  private armed = false;
  /** The last look at the device found something, if only children. */
  private progressed = false;
  private readonly done: CompletionRing;
  private readonly info: DeviceInfo;
  private readonly memory: Memory;
  private readonly check: RequestCheck;
  private readonly children: Child[] = [];
  private readonly freeChildren: number[] = [];
  private readonly childSq = new Uint32Array(CHILDREN * Req.words);
  private childHead = 0;
  private childTail = 0;
  private readonly waiting: Parent[] = [];
  private readonly bounces: DmaBuffer[] = [];
  private bouncesMade = 0;
  private readonly loans: LoanTable;
  private readonly copyEntry = new Uint32Array(8);
  private zeroes: DmaBuffer | null = null;

  constructor(inner: QueueDriver, info: DeviceInfo, memory: Memory, depth: number) {
    this.inner = inner;
    const masks = passMasks(info);
    this.slowMask = masks.slow;
    this.sizedMask = masks.sized;
    this.transferMask = masks.transfer;
    this.maxBlocks = info.maxTransferBlocks;
    this.alignMask = info.addressAlign - 1;
    this.boundary = info.boundary;
    this.done = new CompletionRing(depth);
    this.info = info;
    this.memory = memory;
    this.check = new RequestCheck({ ...info, maxTransferBlocks: 2 ** 32 });
    this.loans = new LoanTable(memory, depth * 2);
    for (let i = 0; i < CHILDREN; i++) {
      this.children.push(new Child());
      this.freeChildren.push(CHILDREN - 1 - i);
    }
  }

  get counters(): QueueCounters {
    return this.inner.counters;
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    let from = head;
    let at = head;
    for (; at !== tail; at = (at + 1) | 0) {
      if (this.fits(sq, (at & mask) * Req.words)) continue;
      const run = (at - from) | 0;
      if (run > 0) {
        const taken = this.inner.submit(sq, from, at);
        if (taken < run) return (from - head + taken) | 0;
      }
      this.begin(sq, (at & mask) * Req.words);
      from = (at + 1) | 0;
    }
    if (from === tail) return (tail - head) | 0;
    return (from - head + this.inner.submit(sq, from, tail)) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    for (;;) {
      const count = this.pollOnce(cq, max);
      if (count > 0 || !this.armed || !this.progressed) {
        if (count > 0) this.armed = false;
        return count;
      }
      // Only children completed, and others may have been issued: the caller would sleep on a
      // device that takes its signal for given.
      this.inner.arm();
      fence();
    }
  }

  private pollOnce(cq: Uint32Array, max: number): number {
    this.progressed = false;
    if (this.live === 0) {
      if (this.doneCount === 0) return this.inner.poll(cq, max);
      return this.takeDone(cq, 0, max);
    }
    const count = this.inner.poll(cq, max);
    this.progressed = count > 0;
    let kept = 0;
    for (let i = 0; i < count; i++) {
      const at = i * Cpl.words;
      const tag = cq[at]!;
      if ((tag & CHILD) !== 0) {
        this.finishChild(tag & ~CHILD, cq[at + Cpl.status]!);
        continue;
      }
      if (kept !== i) cq.copyWithin(kept * Cpl.words, at, at + Cpl.words);
      kept++;
    }
    this.advance();
    return kept + this.takeDone(cq, kept, max - kept);
  }

  arm(): void {
    this.armed = true;
    this.inner.arm();
  }

  eventFd(): number {
    return this.inner.eventFd();
  }

  park(timeoutUs: number): void {
    if (this.doneCount > 0) return;
    if (this.inner.park !== undefined) {
      this.inner.park(timeoutUs);
      return;
    }
    const fd = this.inner.eventFd();
    this.inner.arm();
    if (fd >= 0) native.park(Int32Array.of(fd), timeoutUs);
  }

  release(resultLo: number, resultHi: number): boolean {
    return this.loans.release(resultLo, resultHi) || this.inner.release(resultLo, resultHi);
  }

  async drain(): Promise<void> {
    await this.inner.drain();
    const scratch = new Uint32Array(Cpl.words * 64);
    // Children complete through poll only; a client's own completions must not be taken from it.
    while (this.live > 0) {
      const count = this.inner.poll(scratch, 64);
      for (let i = 0; i < count; i++) {
        const at = i * Cpl.words;
        const tag = scratch[at]!;
        if ((tag & CHILD) !== 0) this.finishChild(tag & ~CHILD, scratch[at + Cpl.status]!);
        else this.complete(tag, scratch[at + 1]!, scratch[at + 2]!, scratch[at + 3]!);
      }
      this.advance();
      await this.inner.drain();
      if (count === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async close(): Promise<void> {
    await this.drain();
    await this.inner.close();
    this.loans.close();
    for (const bounce of this.bounces) bounce.free();
    this.bounces.length = 0;
    this.zeroes?.free();
    this.zeroes = null;
  }

  // hot:begin

  /** Whether the device takes the record at word `at` as it is (or must refuse it itself). */
  private fits(sq: Uint32Array, at: number): boolean {
    const word = sq[at]!;
    if ((word & (Flag.mask & ~Flag.FUA)) !== 0) return false;
    // Masks, not a table: one cache line less in every batch.
    const op = word & 0xff;
    const bit = op < 32 ? 1 << op : 0;
    if ((this.sizedMask & bit) === 0) return (this.slowMask & bit) === 0;
    const blocks = sq[at + Req.blocks]!;
    if (blocks > this.maxBlocks) return false;
    if ((this.transferMask & bit) !== 0 && (sq[at + Req.addressLo]! & this.alignMask) !== 0) {
      return false;
    }
    if (this.boundary === 0) return true;
    const lba = sq[at + Req.lbaHi]! * 4294967296 + sq[at + Req.lbaLo]!;
    return (lba % this.boundary) + blocks <= this.boundary;
  }

  // hot:end

  private complete(tag: number, status: number, resultLo: number, resultHi: number): void {
    this.done.push(tag, status, resultLo, resultHi);
    this.doneCount++;
  }

  private takeDone(cq: Uint32Array, start: number, max: number): number {
    const count = this.done.drain(cq, start, max);
    this.doneCount -= count;
    return count;
  }

  /** Makes a parent of a record that does not fit, and issues what can be issued. */
  private begin(sq: Uint32Array, at: number): void {
    const parent = new Parent();
    parent.op = sq[at]! & 0xff;
    parent.flags = sq[at]! & Flag.mask;
    parent.tag = sq[at + Req.tag]!;
    parent.blocks = sq[at + Req.blocks]!;
    parent.lba = sq[at + Req.lbaHi]! * 2 ** 32 + sq[at + Req.lbaLo]!;
    const status = this.prepare(parent, sq, at);
    if (status !== Status.OK) {
      if (parent.loan >= 0) this.loans.drop(parent.loan);
      if (parent.give !== 0 && status !== Status.BAD_ADDRESS) this.giveBack(parent);
      this.complete(parent.tag, status, 0, 0);
      return;
    }
    this.live++;
    this.waiting.push(parent);
    this.advance();
  }

  /** Checks the whole request and collects its data ranges. */
  private prepare(parent: Parent, sq: Uint32Array, at: number): Status {
    const { op, flags } = parent;
    if ((flags & ~(Flag.FUA | Flag.SG | Flag.GIVE | Flag.META)) !== 0) return Status.BAD_REQUEST;
    if ((flags & Flag.META) !== 0 && this.info.metadataBytes === 0) return Status.UNSUPPORTED;
    if (op === Op.FLUSH && (flags & ~Flag.FUA) === 0) return Status.OK;
    const dataOp = op === Op.READ || op === Op.WRITE || op === Op.COMPARE;
    if ((flags & (Flag.SG | Flag.GIVE)) !== 0 && !dataOp) return Status.BAD_REQUEST;
    if ((flags & Flag.GIVE) !== 0 && (flags & Flag.SG) !== 0) return Status.BAD_REQUEST;
    // The buffer is the device's from here on: it goes home also when the request is refused.
    if ((flags & Flag.GIVE) !== 0) {
      parent.give = sq[at + Req.addressHi]! * 2 ** 32 + sq[at + Req.addressLo]!;
    }
    if (this.info.readOnly && changes(op)) return Status.READ_ONLY;
    if (!emulates(this.info, op)) return Status.UNSUPPORTED;
    const range = this.check.range(sq, at);
    if (range !== Status.OK) return range;
    if (op === Op.READ_LOAN) return this.prepareLoan(parent);
    const lo = sq[at + Req.addressLo]!;
    const hi = sq[at + Req.addressHi]!;
    if (op === Op.COPY) {
      parent.source = hi * 2 ** 32 + lo;
      return parent.source + parent.blocks > this.info.blocks ? Status.BAD_RANGE : Status.OK;
    }
    if (!dataOp) return Status.OK;
    const access = op === Op.READ ? Access.write : Access.read;
    const bytes = parent.blocks * this.info.blockSize;
    if ((flags & Flag.SG) !== 0) return this.readSg(parent, sq[at]! >>> 16, lo, hi, bytes, access);
    parent.addresses.push(hi * 2 ** 32 + lo);
    parent.lengths.push(bytes);
    return this.check.memory(lo, hi, bytes, access);
  }

  private prepareLoan(parent: Parent): Status {
    const bytes = parent.blocks * this.info.blockSize;
    if (bytes > 2 ** 30) return Status.TOO_LARGE;
    try {
      parent.loan = this.loans.take(bytes);
    } catch {
      return Status.NO_MEMORY; // OUT_OF_MEMORY, as a status: nobody is here to catch it
    }
    if (parent.loan < 0) return Status.NO_MEMORY;
    parent.addresses.push(this.loans.address(parent.loan));
    parent.lengths.push(bytes);
    return Status.OK;
  }

  /** Reads an SG list from memory and checks every entry; the bytes must add up. */
  private readSg(
    parent: Parent,
    count: number,
    lo: number,
    hi: number,
    bytes: number,
    access: Access,
  ): Status {
    if (count === 0 || count > SG_ENTRIES_MAX || (lo & 3) !== 0) return Status.BAD_REQUEST;
    const listed = this.check.memory(lo, hi, count * Sg.words * 4, Access.read);
    if (listed !== Status.OK) return listed;
    const address = hi * 2 ** 32 + lo;
    const segment = addressSpace().find(address);
    if (segment === undefined) return Status.BAD_ADDRESS;
    const first = (address - segment.address) / 4;
    if (first + count * Sg.words > segment.u32.length) return Status.BAD_ADDRESS;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const at = first + i * Sg.words;
      const entryLo = segment.u32[at]!;
      const entryHi = segment.u32[at + Sg.addressHi]!;
      const length = segment.u32[at + Sg.bytes]!;
      if (length === 0) return Status.BAD_REQUEST;
      const status = this.check.memory(entryLo, entryHi, length, access);
      if (status !== Status.OK) return status;
      parent.addresses.push(entryHi * 2 ** 32 + entryLo);
      parent.lengths.push(length);
      sum += length;
    }
    return sum === bytes ? Status.OK : Status.BAD_REQUEST;
  }

  /** Issues children of waiting parents while there is room, and hands them to the device. */
  private advance(): void {
    while (this.waiting.length > 0) {
      const parent = this.waiting[0]!;
      if (parent.status === 0 && parent.issued < Math.max(1, parent.blocks)) {
        if (!this.issue(parent)) break;
        continue;
      }
      this.waiting.shift();
      if (parent.inFlight === 0) this.finishParent(parent);
    }
    this.push();
  }

  /** Hands prepared children to the device; what it does not take stays for the next time. */
  private push(): void {
    const pending = (this.childTail - this.childHead) | 0;
    if (pending === 0) return;
    this.childHead =
      (this.childHead + this.inner.submit(this.childSq, this.childHead, this.childTail)) | 0;
  }

  /** Issues the parent's next piece; false when slots or bounce buffers are out. */
  private issue(parent: Parent): boolean {
    const slot = this.freeChildren[this.freeChildren.length - 1];
    if (slot === undefined) return false;
    const child = this.children[slot]!;
    let { op } = parent;
    let blocks = this.pieceBlocks(parent);
    let address = 0;
    child.bounce = null;
    child.writing = false;
    if (op === Op.READ || op === Op.WRITE || op === Op.COMPARE || op === Op.READ_LOAN) {
      const direct = op === Op.COMPARE ? 0 : this.directBlocks(parent, blocks);
      if (direct > 0) {
        blocks = direct;
        address = this.addressOf(parent, parent.issued * this.info.blockSize);
      }
      if (op === Op.READ_LOAN) op = Op.READ;
    }
    const bounced =
      address === 0 && (op === Op.READ || op === Op.WRITE || op === Op.COMPARE || op === Op.COPY);
    if (bounced) {
      const bounce = this.takeBounce();
      if (bounce === null) return false;
      child.bounce = bounce;
      blocks = Math.min(blocks, BOUNCE_BYTES / this.info.blockSize);
      address = bounce.address;
      if (op === Op.WRITE) this.moveData(parent, parent.issued, blocks, bounce, false);
      if (op === Op.COMPARE || op === Op.COPY) op = Op.READ;
    }
    if (op === Op.WRITE_ZEROES && (this.info.operations & (1 << Op.WRITE_ZEROES)) === 0) {
      blocks = Math.min(blocks, BOUNCE_BYTES / this.info.blockSize);
      this.zeroes ??= this.zeroBuffer();
      address = this.zeroes.address;
      op = Op.WRITE;
    }
    this.freeChildren.pop();
    child.parent = parent;
    child.start = parent.issued;
    child.blocks = blocks;
    parent.issued += Math.max(1, blocks);
    parent.inFlight++;
    const lba = parent.op === Op.COPY ? parent.source : parent.lba;
    const flags = parent.op === Op.COPY ? 0 : parent.flags & Flag.FUA;
    this.record(slot, op | flags, lba + child.start, blocks, address);
    return true;
  }

  private record(slot: number, word: number, lba: number, blocks: number, address: number): void {
    const at = (this.childTail & (CHILDREN - 1)) * Req.words;
    const sq = this.childSq;
    sq[at] = word;
    sq[at + Req.tag] = (slot | CHILD) >>> 0;
    sq[at + Req.blocks] = blocks;
    sq[at + Req.aux] = 0;
    sq[at + Req.lbaLo] = lba >>> 0;
    sq[at + Req.lbaHi] = Math.floor(lba / 2 ** 32);
    sq[at + Req.addressLo] = address >>> 0;
    sq[at + Req.addressHi] = Math.floor(address / 2 ** 32);
    this.childTail = (this.childTail + 1) | 0;
  }

  /** Blocks of the next piece by the device's limits alone. */
  private pieceBlocks(parent: Parent): number {
    let blocks = Math.min(parent.blocks - parent.issued, this.maxBlocks);
    const { boundary } = this.info;
    if (boundary !== 0)
      blocks = Math.min(blocks, boundary - ((parent.lba + parent.issued) % boundary));
    return blocks;
  }

  /** How many of the next `blocks` lie contiguous and aligned where the parent's data is. */
  private directBlocks(parent: Parent, blocks: number): number {
    let offset = parent.issued * this.info.blockSize;
    for (let i = 0; i < parent.lengths.length; i++) {
      const length = parent.lengths[i]!;
      if (offset >= length) {
        offset -= length;
        continue;
      }
      if ((parent.addresses[i]! + offset) % this.info.addressAlign !== 0) return 0;
      return Math.min(blocks, Math.floor((length - offset) / this.info.blockSize));
    }
    return 0;
  }

  private addressOf(parent: Parent, byteOffset: number): number {
    let offset = byteOffset;
    for (let i = 0; i < parent.lengths.length; i++) {
      if (offset < parent.lengths[i]!) return parent.addresses[i]! + offset;
      offset -= parent.lengths[i]!;
    }
    return 0;
  }

  /** Copies between a bounce buffer and the parent's ranges; false when memory went away meanwhile. */
  private moveData(
    parent: Parent,
    start: number,
    blocks: number,
    bounce: DmaBuffer,
    toParent: boolean,
  ): boolean {
    let done = 0;
    const bytes = blocks * this.info.blockSize;
    let offset = start * this.info.blockSize;
    for (let i = 0; i < parent.lengths.length && done < bytes; i++) {
      const length = parent.lengths[i]!;
      if (offset >= length) {
        offset -= length;
        continue;
      }
      const part = Math.min(length - offset, bytes - done);
      const there = parent.addresses[i]! + offset;
      const here = bounce.address + done;
      this.fillEntry(toParent ? there : here, toParent ? here : there, part);
      if (native.copyList(this.copyEntry, 1) !== 1) return false;
      done += part;
      offset = 0;
    }
    return true;
  }

  /** Compares a bounce buffer with the parent's ranges: first differing byte of the piece, or -1. */
  private firstDifference(parent: Parent, child: Child): number {
    let done = 0;
    const bytes = child.blocks * this.info.blockSize;
    let offset = child.start * this.info.blockSize;
    for (let i = 0; i < parent.lengths.length && done < bytes; i++) {
      const length = parent.lengths[i]!;
      if (offset >= length) {
        offset -= length;
        continue;
      }
      const part = Math.min(length - offset, bytes - done);
      this.fillEntry(parent.addresses[i]! + offset, child.bounce!.address + done, part);
      if (native.compareList(this.copyEntry, 1) !== 1) return done;
      if (this.copyEntry[5] !== 0xffffffff) return done + this.copyEntry[5]!;
      done += part;
      offset = 0;
    }
    return -1;
  }

  private fillEntry(to: number, from: number, bytes: number): void {
    const entry = this.copyEntry;
    entry[0] = to >>> 0;
    entry[1] = Math.floor(to / 2 ** 32);
    entry[2] = from >>> 0;
    entry[3] = Math.floor(from / 2 ** 32);
    entry[4] = bytes;
  }

  private takeBounce(): DmaBuffer | null {
    const free = this.bounces.pop();
    if (free !== undefined) return free;
    if (this.bouncesMade >= BOUNCES) return null;
    try {
      const made = this.memory.alloc(Math.max(BOUNCE_BYTES, this.info.blockSize));
      this.bouncesMade++;
      return made;
    } catch (error) {
      if (this.bouncesMade > 0) return null; // others will come back
      throw error;
    }
  }

  private zeroBuffer(): DmaBuffer {
    const buffer = this.memory.alloc(BOUNCE_BYTES);
    buffer.u8.fill(0);
    return buffer;
  }

  private finishChild(slot: number, status: number): void {
    const child = this.children[slot]!;
    const parent = child.parent!;
    if (status === 0 && parent.op === Op.COPY && !child.writing) {
      child.writing = true;
      const word = Op.WRITE | (parent.flags & Flag.FUA);
      this.record(slot, word, parent.lba + child.start, child.blocks, child.bounce!.address);
      return;
    }
    let outcome = status;
    if (status === 0 && child.bounce !== null) {
      if (
        parent.op === Op.READ &&
        !this.moveData(parent, child.start, child.blocks, child.bounce, true)
      ) {
        outcome = Status.BAD_ADDRESS;
      }
      if (parent.op === Op.COMPARE) {
        const difference = this.firstDifference(parent, child);
        if (difference >= 0) {
          outcome = Status.MISCOMPARE;
          if (child.start < parent.failedAt) {
            parent.result = child.start * this.info.blockSize + difference;
          }
        }
      }
    }
    if (outcome !== 0 && child.start < parent.failedAt) {
      parent.failedAt = child.start;
      parent.status = outcome;
    }
    if (child.bounce !== null) this.bounces.push(child.bounce);
    child.bounce = null;
    child.parent = null;
    this.freeChildren.push(slot);
    parent.inFlight--;
    const finished = parent.status !== 0 || parent.issued >= parent.blocks;
    if (finished && parent.inFlight === 0 && !this.waiting.includes(parent))
      this.finishParent(parent);
  }

  private finishParent(parent: Parent): void {
    let lo = parent.result >>> 0;
    let hi = Math.floor(parent.result / 2 ** 32);
    if (parent.loan >= 0 && parent.status !== 0) this.loans.drop(parent.loan);
    if (parent.loan >= 0 && parent.status === 0) {
      lo = this.loans.resultLo(parent.loan);
      hi = this.loans.resultHi(parent.loan);
    }
    if (parent.give !== 0) this.giveBack(parent);
    this.live--;
    this.complete(parent.tag, parent.status, lo, hi);
  }

  /** GIVE: the device releases the buffer to its owner. */
  private giveBack(parent: Parent): void {
    try {
      this.memory.freeAddress(parent.give);
    } catch {
      // Not a pool's buffer, or freed meanwhile: its giver had no right to give it.
      if (parent.status === 0) parent.status = Status.BAD_ADDRESS;
    }
  }
}
