// The two ends of a ring of records in shared memory: a writer and a reader, one of each.
//
// Invariants
// 1. The writer never overwrites a record that was not read: it grants slots only as far as the
//    reader's index says that they are free, and believes that index only within [0, size] of its
//    own. Anything else is `broken`.
// 2. The reader takes nothing from the ring but copies: a record is copied to private memory, and
//    what it says is judged by the copy.
// 3. Indices run free in 32 bits. A size is a power of two, so the lap bit goes on over the wrap.
// 4. Nothing here allocates, and only `submit` touches the other side's header.

import { fence } from '../wire/index.js';
import { Half, Rec } from './layout.js';

const LAP = 0x8000_0000;
const WORD = 0x7fff_ffff;

/** The end that sends. `half` is its own header, `peer` the header of the side that reads. */
export class RingWriter {
  readonly size: number;
  readonly mask: number;
  /** Records to be sent, private until `submit`: record i lies at word (i & mask) * 8. */
  readonly sq: Uint32Array;
  /** Index of the next free record. */
  tail = 0;
  /** Index of the first record not sent yet. */
  head = 0;
  /** The reader's index is impossible. */
  broken = false;
  private readonly ring: Uint32Array;
  private readonly half: Uint32Array;
  private peer: Uint32Array;
  private readonly shift: number;
  private consumed = 0;
  private woken = 0;

  constructor(ring: Uint32Array, half: Uint32Array, peer: Uint32Array) {
    this.size = ring.length / Rec.words;
    this.mask = this.size - 1;
    this.shift = Math.log2(this.size);
    this.ring = ring;
    this.half = half;
    this.peer = peer;
    this.sq = new Uint32Array(ring.length);
    // Zeros in a fresh half; where another end of this half stopped, this one goes on. Nothing is
    // granted before the reader's index has been looked at.
    this.head = this.tail = half[Half.sent]! | 0;
    this.consumed = (this.tail - this.size) | 0;
  }

  // hot:begin

  /** Grants up to `n` records from `tail` on; 0 is back-pressure. */
  reserve(n: number): number {
    let free = this.size - ((this.tail - this.consumed) | 0);
    if (free < n) free = this.refresh();
    const granted = n < free ? n : free;
    this.tail = (this.tail + granted) | 0;
    return granted;
  }

  /** Records that `reserve` would grant, when `n` are wanted. */
  room(n: number): number {
    const free = this.size - ((this.tail - this.consumed) | 0);
    return free < n ? this.refresh() : free;
  }

  /**
   * Publishes what was granted. True: the reader sleeps and was not woken from this sleep yet; the
   * caller wakes it.
   */
  submit(): boolean {
    const { ring, sq, mask, shift, tail } = this;
    const first = this.head;
    if (first === tail) return false;
    for (let i = first; i !== tail; i = (i + 1) | 0) {
      const at = (i & mask) << Rec.shift;
      ring[at + 1] = sq[at + 1]!;
      ring[at + 2] = sq[at + 2]!;
      ring[at + 3] = sq[at + 3]!;
      ring[at + 4] = sq[at + 4]!;
      ring[at + 5] = sq[at + 5]!;
      ring[at + 6] = sq[at + 6]!;
      ring[at + 7] = sq[at + 7]!;
      if (i !== first) ring[at] = (sq[at]! & WORD) | (((i >>> shift) & 1) === 0 ? LAP : 0);
    }
    // Published last: x86 keeps the stores in order, so whoever sees this word sees the batch. A
    // reader that spins on it takes no cache line from under the stores to the others.
    const at = (first & mask) << Rec.shift;
    ring[at] = (sq[at]! & WORD) | (((first >>> shift) & 1) === 0 ? LAP : 0);
    this.head = tail;
    this.half[Half.sent] = tail;
    // Before the look at the reader's word: it arms, fences and then looks at the ring again.
    fence();
    const sleep = this.peer[Half.sleeping]!;
    if (sleep === 0 || sleep === this.woken) return false;
    this.woken = sleep;
    return true;
  }

