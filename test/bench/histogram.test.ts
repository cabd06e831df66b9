import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { bucketBounds, bucketOf, Histogram, PERCENTILES } from '../../lib/bench/histogram.js';

const latency = fc.oneof(
  fc.integer({ min: 0, max: 5000 }),
  fc.integer({ min: 0, max: 2 ** 31 + 10 }),
  fc.integer({ min: 0, max: 2 ** 45 }),
);
const latencies = fc.array(latency, { minLength: 1, maxLength: 300 });

function recorded(values: readonly number[]): Histogram {
  const histogram = new Histogram();
  for (const value of values) histogram.record(value, 1);
  return histogram;
}

describe('latency buckets', () => {
  it('hold the value they are chosen for, and are at most 1/64 of it wide', () => {
    fc.assert(
      fc.property(latency, (value) => {
        const [low, high] = bucketBounds(bucketOf(value));
        expect(low).toBeLessThanOrEqual(value);
        expect(high).toBeGreaterThanOrEqual(value);
        expect(high - low).toBeLessThanOrEqual(value / 64);
      }),
    );
  });

  it('follow each other without gap or overlap', () => {
    for (let index = 1; index < 2624; index++) {
      expect(bucketBounds(index)[0]).toBe(bucketBounds(index - 1)[1] + 1);
    }
  });

  it('agree where 32-bit arithmetic ends', () => {
    for (const value of [2 ** 31 - 1, 2 ** 31, 2 ** 31 + 1, 2 ** 32, 2 ** 46 - 1]) {
      const [low, high] = bucketBounds(bucketOf(value));
      expect(low <= value && value <= high).toBe(true);
    }
    expect(bucketOf(2 ** 60)).toBe(2623);
  });
});

describe('Histogram', () => {
  it('gives percentiles within 1.6 % of exact sorting', () => {
    fc.assert(
      fc.property(latencies, (values) => {
        const histogram = recorded(values);
        const sorted = [...values].sort((a, b) => a - b);
        for (const percent of PERCENTILES) {
          const rank = Math.max(1, Math.ceil((percent / 100) * sorted.length));
          const exact = sorted[rank - 1]!;
          expect(Math.abs(histogram.percentile(percent) - exact)).toBeLessThanOrEqual(exact / 64);
        }
      }),
    );
  });

  it('gives exact minimum, maximum and mean, and the deviation', () => {
    fc.assert(
      fc.property(latencies, (values) => {
        const { min, max, mean, stddev } = recorded(values).summary();
        const exactMean = values.reduce((sum, value) => sum + value, 0) / values.length;
        const squares = values.reduce((sum, value) => sum + (value - exactMean) ** 2, 0);
        const exact = values.length < 2 ? 0 : Math.sqrt(squares / (values.length - 1));
        expect(min).toBe(Math.min(...values));
        expect(max).toBe(Math.max(...values));
        expect(mean).toBeCloseTo(exactMean, 0);
        expect(Math.abs(stddev - exact)).toBeLessThanOrEqual(exact * 1e-4 + 1e-6 * max + 1e-6);
      }),
    );
  });

  it('merges to what one histogram would have counted', () => {
    fc.assert(
      fc.property(latencies, latencies, (a, b) => {
        const merged = recorded(a);
        merged.merge(recorded(b));
        const whole = recorded([...a, ...b]);
        expect([...merged.counts]).toEqual([...whole.counts]);
        const { mean, stddev, ...rest } = merged.summary();
        const expected = whole.summary();
        expect(rest).toEqual({
          min: expected.min,
          max: expected.max,
          percentile: expected.percentile,
        });
        expect(mean).toBeCloseTo(expected.mean, 0);
        expect(Math.abs(stddev - expected.stddev)).toBeLessThanOrEqual(expected.max * 1e-5 + 1e-6);
      }),
    );
  });

  it('counts a run of equal latencies as that many operations', () => {
    const runs = new Histogram();
    runs.record(700, 3);
    runs.record(90, 2);
    expect(runs.summary()).toEqual(recorded([700, 700, 700, 90, 90]).summary());
    expect(runs.buckets()).toEqual([
      [90, 2],
      [703, 3],
    ]);
  });

  it('is empty after clear, and an empty one is all zeroes', () => {
    const histogram = recorded([5, 6]);
    histogram.clear();
    expect(histogram.count).toBe(0);
    expect(histogram.buckets()).toEqual([]);
    expect(histogram.summary()).toEqual(new Histogram().summary());
    expect(histogram.summary().percentile['99.500000']).toBe(0);
  });
});
