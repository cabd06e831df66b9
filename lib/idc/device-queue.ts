// DeviceQueue: a queue of a device in another domain, as the driver that HPDI sees.
//
// A request's record goes to the server as it is, with the number of its slot for the tag. A READ
// comes back as a buffer of the server's memory: those of one poll are copied to the callers'
// buffers by one native call, the only copy there is; then `done` tells the server that it may use
// them again.
//
// Invariants
// 1. A slot holds its request from submit to completion: what was in flight when the server went
//    can be issued to the next one as it was.
// 2. What the server says is hostile: a completion names a slot that is in flight, and its buffer
//    lies wholly in memory of the server's that was admitted; anything else cuts the server off.
// 3. Slots are half of the ring's records, so that requests and loans that go back have room.
// 4. When the table's epoch is another than this queue's, nothing of the channel is looked at
//    before `follow`.

import {
  Access,
  CompletionRing,
  Cpl,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type DeviceInfo,
  type QueueCounters,
  type QueueDriver,
} from '../hpdi/index.js';
import { native } from '../native.js';
import { LoanBook } from './device-loans.js';
import { OwnedRow, type RowView } from './device-row.js';
import { Row, RowState, type QueueTable } from './device-table.js';
import { Back, Done, Half, IdcOp, Rec } from './layout.js';
import type { RecordChannel } from './record-channel.js';

export interface DeviceQueueOptions {
  readonly table: QueueTable;
  /** Claimed for this queue. */
  readonly row: number;
  readonly depth: number;
  readonly info: DeviceInfo;
  /** This process's domain, and which granules of it others can read. */
  readonly slot: number;
  readonly sharedGranules: Uint8Array;
  /** Takes what the server told of its memory; false where only another thread can. */
  readonly settle: (address: number, bytes: number) => boolean;
  /** The server has let go of the channel, or is dead, or did what no honest one does. */
  readonly onCut: (misbehaved: boolean) => void;
  /** Whether another server is waited for when this one is gone. */
  readonly reconnects: boolean;
  readonly onClose: (queue: DeviceQueue) => void;
}

export interface DeviceQueueCounters extends QueueCounters {
  /** READs whose data was copied out of the server's memory; bytes of it. */
  copies: number;
  copiedBytes: number;
}

/** An entry of native.copyList; `place` is ours: the completion's index in cq. */
const enum Copy {
  toLo = 0,
  toHi = 1,
  fromLo = 2,
  fromHi = 3,
  bytes = 4,
  place = 6,
  words = 8,
}

const CHANGING = (1 << Op.WRITE) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);
const SPINS_MIN = 64;
const SPINS_MAX = 1 << 15;
const SHORT_MS = 0.2;
const PARK_US_MAX = 100_000;
/** Loans that may wait to be given back while operations are in flight. */
const BACK_BATCH = 16;
/** Polls in vain between two looks at whether the channel is at its end. */
const LOOK_POLLS = 4095;
/** How long a server that is cut off may take to let go; and memory to be told of. */
const PATIENCE_MS = 5000;

export class DeviceQueue implements QueueDriver {
  readonly counters: DeviceQueueCounters = { doorbells: 0, polls: 0, copies: 0, copiedBytes: 0 };
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
  private readonly slots: Uint32Array;
  private readonly free: Int32Array;
  private freeCount: number;
  private readonly check: RequestCheck;
  private readonly done: CompletionRing;
  private readonly list: Uint32Array;
  private copies = 0;
  private readonly depth: number;
  private readonly blockSize: number;
  private readonly alignMask: number;
  private readonly sharedGranules: Uint8Array;
  private readonly slot: number;
  private readonly readOnly: boolean;
  private readonly operations: number;
  private readonly book: LoanBook;
  /** Loans that are out or asked for. */
  private loans = 0;
  private readonly loansMax: number;
  /** Loans of servers that are gone. */
  private formerLoans = 0;
  /** Loans to be given back: buffer, lo, hi of each. */
  private readonly back: Uint32Array;
  private backCount = 0;
  private armed = false;
  private armedPolls = 0;
  private spins = 1024;
  private readonly parkFds = new Int32Array(1);
  private readonly owned: OwnedRow;
  private readonly options: DeviceQueueOptions;
  private idlePolls = 0;
  private following = false;
  private cutSinceMs = 0;
  private unmappedSinceMs = 0;
  /** Its channel ended while the home knew nothing of it. */
  private broken = false;
  private closed = false;

