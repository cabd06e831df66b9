// Ledger: who holds which of this domain's buffers. The owner's book; it alone writes it.
//
// A hold has a buffer (its loan words: address, and generation in the upper 20 bits of the high
// word), the domain that holds it, and the domain that it came from (`via`: the owner itself, or
// who passed it on). A domain that got a buffer in two ways has two holds. Holds of one key are
// counted.
//
// Invariants
// 1. A buffer goes back to its pool when its last hold goes, and only then.
// 2. Nothing that is not in the book can be taken from it: a release of what is not held changes
//    nothing.
// 3. Nothing here allocates in the steady state: entries are numbers in typed arrays, which double
//    when they are full.

const BUCKETS = 1 << 14;
const NONE = -1;

/** What holders have of this domain's memory. */
export interface HoldSummary {
  readonly consumer: number;
  readonly holds: number;
  readonly bytes: number;
  /** Age of the oldest, in milliseconds. */
  readonly oldestMs: number;
}

/** One hold, for those who ask a consumer what it has. */
export interface Hold {
  readonly lo: number;
  readonly hi: number;
  readonly consumer: number;
  readonly via: number;
  readonly count: number;
}

export class Ledger {
  private readonly heads = new Int32Array(BUCKETS).fill(NONE);
  private next = new Int32Array(1024);
  private lo = new Uint32Array(1024);
  private hi = new Uint32Array(1024);
  private bytes = new Uint32Array(1024);
  /** Consumer | via << 8. */
  private who = new Uint16Array(1024);
  private count = new Uint32Array(1024);
  private since = new Float64Array(1024);
  private freeHead = NONE;
  private used = 0;
  private total = 0;
  private readonly perConsumer = new Uint32Array(256);
  private readonly onFree: (lo: number, hi: number) => void;
  /** Milliseconds, set by whoever calls now and then: a clock per hold would cost more than it. */
  now = 0;

  /** `onFree` gets the loan words of a buffer whose last hold went. */
  constructor(onFree: (lo: number, hi: number) => void) {
    this.onFree = onFree;
  }

  /** Holds that are out. */
  get holds(): number {
    return this.total;
  }

  holdsOf(consumer: number): number {
    return this.perConsumer[consumer]!;
  }

  add(lo: number, hi: number, bytes: number, consumer: number, via: number): void {
    const who = consumer | (via << 8);
    const known = this.find(lo, hi, who);
    this.total++;
    this.perConsumer[consumer] = this.perConsumer[consumer]! + 1;
    if (known !== NONE) {
      this.count[known] = this.count[known]! + 1;
      return;
    }
    const entry = this.take();
    const bucket = bucketOf(lo, hi);
    this.lo[entry] = lo;
    this.hi[entry] = hi;
    this.bytes[entry] = bytes;
    this.who[entry] = who;
    this.count[entry] = 1;
    this.since[entry] = this.now;
    this.next[entry] = this.heads[bucket]!;
    this.heads[bucket] = entry;
  }

  /** Holds of one kind. */
  countOf(lo: number, hi: number, consumer: number, via: number): number {
    const entry = this.find(lo, hi, consumer | (via << 8));
    return entry === NONE ? 0 : this.count[entry]!;
  }

  /** Bytes that were lent; 0 when it is not held so. */
  bytesOf(lo: number, hi: number, consumer: number, via: number): number {
    const entry = this.find(lo, hi, consumer | (via << 8));
    return entry === NONE ? 0 : this.bytes[entry]!;
  }

  /** Ends one hold; false when there is none of that kind. */
  release(lo: number, hi: number, consumer: number, via: number): boolean {
    const entry = this.find(lo, hi, consumer | (via << 8));
    if (entry === NONE) return false;
    this.drop(entry, 1);
    return true;
  }

  /** The hold of `from` becomes one of `to`, which has it by `from`; false when there is none. */
  transfer(lo: number, hi: number, from: number, via: number, to: number): boolean {
    const entry = this.find(lo, hi, from | (via << 8));
    if (entry === NONE) return false;
    // The new one first: the buffer must not look free in between.
    this.add(lo, hi, this.bytes[entry]!, to, from);
    this.drop(entry, 1);
    return true;
  }

  /** Holds that `match` chooses become at most `limit` each. */
  limit(hold: Hold, limit: number): void {
    const entry = this.find(hold.lo, hold.hi, hold.consumer | (hold.via << 8));
    if (entry !== NONE && this.count[entry]! > limit) this.drop(entry, this.count[entry]! - limit);
  }

