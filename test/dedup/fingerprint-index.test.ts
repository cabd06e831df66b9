// The fingerprint index against a model of plain arrays, and its native calls with bad arguments.

import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { FingerprintIndex, IndexWords } from '../../lib/dedup/write/fingerprint-index.js';
import { expectInvalid, native } from '../native/support.js';
import { FingerprintModel, type Fingerprint } from './fingerprint-model.js';

const BLOCK_MAX = 2 ** 36 - 1;
const opened: FingerprintIndex[] = [];

afterEach(() => {
  for (const index of opened.splice(0)) index.close();
});

function open(bytes = 4096, rate = 1): FingerprintIndex {
  const index = new FingerprintIndex({ bytes, rate });
  opened.push(index);
  return index;
}

/** Numbers below `limit` that look random and are the same for the same seed (xorshift32). */
function randomFrom(seed: number): (limit: number) => number {
  let x = seed | 1;
  const next = (): number => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return x >>> 0;
  };
  return (limit) => Math.floor(((next() * 2 ** 21 + (next() >>> 11)) / 2 ** 53) * limit);
}

function someFingerprint(random: (limit: number) => number): Fingerprint {
  return [random(2 ** 32), random(2 ** 32), random(2 ** 32), random(2 ** 32)];
}

function blockWords(blocks: readonly number[]): Uint32Array {
  return Uint32Array.from(
    blocks.flatMap((block) => [block % 2 ** 32, Math.floor(block / 2 ** 32)]),
  );
}

function insert(index: FingerprintIndex, pairs: readonly (readonly [Fingerprint, number])[]): void {
  const words = Uint32Array.from(pairs.flatMap(([fingerprint]) => fingerprint));
  index.insert(words, blockWords(pairs.map(([, block]) => block)), pairs.length);
}

function remove(index: FingerprintIndex, fingerprint: Fingerprint, block: number): number {
  return index.remove(Uint32Array.from(fingerprint), blockWords([block]), 1);
}

/** Each fingerprint's blocks, newest first. */
function probe(index: FingerprintIndex, fingerprints: readonly Fingerprint[]): number[][] {
  const out = new Uint32Array(fingerprints.length * IndexWords.answer).fill(0xabababab);
  const hits = index.probe(Uint32Array.from(fingerprints.flat()), fingerprints.length, out);
  const answers = fingerprints.map((_, i) => {
    const at = i * IndexWords.answer;
    const unused = out.subarray(at + 1 + 2 * out[at]!, at + IndexWords.answer);
    expect(unused.every((word) => word === 0xabababab)).toBe(true);
    return Array.from({ length: out[at]! }, (_, k) => {
      return out[at + 1 + 2 * k]! + out[at + 2 + 2 * k]! * 2 ** 32;
    });
  });
  expect(hits).toBe(answers.filter((answer) => answer.length > 0).length);
  return answers;
}

describe('a fingerprint', () => {
  const one: Fingerprint = [0x12345670, 7, 0, 0];

  test('has at most four blocks, the newest first', () => {
    const index = open();
    for (let block = 1; block <= 6; block++) {
      insert(index, [[one, block]]);
      const newest = [6, 5, 4, 3, 2, 1].filter((each) => each <= block).slice(0, 4);
      expect(probe(index, [one])).toEqual([newest]);
      expect(index.entries).toBe(newest.length);
    }
    expect(index.evictions).toBe(0);
  });

  test('has a block once: inserted again it is the newest', () => {
    const index = open();
    for (const block of [1, 2, 3, 1]) insert(index, [[one, block]]);
    expect(probe(index, [one])).toEqual([[1, 3, 2]]);
    expect(index.entries).toBe(3);
  });

  test('keeps the order of the others when one is removed', () => {
    const index = open();
    for (const block of [1, 2, 3, 4]) insert(index, [[one, block]]);
    expect([remove(index, one, 3), remove(index, one, 3), remove(index, one, 5)]).toEqual([
      1, 0, 0,
    ]);
    expect(probe(index, [one])).toEqual([[4, 2, 1]]);
    expect(index.entries).toBe(3);
  });

  test('takes the lowest and the highest block, with a tag of all zeros or ones', () => {
    const index = open();
    const zeros: Fingerprint = [0, 0, 0, 0];
    const ones: Fingerprint = [2 ** 32 - 1, 2 ** 32 - 1, 2 ** 32 - 1, 2 ** 32 - 1];
    expect(probe(index, [zeros, ones])).toEqual([[], []]);
    insert(
      index,
      [zeros, ones].flatMap(
        (each) =>
          [
            [each, 1],
            [each, BLOCK_MAX],
          ] as const,
      ),
    );
    expect(probe(index, [ones, zeros])).toEqual([
      [BLOCK_MAX, 1],
      [BLOCK_MAX, 1],
    ]);
    expect(remove(index, zeros, 1)).toBe(1);
    expect(probe(index, [zeros])).toEqual([[BLOCK_MAX]]);
  });

  test('is told by 28 bits of its first word and by its buckets only', () => {
    const index = open();
    insert(index, [[one, 9]]);
    const same: Fingerprint = [one[0] ^ 15, one[1] + 2 ** 20, 5, 5];
    const other: Fingerprint = [one[0] ^ 16, one[1], 0, 0];
    expect(probe(index, [same, other])).toEqual([[9], []]);
  });
});

