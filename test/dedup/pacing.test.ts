// Cleaning, deleting and trimming beside volumes at work: a part at a time, and after each a rest
// of four times its length. Time is counted in rounds here, so that nothing depends on how fast the
// machine is.

import { afterEach, describe, expect, it, vi } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import type { VolumeQueue } from '../../lib/dedup/volume/volume-queue.js';
import { open } from '../../lib/open.js';
import { range, read, write } from './contents.js';

const BLOCKS = 6000;
/** All pages are in memory, so that no step waits for one. */
const OPEN = { cacheBytes: 2 ** 23, indexBytes: 2 ** 20, cleanEveryMs: 0 };
/** Blocks that are written together, and those of them that are left. */
const RUN = 40;
const LEFT = 10;
/** So far apart that each run has a leaf of the map to itself. */
const SPREAD = 16;
/** Steps of a round. */
const PARTS_MOST = 8;
/** A step of one round, and the rest after it. */
const APART = 5;

afterEach(() => vi.restoreAllMocks());

/** Three quarters of a volume's blocks are free, in runs of 30. */
async function fragmented() {
  const device = await open('ram:96MiB');
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('one', 2 ** 32);
  const disk = pool.openVolume('one');
  for (let at = 0; at < BLOCKS; at += RUN) await write(disk, at * SPREAD, range(at + 1, RUN));
  for (let at = 0; at < BLOCKS; at += RUN) await disk.discard(at * SPREAD + LEFT, RUN - LEFT);
  await pool.checkpoint();
  const queue = disk.queue({ depth: 2, split: false });
  /** As if requests of the volume were under way all the time. */
  const work = (): void => {
    vi.spyOn(queue.driver as VolumeQueue, 'busy', 'get').mockReturnValue(true);
  };
  const end = async (): Promise<void> => {
    vi.restoreAllMocks();
    for (let at = 0; at < BLOCKS; at += 10 * RUN) {
      expect(await read(disk, at * SPREAD, LEFT)).toEqual(range(at + 1, LEFT));
    }
    await queue.close();
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  };
  return { pool, work, end };
}

/** Of times at which something was done: how far they lie apart, and how much was done at one. */
function told(times: readonly number[]): { closest: number; most: number } {
  const each = [...new Set(times)];
  const gaps = each.slice(1).map((time, i) => time - each[i]!);
  const most = Math.max(...each.map((at) => times.filter((time) => time === at).length));
  return { closest: Math.min(...gaps), most };
}

describe('a pass of cleaning', () => {
  /** Steps of copying and of walking, by round. */
  async function clean(works: boolean): Promise<{ copies: number[]; walks: number[] }> {
    const { pool, work, end } = await fragmented();
    const { engine } = pool;
    const { cleaner } = engine;
    vi.spyOn(performance, 'now').mockImplementation(() => engine.rounds);
    if (works) work();
    const cleaning = pool.clean();
    while (!cleaner.active) await new Promise(setImmediate);
    const steps = { copies: [] as number[], walks: [] as number[] };
    const watch = (part: { step(): number }, rounds: number[]): void => {
      const step = part.step.bind(part);
      vi.spyOn(part, 'step').mockImplementation(() => {
        rounds.push(engine.rounds);
        return step();
      });
    };
    watch(cleaner.copier!, steps.copies);
    watch(cleaner.walk!, steps.walks);
    const report = await cleaning;
    expect(report).toMatchObject({ stopped: null, freed: report.victims });
    expect(report.victims).toBeGreaterThan(10);
    await end();
    return steps;
  }

  it('rests after each step while volumes are at work', async () => {
    const { copies, walks } = await clean(true);
    for (const steps of [copies, walks]) {
      expect(steps.length).toBeGreaterThan(100);
      expect(told(steps).closest).toBeGreaterThanOrEqual(APART);
      expect(told(steps).most).toBeLessThanOrEqual(PARTS_MOST);
    }
  });

  it('goes on in every round while none is, a part at a time', async () => {
    const { copies, walks } = await clean(false);
    for (const steps of [copies, walks]) {
      expect(told(steps).closest).toBe(1);
      expect(told(steps).most).toBeLessThanOrEqual(PARTS_MOST);
    }
  });
});

describe('a deletion', () => {
  /** Parts, by round. */
  async function remove(works: boolean): Promise<number[]> {
    const { pool, work, end } = await fragmented();
    const { engine } = pool;
    const { trees } = engine.parts;
    await pool.createVolume('gone', 2 ** 32);
    const gone = pool.openVolume('gone');
    for (let leaf = 0; leaf < 200; leaf++) await write(gone, leaf * 512, [10 ** 6 + leaf]);
    await gone.close();
    await pool.checkpoint();
    vi.spyOn(performance, 'now').mockImplementation(() => engine.rounds);
    if (works) work();
    const rounds: number[] = [];
    const takeApart = trees.takeApart.bind(trees);
    vi.spyOn(trees, 'takeApart').mockImplementation((volume) => {
      rounds.push(engine.rounds);
      return takeApart(volume);
    });
    await pool.deleteVolume('gone');
    while (engine.parts.catalogue.deleting.length > 0) {
      engine.run();
      await new Promise(setImmediate);
    }
    await end();
    expect(rounds.length).toBeGreaterThan(200);
    return rounds;
  }

  it('rests after each part while volumes are at work', async () => {
    const { closest, most } = told(await remove(true));
    expect(closest).toBeGreaterThanOrEqual(APART);
    expect(most).toBeLessThanOrEqual(PARTS_MOST);
  });

  it('goes on in every round while none is', async () => {
    const { closest, most } = told(await remove(false));
    expect(closest).toBe(1);
    expect(most).toBe(PARTS_MOST);
  });
});

describe('a trim', () => {
  /** When discards began, in turns of the engine. */
  async function trim(works: boolean): Promise<number[]> {
    const { pool, work, end } = await fragmented();
    const { engine } = pool;
    const { discards } = engine.parts.space;
    let turns = 0;
    const turn = engine.turn.bind(engine);
    vi.spyOn(engine, 'turn').mockImplementation(() => {
      turns++;
      return turn();
    });
    vi.spyOn(performance, 'now').mockImplementation(() => turns);
    if (works) work();
    const begins: number[] = [];
    const begin = discards.begin.bind(discards);
    vi.spyOn(discards, 'begin').mockImplementation((...of) => {
      begins.push(turns);
      begin(...of);
    });
    expect(await pool.trim()).toBeGreaterThan(2 ** 26);
    await end();
    expect(begins.length).toBeGreaterThan(100);
    return begins;
  }

  it('has one discard at a time and rests after it while volumes are at work', async () => {
    const { closest, most } = told(await trim(true));
    expect(closest).toBeGreaterThanOrEqual(APART);
    expect(most).toBe(1);
  });

  it('has several at a time, and no rest, while none is', async () => {
    const { closest, most } = told(await trim(false));
    expect(closest).toBe(1);
    expect(most).toBeGreaterThan(1);
  });
});