  constructor(options: DeviceQueueOptions) {
    const { table, row, depth, info } = options;
    this.options = options;
    this.owned = new OwnedRow(table, row);
    this.words = table.words;
    this.epochAt = row * Row.words + Row.epoch;
    const slots = Math.min(depth, table.get(row, Row.size) >>> 1);
    this.depth = depth;
    this.slots = new Uint32Array(slots * Req.words);
    this.free = new Int32Array(slots);
    for (let slot = 0; slot < slots; slot++) this.free[slot] = slots - 1 - slot;
    this.freeCount = slots;
    this.check = new RequestCheck({ ...info, blocks: table.blocks });
    this.blockSize = info.blockSize;
    this.alignMask = info.addressAlign - 1;
    this.readOnly = info.readOnly;
    this.operations = info.operations;
    this.done = new CompletionRing(depth * 2);
    this.list = new Uint32Array(table.get(row, Row.size) * Copy.words);
    this.slot = options.slot;
    this.sharedGranules = options.sharedGranules;
    this.loansMax = depth * 2;
    this.book = new LoanBook(this.loansMax);
    this.back = new Uint32Array(this.loansMax * 3);
    this.follow();
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    if (this.words[this.epochAt] !== this.epoch) this.follow();
    if (this.backCount > 0) this.sendBack();
    const mask = (sq.length >>> 3) - 1;
    let room = this.room((tail - head) | 0);
    const before = room;
    let at = head;
    for (; at !== tail; at = (at + 1) | 0) {
      if (room === 0 || this.done.length >= this.depth) break;
      const record = (at & mask) * Req.words;
      const status = this.state > RowState.waiting ? Status.DEVICE_GONE : this.prepare(sq, record);
      if (status === Status.OK) room--;
      else this.done.push(sq[record + Req.tag]!, status, 0, 0);
    }
    if (room !== before && this.channel !== null) this.channel.submit();
    this.counters.doorbells++;
    return (at - head) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    if (this.words[this.epochAt] !== this.epoch) this.follow();
    let count = this.done.length > 0 ? this.done.drain(cq, 0, max) : 0;
    count += this.reap(cq, count, max - count);
    if (this.armed) this.afterArm(count);
    else if (count === 0 && (++this.idlePolls & LOOK_POLLS) === 0) this.look();
    if (this.state === RowState.cut) this.whileCut();
    if (this.backCount >= BACK_BATCH) this.sendBack();
    return count;
  }

  release(resultLo: number, resultHi: number): boolean {
    const lo = resultLo >>> 0;
    const hi = resultHi >>> 0;
    const buffer = this.book.take(lo, hi);
    if (buffer < 0) return false;
    this.loans--;
    if ((hi & 0xfff) >>> 4 !== this.serverSlot || this.channel === null) {
      this.releasedFormer();
      return true;
    }
    const at = this.backCount++ * 3;
    this.back[at] = buffer;
    this.back[at + 1] = lo;
    this.back[at + 2] = hi;
    // While something is in flight, a poll will come: one submission for many.
    if (this.backCount >= BACK_BATCH || this.freeCount === this.free.length) this.sendBack();
    return true;
  }

  /** Requests that can be taken: slots, and records of the ring. */
  private room(wanted: number): number {
    const most = wanted < this.freeCount ? wanted : this.freeCount;
    // Who is to refuse all, or to keep them for later, needs no ring.
    if (this.state > RowState.waiting) return wanted;
    if (this.channel === null) return most;
    const room = this.channel.room(most);
    return room < most ? room : most;
  }