describe('against a model', () => {
  /** Few tags and few buckets: everything meets everything. */
  const crowded = (random: (limit: number) => number): Fingerprint => {
    return [random(400) * 16 + random(16), random(3), random(2 ** 32), random(2 ** 32)];
  };

  test.each([
    ['a crowded corner', 4096, 1, crowded],
    ['a crowded corner, one in four', 4096, 4, crowded],
    ['an overfull table', 4096, 1, someFingerprint],
    ['a larger table, one in two', 16384, 2, someFingerprint],
    ['a table of three pages', 3 * 4096, 1, someFingerprint],
  ] as const)('batches of everything: %s', (_name, bytes, rate, make) => {
    for (let seed = 1; seed <= 6; seed++) {
      const random = randomFrom(seed * 7919);
      const index = open(bytes, rate);
      const model = new FingerprintModel(index.bytes / 64, rate);
      const known: (readonly [Fingerprint, number])[] = [];
      for (let batch = 0; batch < 60; batch++) {
        const pairs = Array.from({ length: random(100) }, () => {
          const again = known[random(known.length)];
          if (again !== undefined && random(4) === 0) return again;
          return [make(random), 1 + random(random(2) === 0 ? 40 : BLOCK_MAX)] as const;
        });
        known.push(...pairs);
        insert(index, pairs);
        for (const [fingerprint, block] of pairs) model.insert(fingerprint, block);
        for (let i = random(20); i > 0; i--) {
          const [fingerprint, block] = known[random(known.length)] ?? [make(random), 1];
          expect(remove(index, fingerprint, block)).toBe(model.remove(fingerprint, block));
        }
        const asked = Array.from(
          { length: 70 },
          () => known[random(known.length)]?.[0] ?? make(random),
        );
        expect(probe(index, asked)).toEqual(asked.map((each) => model.probe(each)));
        expect([index.entries, index.evictions]).toEqual([model.entries, model.evictions]);
      }
      if (bytes === 4096) expect(index.evictions).toBeGreaterThan(0);
    }
  });

  test('any history of one small table', () => {
    const fingerprint = fc.tuple(
      fc.nat(40).map((tag) => tag * 16),
      fc.nat(3),
      fc.constant(0),
      fc.constant(0),
    );
    const step = fc.record({
      fingerprint,
      block: fc.integer({ min: 1, max: 6 }),
      removes: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const index = open();
        const model = new FingerprintModel(64, 1);
        for (const { fingerprint, block, removes } of steps) {
          if (removes) {
            expect(remove(index, fingerprint, block)).toBe(model.remove(fingerprint, block));
          } else {
            insert(index, [[fingerprint, block]]);
            model.insert(fingerprint, block);
          }
          expect(probe(index, [fingerprint])).toEqual([model.probe(fingerprint)]);
        }
        expect(index.entries).toBe(model.entries);
        index.close();
      }),
      { numRuns: 60 },
    );
  });

  test('with room for all, it is a map from fingerprint to its four newest blocks', () => {
    const random = randomFrom(4242);
    const index = open(2 ** 24);
    const map = new Map<string, number[]>();
    const fingerprints = Array.from({ length: 4000 }, () => someFingerprint(random));
    for (let batch = 0; batch < 80; batch++) {
      const pairs = Array.from({ length: 256 }, () => {
        return [fingerprints[random(fingerprints.length)]!, 1 + random(BLOCK_MAX)] as const;
      });
      insert(index, pairs);
      for (const [fingerprint, block] of pairs) {
        const key = fingerprint.join();
        map.set(key, [block, ...(map.get(key) ?? [])].slice(0, 4));
      }
    }
    expect(index.evictions).toBe(0);
    expect(probe(index, fingerprints)).toEqual(
      fingerprints.map((each) => map.get(each.join()) ?? []),
    );
  });
});

