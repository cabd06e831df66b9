// A log-linear latency histogram: 64 buckets in every power of two, so that a bucket is at most
// 1/64 (1.6 %) of its value wide. Values are integer nanoseconds from 0 to 2^46 (19 hours); larger
// ones count as the largest.
//
// Invariants: values below 128 have a bucket of their own; bucket order is value order; merging is
// exact for counts, minimum and maximum. Counts and sums are doubles in typed arrays: exact to
// 2^53, and a store allocates nothing.

import type { LatencySummary } from './types.js';

const SUB_BITS = 6;
const SUB_BUCKETS = 1 << SUB_BITS;
const VALUE_BITS = 46;
const BUCKETS = (VALUE_BITS - SUB_BITS + 1) * SUB_BUCKETS;
const LARGEST = 2 ** VALUE_BITS - 1;
const TWO31 = 2 ** 31;
/** Larger values are shifted right by this many bits before the 32-bit bucket arithmetic. */
const HIGH_SHIFT = 20;

/** Words of `stats`. */
const enum Stat {
  count = 0,
  sum = 1,
  squares = 2,
  min = 3,
  max = 4,
  words = 5,
}

/** fio's percentile list. */
export const PERCENTILES: readonly number[] = [
  1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99,
];

/** What crosses from a worker to the main thread. */
export interface HistogramState {
  readonly counts: Float64Array;
  readonly stats: Float64Array;
}

/** Index of the bucket that holds `ns`. */
export function bucketOf(ns: number): number {
  if (ns < TWO31) {
    const value = ns | 0;
    if (value < SUB_BUCKETS) return value < 0 ? 0 : value;
    const shift = 31 - SUB_BITS - Math.clz32(value);
    return (shift << SUB_BITS) + (value >>> shift);
  }
  const clamped = ns > LARGEST ? LARGEST : ns;
  const value = Math.floor(clamped / (1 << HIGH_SHIFT)) | 0;
  const shift = 31 - SUB_BITS - Math.clz32(value);
  return ((shift + HIGH_SHIFT) << SUB_BITS) + (value >>> shift);
}

/** Smallest and largest integer that bucket `index` holds. */
export function bucketBounds(index: number): [number, number] {
  if (index < 2 * SUB_BUCKETS) return [index, index];
  const shift = (index >> SUB_BITS) - 1;
  const low = (index - (shift << SUB_BITS)) * 2 ** shift;
  return [low, low + 2 ** shift - 1];
}

export class Histogram {
  readonly counts: Float64Array;
  readonly stats: Float64Array;

  constructor(state?: HistogramState) {
    this.counts = state?.counts ?? new Float64Array(BUCKETS);
    this.stats = state?.stats ?? new Float64Array(Stat.words);
    if (state === undefined) this.clear();
  }

  get count(): number {
    return this.stats[Stat.count]!;
  }

  /** Counts `times` operations of `ns` nanoseconds (a non-negative integer). */
  record(ns: number, times: number): void {
    const stats = this.stats;
    const counts = this.counts;
    const bucket = bucketOf(ns);
    counts[bucket] = counts[bucket]! + times;
    stats[Stat.count] = stats[Stat.count]! + times;
    stats[Stat.sum] = stats[Stat.sum]! + ns * times;
    stats[Stat.squares] = stats[Stat.squares]! + ns * ns * times;
    // No branches: one that is first taken in mid-run would make V8 compile this again.
    stats[Stat.min] = Math.min(stats[Stat.min]!, ns);
    stats[Stat.max] = Math.max(stats[Stat.max]!, ns);
  }

  clear(): void {
    this.counts.fill(0);
    this.stats.fill(0);
    this.stats[Stat.min] = Infinity;
  }

  /** Adds what another histogram counted. */
  merge(other: HistogramState): void {
    const theirs = other.stats;
    for (let i = 0; i < BUCKETS; i++) this.counts[i] = this.counts[i]! + other.counts[i]!;
    const ours = this.stats;
    for (const word of [Stat.count, Stat.sum, Stat.squares]) {
      ours[word] = ours[word]! + theirs[word]!;
    }
    ours[Stat.min] = Math.min(ours[Stat.min]!, theirs[Stat.min]!);
    ours[Stat.max] = Math.max(ours[Stat.max]!, theirs[Stat.max]!);
  }

  /** Arithmetic mean in nanoseconds; 0 when empty. */
  mean(): number {
    const count = this.count;
    return count === 0 ? 0 : this.stats[Stat.sum]! / count;
  }

  /** Standard deviation of the sample (divisor n - 1). */
  deviation(): number {
    const count = this.count;
    if (count < 2) return 0;
    const sum = this.stats[Stat.sum]!;
    const squares = this.stats[Stat.squares]! - (sum * sum) / count;
    return Math.sqrt(Math.max(0, squares) / (count - 1));
  }

  /**
   * The latency that `percent` of the operations did not exceed: the value of rank ceil(percent ·
   * count), to its bucket's middle, never outside minimum and maximum.
   */
  percentile(percent: number): number {
    const count = this.count;
    if (count === 0) return 0;
    const rank = Math.max(1, Math.ceil((percent / 100) * count));
    if (rank >= count) return this.stats[Stat.max]!;
    let seen = 0;
    let index = 0;
    for (; index < BUCKETS; index++) {
      seen += this.counts[index]!;
      if (seen >= rank) break;
    }
    const [low, high] = bucketBounds(index);
    const middle = Math.floor((low + high) / 2);
    return Math.min(this.stats[Stat.max]!, Math.max(this.stats[Stat.min]!, middle));
  }

  summary(): LatencySummary {
    const percentile: Record<string, number> = {};
    for (const percent of PERCENTILES) percentile[percent.toFixed(6)] = this.percentile(percent);
    return {
      min: this.count === 0 ? 0 : this.stats[Stat.min]!,
      max: this.stats[Stat.max]!,
      mean: this.mean(),
      stddev: this.deviation(),
      percentile,
    };
  }

  /** The non-empty buckets, ascending: [largest value of the bucket, count]. */
  buckets(): [number, number][] {
    const list: [number, number][] = [];
    for (let i = 0; i < BUCKETS; i++) {
      const count = this.counts[i]!;
      if (count > 0) list.push([bucketBounds(i)[1], count]);
    }
    return list;
  }
}
