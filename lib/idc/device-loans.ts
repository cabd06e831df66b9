// LoanBook: the loans that one queue has of a device's server, by their words.
//
// Invariant: a loan is in the book from its completion until it is released; what is not in the
// book is no loan, whatever its words say.

const EMPTY = -1;

export class LoanBook {
  /** Loans that are out. */
  count = 0;
  private readonly heads: Int32Array;
  private readonly next: Int32Array;
  private readonly lo: Uint32Array;
  private readonly hi: Uint32Array;
  private readonly buffers: Uint32Array;
  private readonly mask: number;
  private free = 0;

  constructor(capacity: number) {
    const buckets = 2 ** Math.ceil(Math.log2(capacity * 2));
    this.mask = buckets - 1;
    this.heads = new Int32Array(buckets).fill(EMPTY);
    this.next = new Int32Array(capacity);
    for (let i = 0; i < capacity; i++) this.next[i] = i + 1 < capacity ? i + 1 : EMPTY;
    this.lo = new Uint32Array(capacity);
    this.hi = new Uint32Array(capacity);
    this.buffers = new Uint32Array(capacity);
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
    this.next[entry] = this.heads[bucket]!;
    this.heads[bucket] = entry;
    this.count++;
  }

  /** Takes a loan out of the book; gives the server's number of it, or -1: it is not in it. */
  take(lo: number, hi: number): number {
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
      return this.buffers[entry]!;
    }
    return EMPTY;
  }

  private bucketOf(lo: number): number {
    // Buffers start at multiples of 512 bytes.
    return (Math.imul(lo >>> 9, 0x9e3779b1) >>> 12) & this.mask;
  }

  // hot:end

  /** Calls `visit` with each loan. */
  forEach(visit: (lo: number, hi: number, buffer: number) => void): void {
    for (const head of this.heads) {
      for (let entry = head; entry !== EMPTY; entry = this.next[entry]!) {
        visit(this.lo[entry]!, this.hi[entry]!, this.buffers[entry]!);
      }
    }
  }
}