describe('sampling', () => {
  test('goes by the value: what is not sampled is neither inserted nor found', () => {
    const index = open(4096, 8);
    const fingerprints = Array.from({ length: 64 }, (_, i): Fingerprint => [i << 4, i, 0, 0]);
    insert(
      index,
      fingerprints.map((each, i) => [each, i + 1] as const),
    );
    expect(index.entries).toBe(8);
    const expected = fingerprints.map((_, i) => (i % 8 === 0 ? [i + 1] : []));
    expect(probe(index, fingerprints)).toEqual(expected);
    expect([index.probes, index.hits]).toEqual([8, 8]);
  });

  test('doubles when it is full, and sweeps in slices while it is used', () => {
    const random = randomFrom(77);
    const index = open(65536, 2);
    const model = new FingerprintModel(1024, 2);
    const all: Fingerprint[] = [];
    const insertSome = (count: number): void => {
      const pairs = Array.from(
        { length: count },
        () => [someFingerprint(random), 1 + all.length] as const,
      );
      insert(index, pairs);
      for (const [fingerprint, block] of pairs) {
        model.insert(fingerprint, block);
        all.push(fingerprint);
      }
    };
    while (index.entries <= 0.94 * index.slots) {
      expect(index.maybeDouble()).toBe(false);
      insertSome(64);
    }
    // So many blocks there are not any more: what else is in makes room by itself.
    expect(index.maybeDouble(index.slots * 2)).toBe(false);
    expect([index.rate, index.sweeping, index.sweep(100)]).toEqual([2, false, false]);
    expect(index.maybeDouble(index.slots * 2 + 2)).toBe(true);
    expect([index.rate, index.sweeping, index.maybeDouble()]).toEqual([4, true, false]);
    model.rate = 4;
    for (let from = 0; index.sweeping; from += 100) {
      insertSome(10);
      expect(index.sweep(100)).toBe(from + 100 < 1024);
      model.sweep(from, Math.min(1024, from + 100));
      expect(index.entries).toBe(model.entries);
    }
    expect(probe(index, all)).toEqual(all.map((each) => model.probe(each)));
    expect(index.entries).toBeLessThan(0.5 * index.slots);
    expect(index.evictions).toBe(model.evictions);
    const left = all.filter((each) => model.probe(each).length > 0);
    expect(left.every(([word]) => (word >>> 4) % 4 === 0)).toBe(true);
  });

  test('stops doubling at one in 2^16', () => {
    const index = open(4096, 2 ** 16);
    const random = randomFrom(5);
    while (index.entries <= 0.94 * index.slots) {
      insert(index, [[[random(2 ** 12) * 2 ** 20, random(2 ** 32), 0, 0], 1 + random(1000)]]);
    }
    expect([index.maybeDouble(), index.rate]).toEqual([false, 2 ** 16]);
  });
});

