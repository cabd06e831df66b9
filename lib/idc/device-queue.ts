// DeviceQueue: a queue of a device in another domain, as the driver that HPDI sees.
//
// A request's record goes to the server as it is, with the number of its slot for the tag. A READ
// comes back as a buffer of the server's memory: those of one poll are copied to the callers'
// buffers at once; then `done` tells the server that it may use them again.
//
// Invariants
// 1. What the server says is hostile: a completion names a slot that is in flight, and its buffer
//    lies wholly in memory of the server's that was admitted; anything else cuts the server off.
// 2. Slots are half of the ring's records, so that requests and loans that go back have room.
// 3. When the table's epoch is another than this queue's, nothing of the channel is looked at
//    before `follow`.
// 4. `done` (the ring) never overflows: it holds requests that were refused, at most `depth`, and
//    completions of slots.

import { Access, CompletionRing, Cpl, Op, Req, Status, type QueueDriver } from '../hpdi/index.js';
import { native } from '../native.js';
import { ReadCopies } from './device-copies.js';
import { LoanBook } from './device-loans.js';
import type { DeviceQueueCounters, DeviceQueueOptions } from './device-queue-options.js';
import { OwnedRow, type RowView } from './device-row.js';
import { RequestSlots } from './device-slots.js';
import { Row, RowState } from './device-table.js';
import { Done, Half, IdcOp, Rec } from './layout.js';
import type { RecordChannel } from './record-channel.js';

/** How long `park` looks before it sleeps, from, to; and polls between two looks at the clock. */
const SPIN_MS_MIN = 0.005;
const SPIN_MS_MAX = 0.1;
const SPIN_POLLS = 512;
/** A sleep that is shorter was not worth it: being woken may take a good part of that. */
const SHORT_MS = 0.25;
const PARK_US_MAX = 100_000;
const DRAIN_PARK_US = 50;
/** Loans that may wait to be given back while operations are in flight. */
const BACK_BATCH = 16;
/** Polls in vain between two looks at whether the channel is at its end, less one. */
const LOOK_POLLS = 4095;
/** How long a server that is cut off may take to let go; and memory to be told of. */
const PATIENCE_MS = 5000;

export class DeviceQueue implements QueueDriver {
  // What every operation touches stands first.
  private channel: RecordChannel | null = null;
  private rq: Uint32Array = new Uint32Array(0);
  private readonly words: Int32Array;
  private readonly epochAt: number;
  private epoch = -1;
  private state: RowState = RowState.closed;
  private serverSlot = 0;
  /** Records of the last poll: the next one, and how many there are. */
  private at = 0;
  private count = 0;
  private readonly slots: RequestSlots;
  private readonly done: CompletionRing;
  private readonly copies: ReadCopies;
  private readonly depth: number;
  private readonly book: LoanBook;
  private doorbells = 0;
  private polls = 0;
  private idlePolls = 0;
  private armed = false;
  private armedPolls = 0;
  private spinMs = SPIN_MS_MIN;
  private readonly parkFds = new Int32Array(1);
  private readonly owned: OwnedRow;
  private readonly options: DeviceQueueOptions;
  private following = false;
  private cutSinceMs = 0;
  private unmappedSinceMs = -Infinity;
  /** Its channel ended while the home knew nothing of it. */
  private broken = false;
  private closed = false;

  constructor(options: DeviceQueueOptions) {
    const { table, row, depth, info, memory } = options;
    const size = table.get(row, Row.size);
    this.options = options;
    this.depth = depth;
    this.owned = new OwnedRow(table, row);
    this.words = table.words;
    this.epochAt = row * Row.words + Row.epoch;
    this.slots = new RequestSlots(Math.min(depth, size >>> 1), depth * 2, info, table, memory);
    this.done = new CompletionRing(depth * 2);
    this.copies = new ReadCopies(size);
    this.book = new LoanBook(depth * 2);
    this.follow();
  }

