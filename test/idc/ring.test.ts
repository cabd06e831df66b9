// The rings of a channel: against a plain queue, over the wrap of the indices, and with a reader or
// writer that writes what it likes.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Half, HALF_BYTES, HALF_LAYOUT, Rec, RECORD_BYTES } from '../../lib/idc/layout.js';
import { RingReader, RingWriter } from '../../lib/idc/ring.js';
import { checkLayout } from '../../lib/wire/index.js';

const LAP = 0x8000_0000;

const HALF_WORDS = {
  magic: Half.magic,
  version: Half.version,
  features: Half.features,
  size: Half.size,
  serial: Half.serial,
  consumed: Half.consumed,
  sleeping: Half.sleeping,
  sleeps: Half.sleeps,
  ended: Half.ended,
  sent: Half.sent,
  received: Half.received,
  wakes: Half.wakes,
  words: Half.words,
};

interface Inner {
  head: number;
  tail: number;
  consumed: number;
}

/** Both ends, with indices that begin at `start`. */
function ring(size: number, start = 0) {
  const words = new Uint32Array(size * Rec.words);
  const writerHalf = new Uint32Array(Half.words);
  const readerHalf = new Uint32Array(Half.words);
  readerHalf[Half.consumed] = start;
  const writer = new RingWriter(words, writerHalf, readerHalf);
  const reader = new RingReader(words, readerHalf);
  const shift = Math.log2(size);
  // As the laps before have left it.
  for (let i = 0; i < size; i++) {
    const index = (start + i) | 0;
    words[(index & (size - 1)) * Rec.words] = ((index >>> shift) & 1) === 0 ? 0 : LAP;
  }
  const inner = writer as unknown as Inner;
  [inner.head, inner.tail, inner.consumed] = [start | 0, start | 0, start | 0];
  (reader as unknown as Inner).head = start | 0;
  return { words, writer, reader, writerHalf, readerHalf };
}

function put(writer: RingWriter, values: readonly number[]): number {
  const first = writer.tail;
  const granted = writer.reserve(values.length);
  for (let i = 0; i < granted; i++) {
    const at = ((first + i) & writer.mask) * Rec.words;
    for (let word = 0; word < Rec.words; word++) writer.sq[at + word] = values[i]! + word;
  }
  writer.submit();
  return granted;
}

function got(reader: RingReader, max: number): number[] {
  const count = reader.poll(max);
  return Array.from({ length: count }, (_, i) => {
    const record = reader.rq.subarray(i * Rec.words, (i + 1) * Rec.words);
    const first = record[0]!;
    expect([...record].map((word, at) => (at === 0 ? word : word - at))).toEqual(
      new Array(Rec.words).fill(first),
    );
    return first;
  });
}

describe('layout', () => {
  it('of a half is that of its table', () => {
    expect(checkLayout(HALF_LAYOUT, HALF_WORDS)).toEqual([]);
    expect(HALF_LAYOUT.bytes).toBe(HALF_BYTES);
    expect(Half.words * 4).toBe(HALF_BYTES);
    expect(Rec.words * 4).toBe(RECORD_BYTES);
    expect(1 << Rec.shift).toBe(Rec.words);
  });
});

