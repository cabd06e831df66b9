// DeviceQueue: a queue of a device in another domain, as the driver that HPDI sees.
//
// A request's record goes to the server as it is, with the number of its slot for the tag. A READ
// comes back as a buffer of the server's memory: those of one poll are copied to the callers'
// buffers at once; then `done` tells the server that it may use them again.
//
// Invariants
// 1. What the server says is hostile (device-reader.ts): what no honest one says cuts it off.
// 2. Slots are half of the ring's records, so that requests and loans that go back have room.
// 3. When the table's epoch is another than this queue's, nothing of the channel is looked at
//    before `follow`; the epoch is acknowledged when the queue has let go of a channel that ended.
// 4. What is in flight completes, or goes to another channel, when the server has closed its side
//    or is dead: until then (`cut`) its device may be at work in the callers' buffers. Only a
//    server whose link is over is given up after a time.
// 5. `done` (the ring) never overflows: it holds requests that were refused, at most `depth`, and
//    completions of slots.

import { CompletionRing, Cpl, Req, Status, type QueueDriver } from '../hpdi/index.js';
import { PenstockError } from '../errors.js';
import type { LoanBook } from './device-loans.js';
import { DevicePark } from './device-park.js';
import type { CutReason, DeviceQueueCounters, DeviceQueueOptions } from './device-queue-options.js';
import { CompletionReader } from './device-reader.js';
import { OwnedRow, type RowView } from './device-row.js';
import { RequestSlots } from './device-slots.js';
import { Row, RowState } from './device-table.js';
import type { RecordChannel } from './record-channel.js';

const PARK_US_MAX = 100_000;
const DRAIN_PARK_US = 50;
/** Between two looks at whether a server that is cut off has let go: it wakes nobody any more. */
const CUT_PARK_US = 500;
/** Loans that may wait to be given back while operations are in flight. */
const BACK_BATCH = 16;
/** Polls in vain between two looks at whether the channel is at its end, less one. */
const LOOK_POLLS = 4095;
/** How long a server whose link is over may take to let go. */
const PATIENCE_MS = 5000;

export class DeviceQueue implements QueueDriver {
  // What every operation touches stands first.
  private channel: RecordChannel | null = null;
  private readonly words: Int32Array;
  private readonly epochAt: number;
  private epoch = -1;
  private state: RowState = RowState.closed;
  private readonly slots: RequestSlots;
  private readonly done: CompletionRing;
  private readonly reader: CompletionReader;
  private readonly depth: number;
  private readonly book: LoanBook;
  private doorbells = 0;
  private polls = 0;
  private idlePolls = 0;
  private armed = false;
  private armedPolls = 0;
  private readonly parking = new DevicePark();
  private readonly owned: OwnedRow;
  private readonly options: DeviceQueueOptions;
  private opening = true;
  private following = false;
  /** While `cut`: until when the server is waited for; no end while it only is to close. */
  private cutUntilMs = 0;
  /** Its channel ended while the home knew nothing of it. */
  private broken = false;
  private closed = false;

  constructor(options: DeviceQueueOptions) {
    const { table, row, depth, info, memory } = options;
    this.options = options;
    this.depth = depth;
    this.owned = new OwnedRow(table, row);
    this.words = table.words;
    this.epochAt = row * Row.words + Row.epoch;
    try {
      const size = table.get(row, Row.size);
      this.slots = new RequestSlots(Math.min(depth, size >>> 1), depth * 2, info, table, memory);
      this.done = new CompletionRing(depth * 2);
      this.reader = new CompletionReader(this.slots, size, options.settle);
      this.book = this.reader.book;
      this.follow();
    } catch (error) {
      this.owned.close(false);
      throw error;
    }
    this.opening = false;
  }

  get counters(): DeviceQueueCounters {
    const { doorbells, polls } = this;
    const { copies } = this.reader;
    return { doorbells, polls, copies: copies.copies, copiedBytes: copies.bytes };
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    if (this.words[this.epochAt] !== this.epoch) this.follow();
    if (this.state === RowState.cut) this.whileCut();
    const { channel, slots, done } = this;
    if (this.book.backCount > 0 && channel !== null) this.book.sendBack(channel);
    const mask = (sq.length >>> 3) - 1;
    const kept = this.state === RowState.cut && this.reissues;
    const gone = (this.state > RowState.waiting || this.state === RowState.closed) && !kept;
    let room = gone ? this.depth : kept ? 0 : this.room((tail - head) | 0);
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
    const { former } = book;
    if (!book.release(resultLo | 0, resultHi | 0)) return false;
    slots.loans--;
    if (book.former !== former || channel === null) this.owned.holds(book.former);
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
    const { reader } = this;
    const count = reader.take(cq, start, max);
    if (reader.bad) this.cutOff(true);
    return count;
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
    if (this.done.length > 0 || this.reader.pending) return -1;
    if (this.state !== RowState.ready && this.state !== RowState.waiting) return -1;
    return this.channel === null ? this.owned.eventFd : this.channel.wakeFd;
  }