  get counters(): DeviceQueueCounters {
    const { doorbells, polls, copies } = this;
    return { doorbells, polls, copies: copies.copies, copiedBytes: copies.bytes };
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    if (this.words[this.epochAt] !== this.epoch) this.follow();
    const { channel, slots, done } = this;
    if (this.book.backCount > 0 && channel !== null) this.book.sendBack(channel);
    const mask = (sq.length >>> 3) - 1;
    const gone = this.state > RowState.waiting || this.state === RowState.closed;
    let room = gone ? this.depth : this.room((tail - head) | 0);
    const before = room;
    let at = head;
    for (; at !== tail; at = (at + 1) | 0) {
      if (room === 0 || done.length >= this.depth) break;
      const record = (at & mask) * Req.words;
      const status = gone ? Status.DEVICE_GONE : slots.prepare(sq, record, channel);
      if (status === Status.OK) room--;
      else done.push(sq[record + Req.tag]!, status, 0, 0);
    }
    if (room !== before && channel !== null) channel.submit();
    this.doorbells = (this.doorbells + 1) | 0;
    return (at - head) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    this.polls = (this.polls + 1) | 0;
    if (this.words[this.epochAt] !== this.epoch) this.follow();
    let count = this.done.length > 0 ? this.done.drain(cq, 0, max) : 0;
    count += this.reap(cq, count, max - count);
    if (this.armed) this.afterArm(count);
    else if (count === 0 && (++this.idlePolls & LOOK_POLLS) === 0) this.look();
    if (this.state === RowState.cut) this.whileCut();
    return count;
  }

  release(resultLo: number, resultHi: number): boolean {
    const { book, channel, slots } = this;
    const hi = resultHi >>> 0;
    const inUse = channel !== null && (hi & 0xfff) >>> 4 === this.serverSlot;
    if (!book.release(resultLo >>> 0, hi, inUse)) return false;
    slots.loans--;
    if (!inUse) this.owned.holds(book.former);
    // While something is in flight, a submission or a poll will come: one message for many.
    else if (book.backCount >= BACK_BATCH || slots.freeCount === slots.count)
      book.sendBack(channel);
    return true;
  }

  /** Requests that can be taken: slots, and records of the ring. */
  private room(wanted: number): number {
    const { channel, slots } = this;
    const most = wanted < slots.freeCount ? wanted : slots.freeCount;
    if (channel === null) return most; // kept for the next server
    const room = channel.room(most);
    return room < most ? room : most;
  }

  /** Takes up to `max` completions to cq from record `start` on; returns how many. */
  private reap(cq: Uint32Array, start: number, max: number): number {
    const { channel, slots } = this;
    if (channel === null) return 0;
    if (this.at === this.count) {
      this.at = 0;
      this.count = channel.poll(max);
      if (this.count === 0) return 0;
    }
    const end = start + max;
    const { rq } = this;
    const { words } = slots;
    let to = start;
    while (this.at < this.count && to < end) {
      const at = this.at << Rec.shift;
      const slot = rq[at + Done.tag]!;
      const from = slot * Req.words;
      if (rq[at] !== IdcOp.COMPLETION || slot >= slots.count || words[from] === 0) {
        this.cutOff(true);
        break;
      }
      const c = to * Cpl.words;
      cq[c] = words[from + Req.tag]!;
      cq[c + Cpl.status] = rq[at + Done.status]!;
      cq[c + Cpl.resultLo] = rq[at + Done.resultLo]!;
      cq[c + Cpl.resultHi] = rq[at + Done.resultHi]!;
      const op = words[from]! & 0xff;
      if ((op === Op.READ || op === Op.READ_LOAN) && !this.takeBuffer(cq, to, from, at)) break;
      slots.free(slot);
      this.at++;
      to++;
    }
    if (this.copies.waiting > 0) this.copies.run(cq);
    channel.header[Half.done] = (channel.taken - (this.count - this.at)) | 0;
    return to - start;
  }

  /**
   * A read's completion: its buffer is entered as a loan, or to be copied. False: its memory is not
   * mapped here yet, and the completion waits.
   */
  private takeBuffer(cq: Uint32Array, to: number, from: number, at: number): boolean {
    const { rq, slots } = this;
    const { words } = slots;
    const isLoan = (words[from]! & 0xff) === Op.READ_LOAN;
    if (rq[at + Done.status] !== Status.OK) {
      if (isLoan) slots.loans--;
      return true;
    }
    const lo = rq[at + Done.resultLo]!;
    const hi = rq[at + Done.resultHi]! & 0xfff;
    const bytes = words[from + Req.blocks]! * slots.blockSize;
    const known = hi >>> 4 === this.serverSlot;
    if (!known || slots.check.memory(lo, hi, bytes, Access.read) !== Status.OK) {
      if (!this.mapped(known, hi * 4294967296 + lo, bytes)) return false;
    }
    if (isLoan) {
      this.book.add(lo, rq[at + Done.resultHi]!, rq[at + Done.buffer]!);
      return true;
    }
    const toLo = words[from + Req.addressLo]!;
    this.copies.add(toLo, words[from + Req.addressHi]!, lo, hi, bytes, to);
    cq[to * Cpl.words + Cpl.resultLo] = 0;
    cq[to * Cpl.words + Cpl.resultHi] = 0;
    return true;
  }