  /** Checks a request, gives it a slot and sends it: OK, or the error it has. */
  private prepare(sq: Uint32Array, record: number): Status {
    const word = sq[record]!;
    const op = word & 0xff;
    if ((word & (Flag.mask & ~Flag.FUA)) !== 0) return Status.BAD_REQUEST;
    const bit = op < 32 ? 1 << op : 0;
    if (this.readOnly && (CHANGING & bit) !== 0) return Status.READ_ONLY;
    if ((this.operations & bit) === 0) return Status.UNSUPPORTED;
    const { check } = this;
    let status = Status.OK;
    if (op !== Op.FLUSH) {
      status = check.range(sq, record);
      if (status === Status.BAD_RANGE) status = this.rangeAgain(sq, record);
      if (status !== Status.OK) return status;
      if (sq[record + Req.blocks]! > check.maxBlocks) return Status.TOO_LARGE;
      if (op === Op.WRITE || op === Op.READ) {
        status = op === Op.WRITE ? this.sendable(sq, record) : this.writable(sq, record);
        if (status === Status.OK && (sq[record + Req.addressLo]! & this.alignMask) !== 0) {
          status = Status.MISALIGNED;
        }
      }
      if (op === Op.READ_LOAN && ++this.loans > this.loansMax) {
        this.loans--;
        status = Status.NO_MEMORY;
      }
      if (status !== Status.OK) return status;
    }
    const slot = this.free[--this.freeCount]!;
    const { slots } = this;
    const at = slot * Req.words;
    slots[at] = word & 0xffff;
    slots[at + Req.tag] = sq[record + Req.tag]!;
    slots[at + Req.blocks] = sq[record + Req.blocks]!;
    slots[at + Req.lbaLo] = sq[record + Req.lbaLo]!;
    slots[at + Req.lbaHi] = sq[record + Req.lbaHi]!;
    slots[at + Req.addressLo] = sq[record + Req.addressLo]!;
    slots[at + Req.addressHi] = sq[record + Req.addressHi]!;
    if (this.channel !== null) this.issue(this.channel, slot);
    return Status.OK;
  }

  /** Puts a slot's request on the channel, which has room. */
  private issue(channel: RecordChannel, slot: number): void {
    const { slots } = this;
    const { sq } = channel;
    const from = slot * Req.words;
    const to = (channel.tail & channel.mask) << Rec.shift;
    channel.reserve(1);
    sq[to] = slots[from]!;
    sq[to + Req.tag] = slot;
    sq[to + Req.blocks] = slots[from + Req.blocks]!;
    sq[to + Req.aux] = 0;
    sq[to + Req.lbaLo] = slots[from + Req.lbaLo]!;
    sq[to + Req.lbaHi] = slots[from + Req.lbaHi]!;
    sq[to + Req.addressLo] = slots[from + Req.addressLo]!;
    sq[to + Req.addressHi] = slots[from + Req.addressHi]!;
  }

  /** Whether a WRITE's buffer lies in memory that the server can read. */
  private sendable(sq: Uint32Array, record: number): Status {
    const lo = sq[record + Req.addressLo]!;
    const hi = sq[record + Req.addressHi]!;
    const bytes = sq[record + Req.blocks]! * this.blockSize;
    // A loan of a third domain's may be written too: whether the server has it, it says.
    if (hi >>> 4 !== this.slot) return this.check.memory(lo, hi, bytes, Access.read);
    let granule = ((hi & 15) << 11) | (lo >>> 21);
    const reach = (lo & 0x1fffff) + bytes - 1;
    const last = granule + (bytes < 0x40000000 ? reach >>> 21 : Math.floor(reach / 2097152));
    const { sharedGranules } = this;
    for (; granule <= last; granule++) {
      if (sharedGranules[granule] !== 1) return Status.BAD_ADDRESS;
    }
    return Status.OK;
  }

