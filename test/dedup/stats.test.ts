// What a pool counts: savings by cause, reads by what they took from the devices, times.

import { describe, expect, it } from 'vitest';
import { Pool, type PoolStats } from '../../lib/dedup/index.js';
import { bucketOf, Latency, middleOf, UNIT_TICKS } from '../../lib/dedup/stats/latency.js';
import { Stage, StageClock } from '../../lib/dedup/stats/stage-clock.js';
import { ReadSample, Traffic } from '../../lib/dedup/stats/traffic.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { native } from '../../lib/native.js';
import { open } from '../../lib/open.js';
import { PAGE, range, read, write } from './contents.js';

const SMALL = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };

async function withPool(
  fastUri: string | null,
  run: (
    pool: Pool,
    disk: BlockDevice,
    stats: () => PoolStats,
    fast: BlockDevice | null,
  ) => Promise<void>,
): Promise<void> {
  const device = await open('ram:64MiB');
  const fast = fastUri === null ? null : await open(fastUri);
  await Pool.create(device, { thn: 8, sampling: 1, llrrmThreshold: 2 });
  const pool = await Pool.open(device, { ...SMALL, llrrm: fast });
  await pool.createVolume('a', 1024 * PAGE);
  const disk = pool.openVolume('a');
  await run(pool, disk, () => pool.stats(), fast);
  await disk.close();
  await pool.close();
  await device.close();
  await fast?.close();
}

describe('statistics of a pool', () => {
  it('say why blocks took no room', async () => {
    await withPool('ram:1MiB', async (pool, disk, stats) => {
      await write(disk, 0, range(100, 32));
      expect(stats().savings).toEqual({ zero: 0, run: 0, short: 0, copied: 0 });
      await write(disk, 100, [...range(0, 5).map(() => 0), ...range(100, 16)]);
      expect(stats().savings).toEqual({ zero: 5, run: 16, short: 0, copied: 0 });
      // Blocks that one reference more makes worth fast memory are shared in short runs, too.
      await write(disk, 200, [...range(110, 3), ...range(900, 8)]);
      expect(stats().savings).toEqual({ zero: 5, run: 16, short: 3, copied: 0 });
      expect(stats().written).toMatchObject({ same: 19, short: 3, fresh: 32 + 8 });
      await pool.copyVolume('a', 'b', 'snapshot');
      expect(stats().savings.copied).toBe(32 + 16 + 11);
      expect(stats().logical_blocks_used).toBe(2 * (32 + 16 + 11));
    });
  });

  it('count reads and writes, and what reads took from the device', async () => {
    await withPool(null, async (_, disk, stats) => {
      expect(stats().reads).toMatchObject({ requests: 0, device_reads_per_mib: 0 });
      await write(disk, 0, range(100, 64));
      await write(disk, 64, range(500, 1));
      expect(stats().writes).toEqual({ requests: 2, blocks: 65 });
      await read(disk, 0, 64);
      await read(disk, 3, 1);
      expect(stats().reads).toMatchObject({ requests: 2, blocks: 65, device_reads: 2 });
      // A hole takes no read, and a run behind it one.
      await write(disk, 130, range(700, 2));
      await read(disk, 128, 4);
      await read(disk, 900, 1);
      const { reads } = stats();
      expect(reads).toMatchObject({ requests: 4, blocks: 70, device_reads: 3, llrrm_reads: 0 });
      expect(reads.device_reads_per_mib).toBeCloseTo((3 * 256) / 70);
      expect(reads).toMatchObject({ device_reads_saved: 0, latency: { llrrm: null } });
    });
  });

  it('say what fast memory is worth', async () => {
    await withPool('ram:1MiB', async (pool, disk, stats) => {
      await write(disk, 0, range(100, 32));
      await write(disk, 100, range(100, 32));
      await pool.settle();
      expect(stats().llrrm).toMatchObject({ used: 32 });
      for (let i = 0; i < 200; i++) await read(disk, i & 15, 8);
      expect(stats().reads).toMatchObject({
        ...{ requests: 200, blocks: 1600, device_reads: 0 },
        ...{ llrrm_reads: 200, device_reads_saved: 200 },
      });
      // Its bytes are compared with, too, where the run is short.
      await write(disk, 300, [...range(900, 5), ...range(104, 3)]);
      expect(stats().llrrm).toMatchObject({ compared: 1 });
      expect(stats().reads.device_reads_saved).toBe(201);
      for (let i = 0; i < 200; i++) await read(disk, 300 + (i & 3), 1);
      const { latency, device_reads: reads } = stats().reads;
      expect(reads).toBe(200);
      for (const tier of [latency.device, latency.llrrm!]) {
        expect(tier.count).toBeGreaterThanOrEqual(3);
        expect(tier.count).toBeLessThanOrEqual(4);
        expect(tier.p50_us).toBeGreaterThan(0);
        expect(tier.max_us).toBeGreaterThanOrEqual(tier.p99_us);
        expect(tier.p99_us).toBeGreaterThanOrEqual(tier.p50_us);
      }
    });
  });

  it('count what damaged copies cost as reads of the device', async () => {
    await withPool('ram:1MiB', async (pool, disk, stats, fast) => {
      await write(disk, 0, range(100, 8));
      await write(disk, 100, range(100, 8));
      await pool.settle();
      const noise = fast!.memory.alloc(fast!.info.blocks * fast!.info.blockSize);
      noise.u8.fill(0x5a);
      await fast!.write(0, noise);
      noise.free();
      await read(disk, 0, 8);
      expect(stats().llrrm).toMatchObject({ reads: 1, damaged: 1 });
      expect(stats().reads).toMatchObject({ device_reads: 1, device_reads_saved: 0 });
    });
  });

  it('know the index and the time of each stage', async () => {
    await withPool(null, async (pool, disk, stats) => {
      await write(disk, 0, range(100, 64));
      await write(disk, 100, range(120, 64));
      await pool.checkpoint();
      const { index, stages } = stats();
      expect(index).toMatchObject({ probes: 128, hits: 44, missed: 84, stale: 0 });
      for (const [name, ms] of Object.entries(stages)) {
        // The device has compared by itself.
        if (name === 'compare_ms') expect(ms).toBe(0);
        else expect(ms).toBeGreaterThan(0);
      }
      // Blocks that nobody has any more are not what the index says.
      await write(disk, 0, range(5000, 164));
      await pool.checkpoint();
      await write(disk, 300, range(100, 64));
      expect(stats().index.stale).toBeGreaterThan(0);
    });
  });
});