  // hot:end

  arm(): void {
    const { channel } = this;
    this.armedPolls = 0;
    if (channel === null) {
      this.owned.drainEvent();
      return;
    }
    if (this.armed) channel.disarm();
    this.armed = channel.arm();
  }

  eventFd(): number {
    if (this.done.length > 0 || this.at < this.count) return -1;
    if (this.state !== RowState.ready && this.state !== RowState.waiting) return -1;
    return this.channel === null ? this.owned.eventFd : this.channel.wakeFd;
  }

  park(timeoutUs: number): void {
    if (this.done.length > 0 || this.at < this.count || timeoutUs === 0) return;
    const mostUs = timeoutUs < 0 || timeoutUs > PARK_US_MAX ? PARK_US_MAX : timeoutUs;
    const { channel } = this;
    if (channel === null) {
      this.owned.drainEvent();
      this.parkFds[0] = this.owned.eventFd;
      const waits = this.state === RowState.waiting && this.words[this.epochAt] === this.epoch;
      if (waits) native.park(this.parkFds, mostUs);
      return;
    }
    if (this.spin(channel)) return;
    if (channel.arm()) this.sleep(channel, mostUs);
    else if (channel.over) this.cutOff(false);
    if (this.state === RowState.cut) this.whileCut();
  }

  /** Looks for another epoch: also of a queue that nobody polls. */
  notice(): void {
    if (!this.closed && this.words[this.epochAt] !== this.epoch) this.follow();
  }