  /** Ends all that a domain holds: it is gone. */
  dropConsumer(consumer: number): void {
    for (const entry of this.entries()) {
      if ((this.who[entry]! & 0xff) === consumer) this.drop(entry, this.count[entry]!);
    }
  }

  /** Holds that others have by the word of `via`. */
  heldVia(via: number): Hold[] {
    return this.list().filter((hold) => hold.via === via);
  }

  /** Holds that a domain has. */
  heldBy(consumer: number): Hold[] {
    return this.holdsOf(consumer) === 0
      ? []
      : this.list().filter((hold) => hold.consumer === consumer);
  }

  private list(): Hold[] {
    return this.entries().map((entry) => ({
      lo: this.lo[entry]!,
      hi: this.hi[entry]!,
      consumer: this.who[entry]! & 0xff,
      via: this.who[entry]! >>> 8,
      count: this.count[entry]!,
    }));
  }

  summary(): HoldSummary[] {
    const byConsumer = new Map<number, { holds: number; bytes: number; since: number }>();
    for (const entry of this.entries()) {
      const consumer = this.who[entry]! & 0xff;
      const sum = byConsumer.get(consumer) ?? { holds: 0, bytes: 0, since: Infinity };
      sum.holds += this.count[entry]!;
      sum.bytes += this.bytes[entry]!;
      sum.since = Math.min(sum.since, this.since[entry]!);
      byConsumer.set(consumer, sum);
    }
    return [...byConsumer].map(([consumer, { holds, bytes, since }]) => ({
      consumer,
      holds,
      bytes,
      oldestMs: Math.max(0, Math.round(this.now - since)),
    }));
  }

  private entries(): number[] {
    const found: number[] = [];
    for (const head of this.heads) {
      for (let entry = head; entry !== NONE; entry = this.next[entry]!) found.push(entry);
    }
    return found;
  }

  private find(lo: number, hi: number, who: number): number {
    let entry = this.heads[bucketOf(lo, hi)]!;
    while (entry !== NONE) {
      if (this.lo[entry] === lo && this.hi[entry] === hi && this.who[entry] === who) return entry;
      entry = this.next[entry]!;
    }
    return NONE;
  }

  private drop(entry: number, count: number): void {
    const consumer = this.who[entry]! & 0xff;
    this.total -= count;
    this.perConsumer[consumer] = this.perConsumer[consumer]! - count;
    this.count[entry] = this.count[entry]! - count;
    if (this.count[entry]! > 0) return;
    const lo = this.lo[entry]!;
    const hi = this.hi[entry]!;
    const bucket = bucketOf(lo, hi);
    let held = false;
    let previous = NONE;
    for (let at = this.heads[bucket]!; at !== NONE; at = this.next[at]!) {
      if (at === entry) continue;
      if (this.next[at] === entry) previous = at;
      if (this.lo[at] === lo && this.hi[at] === hi) held = true;
    }
    if (previous === NONE) this.heads[bucket] = this.next[entry]!;
    else this.next[previous] = this.next[entry]!;
    this.next[entry] = this.freeHead;
    this.freeHead = entry;
    if (!held) this.onFree(lo, hi);
  }

  private take(): number {
    if (this.freeHead !== NONE) {
      const entry = this.freeHead;
      this.freeHead = this.next[entry]!;
      return entry;
    }
    if (this.used === this.next.length) this.grow();
    return this.used++;
  }

  private grow(): void {
    const wider = <T extends { length: number; set(from: T): void }>(
      old: T,
      make: new (length: number) => T,
    ): T => {
      const fresh = new make(old.length * 2);
      fresh.set(old);
      return fresh;
    };
    this.next = wider(this.next, Int32Array);
    this.lo = wider(this.lo, Uint32Array);
    this.hi = wider(this.hi, Uint32Array);
    this.bytes = wider(this.bytes, Uint32Array);
    this.who = wider(this.who, Uint16Array);
    this.count = wider(this.count, Uint32Array);
    this.since = wider(this.since, Float64Array);
  }
}

function bucketOf(lo: number, hi: number): number {
  // Buffers start at multiples of 512 bytes.
  const mixed = Math.imul((lo >>> 9) ^ Math.imul(hi & 0xfff, 0x85ebca6b), 0x9e3779b1);
  return (mixed >>> 16) & (BUCKETS - 1);
}
