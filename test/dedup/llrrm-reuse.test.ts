// Low-latency memory of a pool that is nearly full: a block that is freed is given out again at
// once, while copies and reads of it are under way, for answers of both devices come late.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { checkPool, Pool, type CreateOptions } from '../../lib/dedup/index.js';
import { Magic } from '../../lib/dedup/format/layout.js';
import { groupOf } from '../../lib/dedup/format/numbers.js';
import { SlotState } from '../../lib/dedup/llrrm/llrrm-table.js';
import type { FaultDevice } from '../../lib/drivers/fault/device.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { Random } from '../soak/harness.js';
import { PAGE, range, read, write } from './contents.js';

const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const BLOCKS = 128;
const NAMES = ['a', 'b', 'c', 'd'];
/** Blocks that are left free. */
const ROOM = 800;
/** What the pool is filled with is above all other contents. */
const FILLING = 2 ** 30;

interface Stand {
  device: BlockDevice;
  fast: BlockDevice;
  pool: Pool;
  disks: BlockDevice[];
}

async function stand(device: BlockDevice, fastUri: string, options: CreateOptions): Promise<Stand> {
  const fast = await open(fastUri);
  await Pool.create(device, { thn: 4, sampling: 1, ...options });
  const pool = await Pool.open(device, { ...OPEN, llrrm: fast });
  await pool.createVolume('filling', 2 ** 30);
  const filling = pool.openVolume('filling');
  for (let at = 0; pool.stats().free_blocks > ROOM + 256; at += 256) {
    await write(filling, at, range(FILLING + at, 256));
  }
  await filling.close();
  for (const name of NAMES) await pool.createVolume(name, BLOCKS * PAGE);
  return { device, fast, pool, disks: NAMES.map((name) => pool.openVolume(name)) };
}

async function end({ device, fast, pool, disks }: Stand): Promise<void> {
  for (const disk of disks) await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
  await fast.close();
}

const tierOf = (pool: Pool): NonNullable<ReturnType<Pool['stats']>['llrrm']> => pool.stats().llrrm!;

/** Where the first blocks of volume a are. */
function placesOf(pool: Pool, count: number): number[] {
  const { catalogue, trees } = pool.engine.parts;
  const leaf = trees.leaf(catalogue.get('a'), 0, Magic.node);
  return range(0, count).map((e) => trees.entry(leaf, e));
}

/** From now on such a part of what a device with faults is asked is answered so much later. */
function delay(device: BlockDevice, delayUs: number, part: number): void {
  const backend = device.backend as FaultDevice;
  const delayChance = part * 2 ** 32;
  Object.assign(backend, { options: { ...backend.options, delayUs, delayChance } });
}

describe('a block that is freed', () => {
  it('has left before its place is written again', async () => {
    const made = await stand(await open('ram:30MiB'), 'ram:1MiB', {});
    const { pool, disks } = made;
    const places = new Set<number>();
    let reused = 0;
    for (let round = 0; round < 40; round++) {
      const contents = range(1000 + round * 100, 64);
      for (const disk of disks) await write(disk, 0, contents);
      await pool.settle();
      expect(tierOf(pool).used).toBeGreaterThan(48);
      for (const disk of disks) expect(await read(disk, 0, 16)).toEqual(contents.slice(0, 16));
      for (const pbn of placesOf(pool, 64)) {
        if (places.has(pbn)) reused++;
        places.add(pbn);
      }
    }
    // Of which most were in low-latency memory before, as another content.
    expect(reused).toBeGreaterThan(200);
    expect(tierOf(pool).freed).toBeGreaterThan(1000);
    expect(tierOf(pool).damaged).toBe(0);
    await end(made);
  });
});

describe('a block that is freed, and another one, while it is copied', () => {
  it('is not held against the fingerprint of the other one', async () => {
    const device = await open('ram:30MiB?fault.delayUs=0');
    const options = { dataChecksum: true, llrrmPolicy: 'random', llrrmThreshold: 1 } as const;
    const made = await stand(device, 'ram:1MiB', options);
    const { pool, disks } = made;
    const { copier } = pool.engine.llrrm!;
    let content = 1000;
    const fresh = (count: number): number[] => range((content += count), count);
    let happened = false;
    for (let delayUs = 100_000; !happened && delayUs < 5e6; delayUs *= 2) {
      await write(disks[0]!, 0, fresh(4));
      await pool.settle();
      const [pbn] = placesOf(pool, 1);
      delay(device, delayUs, 1);
      copier.worth(pbn!);
      while (!copier.busy) pool.engine.run();
      delay(device, 0, 0);
      await write(disks[0]!, 0, fresh(4));
      while (copier.busy && !happened) {
        await pool.checkpoint();
        for (let at = 0; at < BLOCKS; at += 32) await write(disks[0]!, at, fresh(32));
        happened = copier.busy && placesOf(pool, BLOCKS).includes(pbn!);
      }
      await pool.settle();
    }
    expect(happened).toBe(true);
    expect(tierOf(pool)).toMatchObject({ promoted: 0, used: 0 });
    expect(pool.stats().checksums).toMatchObject({ damaged: 0 });
    await end(made);
  });
});

describe('a block that is wanted', () => {
  it('twice is copied once, and not at all once it is free', async () => {
    const options = { llrrmPolicy: 'random', llrrmThreshold: 1 } as const;
    const made = await stand(await open('ram:30MiB'), 'ram:1MiB', options);
    const { pool, disks } = made;
    const [disk] = disks;
    await write(disk!, 0, range(1000, 4));
    await Promise.all([read(disk!, 0, 4), read(disk!, 0, 4)]);
    await pool.settle();
    expect(tierOf(pool)).toMatchObject({ promoted: 4, used: 4 });
    const [pbn] = placesOf(pool, 1);
    await write(disk!, 0, range(2000, 4));
    await pool.settle();
    expect(tierOf(pool)).toMatchObject({ freed: 4, used: 0 });
    pool.engine.llrrm!.copier.worth(pbn!);
    pool.engine.kick();
    await pool.settle();
    expect(tierOf(pool)).toMatchObject({ promoted: 4, used: 0 });
    await end(made);
  });
});

