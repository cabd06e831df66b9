// LoanBook: the loans that one queue has of a device's server, by their words, and those that wait
// to be given back.
//
// Invariants
// 1. A loan is in the book from its completion until it is released; what is not in the book is no
//    loan, whatever its words say.
// 2. Loans of a channel that was let go of stay in the book, and their memory mapped, until they
//    are released; nobody is told of that, least of all the next channel, which may lead to the
//    same server.

import { Back, IdcOp, Rec } from './layout.js';
import type { RecordChannel } from './record-channel.js';

const EMPTY = -1;

export class LoanBook {
  /** Loans that are out. */
  count = 0;
  /** Those of channels that were let go of. */
  former = 0;
  /** Loans that wait to be given back. */
  backCount = 0;
  private readonly heads: Int32Array;
  private readonly next: Int32Array;
  /** With a sign, as they come to `release`: no number of them is an object of the heap. */
  private readonly lo: Int32Array;
  private readonly hi: Int32Array;
  private readonly buffers: Uint32Array;
  /** The channel by which a loan came: the number of those before it. */
  private readonly terms: Uint32Array;
  private term = 0;
  private readonly mask: number;
  private free = 0;
  /** Buffer, lo, hi of each. */
  private readonly back: Uint32Array;

  constructor(capacity: number) {
    const buckets = 2 ** Math.ceil(Math.log2(capacity * 2));
    this.mask = buckets - 1;
    this.heads = new Int32Array(buckets).fill(EMPTY);
    this.next = new Int32Array(capacity);
    for (let i = 0; i < capacity; i++) this.next[i] = i + 1 < capacity ? i + 1 : EMPTY;
    this.lo = new Int32Array(capacity);
    this.hi = new Int32Array(capacity);
    this.buffers = new Uint32Array(capacity);
    this.terms = new Uint32Array(capacity);
    this.back = new Uint32Array(capacity * 3);
  }

  // hot:begin

  /** Enters a loan; there must be room. `buffer` is the server's number of it. */
  add(lo: number, hi: number, buffer: number): void {
    const entry = this.free;
    const bucket = this.bucketOf(lo);
    this.free = this.next[entry]!;
    this.lo[entry] = lo;
    this.hi[entry] = hi;
    this.buffers[entry] = buffer;
    this.terms[entry] = this.term;
    this.next[entry] = this.heads[bucket]!;
    this.heads[bucket] = entry;
    this.count++;
  }

  /**
   * Takes a loan, by its words with a sign, out of the book, to be given back if its channel is
   * still in use. False: it is in no book.
   */
  release(lo: number, hi: number): boolean {
    const entry = this.take(lo, hi);
    if (entry === EMPTY) return false;
    if (this.terms[entry] !== this.term) {
      this.former--;
      return true;
    }
    const at = this.backCount++ * 3;
    this.back[at] = this.buffers[entry]!;
    this.back[at + 1] = lo;
    this.back[at + 2] = hi;
    return true;
  }

  /** Gives loans back, as far as the ring has room. */
  sendBack(channel: RecordChannel): void {
    const { back } = this;
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

  /** Unlinks an entry; its words stay until the next `add`. */
  private take(lo: number, hi: number): number {
    const bucket = this.bucketOf(lo);
    let before = EMPTY;
    for (let entry = this.heads[bucket]!; entry !== EMPTY; entry = this.next[entry]!) {
      if (this.lo[entry] !== lo || this.hi[entry] !== hi) {
        before = entry;
        continue;
      }
      if (before === EMPTY) this.heads[bucket] = this.next[entry]!;
      else this.next[before] = this.next[entry]!;
      this.next[entry] = this.free;
      this.free = entry;
      this.count--;
      return entry;
    }
    return EMPTY;
  }

  private bucketOf(lo: number): number {
    // Buffers start at multiples of 512 bytes.
    return (Math.imul(lo >>> 9, 0x9e3779b1) >>> 12) & this.mask;
  }

  // hot:end

  /** The channel is let go of: loans that came by it are nobody's but ours. */
  leave(): void {
    this.term = (this.term + 1) >>> 0;
    this.former = this.count;
    this.backCount = 0;
  }

  /** Calls `visit` with each loan, which may release it. */
  forEach(visit: (lo: number, hi: number) => void): void {
    for (const head of this.heads) {
      for (let entry = head; entry !== EMPTY;) {
        const next = this.next[entry]!;
        visit(this.lo[entry]!, this.hi[entry]!);
        entry = next;
      }
    }
  }
}
