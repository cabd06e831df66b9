import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { expectInvalid, fillRandom, hi, lo, makeSegment, native } from './support.js';
import type { TestSegment } from './support.js';

let segment: TestSegment;

beforeAll(() => {
  segment = makeSegment(2 ** 22);
});
afterAll(() => native.segmentClose(segment.id));

type Pair = readonly [to: number, from: number, bytes: number];

function pairs(list: readonly Pair[]): Uint32Array {
  const words = list.flatMap(([to, from, bytes]) => {
    return [lo(to), hi(to), lo(from), hi(from), bytes, 0x5a5a5a5a, 0, 0];
  });
  return Uint32Array.from(words);
}

/** A pair by offsets into the segment. */
function at(to: number, from: number, bytes: number): Pair {
  return [segment.address + to, segment.address + from, bytes];
}

describe('copyList', () => {
  test('copies entry by entry, in order', () => {
    fillRandom(segment.u8, 1);
    const model = segment.u8.slice();
    const list = [at(0, 100000, 4096), at(5000, 1, 3), at(200000, 0, 65536), at(9, 9, 0)];
    expect(native.copyList(pairs(list), list.length)).toBe(list.length);
    for (const [to, from, bytes] of list) {
      const start = from - segment.address;
      model.copyWithin(to - segment.address, start, start + bytes);
    }
    expect(Buffer.compare(segment.u8, model)).toBe(0);
  });

  test('has the semantics of memmove when ranges overlap', () => {
    fillRandom(segment.u8, 2);
    const model = segment.u8.slice();
    expect(native.copyList(pairs([at(100, 0, 70000), at(0, 64, 70000)]), 2)).toBe(2);
    model.copyWithin(100, 0, 70000);
    model.copyWithin(0, 64, 70064);
    expect(Buffer.compare(segment.u8, model)).toBe(0);
  });

  test('stops before the first entry with a bad address and touches nothing of it', () => {
    const good = at(0, 4096, 16);
    const bad: Pair[] = [
      [0, segment.address, 16],
      [segment.address, 0, 16],
      [segment.address, segment.address + segment.bytes - 15, 16],
      [segment.address + segment.bytes, segment.address, 16],
      [2 ** 44, segment.address, 1],
      [segment.address, 2 ** 52, 0xffffffff],
      at(0, 0, 0xffffffff),
    ];
    for (const entry of bad) {
      fillRandom(segment.u8.subarray(0, 8192), 3);
      const model = segment.u8.slice(0, 8192);
      model.copyWithin(0, 4096, 4112);
      expect(native.copyList(pairs([good, entry, at(100, 8192, 64)]), 3)).toBe(1);
      expect(Buffer.compare(segment.u8.subarray(0, 8192), model)).toBe(0);
    }
  });

  test('crosses from a segment into its live neighbour only', () => {
    const next = makeSegment();
    const across: Pair = [segment.address, segment.address + segment.bytes - 8, 16];
    const adjacent = next.address === segment.address + segment.bytes;
    expect(native.copyList(pairs([across]), 1)).toBe(adjacent ? 1 : 0);
    native.segmentClose(next.id);
    expect(native.copyList(pairs([across]), 1)).toBe(0);
  });
});

describe('compareList', () => {
  test('gives the first differing byte, wherever it is', () => {
    const bytes = 10000;
    for (const difference of [0, 1, 63, 4095, 4096, 8191, 9999]) {
      fillRandom(segment.u8.subarray(0, bytes), 4);
      segment.u8.copyWithin(2 ** 21, 0, bytes);
      segment.u8[difference]! ^= 0x10;
      segment.u8[2 ** 21 + bytes - 1]! ^= 0x80;
      const entries = pairs([at(0, 2 ** 21, bytes), at(0, 2 ** 21, difference), at(0, 0, bytes)]);
      expect(native.compareList(entries, 3)).toBe(3);
      const results = [entries[5], entries[13], entries[21]];
      expect(results).toEqual([difference, 0xffffffff, 0xffffffff]);
    }
  });

  test('stops at a bad address and leaves its result word alone', () => {
    const entries = pairs([at(0, 0, 16), at(segment.bytes - 8, 0, 16)]);
    expect(native.compareList(entries, 2)).toBe(1);
    expect(entries[5]).toBe(0xffffffff);
    expect(entries[13]).toBe(0x5a5a5a5a);
  });
});

describe('fillList', () => {
  test('fills each range with its byte and nothing beside it', () => {
    segment.u8.fill(1, 0, 20000);
    const [a, b] = [segment.address + 1, segment.address + 10000];
    const entries = Uint32Array.of(lo(a), hi(a), 4096, 0xaa, lo(b), hi(b), 1, 0x155, 0, 0, 1, 0);
    expect(native.fillList(entries, 3)).toBe(2);
    const model = new Uint8Array(20000).fill(1).fill(0xaa, 1, 4097).fill(0x55, 10000, 10001);
    expect(Buffer.compare(segment.u8.subarray(0, 20000), model)).toBe(0);
  });
});

test('count may not go beyond the entries', () => {
  expectInvalid(() => native.copyList(new Uint32Array(15), 2));
  expectInvalid(() => native.compareList(new Uint32Array(0), 1));
  expectInvalid(() => native.fillList(new Uint32Array(7), 2));
  expect(native.fillList(new Uint32Array(7), 0)).toBe(0);
});
