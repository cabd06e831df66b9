// Latency: how long something took, in log-linear buckets: 32 for every power of two, so that a
// bucket is at most 3 % of its value wide.
//
// Invariant: nothing here allocates, a number on the heap included.

import { ticksMs } from './ticks.js';

const SUB_BITS = 5;
const SUB_BUCKETS = 1 << SUB_BITS;
const BUCKETS = (31 - SUB_BITS + 1) * SUB_BUCKETS;
/** Ticks of a unit: the greatest value is then some ten seconds. */
export const UNIT_TICKS = 16;
export const UNITS_MAX = 0x7fffffff;

const enum Sum {
  count = 0,
  units = 1,
  most = 2,
  words = 3,
}

export interface LatencyStats {
  readonly count: number;
  readonly mean_us: number;
  readonly p50_us: number;
  readonly p99_us: number;
  readonly max_us: number;
}

export class Latency {
  private readonly counts = new Float64Array(BUCKETS);
  private readonly sums = new Float64Array(Sum.words);

  // hot:begin

  /** Counts one that took `units` of UNIT_TICKS, from 0 to UNITS_MAX. */
  record(units: number): void {
    const { counts, sums } = this;
    const bucket = bucketOf(units);
    counts[bucket] = counts[bucket]! + 1;
    sums[Sum.count] = sums[Sum.count]! + 1;
    sums[Sum.units] = sums[Sum.units]! + units;
    sums[Sum.most] = Math.max(sums[Sum.most]!, units);
  }

  // hot:end

  stats(): LatencyStats {
    const { sums } = this;
    const count = sums[Sum.count]!;
    return {
      count,
      mean_us: microseconds(count === 0 ? 0 : sums[Sum.units]! / count),
      p50_us: microseconds(this.quantile(0.5)),
      p99_us: microseconds(this.quantile(0.99)),
      max_us: microseconds(sums[Sum.most]!),
    };
  }

  /** What so much of them did not exceed: the middle of a bucket, and never above the greatest. */
  private quantile(part: number): number {
    const { counts, sums } = this;
    const rank = Math.ceil(part * sums[Sum.count]!);
    for (let bucket = 0, seen = 0; bucket < BUCKETS; bucket++) {
      seen += counts[bucket]!;
      if (seen >= rank && seen > 0) return Math.min(sums[Sum.most]!, middleOf(bucket));
    }
    return 0;
  }
}

export function bucketOf(units: number): number {
  if (units < SUB_BUCKETS) return units;
  const shift = 31 - SUB_BITS - Math.clz32(units);
  return (shift << SUB_BITS) + (units >>> shift);
}

export function middleOf(bucket: number): number {
  if (bucket < 2 * SUB_BUCKETS) return bucket;
  const shift = (bucket >> SUB_BITS) - 1;
  return (bucket - (shift << SUB_BITS) + 0.5) * 2 ** shift;
}

function microseconds(units: number): number {
  return Math.round(ticksMs(units * UNIT_TICKS) * 1e5) / 100;
}
