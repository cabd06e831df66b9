import { describe, expect, test } from 'vitest';
import { expectInvalid, fillRandom, hi, lo, makeSegment, native } from './support.js';

function hex(words: Uint32Array): string {
  const word = (i: number) => words[i]!.toString(16).padStart(8, '0');
  return word(3) + word(2) + word(1) + word(0);
}

function xxh3(data: Uint8Array): string {
  const out = new Uint32Array(4);
  native.xxh3(data, out);
  return hex(out);
}

function ascii(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

/** CRC-32C bit by bit, as RFC 3720 defines it. */
function crc32cByBits(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f63b78 : 0);
  }
  return ~crc >>> 0;
}

describe('XXH3-128', () => {
  // What upstream's own library (0.8.1, built apart) gives for the same bytes.
  test.each([
    ['', 0, '99aa06d3014798d86001c324468d497f'],
    ['a', 1, 'a96faf705af16834e6c632b61e964e1f'],
    ['abc', 1, '06b05ab6733a618578af5f94892f3950'],
    ['0123456789', 1, 'e353667619ec664b49655fc9692165fb'],
    ['0123456789', 12, '3df8a9e3f35f722020fada17adbd2c64'],
    ['0123456789', 24, '8eefe86fdb1b9e1e2262f4d2eaf15aea'],
    ['0123456789', 25, 'ec863ff84637195dbaa80fc00b9b7d9e'],
    ['0123456789', 410, '5cbd25a821a86b70fdc88078d594d1d3'],
  ])('%j × %i', (text, times, expected) => {
    expect(xxh3(ascii(text.repeat(times)))).toBe(expected);
  });

  test('differs for each length and each flipped bit', () => {
    const data = new Uint8Array(1200);
    fillRandom(data, 5);
    const seen = new Set<string>();
    for (let bytes = 0; bytes <= data.length; bytes++) seen.add(xxh3(data.subarray(0, bytes)));
    expect(seen.size).toBe(data.length + 1);
    const whole = xxh3(data);
    for (let bit = 0; bit < data.length * 8; bit += 61) {
      data[bit >> 3]! ^= 1 << (bit & 7);
      expect(xxh3(data)).not.toBe(whole);
      data[bit >> 3]! ^= 1 << (bit & 7);
    }
    expect(xxh3(data)).toBe(whole);
  });
});

describe('CRC-32C', () => {
  // RFC 3720, appendix B.4.
  const ascending = Uint8Array.from({ length: 32 }, (_, i) => i);
  test.each([
    ['zeros', new Uint8Array(32), 0x8a9136aa],
    ['ones', new Uint8Array(32).fill(0xff), 0x62a8ab43],
    ['ascending', ascending, 0x46dd794e],
    ['descending', ascending.slice().reverse(), 0x113fdb5c],
    ['check value', ascii('123456789'), 0xe3069283],
    ['nothing', new Uint8Array(0), 0],
  ])('%s', (_name, data, expected) => {
    expect(native.crc32c(data, 0)).toBe(expected);
  });

  test('equals the definition at every length and alignment around the stream sizes', () => {
    const data = new Uint8Array(9000);
    fillRandom(data, 9);
    for (const around of [0, 504, 1008, 4080, 4096, 4584, 8160]) {
      for (let bytes = Math.max(0, around - 9); bytes < around + 9; bytes++) {
        const part = data.subarray(bytes % 8, (bytes % 8) + bytes);
        expect(native.crc32c(part, 0)).toBe(crc32cByBits(part));
      }
    }
  });

  test('goes on from the result over the bytes before', () => {
    const data = new Uint8Array(10000);
    fillRandom(data, 3);
    const whole = native.crc32c(data, 0);
    for (const cut of [1, 100, 504, 4080, 9999]) {
      const first = native.crc32c(data.subarray(0, cut), 0);
      expect(native.crc32c(data.subarray(cut), first)).toBe(whole);
    }
  });
});

describe('lists', () => {
  test('equal the single forms, empty ranges included', () => {
    const segment = makeSegment();
    fillRandom(segment.u8, 77);
    const ranges = [0, 1, 7, 16, 17, 128, 129, 240, 241, 512, 4096, 65536, 1 << 20].map(
      (bytes, i) => ({ offset: i * 4099, bytes }),
    );
    const entries = new Uint32Array(ranges.length * 4);
    ranges.forEach(({ offset, bytes }, i) => {
      const address = segment.address + offset;
      entries.set([lo(address), hi(address), bytes, 0], i * 4);
    });
    const hashes = new Uint32Array(ranges.length * 4);
    const crcs = new Uint32Array(ranges.length);
    native.xxh3List(entries, ranges.length, hashes);
    native.crc32cList(entries, ranges.length, crcs);
    ranges.forEach(({ offset, bytes }, i) => {
      const data = segment.u8.subarray(offset, offset + bytes);
      expect(hex(hashes.subarray(i * 4, i * 4 + 4))).toBe(xxh3(data));
      expect(crcs[i]).toBe(native.crc32c(data, 0));
    });
    native.segmentClose(segment.id);
  });

  test('do no more than count says', () => {
    const segment = makeSegment();
    const entry = [lo(segment.address), hi(segment.address), 512, 0];
    const out = new Uint32Array(8).fill(1);
    native.xxh3List(Uint32Array.of(...entry, ...entry), 1, out);
    expect([...out.subarray(4)]).toEqual([1, 1, 1, 1]);
    native.crc32cList(Uint32Array.of(...entry), 0, out.fill(1));
    expect(out[0]).toBe(1);
    native.segmentClose(segment.id);
  });

  test('refuse ranges that are not wholly in live segments', () => {
    const segment = makeSegment();
    const out = new Uint32Array(4);
    const bad: [number, number, number][] = [
      [0, 0, 1],
      [0xffffffff, 0xffffffff, 0xffffffff],
      [lo(segment.address), hi(segment.address), segment.bytes + 1],
      [lo(segment.address - 1), hi(segment.address - 1), 4096],
      [lo(segment.address), hi(segment.address) + 2 ** 12, 16],
    ];
    for (const [low, high, bytes] of bad) {
      const entries = Uint32Array.of(low, high, bytes, 0);
      expectInvalid(() => native.xxh3List(entries, 1, out));
      expectInvalid(() => native.crc32cList(entries, 1, out));
    }
    native.segmentClose(segment.id);
    const closed = Uint32Array.of(lo(segment.address), hi(segment.address), 16, 0);
    expectInvalid(() => native.xxh3List(closed, 1, out));
  });

  test('refuse short views', () => {
    const entries = new Uint32Array(8);
    expectInvalid(() => native.xxh3List(entries, 3, new Uint32Array(64)));
    expectInvalid(() => native.xxh3List(entries, 2, new Uint32Array(7)));
    expectInvalid(() => native.crc32cList(entries, 2, new Uint32Array(1)));
    expectInvalid(() => native.xxh3(new Uint8Array(4), new Uint32Array(3)));
  });
});