/** What one of several at once does, in blocks of volumes that are its own. */
class Lane {
  static readonly BLOCKS = 32;
  private readonly first: number;
  private readonly random: Random;
  private readonly made: Stand;
  private readonly series: Series;
  private readonly model: number[][];

  constructor(lane: number, random: Random, made: Stand, series: Series) {
    this.first = lane * Lane.BLOCKS;
    this.random = random;
    this.made = made;
    this.series = series;
    this.model = NAMES.map(() => new Array<number>(Lane.BLOCKS).fill(0));
  }

  /** Writes a part of a volume, and reads it meanwhile: what is there is old or new. */
  async step(): Promise<void> {
    const { random } = this;
    const v = random.below(NAMES.length);
    const disk = this.made.disks[v]!;
    const model = this.model[v]!;
    const count = random.chance(0.7) ? random.between(4, 12) : random.between(1, 3);
    const first = random.below(Lane.BLOCKS - count);
    const isRead = random.chance(0.5);
    const contents = isRead ? model.slice(first, first + count) : this.series.next(count);
    const from = Math.max(0, first - 2);
    const may = model.slice(from, first + count).map((content) => [content]);
    for (const [i, content] of contents.entries()) may[first - from + i]!.push(content);
    const works = [this.compare(disk, from, may), this.compare(disk, from, may)];
    if (!isRead) {
      works.push(write(disk, this.first + first, contents));
      works.push(this.compare(disk, from, may));
    }
    await Promise.all(works);
    model.splice(first, count, ...contents);
    await this.compare(
      disk,
      from,
      model.slice(from, first + count).map((content) => [content]),
    );
  }

  private async compare(disk: BlockDevice, from: number, may: number[][]): Promise<void> {
    const contents = await read(disk, this.first + from, may.length);
    for (const [i, content] of contents.entries()) expect(may[i]).toContain(content);
  }
}

/** Contents that many write: a series is written for a while, and then no more. */
class Series {
  private readonly random: Random;
  private content = 1000;
  private readonly series: number[][] = [];

  constructor(random: Random) {
    this.random = random;
  }

  next(count: number): number[] {
    const { random, series } = this;
    if (series.length === 0 || random.chance(0.25)) {
      series.push(range(this.content, 16));
      this.content += 16;
      if (series.length > 4) series.shift();
    }
    const from = random.below(16 - count);
    return random.pick(series).slice(from, from + count);
  }
}

describe('copies, reads, frees and writes at once, of a few blocks', () => {
  it.each([
    ['shared', 'ram:1MiB'],
    ['random', 'ram:256KiB'],
  ] as const)('are as the model, policy %s, on %s', async (llrrmPolicy, fast) => {
    const device = await open('ram:30MiB?fault.delayUs=0');
    const options = { llrrmPolicy, llrrmThreshold: 2 };
    const made = await stand(device, `${fast}?fault.delayUs=0`, options);
    for (const each of [made.device, made.fast]) delay(each, 300, 0.5);
    const random = new Random(21);
    const series = new Series(random);
    const lanes = range(0, 4).map((lane) => new Lane(lane, random, made, series));
    const work = async (lane: Lane): Promise<void> => {
      for (let step = 0; step < 300; step++) await lane.step();
    };
    await Promise.all(lanes.map(work));
    const { promoted, freed, evicted, reads, damaged } = tierOf(made.pool);
    expect(promoted).toBeGreaterThan(500);
    expect(freed).toBeGreaterThan(50);
    expect(freed + evicted).toBeGreaterThan(400);
    expect(reads).toBeGreaterThan(500);
    // What is not right would be found, and read elsewhere: there is nothing to be found.
    expect(damaged).toBe(0);
    await end(made);
  });
});

it('saves no copies of blocks that the same close frees', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-llrrm-close-'));
  const device = await open('ram:64MiB');
  const fast = await open(`file:${join(folder, 'fast')}?create=2MiB`);
  await Pool.create(device, { thn: 1, sampling: 1, llrrmThreshold: 1, llrrm: fast });
  let freed = 0;
  for (let round = 0; round < 8; round++) {
    const pool = await Pool.open(device, { ...OPEN, llrrm: fast });
    // What was saved has all its blocks in use.
    const { space } = pool.engine.parts;
    const { table } = pool.engine.llrrm!;
    for (let slot = 0; slot < table.slots; slot++) {
      if (table.states[slot] !== SlotState.valid) continue;
      const pbn = table.pbnHi[slot]! * 2 ** 32 + table.pbnLo[slot]!;
      const counts = await pool.engine.answer(() => space.count(groupOf(pbn)));
      expect({ pbn, count: space.countIn(counts, pbn) }).not.toEqual({ pbn, count: 0 });
    }
    await pool.createVolume('gone', 2 ** 40);
    const disk = pool.openVolume('gone');
    for (let i = 0; i < 100; i++) await write(disk, i * 512, [round * 1000 + i + 1]);
    await disk.close();
    await pool.settle();
    const before = table.valid;
    await pool.deleteVolume('gone');
    // In the middle of it.
    while (table.freed === 0) await new Promise((resolve) => setImmediate(resolve));
    await pool.close();
    freed += before - table.valid;
  }
  expect(freed).toBeGreaterThan(0);
  await device.close();
  await fast.close();
  rmSync(folder, { recursive: true });
});