describe('a clock of stages', () => {
  it('gives each stage its own time, not what is within it', () => {
    const words = new Uint32Array(2);
    let now = 2 ** 32 - 10;
    const read = (): void => {
      words[0] = now % 2 ** 32;
      words[1] = now / 2 ** 32;
    };
    const clock = new StageClock({ words, read });
    clock.turn(Stage.other);
    const outer = clock.turn(Stage.enter);
    now += 100; // over a carry
    const inner = clock.turn(Stage.journal);
    now += 30;
    clock.turn(inner);
    now += 5;
    clock.turn(outer);
    now += 1000;
    clock.turn(Stage.hash);
    expect([clock.ticks[Stage.enter], clock.ticks[Stage.journal]]).toEqual([105, 30]);
    expect(clock.ticks[Stage.hash]).toBe(0);
  });
});

describe('latencies', () => {
  it('have buckets in the order of values, at most 3 % wide', () => {
    let before = -1;
    for (let units = 0; units < 2 ** 31; units = Math.ceil((units + 1) * 1.003)) {
      const bucket = bucketOf(units);
      expect(bucket).toBeGreaterThanOrEqual(before);
      expect(Math.abs(middleOf(bucket) - units)).toBeLessThanOrEqual(units / 32);
      before = bucket;
    }
  });

  it('give mean, median, percentile and maximum', () => {
    const latency = new Latency();
    expect(latency.stats()).toEqual({ count: 0, mean_us: 0, p50_us: 0, p99_us: 0, max_us: 0 });
    const unitsOf = (us: number): number => Math.round((us * native.tscHertz()) / 1e6 / UNIT_TICKS);
    for (let us = 1; us <= 1000; us++) latency.record(unitsOf(us));
    const stats = latency.stats();
    expect(stats.count).toBe(1000);
    expect(stats.mean_us).toBeCloseTo(500.5, 0);
    expect(Math.abs(stats.p50_us - 500)).toBeLessThan(16);
    expect(Math.abs(stats.p99_us - 990)).toBeLessThan(32);
    expect(stats.max_us).toBeCloseTo(1000, 0);
    latency.record(0x7fffffff);
    expect(latency.stats().max_us).toBeGreaterThan(5e6);
  });

  it('are taken of reads in every place of a batch, one at a time', () => {
    const sample = new ReadSample(new Traffic());
    const places = new Set<number>();
    for (let batch = 0, timed = 0; batch < 61; batch++) {
      const at = sample.due(128);
      expect(at).toBeGreaterThanOrEqual(0);
      places.add(at);
      expect(++timed).toBe(batch + 1);
    }
    expect(places.size).toBe(61);
    sample.begin();
    sample.slot = 7;
    for (let i = 0; i < 200; i++) expect(sample.due(1)).toBe(-1);
    sample.end(true);
    let singles = 0;
    for (let i = 0; i < 610; i++) if (sample.due(1) === 0) singles++;
    expect(singles).toBe(10);
  });
});