  park(timeoutUs: number): void {
    if (this.done.length > 0 || this.reader.pending || timeoutUs === 0) return;
    const mostUs = timeoutUs < 0 || timeoutUs > PARK_US_MAX ? PARK_US_MAX : timeoutUs;
    const { channel, owned, parking } = this;
    if (channel === null || this.state === RowState.cut) {
      owned.drainEvent();
      const same = this.words[this.epochAt] === this.epoch;
      const longUs = this.state === RowState.cut ? Math.min(mostUs, CUT_PARK_US) : mostUs;
      if (same && this.state >= RowState.waiting && this.state !== RowState.gone)
        parking.sleepOn(owned.eventFd, longUs);
      this.notice();
      return;
    }
    if (parking.spin(channel, this.words, this.epochAt, this.epoch)) return;
    if (channel.arm()) {
      parking.sleep(channel, mostUs);
      if (!channel.disarm() && !channel.ready) this.cutOff(false);
    } else if (channel.over) this.cutOff(false);
  }

  /** Looks for another epoch, and at who has gone: also of a queue that nobody polls. */
  notice(): void {
    if (this.closed) return;
    if (this.words[this.epochAt] !== this.epoch) this.follow();
    if (this.state === RowState.cut) this.whileCut();
    // Nobody is left who could find another server.
    else if (this.state === RowState.waiting && !this.options.isHomeAlive()) this.fail();
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
      this.look();
    }
    this.closed = true;
    this.owned.close(this.broken);
    this.options.onClose(this);
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
    try {
      this.takeRest();
      while (!this.goTo(this.owned.read())) {
        // It has changed meanwhile.
      }
    } catch (error) {
      if (this.opening || !(error instanceof PenstockError)) throw error;
      // Nothing is in flight anywhere: the old channel was let go of, the new one cannot be used.
      this.fail();
      this.owned.acknowledge(this.epoch, this.book.former);
    } finally {
      this.following = false;
    }
  }

  private goTo(view: RowView): boolean {
    const { state } = view;
    this.epoch = view.epoch;
    if (state === RowState.ready) {
      if (!this.enter(view)) return false;
    } else if ((state === RowState.cut || state === RowState.closed) && this.channel !== null) {
      this.beginCut(state === RowState.cut ? PATIENCE_MS : Infinity);
      return true;
    } else if (state === RowState.waiting || (state === RowState.cut && this.reissues)) {
      this.leave(RowState.waiting);
    } else {
      this.fail();
    }
    this.owned.acknowledge(view.epoch, this.book.former);
    return true;
  }

  /** Goes on with a channel to a server that may be another one. False: the row has changed. */
  private enter(view: RowView): boolean {
    this.leave(RowState.ready);
    const channel = this.owned.openChannel(view);
    if (channel === null) return false;
    this.channel = channel;
    this.reader.enter(channel, view.channel.slot);
    this.broken = false;
    this.slots.issueAll(channel);
    return true;
  }

  /** Lets go of the channel; loans that are out stay readable. */
  private leave(state: RowState): void {
    this.state = state;
    if (this.channel === null) return;
    this.reader.leave();
    this.armed = false;
    this.channel = null;
    this.owned.closeChannel();
  }

  /** Nothing more comes: what is in flight completes with DEVICE_GONE. */
  private fail(): void {
    this.leave(RowState.gone);
    this.slots.failAll(this.done);
    this.owned.holds(this.book.former);
    this.owned.signal();
  }

  /** What is in flight waits for another channel, or fails. Nothing of it is at the server. */
  private letGo(): void {
    this.takeRest();
    if (this.reissues) this.leave(RowState.waiting);
    else this.fail();
    this.owned.acknowledge(this.epoch, this.book.former);
  }

  /** Whether what a server that is gone has not done is for the next one. */
  private get reissues(): boolean {
    return this.options.reconnects && this.cutUntilMs !== Infinity;
  }

  /** Takes what the server has sent. */
  private takeRest(): void {
    if (this.channel === null) return;
    const { following } = this;
    this.following = true;
    const scratch = new Uint32Array(this.depth * Cpl.words);
    while (this.keep(scratch) > 0) {
      // Until nothing is left.
    }
    this.following = following;
  }

  /** The channel is at its end, or the server is not to be trusted. */
  private cutOff(misbehaved: boolean): void {
    const { channel } = this;
    if (this.following || channel === null) return;
    if (misbehaved || channel.error !== null) {
      this.fail();
      this.tell('misbehaved');
    } else if (this.words[this.epochAt] !== this.epoch) {
      this.follow();
    } else if (this.state !== RowState.cut) {
      // It sends nothing any more, and may still be at work.
      if (channel.peerEnded && !channel.peerClosed) this.beginCut(PATIENCE_MS);
      else this.cutEnded(channel);
    }
  }

  private cutEnded(channel: RecordChannel): void {
    const reason = channel.peerClosed ? 'ended' : 'dead';
    this.letGo();
    this.tell(reason);
  }

  /** The home may know nothing of it yet. */
  private tell(reason: CutReason): void {
    this.broken = true;
    this.owned.found(this.epoch, reason === 'misbehaved');
    this.options.onCut(reason);
    this.notice();
  }

  private beginCut(patienceMs: number): void {
    this.state = RowState.cut;
    this.cutUntilMs = performance.now() + patienceMs;
  }

  /** A server that is cut off has its operations in flight; it closes the channel after them. */
  private whileCut(): void {
    const { channel, slots } = this;
    if (channel === null || this.following) return;
    const { table, row } = this.options;
    const isKnown = (table.get(row, Row.state) as RowState) !== RowState.ready;
    if (channel.peerClosed || (isKnown && slots.freeCount === slots.count)) {
      if (isKnown) this.letGo();
      else this.cutEnded(channel);
    } else if (performance.now() >= this.cutUntilMs) {
      this.takeRest();
      this.fail();
      if (isKnown) this.owned.acknowledge(this.epoch, this.book.former);
      else this.tell('ended');
    }
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
}
