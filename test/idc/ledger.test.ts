// The owner's book, against a plain map.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Ledger } from '../../lib/idc/ledger.js';

interface Entry {
  lo: number;
  hi: number;
  consumer: number;
  via: number;
  count: number;
}

/** What the ledger should be: holds by key, and the buffers that were freed. */
class Model {
  readonly holds = new Map<string, Entry>();
  readonly freed: string[] = [];

  key(lo: number, hi: number, consumer: number, via: number): string {
    return `${lo} ${hi} ${consumer} ${via}`;
  }

  count(lo: number, hi: number, consumer: number, via: number): number {
    return this.holds.get(this.key(lo, hi, consumer, via))?.count ?? 0;
  }

  add(lo: number, hi: number, consumer: number, via: number): void {
    const key = this.key(lo, hi, consumer, via);
    const entry = this.holds.get(key) ?? { lo, hi, consumer, via, count: 0 };
    entry.count++;
    this.holds.set(key, entry);
  }

  drop(entry: Entry, count: number): void {
    entry.count -= count;
    if (entry.count > 0) return;
    this.holds.delete(this.key(entry.lo, entry.hi, entry.consumer, entry.via));
    for (const other of this.holds.values()) {
      if (other.lo === entry.lo && other.hi === entry.hi) return;
    }
    this.freed.push(`${entry.lo} ${entry.hi}`);
  }

  release(lo: number, hi: number, consumer: number, via: number): boolean {
    const entry = this.holds.get(this.key(lo, hi, consumer, via));
    if (entry !== undefined) this.drop(entry, 1);
    return entry !== undefined;
  }

  total(): number {
    return [...this.holds.values()].reduce((sum, { count }) => sum + count, 0);
  }
}

const buffer = fc.tuple(
  fc.constantFrom(0, 512, 4096, 0xffff_fe00),
  fc.constantFrom(16, 16 | (1 << 12), 17),
);
const domain = fc.integer({ min: 1, max: 4 });
const step = fc.oneof(
  fc.record({ kind: fc.constant('add' as const), buffer, consumer: domain, via: domain }),
  fc.record({ kind: fc.constant('release' as const), buffer, consumer: domain, via: domain }),
  fc.record({
    kind: fc.constant('transfer' as const),
    buffer,
    consumer: domain,
    via: domain,
    to: domain,
  }),
  fc.record({
    kind: fc.constant('limit' as const),
    buffer,
    consumer: domain,
    via: domain,
    limit: fc.nat({ max: 2 }),
  }),
  fc.record({ kind: fc.constant('drop' as const), consumer: domain }),
);

describe('a ledger', () => {
  it('agrees with a map of counts, and frees each buffer once', () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
        const freed: string[] = [];
        const ledger = new Ledger((lo, hi) => freed.push(`${lo} ${hi}`));
        const model = new Model();
        for (const one of steps) {
          if (one.kind === 'drop') {
            ledger.dropConsumer(one.consumer);
            for (const entry of [...model.holds.values()]) {
              if (entry.consumer === one.consumer) model.drop(entry, entry.count);
            }
          } else {
            const [lo, hi] = one.buffer;
            const { consumer, via } = one;
            if (one.kind === 'add') {
              ledger.add(lo, hi, 4096, consumer, via);
              model.add(lo, hi, consumer, via);
            } else if (one.kind === 'release') {
              expect(ledger.release(lo, hi, consumer, via)).toBe(
                model.release(lo, hi, consumer, via),
              );
            } else if (one.kind === 'transfer') {
              const held = model.count(lo, hi, consumer, via) > 0;
              expect(ledger.transfer(lo, hi, consumer, via, one.to)).toBe(held);
              if (held) {
                model.add(lo, hi, one.to, consumer);
                model.release(lo, hi, consumer, via);
              }
            } else {
              ledger.limit({ lo, hi, consumer, via, count: 0 }, one.limit);
              const entry = model.holds.get(model.key(lo, hi, consumer, via));
              if (entry !== undefined && entry.count > one.limit) {
                model.drop(entry, entry.count - one.limit);
              }
            }
            expect(ledger.countOf(lo, hi, consumer, via)).toBe(model.count(lo, hi, consumer, via));
          }
          expect(ledger.holds).toBe(model.total());
          // In whatever order where one step frees several.
          expect([...freed].sort()).toEqual([...model.freed].sort());
        }
        for (let of = 1; of <= 4; of++) {
          const holds = [...model.holds.values()];
          const by = holds.filter(({ consumer }) => consumer === of);
          const via = holds.filter((hold) => hold.via === of);
          const text = (list: Iterable<Entry>) => [...list].map((e) => JSON.stringify(e)).sort();
          expect(ledger.holdsOf(of)).toBe(by.reduce((sum, { count }) => sum + count, 0));
          const order = (list: ReturnType<Ledger['heldBy']>): Entry[] =>
            list.map(({ lo, hi, consumer, via, count }) => ({ lo, hi, consumer, via, count }));
          expect(text(order(ledger.heldBy(of)))).toEqual(text(by));
          expect(text(order(ledger.heldVia(of)))).toEqual(text(via));
        }
      }),
      { numRuns: 300 },
    );
  });

  it('grows, and forgets nothing', () => {
    let freed = 0;
    const ledger = new Ledger(() => freed++);
    const count = 5000;
    for (let i = 0; i < count; i++) ledger.add(i * 512, 16, 512, 1 + (i % 3), 1);
    expect(ledger.holds).toBe(count);
    expect(
      ledger
        .summary()
        .map(({ holds }) => holds)
        .sort(),
    ).toEqual([1666, 1667, 1667]);
    expect(ledger.summary().reduce((sum, { bytes }) => sum + bytes, 0)).toBe(count * 512);
    for (let i = 0; i < count; i++) {
      expect(ledger.release(i * 512, 16, 1 + (i % 3), 1)).toBe(true);
    }
    expect(ledger.holds).toBe(0);
    expect(freed).toBe(count);
    expect(ledger.summary()).toEqual([]);
  });

  it('keeps a buffer that goes from hand to hand', () => {
    let freed = 0;
    const ledger = new Ledger(() => freed++);
    ledger.add(512, 16, 512, 2, 1);
    // To itself by its own word, too.
    expect(ledger.transfer(512, 16, 2, 1, 2)).toBe(true);
    expect(ledger.transfer(512, 16, 2, 2, 2)).toBe(true);
    expect(freed).toBe(0);
    expect(ledger.release(512, 16, 2, 2)).toBe(true);
    expect(freed).toBe(1);
  });
});
