// CompletionReader: takes what the server of a device says has completed, for one queue.
//
// Invariants
// 1. What the server says is hostile: a completion names a slot that is in flight, and its buffer
//    lies wholly in memory of the server's that was admitted; anything else is `bad`, and nothing
//    after it is taken.
// 2. A READ's data is copied before `done` tells the server that it may use the buffer again.

import { Access, Cpl, Op, Req, Status } from '../hpdi/index.js';
import { ReadCopies } from './device-copies.js';
import { LoanBook } from './device-loans.js';
import type { RequestSlots } from './device-slots.js';
import { Done, Half, IdcOp, Rec } from './layout.js';
import type { RecordChannel } from './record-channel.js';

/** How long memory may take to be told of, where another thread takes that. */
const PATIENCE_MS = 5000;

export class CompletionReader {
  readonly copies: ReadCopies;
  readonly book: LoanBook;
  /** The server completed what it was not asked for. */
  bad = false;
  private channel: RecordChannel | null = null;
  private rq: Uint32Array = new Uint32Array(0);
  private serverSlot = 0;
  /** Records of the last poll: the next one, and how many there are. */
  private at = 0;
  private count = 0;
  private readonly slots: RequestSlots;
  private readonly settle: ((address: number, bytes: number) => boolean) | null;
  private unmappedSinceMs = -Infinity;

  /** `size`: completions of one poll; `settle`: see DeviceQueueOptions. */
  constructor(
    slots: RequestSlots,
    size: number,
    settle: ((address: number, bytes: number) => boolean) | null,
  ) {
    this.slots = slots;
    this.settle = settle;
    this.copies = new ReadCopies(size);
    this.book = new LoanBook(slots.loansMax);
  }

  /** Goes on with another channel. */
  enter(channel: RecordChannel, serverSlot: number): void {
    this.channel = channel;
    this.rq = channel.rq;
    this.serverSlot = serverSlot;
  }

  /** Lets go of the channel; loans that are out stay in the book. */
  leave(): void {
    this.channel = null;
    this.bad = false;
    this.book.leave();
    this.at = 0;
    this.count = 0;
  }

  /** Completions were polled that are not taken yet. */
  get pending(): boolean {
    return this.at < this.count;
  }

  // hot:begin

  /** Takes up to `max` completions to cq from record `start` on; returns how many. */
  take(cq: Uint32Array, start: number, max: number): number {
    const { channel, slots } = this;
    if (channel === null || this.bad) return 0;
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
        this.bad = true;
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

  /** Whether a buffer that a completion names can be read, once messages were taken. */
  private mapped(isServers: boolean, address: number, bytes: number): boolean {
    const { settle } = this;
    if (isServers && settle?.(address, bytes) === true) return true;
    const now = performance.now();
    if (this.unmappedSinceMs < now - 2 * PATIENCE_MS) this.unmappedSinceMs = now;
    const late = now - this.unmappedSinceMs > PATIENCE_MS;
    if (!isServers || settle !== null || late) this.bad = true;
    return false;
  }
}
