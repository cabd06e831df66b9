// VolumeQueue: a queue of a volume, as the driver that HPDI sees. Blocks of 4096 bytes.
//
// READ goes from the device to the caller's buffer, with neighbours on the device in one request;
// WRITE is gathered to sets; nothing of either is copied.
//
// Invariants
// 1. A request that was taken counts against the slots until its completion is in `done`, or with a
//    poll. Reads of one page have no slot: the device's queue knows their tags (PoolIo.readPages).
// 2. `out` is set while a poll runs the engine, and only if nothing stood in `done`.
// 3. Sets are made of writes of one `submit` that follow each other; a request may lie in several.

import {
  CompletionRing,
  Cpl,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type DeviceInfo,
  type QueueDriver,
} from '../../hpdi/index.js';
import { native } from '../../native.js';
import { admit, refuse } from './admit.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import { SLOT_BITS, type Engine } from '../engine.js';
import { Io } from '../durable/io.js';
import { Page, SetMax } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import { Reads } from './reads.js';
import { RequestSlots } from './request-slots.js';
import type { SectorQueue } from './sector-queue.js';
import { Fifo } from '../write/sets.js';
import { park } from '../waiting.js';

const TWO_32 = 4294967296;
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
  private readonly slots: RequestSlots;
  private readonly reads: Reads;
  private readonly unmaps: Fifo;
  private readonly unmapped: Fifo;
  /** The set that the writes of this submit go to; -1: none. */
  private set = -1;
  /** Of a poll that is under way: where completions go, the next one's word, how many fit. */
  private out: Uint32Array | null = null;
  private outAt = 0;
  private outRoom = 0;
  private armed = false;
  private signalled = false;
  private readonly fd: number;
  private closed = false;
  /** What stands before this queue and goes on by its completions. */
  layer: SectorQueue | null = null;

  constructor(engine: Engine, volume: VolumeRecord, depth: number, info: DeviceInfo) {
    this.engine = engine;
    this.volume = volume;
    this.readOnly = info.readOnly;
    this.check = new RequestCheck(info);
    this.done = new CompletionRing(depth);
    this.slots = new RequestSlots(depth);
    this.unmaps = new Fifo(depth);
    this.unmapped = new Fifo(depth);
    this.fd = native.eventfdCreate();
    const gap = engine.numbered.indexOf(null);
    this.number = gap < 0 ? engine.numbered.length : gap;
    engine.numbered[this.number] = this;
    this.reads = new Reads(engine, volume, this.slots, this.check, this.number, this);
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    const wanted = (tail - head) | 0;
    let taken = 0;
    if (this.isOver) return this.refuse(sq, head, wanted);
    while (taken < wanted && this.slots.free > 0) {
      const reads = this.reads.take(sq, (head + taken) | 0, wanted - taken);
      taken += reads;
      if (reads > 0) continue;
      if (!this.accept(sq, ((head + taken) & mask) * Req.words)) break;
      taken++;
    }
    this.closeSet();
    this.reads.go(sq);
    this.counters.doorbells++;
    this.engine.run();
    return taken;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    if (this.signalled) this.unsignal();
    let count = 0;
    if (this.done.length === 0) {
      this.out = cq;
      this.outAt = 0;
      this.outRoom = max;
      this.engine.run();
      this.out = null;
      count = max - this.outRoom;
    }
    count += this.done.drain(cq, count, max - count);
    // Who polls in vain after it armed goes to sleep now, and is to be woken.
    if (count > 0) this.armed = false;
    return count;
  }

  /** Takes completions that are there; unlike a poll it goes on with nothing. */
  take(cq: Uint32Array, max: number): number {
    return this.done.drain(cq, 0, max);
  }

  /** A read of the device for a slot has ended. */
  readEnded(slot: number, status: number): void {
    if (status !== Status.OK) this.slots.fail(slot, status);
    this.partEnded(slot);
  }

  /** Reads without slots, of one page each, have ended. */
  pagesRead(parity: number, timed: boolean, cq: Uint32Array, from: number, to: number): void {
    const { readers } = this.engine.parts.checkpoint;
    if (timed) this.reads.sample.end(cq[from * Cpl.words + Cpl.status] === Status.OK);
    readers[parity] = readers[parity]! - (to - from);
    this.slots.free += to - from;
    for (let i = from + this.putOut(cq, from, to - from); i < to; i++) {
      this.done.push(cq[i * Cpl.words]!, cq[i * Cpl.words + Cpl.status]!, 0, 0);
    }
    if (this.armed && this.done.length > 0) this.signal();
  }

  /** Gives a poll that is under way up to `count` completions, as many as it has room for. */
  private putOut(cq: Uint32Array, from: number, count: number): number {
    const { out } = this;
    if (out === null) return 0;
    const most = count < this.outRoom ? count : this.outRoom;
    let to = this.outAt;
    for (let at = from * Cpl.words; at < (from + most) * Cpl.words; at += Cpl.words) {
      out[to] = cq[at]!;
      out[to + Cpl.status] = cq[at + Cpl.status]!;
      out[to + Cpl.resultLo] = 0;
      out[to + Cpl.resultHi] = 0;
      to += Cpl.words;
    }
    this.outAt = to;
    this.outRoom -= most;
    return most;
  }

  /** A set with requests of this queue is complete, or has failed. */
  setEnded(set: number): void {
    const { slots } = this;
    const { sets } = this.engine.parts;
    const status = sets.statuses[set]!;
    const base = set * SetMax.blocks;
    const count = sets.counts[set]!;
    for (let b = 0; b < count; b++) {
      const slot = sets.requests[base + b]!;
      if (slot < 0) continue;
      if (status !== 0) slots.fail(slot, status);
      this.partEnded(slot);
    }
  }

  /** False: there is no room for it now. */
  private accept(sq: Uint32Array, at: number): boolean {
    const word = sq[at]!;
    const op = word & 0xff;
    const { slots } = this;
    const slot = slots.next;
    slots.tags[slot] = sq[at + Req.tag]!;
    slots.statuses[slot] = 0;
    slots.parts[slot] = 1;
    slots.flushes[slot] = (word & Flag.FUA) !== 0 && op !== Op.FLUSH ? 1 : 0;
    // By the slot, not as arguments: an address as such would be an object of the heap.
    slots.lbns[slot] = sq[at + Req.lbaHi]! * TWO_32 + sq[at + Req.lbaLo]!;
    slots.counts[slot] = sq[at + Req.blocks]!;
    slots.addresses[slot] = sq[at + Req.addressHi]! * TWO_32 + sq[at + Req.addressLo]!;
    const status = admit(this.engine, this.check, this.readOnly, sq, at);
    if (status !== Status.OK) {
      this.done.push(sq[at + Req.tag]!, status, 0, 0);
      return true;
    }
    if (op === Op.WRITE) return this.write(slot);
    if (op === Op.READ) {
      this.reads.add(at);
      return true;
    }
    slots.take();
    if (op === Op.FLUSH) this.flush(slot);
    else {
      slots.progress[slot] = 0;
      this.unmaps.push(slot);
    }
    return true;
  }

  /** Puts a write's blocks to sets. False: there are not enough. */
  private write(slot: number): boolean {
    const { slots } = this;
    const { sets } = this.engine.parts;
    const lbn = slots.lbns[slot]!;
    const blocks = slots.counts[slot]!;
    const address = slots.addresses[slot]!;
    if (sets.freeSets < Math.ceil(blocks / SetMax.blocks) + 1) return false;
    slots.take();
    const { traffic } = this.engine;
    traffic.writes++;
    traffic.blocksWritten += blocks;
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
        slots.parts[slot] = slots.parts[slot]! + 1;
      }
    }
    this.partEnded(slot);
    return true;
  }

  private closeSet(): void {
    if (this.set < 0) return;
    const { set } = this;
    this.set = -1;
    this.engine.writing.add(set);
  }

  /** A part of a request is complete: it is, with its last one. */
  partEnded(slot: number): void {
    const { slots } = this;
    const left = slots.parts[slot]! - 1;
    slots.parts[slot] = left;
    if (left > 0) return;
    if (slots.flushes[slot] !== 0) {
      // FUA: it is complete when it is durable, with all that was complete before.
      slots.flushes[slot] = 0;
      if (slots.statuses[slot] === 0) {
        slots.parts[slot] = 1;
        this.flush(slot);
        return;
      }
    }
    const parity = slots.parities[slot]! - 1;
    if (parity >= 0) {
      const { readers } = this.engine.parts.checkpoint;
      readers[parity] = readers[parity]! - 1;
      slots.parities[slot] = 0;
    }
    if (slot === this.reads.sample.slot) this.reads.sample.end(slots.statuses[slot] === 0);
    slots.give(slot);
    this.done.push(slots.tags[slot]!, slots.statuses[slot]!, 0, 0);
    if (this.armed) this.signal();
  }

  // hot:end

  /** The pool is closed. */
  private refuse(sq: Uint32Array, head: number, count: number): number {
    const refused = refuse(this.done, this.slots.depth, sq, head, count);
    if (this.armed) this.signal();
    return refused;
  }

  /** What the layer before this queue has taken is completed before the pool is closed. */
  private get isOver(): boolean {
    const { engine, layer } = this;
    return engine.over && (layer === null || engine.closed);
  }

  /** What waits in this queue goes on; called once a round. */
  step(): void {
    const { slots } = this;
    this.reads.step();
    this.unmap();
    const { journal } = this.engine.parts;
    const { failed } = this.engine;
    while (this.unmapped.length > 0) {
      const slot = this.unmapped.head;
      if (slots.seqs[slot]! > journal.completed && failed === null) break;
      this.unmapped.shift();
      if (slots.seqs[slot]! > journal.completed) slots.statuses[slot] = Status.DEVICE_ERROR;
      this.partEnded(slot);
    }
  }

  private unmap(): void {
    const { engine, volume, slots } = this;
    for (let rounds = 0; this.unmaps.length > 0 && rounds < UNMAPS; rounds++) {
      const slot = this.unmaps.head;
      const at = slots.progress[slot]!;
      const left = slots.counts[slot]! - at;
      if (left > 0 && engine.failed === null) {
        if (!engine.mayEnter) return;
        engine.parts.allocator.full = false;
        const done = engine.entering.unmap(volume, slots.lbns[slot]! + at, left);
        if (done === Miss.wait && !engine.checkpoints.isFull()) return;
        if (done > 0) {
          slots.progress[slot] = at + done;
          continue;
        }
        slots.statuses[slot] = done === Miss.wait ? Status.NO_SPACE : engine.pageStatus();
      }
      this.unmaps.shift();
      if (engine.failed !== null) slots.statuses[slot] = Status.DEVICE_ERROR;
      slots.seqs[slot] = engine.entering.seq;
      this.unmapped.push(slot);
    }
  }

  private flush(slot: number): void {
    const { journal, io, checkpoint } = this.engine.parts;
    if (checkpoint.fence.fenced) {
      // The device would flush, and the pool is another owner's: what was written here is lost.
      this.slots.statuses[slot] = Status.DEVICE_ERROR;
      this.partEnded(slot);
      return;
    }
    this.slots.seqs[slot] = journal.completed;
    io.ask(Op.FLUSH, 0, 0, 0, Io.flush, (this.number << SLOT_BITS) | slot);
  }

  /** The device has flushed. */
  flushed(slot: number, status: number): void {
    const { journal } = this.engine.parts;
    if (status !== Status.OK) this.slots.statuses[slot] = status;
    else journal.durable = Math.max(journal.durable, this.slots.seqs[slot]!);
    this.partEnded(slot);
  }

  /** Requests were taken that are not complete. */
  get busy(): boolean {
    return this.slots.free < this.slots.depth || this.layer?.busy === true;
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
    park(this.engine.parts.io, this.engine.llrrm?.io, timeoutUs);
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
