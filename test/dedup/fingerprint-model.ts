// What the fingerprint index must answer, in plain arrays: buckets of eight entries, newest first.

export type Fingerprint = readonly [number, number, number, number];

interface Entry {
  readonly tag: number;
  readonly block: number;
}

const BUCKET_ENTRIES = 8;
const BLOCKS_MAX = 4;

export class FingerprintModel {
  evictions = 0;
  private readonly buckets: Entry[][];

  constructor(
    bucketCount: number,
    public rate: number,
  ) {
    this.buckets = Array.from({ length: bucketCount }, () => []);
  }

  get entries(): number {
    return this.buckets.reduce((sum, bucket) => sum + bucket.length, 0);
  }

  probe(fingerprint: Fingerprint): number[] {
    if (!this.samples(fingerprint)) return [];
    const tag = fingerprint[0] >>> 4;
    const entries = this.bucketsOf(fingerprint).flat();
    return entries.filter((entry) => entry.tag === tag).map((entry) => entry.block);
  }

  insert(fingerprint: Fingerprint, block: number): void {
    if (!this.samples(fingerprint)) return;
    this.remove(fingerprint, block);
    const tag = fingerprint[0] >>> 4;
    const [first, second] = this.bucketsOf(fingerprint);
    const holder = [first, second].find((bucket) => bucket.some((entry) => entry.tag === tag));
    const bucket = holder ?? (second.length < first.length ? second : first);
    const same = bucket.filter((entry) => entry.tag === tag);
    if (same.length === BLOCKS_MAX) bucket.splice(bucket.indexOf(same[BLOCKS_MAX - 1]!), 1);
    bucket.unshift({ tag, block });
    if (bucket.length <= BUCKET_ENTRIES) return;
    bucket.pop();
    this.evictions++;
  }

  /** How many there were: 0 or 1. */
  remove(fingerprint: Fingerprint, block: number): number {
    const tag = fingerprint[0] >>> 4;
    for (const bucket of this.bucketsOf(fingerprint)) {
      const at = bucket.findIndex((entry) => entry.tag === tag && entry.block === block);
      if (at < 0) continue;
      bucket.splice(at, 1);
      return 1;
    }
    return 0;
  }

  /** Drops what the rate leaves out of the buckets from `from` up to `end`. */
  sweep(from: number, end: number): void {
    for (let i = from; i < end; i++) {
      this.buckets[i] = this.buckets[i]!.filter((entry) => entry.tag % this.rate === 0);
    }
  }

  private samples(fingerprint: Fingerprint): boolean {
    return (fingerprint[0] >>> 4) % this.rate === 0;
  }

  /** The second bucket's way from the first is the one thing that is taken over as it is. */
  private bucketsOf(fingerprint: Fingerprint): [Entry[], Entry[]] {
    const product = Math.imul(fingerprint[0] >>> 4, 0x9e3779b1) >>> 0;
    const step = Math.floor(product / 2 ** 26) | 1;
    const count = this.buckets.length;
    // Pages of 64 buckets, where they are not a power of two: word 1 is a part of them all.
    const isPower = Number.isInteger(Math.log2(count));
    const first = isPower ? fingerprint[1] % count : Math.floor((fingerprint[1] * count) / 2 ** 32);
    const way = isPower ? step % count : step;
    return [this.buckets[first]!, this.buckets[first ^ way]!];
  }
}