  private writable(sq: Uint32Array, record: number): Status {
    const bytes = sq[record + Req.blocks]! * this.blockSize;
    const lo = sq[record + Req.addressLo]!;
    return this.check.memory(lo, sq[record + Req.addressHi]!, bytes, Access.write);
  }

  /** Takes up to `max` completions to cq from record `start` on; returns how many. */
  private reap(cq: Uint32Array, start: number, max: number): number {
    const { channel } = this;
    if (channel === null) return 0;
    if (this.at === this.count) {
      this.at = 0;
      this.count = channel.poll(max);
      if (this.count === 0) return 0;
    }
    const end = start + max;
    const { rq, slots } = this;
    let to = start;
    while (this.at < this.count && to < end) {
      const at = this.at << Rec.shift;
      const slot = rq[at + Done.tag]!;
      if (
        rq[at] !== IdcOp.COMPLETION ||
        slot >= this.free.length ||
        slots[slot * Req.words] === 0
      ) {
        this.cutOff(true);
        break;
      }
      const from = slot * Req.words;
      const c = to * Cpl.words;
      cq[c] = slots[from + Req.tag]!;
      cq[c + Cpl.status] = rq[at + Done.status]!;
      cq[c + Cpl.resultLo] = rq[at + Done.resultLo]!;
      cq[c + Cpl.resultHi] = rq[at + Done.resultHi]!;
      const op = slots[from]! & 0xff;
      if ((op === Op.READ || op === Op.READ_LOAN) && !this.takeBuffer(cq, to, from, at)) break;
      slots[from] = 0;
      this.free[this.freeCount++] = slot;
      this.at++;
      to++;
    }
    if (this.copies > 0) this.copyOut(cq);
    channel.header[Half.done] = (channel.taken - (this.count - this.at)) | 0;
    return to - start;
  }

  /**
   * A read's completion: its buffer is entered as a loan, or to be copied. False: its memory is not
   * mapped here yet, and the completion waits.
   */
  private takeBuffer(cq: Uint32Array, to: number, from: number, at: number): boolean {
    const { rq, slots } = this;
    const isLoan = (slots[from]! & 0xff) === Op.READ_LOAN;
    if (rq[at + Done.status] !== Status.OK) {
      if (isLoan) this.loans--;
      return true;
    }
    const lo = rq[at + Done.resultLo]!;
    const hi = rq[at + Done.resultHi]! & 0xfff;
    const bytes = slots[from + Req.blocks]! * this.blockSize;
    if (
      hi >>> 4 !== this.serverSlot ||
      this.check.memory(lo, hi, bytes, Access.read) !== Status.OK
    ) {
      if (!this.mapped(lo, hi, bytes)) return false;
    }
    if (isLoan) {
      this.book.add(lo, rq[at + Done.resultHi]!, rq[at + Done.buffer]!);
      return true;
    }
    const { list } = this;
    const entry = this.copies++ * Copy.words;
    list[entry] = slots[from + Req.addressLo]!;
    list[entry + Copy.toHi] = slots[from + Req.addressHi]!;
    list[entry + Copy.fromLo] = lo;
    list[entry + Copy.fromHi] = hi;
    list[entry + Copy.bytes] = bytes;
    list[entry + Copy.place] = to;
    cq[to * Cpl.words + Cpl.resultLo] = 0;
    cq[to * Cpl.words + Cpl.resultHi] = 0;
    this.counters.copiedBytes += bytes;
    return true;
  }

  /** Copies what the reads of this poll brought, in one native call. */
  private copyOut(cq: Uint32Array): void {
    const count = this.copies;
    this.copies = 0;
    this.counters.copies += count;
    const done = native.copyList(this.list, count);
    if (done < count) this.resumeCopy(cq, done, count);
  }