describe('the index', () => {
  test('rounds its size down to whole pages', () => {
    const index = open(3 * 2 ** 20 + 4095);
    expect([index.bytes, index.slots]).toEqual([3 * 2 ** 20, 3 * 2 ** 17]);
  });

  test.each([
    [{ bytes: 4095, rate: 1 }],
    [{ bytes: 2 ** 31 + 1, rate: 1 }],
    [{ bytes: NaN, rate: 1 }],
    [{ bytes: 4096, rate: 0 }],
    [{ bytes: 4096, rate: 3 }],
    [{ bytes: 4096, rate: 2 ** 17 }],
    [{ bytes: 4096, rate: NaN }],
  ])('refuses %o', (options) => {
    expect(() => new FingerprintIndex(options)).toThrow(RangeError);
  });

  test('is closed once or twice, and then refuses everything', () => {
    const segments = native.segmentIds().length;
    const index = open();
    expect(native.segmentIds()).toHaveLength(segments + 1);
    index.close();
    index.close();
    expect(native.segmentIds()).toHaveLength(segments);
    const [words, blocks] = [new Uint32Array(4), Uint32Array.of(1, 0)];
    expect(() => index.probe(words, 1, new Uint32Array(9))).toThrow(RangeError);
    expect(() => index.insert(words, blocks, 1)).toThrow(RangeError);
    expect(() => index.remove(words, blocks, 1)).toThrow(RangeError);
    expect(() => index.sweep(1)).toThrow(RangeError);
  });
});

