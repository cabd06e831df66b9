import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PenstockError } from '../../lib/errors.js';
import {
  parseDistribution,
  randomChooser,
  Scatter,
  Shuffled,
  zeta,
} from '../../lib/bench/distribution.js';
import { Random } from '../../lib/bench/random.js';

const seeds = fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER });

function draw(distribution: string, range: number, count: number, seed = 7): Float64Array {
  const out = new Float64Array(count);
  randomChooser(distribution, range, new Random(seed, 0)).fill(out, count);
  return out;
}

/** How often each unit came, most frequent first. */
function frequencies(units: Float64Array): number[] {
  const counts = new Map<number, number>();
  for (const unit of units) counts.set(unit, (counts.get(unit) ?? 0) + 1);
  return [...counts.values()].sort((a, b) => b - a);
}

describe('Random', () => {
  it('is xoshiro128**: the reference numbers for the state 1, 2, 3, 4', () => {
    const random = new Random(0, 0);
    Object.assign(random, { state: Uint32Array.of(1, 2, 3, 4) });
    const numbers = Array.from({ length: 5 }, () => random.next());
    expect(numbers).toEqual([11520, 0, 5927040, 70819200, 2031721883]);
  });

  it('repeats for a seed and differs between seeds and between workers', () => {
    fc.assert(
      fc.property(seeds, fc.nat(255), (seed, worker) => {
        const numbers = (s: number, w: number): number[] => {
          const random = new Random(s, w);
          return Array.from({ length: 4 }, () => random.next());
        };
        expect(numbers(seed, worker)).toEqual(numbers(seed, worker));
        expect(numbers(seed, worker)).not.toEqual(numbers(seed, worker + 1));
        expect(numbers(seed, worker)).not.toEqual(numbers(seed + (seed > 0 ? -1 : 1), worker));
      }),
    );
  });

  it('stays within any range up to 2^53', () => {
    const range = fc.oneof(
      fc.integer({ min: 1, max: 2 ** 22 }),
      fc.integer({ min: 1, max: 2 ** 53 - 1 }),
    );
    fc.assert(
      fc.property(seeds, range, (seed, size) => {
        const out = new Float64Array(32);
        new Random(seed, 0).fill(out, 32, size);
        for (const value of out) {
          expect(Number.isInteger(value) && value >= 0 && value < size).toBe(true);
        }
      }),
    );
  });

  it.each([3, 1000, 2 ** 21, 2 ** 21 + 1, 3 * 2 ** 40])('is uniform over %d units', (range) => {
    const cells = 16;
    const counts = new Array<number>(cells).fill(0);
    const total = 64_000;
    const out = new Float64Array(total);
    new Random(42, 3).fill(out, total, range);
    for (const value of out) counts[Math.floor((value * cells) / range)]!++;
    let chi = 0;
    for (let cell = 0; cell < cells; cell++) {
      const units = Math.ceil(((cell + 1) * range) / cells) - Math.ceil((cell * range) / cells);
      const expected = (total * units) / range;
      if (expected === 0) expect(counts[cell]).toBe(0);
      else chi += (counts[cell]! - expected) ** 2 / expected;
    }
    // 15 degrees of freedom: 37.7 is exceeded once in a thousand seeds; this one is fixed.
    expect(chi).toBeLessThan(37.7);
  });
});

describe('distributions', () => {
  it('scatter is a bijection of its range', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 3000 }), seeds, (range, key) => {
        const scatter = new Scatter(range, key);
        const seen = new Set<number>();
        for (let i = 0; i < range; i++) seen.add(scatter.at(i));
        expect(seen.size).toBe(range);
        expect(Math.min(...seen)).toBe(0);
        expect(Math.max(...seen)).toBe(range - 1);
      }),
      { numRuns: 40 },
    );
  });

  it('shuffled takes every unit once per pass, not in order', () => {
    const range = 1000;
    const out = new Float64Array(range);
    new Shuffled(range, new Random(1, 1)).fill(out, range);
    expect(new Set(out).size).toBe(range);
    let ascending = 0;
    for (let i = 1; i < range; i++) if (out[i]! === out[i - 1]! + 1) ascending++;
    expect(ascending).toBeLessThan(range / 50);
  });

  it('zipf gives the first two ranks their share', () => {
    const range = 100_000;
    const total = 100_000;
    const [first, second] = frequencies(draw('zipf:1.2', range, total));
    const sum = zeta(range, 1.2);
    expect(first! / total).toBeCloseTo(1 / sum, 2);
    expect(second! / total).toBeCloseTo(0.5 ** 1.2 / sum, 2);
  });

  it('zeta of many terms is the sum it stands for', () => {
    for (const theta of [0.5, 0.99, 1.2]) {
      let sum = 0;
      for (let i = 1; i <= 200_000; i++) sum += i ** -theta;
      expect(zeta(200_000, theta) / sum).toBeCloseTo(1, 9);
    }
  });

  it('pareto:0.2 gives a fifth of the units four fifths of the operations', () => {
    const units = draw('pareto:0.2', 1000, 100_000);
    const top = frequencies(units).slice(0, 200);
    expect(top.reduce((sum, count) => sum + count, 0) / units.length).toBeCloseTo(0.8, 1);
  });

  it('normal:10 is centred, with a tenth of the range as its deviation', () => {
    const range = 10_000;
    const units = [...draw('normal:10', range, 50_000)];
    const mean = units.reduce((sum, unit) => sum + unit, 0) / units.length;
    const squares = units.reduce((sum, unit) => sum + (unit - mean) ** 2, 0);
    expect(mean / range).toBeCloseTo(0.5, 2);
    expect(Math.sqrt(squares / units.length) / range).toBeCloseTo(0.1, 2);
  });

  it('skewed distributions stay within ranges of any size', () => {
    for (const distribution of ['zipf:0.8', 'zipf:1.5', 'pareto:0.3', 'normal:100']) {
      for (const range of [1, 2, 3, 2 ** 31, 2 ** 40]) {
        for (const unit of draw(distribution, range, 500)) {
          expect(Number.isInteger(unit) && unit >= 0 && unit < range).toBe(true);
        }
      }
    }
  });

  it.each(['zipf', 'zipf:1', 'zipf:-1', 'zipf:x', 'pareto:1', 'normal:0', 'flat', 'random:1', ''])(
    'refuses %j',
    (text) => {
      expect(() => parseDistribution(text)).toThrow(PenstockError);
    },
  );
});