  /** Gives loans back, as far as the ring has room. */
  private sendBack(): void {
    const { channel, back } = this;
    if (channel === null) return;
    let sent = 0;
    while (this.backCount > 0) {
      const to = (channel.tail & channel.mask) << Rec.shift;
      if (channel.reserve(1) === 0) break;
      const from = --this.backCount * 3;
      channel.sq[to] = IdcOp.LOAN_BACK;
      channel.sq[to + Back.buffer] = back[from]!;
      channel.sq[to + Back.addressLo] = back[from + 1]!;
      channel.sq[to + Back.addressHi] = back[from + 2]!;
      sent++;
    }
    if (sent > 0) channel.submit();
  }

  // hot:end

  arm(): void {
    const { channel } = this;
    this.armedPolls = 0;
    if (channel === null) return;
    if (this.armed) channel.disarm();
    this.armed = channel.arm();
  }

  eventFd(): number {
    if (this.done.length > 0 || this.at < this.count || this.state > RowState.waiting) return -1;
    return this.channel === null ? this.owned.eventFd : this.channel.wakeFd;
  }

  park(timeoutUs: number): void {
    if (this.done.length > 0 || this.at < this.count || timeoutUs === 0) return;
    const mostUs = timeoutUs < 0 || timeoutUs > PARK_US_MAX ? PARK_US_MAX : timeoutUs;
    const { channel } = this;
    if (channel === null) {
      this.parkFds[0] = this.owned.eventFd;
      if (this.state === RowState.waiting) native.park(this.parkFds, mostUs);
      return;
    }
    if (this.spin(channel)) return;
    if (channel.arm()) {
      this.parkFds[0] = channel.wakeFd;
      const before = performance.now();
      native.park(this.parkFds, mostUs);
      // Who slept for a moment only should have looked for longer.
      const short = performance.now() - before < SHORT_MS;
      this.spins = short
        ? Math.min(SPINS_MAX, this.spins * 2)
        : Math.max(SPINS_MIN, this.spins >> 1);
      if (!channel.disarm() && !channel.ready) this.cutOff(false);
    } else if (channel.over) {
      this.cutOff(false);
    }
    if (this.state === RowState.cut) this.whileCut();
  }

  /** Looks for another epoch: also of a queue that nobody polls. */
  notice(): void {
    if (!this.closed && this.words[this.epochAt] !== this.epoch) this.follow();
  }