  async drain(): Promise<void> {
    const scratch = new Uint32Array(this.depth * Cpl.words);
    const { slots } = this;
    while (slots.freeCount < slots.count) {
      if (this.keep(scratch) > 0) continue;
      this.park(DRAIN_PARK_US);
      if (this.keep(scratch) > 0) continue;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async close(): Promise<void> {
    if (this.closed) return;
    await this.drain();
    // The queue's end is that of its loans.
    this.book.forEach((lo, hi) => this.release(lo, hi));
    while (this.book.backCount > 0 && this.channel !== null) {
      this.book.sendBack(this.channel);
      if (this.book.backCount > 0) await new Promise((resolve) => setImmediate(resolve));
      this.notice();
    }
    this.closed = true;
    this.owned.close(this.broken);
    this.options.onClose(this);
  }

  /** True: something came. How long it looks depends on how long the last sleeps were. */
  private spin(channel: RecordChannel): boolean {
    let until = 0;
    for (;;) {
      for (let poll = 0; poll < SPIN_POLLS; poll++) {
        if (channel.ready || this.words[this.epochAt] !== this.epoch) return true;
      }
      const now = performance.now();
      if (until === 0) until = now + this.spinMs;
      else if (now >= until) return false;
      native.yieldCpu(); // the server may be waiting for this processor, or the kernel for it
    }
  }

  private sleep(channel: RecordChannel, mostUs: number): void {
    this.parkFds[0] = channel.wakeFd;
    const before = performance.now();
    native.park(this.parkFds, mostUs);
    const short = performance.now() - before < SHORT_MS;
    this.spinMs = short
      ? Math.min(SPIN_MS_MAX, this.spinMs * 2)
      : Math.max(SPIN_MS_MIN, this.spinMs / 2);
    if (!channel.disarm() && !channel.ready) this.cutOff(false);
  }

  /** Takes completions and keeps them for the next poll. */
  private keep(scratch: Uint32Array): number {
    this.notice();
    const count = this.reap(scratch, 0, this.depth);
    for (let i = 0; i < count; i++) {
      const at = i * Cpl.words;
      const hi = scratch[at + Cpl.resultHi]!;
      this.done.push(scratch[at]!, scratch[at + Cpl.status]!, scratch[at + Cpl.resultLo]!, hi);
    }
    return count;
  }

  /**
   * The row has changed: another channel, or none. What the old one brought is taken first, and
   * what is still in flight is issued again, waits, or fails.
   */
  private follow(): void {
    if (this.following) return;
    this.following = true;
    this.takeRest();
    for (;;) {
      const view = this.owned.read();
      this.epoch = view.epoch;
      if (view.state === RowState.ready) {
        if (!this.enter(view)) continue;
      } else if (view.state === RowState.waiting) {
        this.leave(RowState.waiting);
      } else if (view.state === RowState.cut && this.channel !== null) {
        this.state = RowState.cut;
        this.cutSinceMs = performance.now();
      } else {
        this.fail();
      }
      this.owned.acknowledge(view.epoch, this.book.former);
      break;
    }
    this.following = false;
  }

  /** Goes on with a channel to a server that may be another one. False: the row has changed. */
  private enter(view: RowView): boolean {
    this.leave(RowState.ready);
    const channel = this.owned.openChannel(view);
    if (channel === null) return false;
    this.channel = channel;
    this.rq = channel.rq;
    this.serverSlot = view.channel.slot;
    this.slots.issueAll(channel);
    return true;
  }

  /** Lets go of the channel; loans that are out stay readable. */
  private leave(state: RowState): void {
    this.state = state;
    if (this.channel === null) return;
    this.book.leave();
    this.at = 0;
    this.count = 0;
    this.armed = false;
    this.channel = null;
    this.owned.closeChannel();
  }

  /** Nothing more comes: what is in flight completes with DEVICE_GONE. */
  private fail(): void {
    this.leave(RowState.gone);
    this.slots.failAll(this.done);
    this.owned.holds(this.book.former);
  }

  /** Takes what the server has sent. */
  private takeRest(): void {
    if (this.channel === null) return;
    const scratch = new Uint32Array(this.depth * Cpl.words);
    while (this.keep(scratch) > 0) {
      // Until nothing is left.
    }
  }

  /** The channel is at its end, or the server is not to be trusted. */
  private cutOff(misbehaved: boolean): void {
    if (this.following || this.channel === null) return;
    this.options.onCut(misbehaved);
    if (this.words[this.epochAt] !== this.epoch) {
      this.follow();
      return;
    }
    // Another thread will hear of it; that it has ended is known here and now.
    this.broken = true;
    this.following = true;
    if (!misbehaved) this.takeRest();
    this.following = false;
    if (misbehaved || !this.options.reconnects) this.fail();
    else this.leave(RowState.waiting);
    this.owned.holds(this.book.former);
  }

  /** A server that is cut off has its operations in flight; it ends the channel after them. */
  private whileCut(): void {
    const { channel } = this;
    if (channel === null) return;
    const open = channel.disarm();
    if ((open || channel.ready) && performance.now() - this.cutSinceMs < PATIENCE_MS) return;
    this.fail();
  }

  /** Whether the other end is there, where nothing has come for a while. */
  private look(): void {
    const { channel } = this;
    if (channel === null) return;
    if (channel.over || (!channel.disarm() && !channel.ready)) this.cutOff(false);
  }

  /** A poll after `arm`: ends the sleep that was meant, or looks what the signal was. */
  private afterArm(count: number): void {
    const { channel } = this;
    if (channel === null || (count === 0 && ++this.armedPolls < 2)) return;
    const open = channel.disarm();
    this.armed = false;
    if (count > 0) return;
    if (!open && !channel.ready) this.cutOff(false);
    // Somebody may still sleep on it.
    else this.armed = channel.arm();
  }

  /** Whether a buffer that a completion names can be read, once messages were taken. */
  private mapped(isServers: boolean, address: number, bytes: number): boolean {
    const { settle } = this.options;
    if (isServers && settle?.(address, bytes) === true) return true;
    const now = performance.now();
    if (this.unmappedSinceMs < now - 2 * PATIENCE_MS) this.unmappedSinceMs = now;
    const late = now - this.unmappedSinceMs > PATIENCE_MS;
    if (!isServers || settle !== null || late) this.cutOff(true);
    return false;
  }
}