  /** Looks at the reader's index anew; returns the free records. */
  refresh(): number {
    const consumed = this.peer[Half.consumed]! | 0;
    const used = (this.tail - consumed) | 0;
    // It may not go back either, nor pass what was sent.
    const ahead = (this.head - consumed) | 0;
    if (used < 0 || used > this.size || ahead < 0 || ((consumed - this.consumed) | 0) < 0) {
      this.broken = true;
      return 0;
    }
    this.consumed = consumed;
    return this.size - used;
  }

  // hot:end

  /** Goes on with a copy of the reader's header as it is now. */
  detach(peer: Uint32Array): void {
    this.peer = peer;
  }

  /** Records that can be granted. */
  get free(): number {
    const free = this.size - ((this.tail - this.consumed) | 0);
    return free > 0 ? free : this.refresh();
  }

  /** Records that the reader has not taken yet, as far as it has told. */
  get unread(): number {
    this.refresh();
    return (this.head - this.consumed) | 0;
  }
}

/** The end that receives. `ring` is the other side's, `half` the own header. */
export class RingReader {
  readonly size: number;
  /** Received records, private: record i of the last poll lies at word i * 8. */
  readonly rq: Uint32Array;
  private ring: Uint32Array;
  private half: Uint32Array;
  private readonly mask: number;
  private readonly shift: number;
  /** Index of the next record. */
  head = 0;
  private sleeps = 0;

  constructor(ring: Uint32Array, half: Uint32Array) {
    this.size = ring.length / Rec.words;
    this.mask = this.size - 1;
    this.shift = Math.log2(this.size);
    this.ring = ring;
    this.half = half;
    this.rq = new Uint32Array(ring.length);
    this.head = half[Half.consumed]! | 0;
    this.sleeps = half[Half.sleeps]!;
  }

  // hot:begin

  /** Copies up to `max` records to `rq` and returns how many. */
  poll(max: number): number {
    const { ring, rq, mask, shift } = this;
    const most = max < this.size ? max : this.size;
    let head = this.head;
    let to = 0;
    const end = most << Rec.shift;
    while (to < end) {
      const at = (head & mask) << Rec.shift;
      const word = ring[at]!;
      if ((((head >>> shift) ^ (word >>> 31)) & 1) === 0) break;
      rq[to] = word & WORD;
      rq[to + 1] = ring[at + 1]!;
      rq[to + 2] = ring[at + 2]!;
      rq[to + 3] = ring[at + 3]!;
      rq[to + 4] = ring[at + 4]!;
      rq[to + 5] = ring[at + 5]!;
      rq[to + 6] = ring[at + 6]!;
      rq[to + 7] = ring[at + 7]!;
      to += Rec.words;
      head = (head + 1) | 0;
    }
    if (to !== 0) {
      this.head = head;
      // After the copies: the writer may overwrite the records from now on.
      this.half[Half.consumed] = head;
    }
    return to >>> Rec.shift;
  }

  /** Whether a record is there. */
  get ready(): boolean {
    const word = this.ring[(this.head & this.mask) << Rec.shift]!;
    return (((this.head >>> this.shift) ^ (word >>> 31)) & 1) !== 0;
  }

  // hot:end

  /** Says that this side is about to sleep; false: a record came meanwhile, it is awake again. */
  arm(): boolean {
    this.sleeps = (this.sleeps + 1) & WORD || 1;
    this.half[Half.sleeps] = this.sleeps;
    this.half[Half.sleeping] = this.sleeps;
    fence();
    if (!this.ready) return true;
    this.disarm();
    return false;
  }

  disarm(): void {
    this.half[Half.sleeping] = 0;
    this.half[Half.received] = this.head;
  }

  /** Goes on reading from a copy of the ring as it is now. */
  detach(): void {
    this.ring = this.ring.slice();
  }

  /** Writes to the half no more: it may be somebody else's memory soon. */
  letGo(): void {
    this.half = new Uint32Array(Half.words);
  }
}