  async drain(): Promise<void> {
    const scratch = new Uint32Array(this.depth * Cpl.words);
    while (this.freeCount < this.free.length) {
      if (this.keep(scratch) > 0) continue;
      this.park(50);
      if (this.keep(scratch) > 0) continue;
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async close(): Promise<void> {
    if (this.closed) return;
    await this.drain();
    // The queue's end is that of its loans.
    this.book.forEach((lo, hi) => this.release(lo, hi));
    while (this.backCount > 0 && this.channel !== null) {
      this.sendBack();
      if (this.backCount > 0) await new Promise((resolve) => setImmediate(resolve));
      this.notice();
    }
    this.closed = true;
    this.owned.close();
    this.options.table.giveBack(this.options.row, this.broken);
    this.options.onClose(this);
  }

  /** True: something came. How long it looks depends on how long the last sleeps were. */
  private spin(channel: RecordChannel): boolean {
    for (let spin = 0; spin < this.spins; spin++) {
      if (channel.ready || this.words[this.epochAt] !== this.epoch) return true;
    }
    return false;
  }

  /**
   * The row has changed: another channel, or none. What the old one brought is taken first, and
   * what is still in flight is issued again, waits, or fails.
   */
  private follow(): void {
    if (this.following) return;
    this.following = true;
    if (this.channel !== null) this.takeRest();
    for (;;) {
      const view = this.owned.read();
      this.epoch = view.epoch;
      if (view.state === RowState.ready && !this.enter(view)) continue;
      if (view.state === RowState.waiting) this.leave(RowState.waiting);
      else if (view.state === RowState.cut) {
        this.state = RowState.cut;
        this.cutSinceMs = performance.now();
      } else if (view.state !== RowState.ready) this.fail();
      this.owned.acknowledge(view.epoch, this.formerLoans);
      break;
    }
    this.following = false;
  }

  /** Goes on with a channel to a server that may be another one. */
  private enter(view: RowView): boolean {
    this.leave(RowState.ready);
    const channel = this.owned.openChannel(view);
    if (channel === null) return false;
    this.channel = channel;
    this.rq = channel.rq;
    this.serverSlot = view.channel.slot;
    for (let slot = 0; slot < this.free.length; slot++) {
      if (this.slots[slot * Req.words] !== 0) this.issue(channel, slot);
    }
    channel.submit();
    return true;
  }

  /** Lets go of the channel; loans that are out stay readable. */
  private leave(state: RowState): void {
    this.state = state;
    if (this.channel === null) return;
    this.formerLoans = this.book.count;
    this.backCount = 0;
    this.at = 0;
    this.count = 0;
    this.armed = false;
    this.channel = null;
    this.owned.closeChannel();
  }

  /** Nothing more comes: what is in flight completes with DEVICE_GONE. */
  private fail(): void {
    this.leave(RowState.gone);
    for (let slot = 0; slot < this.free.length; slot++) {
      const at = slot * Req.words;
      const op = this.slots[at]! & 0xff;
      if (op === 0) continue;
      if (op === Op.READ_LOAN) this.loans--;
      this.done.push(this.slots[at + Req.tag]!, Status.DEVICE_GONE, 0, 0);
      this.slots[at] = 0;
      this.free[this.freeCount++] = slot;
    }
  }

  private takeRest(): void {
    const scratch = new Uint32Array(this.depth * Cpl.words);
    while (this.keep(scratch) > 0) {
      // Until nothing is left of what the server sent.
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
    if (this.options.reconnects && !misbehaved) this.leave(RowState.waiting);
    else this.fail();
    this.owned.holds(this.formerLoans);
  }

  /** A server that is cut off has its operations in flight; it ends the channel after them. */
  private whileCut(): void {
    const { channel } = this;
    if (channel === null) return;
    const open = channel.disarm();
    if ((open || channel.ready) && performance.now() - this.cutSinceMs < PATIENCE_MS) return;
    this.fail();
    this.owned.holds(this.formerLoans);
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
    if (channel === null) return;
    if (count === 0 && ++this.armedPolls < 2) return;
    const open = channel.disarm();
    this.armed = false;
    if (count > 0) return;
    if (!open && !channel.ready) this.cutOff(false);
    // Somebody may still sleep on it.
    else this.armed = channel.arm();
  }

  private releasedFormer(): void {
    if (this.formerLoans > 0) this.owned.holds(--this.formerLoans);
  }

  /** The device may have grown since this thread looked. */
  private rangeAgain(sq: Uint32Array, record: number): Status {
    this.check.blocks = this.options.table.blocks;
    return this.check.range(sq, record);
  }

  /** Whether a buffer that a completion names can be read, once messages were taken. */
  private mapped(lo: number, hi: number, bytes: number): boolean {
    if (hi >>> 12 !== 0 || hi >>> 4 !== this.serverSlot) {
      this.cutOff(true);
      return false;
    }
    if (this.options.settle(hi * 2 ** 32 + lo, bytes)) {
      this.unmappedSinceMs = 0;
      return true;
    }
    const now = performance.now();
    if (this.unmappedSinceMs === 0) this.unmappedSinceMs = now;
    else if (now - this.unmappedSinceMs > PATIENCE_MS) this.cutOff(true);
    return false;
  }

  /** A copy whose target went away since it was checked fails alone; the rest goes on. */
  private resumeCopy(cq: Uint32Array, failed: number, count: number): void {
    const { list } = this;
    let at = failed;
    while (at < count) {
      cq[list[at * Copy.words + Copy.place]! * Cpl.words + Cpl.status] = Status.BAD_ADDRESS;
      at++;
      if (at < count) at += native.copyList(list.subarray(at * Copy.words), count - at);
    }
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
}
