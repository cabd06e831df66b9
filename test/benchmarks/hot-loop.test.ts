// The loop that benchmarks measure with does what it claims: whole records, each tag once, range.

import { describe, expect, it } from 'vitest';
import { HotLoop } from '../../bench/hot-loop.js';
import { Queue, type QueueDriver } from '../../lib/hpdi/index.js';

const DEPTH = 16;

/** Completes in reverse order, a few at a time, and keeps what it saw. */
class Recorder implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  readonly records: number[][] = [];
  private waiting: number[] = [];

  constructor(private readonly perPoll: number) {}

  submit(sq: Uint32Array, head: number, tail: number): number {
    for (let i = head; i !== tail; i++) {
      const at = (i & (sq.length / 8 - 1)) * 8;
      const record = [...sq.subarray(at, at + 8)];
      if (this.waiting.includes(record[1]!)) throw new Error(`tag ${record[1]} is in flight twice`);
      this.records.push(record);
      this.waiting.push(record[1]!);
    }
    return tail - head;
  }

  poll(cq: Uint32Array, max: number): number {
    const tags = this.waiting.reverse().splice(0, Math.min(this.perPoll, max));
    tags.forEach((tag, i) => cq.set([tag, tag === 3 ? 7 : 0, 0, 0], i * 4));
    return tags.length;
  }

  arm(): void {
    this.counters.polls++;
  }

  eventFd(): number {
    return -1;
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    this.waiting = [];
  }

  async close(): Promise<void> {
    this.waiting = [];
  }
}

/** A clock that moves on by `step` ticks at every look, across the border of its low word. */
function steppingClock(step: number) {
  const words = new Uint32Array(2);
  let ticks = 2 ** 32 - 1000;
  const read = (): void => {
    ticks += step;
    words[0] = ticks % 2 ** 32;
    words[1] = Math.floor(ticks / 2 ** 32);
  };
  return { words, read };
}

function makeLoop(perPoll: number, blocks: number, step = 100) {
  const driver = new Recorder(perPoll);
  const queue = new Queue(driver, DEPTH);
  const addresses = Array.from({ length: DEPTH }, (_, tag) => 2 ** 36 + 4096 * (tag + 1));
  const clock = steppingClock(step);
  return {
    driver,
    loop: new HotLoop(queue, { depth: DEPTH, unitBlocks: 8, blocks, addresses, clock }),
  };
}

describe('HotLoop', () => {
  it.each([1, 5, DEPTH])(
    'fills whole records and returns every tag, %i completions a poll',
    (n) => {
      const { driver, loop } = makeLoop(n, 2 ** 21);
      loop.run(1000);
      loop.run(1000);
      expect(loop.operations).toBe(driver.records.length);
      expect(loop.operations).toBeGreaterThanOrEqual(2000);
      expect(loop.queue.inFlight).toBe(0);
      for (const [op, tag, blocks, aux, lbaLo, lbaHi, addressLo, addressHi] of driver.records) {
        expect([op, blocks, aux, lbaHi]).toEqual([1, 8, 0, 0]);
        expect(lbaLo! % 8).toBe(0);
        expect(lbaLo! + 8).toBeLessThanOrEqual(2 ** 21);
        expect(addressHi! * 2 ** 32 + addressLo!).toBe(2 ** 36 + 4096 * (tag! + 1));
      }
      const distinct = new Set(driver.records.map((record) => record[4]));
      expect(distinct.size).toBeGreaterThan(1900);
    },
  );

  it('splits block addresses above 2^32 into two words', () => {
    const { driver, loop } = makeLoop(DEPTH, 2 ** 40);
    loop.run(500);
    const lbas = driver.records.map((record) => record[5]! * 2 ** 32 + record[4]!);
    expect(Math.max(...lbas)).toBeGreaterThan(2 ** 39);
    expect(Math.max(...lbas)).toBeLessThan(2 ** 40);
    expect(lbas.every((lba) => lba % 8 === 0)).toBe(true);
  });

  it('counts failed completions', () => {
    const { driver, loop } = makeLoop(4, 2 ** 21);
    loop.run(300);
    expect(loop.failures).toBe(driver.records.filter((record) => record[1] === 3).length);
    expect(loop.failures).toBeGreaterThan(0);
  });

  // A full batch is stamped, submitted, polled and stamped again: one step of the clock each.
  it.each([1, 50, 100, 5000, 2 ** 20, 2 ** 31, 2 ** 40])('counts a latency of %i ticks', (step) => {
    const { loop } = makeLoop(DEPTH, 2 ** 21, step);
    loop.run(1600);
    const median = loop.percentile(0.5);
    expect(median).toBeGreaterThanOrEqual(step);
    expect(median).toBeLessThanOrEqual(step * (1 + 1 / 64));
    loop.reset();
    expect([loop.operations, loop.ticks, loop.percentile(0.5)]).toEqual([0, 0, 0]);
  });
});