describe('the native calls', () => {
  const table = (): Uint32Array => new Uint32Array(64);
  const words = (count: number): Uint32Array => new Uint32Array(count);
  const { fingerprintProbe, fingerprintInsert, fingerprintRemove, fingerprintSweep } = native;

  test.each([0, 8, 15, 17, 24, 48, 63, 1040, 1536])(
    'a table has a power of two of words, or 1024s, not %i',
    (length) => {
      const bad = words(length);
      expectInvalid(() => fingerprintProbe(bad, 1, words(4), 1, words(9)));
      expectInvalid(() => fingerprintInsert(bad, 1, words(4), Uint32Array.of(1, 0), 1, words(5)));
      expectInvalid(() => fingerprintRemove(bad, words(4), Uint32Array.of(1, 0), 1));
      expectInvalid(() => fingerprintSweep(bad, 1, 0, 1));
    },
  );

  test.each([0, -1, 3, 6, 1.5, 2 ** 17, 2 ** 32, NaN, '1', undefined])(
    'not the rate %s',
    (rate) => {
      const bad = rate as number;
      expectInvalid(() => fingerprintProbe(table(), bad, words(4), 1, words(9)));
      expectInvalid(() =>
        fingerprintInsert(table(), bad, words(4), Uint32Array.of(1, 0), 1, words(5)),
      );
      expectInvalid(() => fingerprintSweep(table(), bad, 0, 1));
    },
  );

  test('arrays hold what count says', () => {
    const one = Uint32Array.of(1, 0);
    expectInvalid(() => fingerprintProbe(table(), 1, words(7), 2, words(18)));
    expectInvalid(() => fingerprintProbe(table(), 1, words(8), 2, words(17)));
    expectInvalid(() => fingerprintProbe(table(), 1, words(8), 2 ** 32 - 1, words(18)));
    expectInvalid(() => fingerprintProbe(table(), 1, words(8), -1, words(18)));
    expectInvalid(() => fingerprintProbe(table(), 1, words(8), 2 ** 32, words(18)));
    expectInvalid(() => fingerprintInsert(table(), 1, words(3), one, 1, words(5)));
    expectInvalid(() => fingerprintInsert(table(), 1, words(4), one.subarray(1), 1, words(5)));
    expectInvalid(() => fingerprintInsert(table(), 1, words(4), one, 1, words(4)));
    expectInvalid(() => fingerprintInsert(table(), 1, words(4), one, 2 ** 31, words(5)));
    expectInvalid(() => fingerprintRemove(table(), words(3), one, 1));
    expectInvalid(() => fingerprintRemove(table(), words(8), one, 2));
    expect(fingerprintProbe(table(), 1, words(0), 0, words(0))).toBe(0);
    expect(fingerprintRemove(table(), words(0), words(0), 0)).toBe(0);
  });

  test('arrays are of words', () => {
    const bytes = new Uint8Array(64) as unknown as Uint32Array;
    const list = [1, 2, 3, 4] as unknown as Uint32Array;
    for (const bad of [bytes, list, null as unknown as Uint32Array]) {
      expectInvalid(() => fingerprintProbe(bad, 1, words(4), 1, words(9)));
      expectInvalid(() => fingerprintProbe(table(), 1, bad, 1, words(9)));
      expectInvalid(() => fingerprintProbe(table(), 1, words(4), 1, bad));
      expectInvalid(() => fingerprintInsert(table(), 1, words(4), bad, 1, words(5)));
      expectInvalid(() => fingerprintInsert(table(), 1, words(4), Uint32Array.of(1, 0), 1, bad));
      expectInvalid(() => fingerprintRemove(table(), words(4), bad, 1));
      expectInvalid(() => fingerprintSweep(bad, 1, 0, 1));
    }
  });

  test.each([
    [0, 0],
    [0, 16],
    [5, 0xffffffff],
  ])('no block has the words %i, %i; nothing is done of its batch', (lo, hi) => {
    const [there, out] = [table(), words(5)];
    const blocks = Uint32Array.of(1, 0, lo, hi);
    expectInvalid(() => fingerprintInsert(there, 1, words(8), blocks, 2, out));
    expectInvalid(() => fingerprintInsert(there, 2 ** 16, words(8).fill(16), blocks, 2, out));
    expect([...there, ...out].every((word) => word === 0)).toBe(true);
    fingerprintInsert(there, 1, words(4), blocks, 1, out);
    expectInvalid(() => fingerprintRemove(there, words(8), blocks, 2));
    expect(there.some((word) => word !== 0)).toBe(true);
  });

  test('a sweep stays in the table', () => {
    for (const [from, buckets] of [
      [0, 5],
      [4, 1],
      [5, 0],
      [2 ** 32 - 1, 2 ** 32 - 1],
      [-1, 1],
      [0, 0.5],
    ] as const) {
      expectInvalid(() => fingerprintSweep(table(), 1, from, buckets));
    }
    expect([fingerprintSweep(table(), 1, 0, 4), fingerprintSweep(table(), 1, 4, 0)]).toEqual([
      0, 0,
    ]);
  });

  test('outcomes are added up', () => {
    const out = Uint32Array.of(1, 1, 1, 1, 1);
    const there = words(16);
    const same = Uint32Array.from(Array.from({ length: 6 }, () => [0, 0, 0, 0]).flat());
    fingerprintInsert(there, 2, same, blockWords([1, 2, 3, 4, 5, 5]), 6, out);
    expect([...out]).toEqual([6, 1, 2, 1, 2]);
    const others = Uint32Array.from([2, 4, 6, 8, 9].flatMap((tag) => [tag << 4, 0, 0, 0]));
    fingerprintInsert(there, 2, others, blockWords([1, 1, 1, 1, 1]), 5, out);
    expect([...out]).toEqual([10, 1, 2, 2, 2]);
    fingerprintInsert(there, 2, Uint32Array.of(32 << 4, 0, 0, 0), blockWords([1]), 1, out);
    expect([...out]).toEqual([11, 2, 2, 2, 2]);
  });

  test('a table of any content, anywhere, and shared with the other arrays, does no harm', () => {
    const random = randomFrom(31337);
    const memory = new Uint32Array(4096 + 1);
    const part = (length: number): Uint32Array => {
      const at = random(memory.length - length + 1);
      return memory.subarray(at, at + length);
    };
    for (let i = 0; i < 3000; i++) {
      if (i % 50 === 0) for (let k = 0; k < memory.length; k++) memory[k] = random(2 ** 32);
      const there = part(2 ** (4 + random(9)));
      const count = random(100);
      const rate = 2 ** random(5);
      fingerprintProbe(there, rate, part(4 * count), count, part(9 * count));
      // Numbers of blocks need high words below 16; whatever else, it is refused.
      const blocks = part(2 * count);
      if (random(2) === 0) for (let k = 0; k < count; k++) blocks[2 * k + 1]! %= 16;
      try {
        fingerprintInsert(there, rate, part(4 * count), blocks, count, part(5));
        fingerprintRemove(there, part(4 * count), blocks, count);
      } catch (error) {
        expect(error).toMatchObject({ code: 'ERR_INVALID_ARG' });
      }
      fingerprintSweep(there, rate, 0, there.length / 16);
    }
  });
});