describe('a ring', () => {
  const step = fc.oneof(
    fc.record({ put: fc.integer({ min: 1, max: 20 }) }),
    fc.record({ poll: fc.integer({ min: 0, max: 20 }) }),
  );

  it('gives what a queue gives, wherever its indices are', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 5 }),
        fc.oneof(
          fc.constant(0),
          fc.integer({ min: 1, max: 40 }).map((n) => 2 ** 32 - n),
          fc.nat(),
        ),
        fc.array(step, { maxLength: 120 }),
        (power, start, steps) => {
          const size = 1 << power;
          const { writer, reader } = ring(size, start);
          const queue: number[] = [];
          let next = 1;
          for (const one of steps) {
            if ('put' in one) {
              const values = Array.from({ length: one.put }, () => (next += 16));
              const granted = put(writer, values);
              expect(granted).toBe(Math.min(one.put, size - queue.length));
              queue.push(...values.slice(0, granted));
              next = (queue.at(-1) ?? next) + 16;
            } else {
              const most = Math.min(one.poll, size);
              expect(reader.ready).toBe(queue.length > 0);
              expect(got(reader, one.poll)).toEqual(queue.splice(0, most));
            }
            expect(writer.broken).toBe(false);
            expect(writer.free).toBeLessThanOrEqual(size - queue.length);
            expect(writer.refresh()).toBe(size - queue.length);
            expect(writer.unread).toBe(queue.length);
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it('shows nothing before it is submitted', () => {
    const { writer, reader } = ring(8);
    expect(writer.reserve(3)).toBe(3);
    expect(reader.ready).toBe(false);
    expect(reader.poll(8)).toBe(0);
    writer.submit();
    expect(reader.poll(8)).toBe(3);
  });

  it('does not take the lap bit from who fills a record', () => {
    const { writer, reader } = ring(4);
    for (let lap = 0; lap < 5; lap++) {
      expect(put(writer, [0xffff_fff0, 5, 0x8000_0000])).toBe(3);
      expect(reader.poll(4)).toBe(3);
      expect([...reader.rq].filter((_, i) => i % Rec.words === 0).slice(0, 3)).toEqual([
        0x7fff_fff0, 5, 0,
      ]);
    }
  });

  it('wakes a sleeper once per sleep', () => {
    const { writer, reader, readerHalf } = ring(8);
    expect(reader.arm()).toBe(true);
    writer.reserve(1);
    expect(writer.submit()).toBe(true);
    writer.reserve(1);
    expect(writer.submit()).toBe(false);
    reader.disarm();
    expect(readerHalf[Half.sleeping]).toBe(0);
    expect(reader.arm()).toBe(false); // something is there
    expect(reader.poll(8)).toBe(2);
    expect(reader.arm()).toBe(true);
    writer.reserve(1);
    expect(writer.submit()).toBe(true);
  });

  it('reads on from a copy', () => {
    const { words, writer, reader } = ring(8);
    put(writer, [16, 32, 48]);
    expect(got(reader, 1)).toEqual([16]);
    reader.detach();
    words.fill(0xffff_ffff);
    expect(got(reader, 8)).toEqual([32, 48]);
    expect(reader.ready).toBe(false);
  });
});

describe('an index of the other side', () => {
  it.each([
    ['ahead of what was sent', 4],
    ['far ahead', 0x7fff_ffff],
    ['far behind', 0x8000_0000],
    ['before the start', 0xffff_ffff],
  ])('that is %s breaks the ring', (_, index) => {
    const { writer, readerHalf } = ring(8);
    put(writer, [16, 32, 48]);
    readerHalf[Half.consumed] = index;
    expect(writer.reserve(8)).toBe(0);
    expect(writer.broken).toBe(true);
  });

  it('that goes back breaks the ring', () => {
    const { writer, reader, readerHalf } = ring(4);
    put(writer, [16, 32, 48, 64]);
    expect(reader.poll(4)).toBe(4);
    expect(writer.refresh()).toBe(4);
    put(writer, [80]);
    readerHalf[Half.consumed] = 3;
    writer.refresh();
    expect(writer.broken).toBe(true);
  });

  it('never makes the writer grant what it has not', () => {
    fc.assert(
      fc.property(
        fc.array(fc.tuple(fc.nat({ max: 12 }), fc.oneof(fc.nat({ max: 40 }), fc.nat())), {
          maxLength: 40,
        }),
        (steps) => {
          const { writer, readerHalf } = ring(8);
          let granted = 0;
          let highest = 0;
          for (const [wanted, index] of steps) {
            readerHalf[Half.consumed] = index;
            // An index that goes back is noticed when it is looked at next.
            highest = Math.max(highest, index);
            const n = writer.reserve(wanted);
            granted += n;
            writer.submit();
            if (writer.broken) return;
            expect(granted).toBeLessThanOrEqual(highest + 8);
          }
        },
      ),
    );
  });
});

describe('records of the other side', () => {
  it('are read at most a ring at a time, whatever stands there', () => {
    fc.assert(
      fc.property(fc.array(fc.nat(), { minLength: 64, maxLength: 64 }), (noise) => {
        const { words, reader } = ring(8);
        words.set(noise.map((word) => word * 2));
        let sum = 0;
        for (let i = 0; i < 4; i++) sum += reader.poll(100);
        expect(sum).toBeLessThanOrEqual(8);
        expect(reader.rq.every((word, i) => i % Rec.words !== 0 || word < LAP)).toBe(true);
      }),
    );
  });
});
