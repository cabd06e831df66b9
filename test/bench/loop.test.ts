import { describe, expect, it } from 'vitest';
import { Histogram } from '../../lib/bench/histogram.js';
import { Phase, Progress } from '../../lib/bench/progress.js';
import type { WorkerOutput } from '../../lib/bench/messages.js';
import { OPERATIONS, STATUS } from '../../lib/hpdi/records.js';
import { FakeBench, FakeClock } from '../support/bench-session.js';

const UNITS = 128; // 1024 blocks of 512 bytes in units of 4096

function latencies(output: WorkerOutput): [number, number][] {
  return new Histogram(output.reads).buckets();
}

describe('closed loop', () => {
  it('reads every unit once in order, then stops', () => {
    const { output, driver, progress, memory } = new FakeBench().run({ rw: 'read' });
    expect(driver.seen.map(({ lba }) => lba)).toEqual(
      Array.from({ length: UNITS }, (_, i) => i * 8),
    );
    expect(output.readIos).toBe(UNITS);
    expect(output.writeIos).toBe(0);
    expect(output.failed).toBe(0);
    expect(new Histogram(output.reads).count).toBe(UNITS);
    expect(progress[Progress.readIos]).toBe(UNITS);
    expect(progress[Progress.phase]).toBe(Phase.finished);
    expect(memory.live.size).toBe(0);
  });

  it('wraps to the start of its range, which begins at the offset', () => {
    const { driver } = new FakeBench().run({
      rw: 'write',
      offset: 512,
      size: 3 * 4096,
      ioSize: 5 * 4096,
    });
    expect(driver.seen.map(({ lba }) => lba)).toEqual([1, 9, 17, 1, 9]);
    expect(driver.seen.every(({ op }) => op === OPERATIONS.WRITE)).toBe(true);
  });

  it('draws the same operations from the same seed, others from another', () => {
    const lbas = (seed: number): number[] =>
      new FakeBench().run({ seed }).driver.seen.map(({ lba }) => lba);
    expect(lbas(5)).toEqual(lbas(5));
    expect(lbas(5)).not.toEqual(lbas(6));
  });

  it('mixes reads and writes by percentage, each sequential for itself', () => {
    const { output, driver } = new FakeBench().run({
      rw: 'rw',
      rwmixread: 70,
      ioSize: 1000 * 4096,
    });
    expect(output.readIos + output.writeIos).toBe(1000);
    expect(output.readIos).toBeGreaterThan(640);
    expect(output.readIos).toBeLessThan(760);
    const reads = driver.seen.filter(({ op }) => op === OPERATIONS.READ).map(({ lba }) => lba);
    expect(reads).toEqual(reads.map((_, i) => (i % UNITS) * 8));
  });

  it('gets all done by a device that takes few requests at a time', () => {
    const bench = new FakeBench({ take: 3, batch: 2 });
    const { output } = bench.run({ iodepth: 5, ioSize: 500 * 4096 });
    expect(output.readIos).toBe(500);
    expect(new Histogram(output.reads).count).toBe(500);
  });

  it('counts latency from the clock read before the batch', () => {
    const clock = new FakeClock();
    clock.stepNs = 100;
    const { output } = new FakeBench({ batch: 4 }).run(
      { rw: 'read', iodepth: 8, size: 8 * 4096 },
      { clock },
    );
    // Eight are issued at once; four complete in each of two rounds of 100 ns.
    expect(latencies(output)).toEqual([
      [100, 4],
      [201, 4],
    ]);
  });

  it('stops at the deadline and counts only what came after the ramp', () => {
    const clock = new FakeClock();
    clock.stepNs = 1e6;
    const { output, driver } = new FakeBench().run(
      { runtime: 0.1, rampTime: 0.05, iodepth: 1 },
      { clock },
    );
    expect(driver.seen.length).toBeGreaterThanOrEqual(150);
    expect(output.readIos).toBeGreaterThanOrEqual(99);
    expect(output.readIos).toBeLessThanOrEqual(101);
    expect(output.measuredSeconds).toBeCloseTo(0.1, 2);
    expect(new Histogram(output.reads).count).toBe(output.readIos);
    expect(output.polls).toBeLessThan(driver.counters.polls);
  });

  it('ends with the first error, which is counted and kept', () => {
    const fail = (_op: number, lba: number): number => (lba === 80 ? STATUS.MEDIA_ERROR : 0);
    const { output, driver } = new FakeBench({ fail }).run({ rw: 'read', iodepth: 4 });
    expect(output.failed).toBe(1);
    expect(output.status).toBe(STATUS.MEDIA_ERROR);
    expect(output.readIos).toBe(driver.seen.length - 1);
    expect(driver.seen.length).toBeLessThan(20);
  });

  it('issues nothing more once it is told to stop', () => {
    const control = new Int32Array(new SharedArrayBuffer(8));
    let polls = 0;
    const bench = new FakeBench({
      onPoll: () => {
        if (++polls === 10) control[1] = 1;
      },
    });
    const { output } = bench.run({ runtime: 1000, iodepth: 2 }, { control });
    expect(output.stopped).toBe(true);
    expect(output.readIos).toBe(bench.driver.seen.length);
    // A stop is seen between two lots of latencies, which hold at least 512.
    expect(output.readIos).toBeLessThan(1200);
  });

  it('writes contents that no two writes share, and repeats them when asked', () => {
    const distinct = (dedupePercentage: number): number => {
      const { driver } = new FakeBench().run({ rw: 'write', dedupePercentage });
      const units = new Set<string>();
      for (let unit = 0; unit < UNITS; unit++) {
        units.add(driver.store.subarray(unit * 1024, (unit + 1) * 1024).join());
      }
      return units.size;
    };
    expect(distinct(0)).toBe(UNITS);
    const half = distinct(50);
    expect(half).toBeGreaterThan(40);
    expect(half).toBeLessThan(88);
    expect(distinct(100)).toBe(1);
  });
});

describe('open loop', () => {
  it('counts latency from when an operation was due, backlog included', () => {
    const clock = new FakeClock();
    let polls = 0;
    // The device stands still from 10 to 20 ms; a poll costs 10 µs of clock.
    const bench = new FakeBench({
      onPoll: () => {
        clock.now += 10_000;
        if (++polls === 1000) clock.now += 10e6;
      },
    });
    const { output } = bench.run(
      { rateIops: 1000, ioSize: 40 * 4096, iodepth: 32, rw: 'read' },
      { clock },
    );
    const histogram = new Histogram(output.reads);
    expect(output.readIos).toBe(40);
    // About ten were due while it stood still: they waited 1 to 10 ms, not the 10 µs of a fast
    // device.
    const waited = histogram
      .buckets()
      .filter(([ns]) => ns > 500_000)
      .reduce((sum, [, count]) => sum + count, 0);
    expect(waited).toBeGreaterThanOrEqual(9);
    expect(waited).toBeLessThanOrEqual(11);
    expect(histogram.summary().max).toBeGreaterThan(9e6);
  });

  it('issues at its rate', () => {
    const clock = new FakeClock();
    const bench = new FakeBench({ onPoll: () => (clock.now += 1000) });
    const { output } = bench.run({ rateIops: 20_000, runtime: 0.05 }, { clock });
    expect(output.readIos).toBeGreaterThanOrEqual(999);
    expect(output.readIos).toBeLessThanOrEqual(1001);
  });
});
