// Extents with few blocks in use are emptied: everything reads as before, what was shared is
// shared, what lay in sequence does; beside other work, in a full pool, through closing and
// crashes.

import { expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const BLOCKS = 7000;
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
type Models = Map<string, number[]>;

async function write(
  pool: Pool,
  models: Models,
  name: string,
  first: number,
  contents: number[],
): Promise<void> {
  const disk = pool.openVolume(name);
  const buffer = disk.memory.alloc(contents.length * PAGE);
  for (const [i, content] of contents.entries()) fillBlock(buffer.u32, i * 1024, content);
  try {
    await disk.write(first, buffer);
    models.get(name)!.splice(first, contents.length, ...contents);
  } finally {
    buffer.free();
    await disk.close();
  }
}

async function read(pool: Pool, name: string): Promise<number[]> {
  const disk = pool.openVolume(name);
  const buffer = disk.memory.alloc(BLOCKS * PAGE);
  await disk.read(0, buffer);
  const contents = Array.from({ length: BLOCKS }, (_, i) => contentOf(buffer.u32, i * 1024));
  buffer.free();
  await disk.close();
  return contents;
}

async function expectAll(pool: Pool, models: Models): Promise<void> {
  for (const [name, model] of models) expect(await read(pool, name)).toEqual(model);
}

const series = (first: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => first + i);

/** A third of each extent is in use: by a volume, and by copies that have parted from it. */
async function fragmented(device: BlockDevice): Promise<{ pool: Pool; models: Models }> {
  await Pool.create(device, { thn: 4, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  const models: Models = new Map();
  const make = (name: string): void => void models.set(name, new Array<number>(BLOCKS).fill(0));
  for (const name of ['v', 'gone']) {
    make(name);
    await pool.createVolume(name, 2 * BLOCKS * PAGE);
  }
  for (let first = 0; first + 20 <= BLOCKS; first += 20) {
    await write(pool, models, 'v', first, series(1 + first, 20));
    await write(pool, models, 'gone', first, series(100_000 + 2 * first, 40).slice(0, 20));
    await write(pool, models, 'gone', first, series(200_000 + 2 * first, 40).slice(0, 20));
  }
  const copy = async (from: string, to: string, kind: 'snapshot' | 'clone'): Promise<void> => {
    await pool.copyVolume(from, to, kind);
    models.set(to, models.get(from)!.slice());
  };
  await copy('v', 'same', 'snapshot');
  await copy('v', 'clone', 'clone');
  await write(pool, models, 'clone', 1000, series(300_000, 12));
  await copy('clone', 'twin', 'snapshot');
  await write(pool, models, 'v', 5000, series(400_000, 12));
  await pool.deleteVolume('gone');
  models.delete('gone');
  await pool.settle();
  await pool.checkpoint();
  return { pool, models };
}

it('moves blocks, and shares, saves and keeps in sequence what it did before', async () => {
  const device = await open('ram:160MiB');
  const { pool, models } = await fragmented(device);
  const { space } = pool.engine.parts;
  const used = pool.stats().data_blocks_used;
  const empty = space.extentsEmpty;
  const { blocks, extents } = await pool.readExtents();
  const report = await pool.clean();
  expect(report).toMatchObject({ stopped: null });
  expect(report.victims).toBeGreaterThan(50);
  expect(report.freed).toBe(report.victims);
  expect(report.sharedNodes).toBeGreaterThan(0);
  // Nodes are copies of nodes that are gone.
  expect(pool.stats().data_blocks_used).toBeLessThanOrEqual(used + 2);
  expect(space.extentsEmpty - empty).toBeGreaterThan(30);
  const after = await pool.readExtents();
  expect(after.blocks).toBe(blocks);
  expect(after.extents).toBeLessThanOrEqual(extents);
  await expectAll(pool, models);
  // Copies are found as what is stored.
  const same = pool.stats().written.same;
  await pool.createVolume('again', BLOCKS * PAGE);
  models.set('again', new Array<number>(BLOCKS).fill(0));
  for (let first = 0; first < 2000; first += 200) {
    await write(pool, models, 'again', first, models.get('v')!.slice(first, first + 200));
  }
  expect(pool.stats().written.same - same).toBeGreaterThan(1900);
  expect(await pool.clean()).toMatchObject({ victims: 0 });
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  const again = await Pool.open(device, OPEN);
  await expectAll(again, models);
  await again.close();
  await device.close();
});

it.each([1])('goes on beside other work, seed %i', async (seed) => {
  const random = new Random(seed);
  const ram = await ramDriver.open(String(160 * MIB), new Map(), 'ram:160MiB');
  const slow = { delayUs: '300', delayProbability: '0.2', reorder: '0.3', seed: String(seed) };
  const device = new BlockDevice(wrapFault(ram, new Map(Object.entries(slow))));
  const { pool, models } = await fragmented(device);
  let freed = 0;
  let ended = false;
  const cleaning = (async () => {
    while (!ended) freed += (await pool.clean({ maxVictims: random.between(8, 80) })).freed;
  })();
  const names = ['v', 'clone'];
  let content = 1_000_000;
  for (let step = 0; step < 300; step++) {
    const choice = random.below(20);
    const name = random.pick(names);
    if (choice < 15) {
      const count = random.between(1, 120);
      const first = random.below(BLOCKS - count);
      // Now and then what another one has.
      const old = models.get(random.pick(names))!.slice(first, first + count);
      const isOld = random.chance(0.4);
      await write(pool, models, name, first, isOld ? old : series(content, count));
      content += count;
    } else if (choice < 17 && names.length < 6) {
      const kind = random.pick(['snapshot', 'clone'] as const);
      const copy = `${kind}${step}`;
      await pool.copyVolume(name, copy, kind);
      models.set(copy, models.get(name)!.slice());
      if (kind === 'clone') names.push(copy);
    } else if (choice < 18 && models.size > 4) {
      const gone = [...models.keys()].find((each) => !names.includes(each))!;
      if (gone === undefined) continue;
      await pool.deleteVolume(gone);
      models.delete(gone);
    } else if (choice < 19) {
      const some = random.pick([...models.keys()]);
      expect(await read(pool, some)).toEqual(models.get(some));
    } else {
      await pool.resizeVolume(name, 512 * 512 * PAGE * random.pick([1, 2]), { shrink: true });
    }
  }
  ended = true;
  await cleaning;
  expect(freed).toBeGreaterThan(20);
  expect(pool.engine.failed).toBeNull();
  await expectAll(pool, models);
  await pool.settle();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('gives nobody what another one writes to what both name anew', async () => {
  const device = await open('ram:160MiB');
  const { pool, models } = await fragmented(device);
  const { cleaner } = pool.engine;
  let isOver = false;
  const cleaning = pool.clean().finally(() => (isOver = true));
  while (!isOver && !((cleaner.walk?.held ?? 0) > 0)) {
    await new Promise((resolve) => setImmediate(resolve));
  }
  const disks = ['v', 'clone'].map((name) => ({ name, disk: pool.openVolume(name) }));
  const buffer = device.memory.alloc(PAGE);
  let writes = 0;
  for (; !isOver; writes++) {
    const { name, disk } = disks[writes % 2]!;
    const block = (writes * 512 + 7) % BLOCKS;
    fillBlock(buffer.u32, 0, 1_000_000 + writes);
    await disk.write(block, buffer);
    models.get(name)![block] = 1_000_000 + writes;
    await new Promise((resolve) => setImmediate(resolve));
  }
  buffer.free();
  for (const { disk } of disks) await disk.close();
  expect(writes).toBeGreaterThan(5);
  expect((await cleaning).sharedNodes).toBeGreaterThan(5);
  await expectAll(pool, models);
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('stops where a pool is closed, and loses nothing', async () => {
  const device = await open('ram:160MiB');
  const made = await fragmented(device);
  const { models } = made;
  let { pool } = made;
  const before = pool.stats().data_blocks_used;
  for (const rounds of [30, 500]) {
    const { engine } = pool;
    const cleaning = pool.clean();
    const from = engine.rounds;
    while (engine.rounds < from + rounds) await new Promise((resolve) => setImmediate(resolve));
    await pool.close();
    expect((await cleaning).stopped).not.toBeNull();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    pool = await Pool.open(device, OPEN);
    await expectAll(pool, models);
  }
  await pool.settle();
  expect(await pool.clean()).toMatchObject({ stopped: null });
  await expectAll(pool, models);
  await pool.checkpoint();
  // Nothing is there twice.
  expect(pool.stats().data_blocks_used).toBeLessThanOrEqual(before + 2);
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it.each([0.6])('survives a power cut in the middle, %d of the cache kept', async (survive) => {
  for (const operations of [60, 500]) {
    const ram = await ramDriver.open(String(160 * MIB), new Map(), 'ram:160MiB');
    const options = new Map([
      ['seed', String(operations)],
      ['cache', '256MiB'],
      ['reorder', '0.3'],
    ]);
    const device = new BlockDevice(wrapFault(ram, options));
    const { pool, models } = await fragmented(device);
    const disk = pool.openVolume('v');
    await disk.flush();
    await disk.close();
    const control = faultControl(device.backend)!;
    const done = pool.engine.parts.io;
    const from = done.reads + done.writes;
    const cleaning = pool.clean().catch(() => undefined);
    let isOver = false;
    void cleaning.then(() => (isOver = true));
    while (!isOver && done.reads + done.writes < from + operations) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    await control.cut({ survive });
    await cleaning;
    await pool.close().catch(() => undefined);
    control.heal();
    const again = await Pool.open(device, OPEN);
    await expectAll(again, models);
    await again.settle();
    expect(await again.clean()).toMatchObject({ stopped: null });
    await expectAll(again, models);
    await again.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  }
});

it.each(['copied', 'walked'])(
  'gives way where space is short, while blocks are %s',
  async (stage) => {
    const device = await open('ram:160MiB');
    const { pool, models } = await fragmented(device);
    await pool.createVolume('filler', 40_000 * PAGE);
    const disk = pool.openVolume('filler');
    const buffer = disk.memory.alloc(64 * PAGE);
    let written = 0;
    const fill = async (): Promise<void> => {
      for (let b = 0; b < 64; b++) fillBlock(buffer.u32, b * 1024, 2_000_000 + written + b);
      await disk.write(written, buffer);
      written += 64;
    };
    const room = pool.stats().free_blocks;
    while (pool.stats().free_blocks > 26_000) await fill();
    const { cleaner } = pool.engine;
    const cleaning = pool.clean();
    const isThere = (): boolean =>
      stage === 'copied' ? cleaner.copier!.copied > 300 : cleaner.walk!.leaves > 0;
    let isOver = false;
    void cleaning.then(() => (isOver = true));
    while (!isOver && (!cleaner.active || !isThere()))
      await new Promise((resolve) => setImmediate(resolve));
    // Writers take all there is: none finds less than without the pass.
    const filling = (async () => {
      for (;;) await fill();
    })();
    await expect(filling).rejects.toMatchObject({ code: 'NO_SPACE' });
    expect(written).toBeGreaterThan(room - 600);
    const { victims, stopped } = await cleaning;
    expect(victims).toBeGreaterThan(10);
    if (stage === 'copied') expect(stopped).toBe('there is no space');
    buffer.free();
    await disk.close();
    await expectAll(pool, models);
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  },
);

it('is joined by who asks meanwhile, whatever the options, and keeps no tables', async () => {
  const device = await open('ram:160MiB');
  const { pool, models } = await fragmented(device);
  const { cleaner } = pool.engine;
  const under = pool.clean({ maxVictims: 3 });
  const { signal } = new AbortController();
  const joined = pool.clean({ maxUsed: 0, signal });
  const report = await under;
  expect(report).toMatchObject({ victims: 3, stopped: null });
  expect(await joined).toBe(report);
  expect(cleaner).toMatchObject({ held: false, copier: null, walk: null, holders: [] });
  // Those of the next one count again.
  await expect(pool.clean({ maxUsed: 0 })).rejects.toMatchObject({ code: 'BAD_OPTION' });
  expect((await pool.clean({ maxVictims: 2 })).victims).toBe(2);
  // Each who asked may end it, the next one is not ended by it.
  const ending = new AbortController();
  const ended = pool.clean({ maxVictims: 2 });
  const other = pool.clean({ signal: ending.signal });
  ending.abort();
  expect(await ended).toMatchObject({ freed: 0, stopped: 'it was interrupted' });
  expect(await other).toBe(await ended);
  expect(await pool.clean({ maxVictims: 2 })).toMatchObject({ victims: 2, stopped: null });
  await expectAll(pool, models);
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('refuses what is no number of blocks', async () => {
  const device = await open('ram:40MiB');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  await expect(pool.clean({ maxUsed: 253 })).rejects.toMatchObject({ code: 'BAD_OPTION' });
  await expect(pool.clean({ maxVictims: 0 })).rejects.toMatchObject({ code: 'BAD_OPTION' });
  expect(await pool.clean()).toMatchObject({ victims: 0, moved: 0, stopped: null });
  await pool.close();
  await device.close();
});

it('begins by itself where only holes are left, and not without need', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 0 });
  const refused = Pool.open(device, { ...OPEN, cleanEveryMs: 1 });
  await expect(refused).rejects.toMatchObject({ code: 'BAD_OPTION' });
  const never = await Pool.open(device, { ...OPEN, cleanEveryMs: 0 });
  const models: Models = new Map([['v', new Array<number>(BLOCKS).fill(0)]]);
  await never.createVolume('v', 2 * BLOCKS * PAGE);
  for (const [half, first] of [0, BLOCKS].entries()) {
    const disk = never.openVolume('v');
    const buffer = disk.memory.alloc(100 * PAGE);
    for (let at = 0; at < 6000; at += 100) {
      for (let i = 0; i < 100; i++) fillBlock(buffer.u32, i * 1024, 1 + half * 10_000 + at + i);
      await disk.write(first + at, buffer);
      if (half === 0) models.get('v')!.splice(at, 100, ...series(1 + at, 100));
    }
    buffer.free();
    await disk.close();
  }
  const disk = never.openVolume('v');
  for (let at = 0; at < 2 * BLOCKS; at += 20) await disk.discard(at, 14);
  await disk.close();
  for (let at = 0; at < BLOCKS; at += 20) {
    for (let i = 0; i < 14; i++) models.get('v')![at + i] = 0;
  }
  await never.checkpoint();
  const before = never.engine.parts.space.extentsEmpty;
  await never.close();

  const pool = await Pool.open(device, { ...OPEN, cleanEveryMs: 20 });
  const { space } = pool.engine.parts;
  await expect.poll(() => space.extentsEmpty, { timeout: 20_000 }).toBeGreaterThan(before + 5);
  await pool.settle();
  // There is enough room in empty extents now.
  const enough = space.extentsEmpty;
  await new Promise((resolve) => setTimeout(resolve, 200));
  expect(space.extentsEmpty).toBe(enough);
  await expectAll(pool, models);
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('ends with what the listener throws, and holds nothing after that', async () => {
  const device = await open('ram:128MiB');
  const { pool, models } = await fragmented(device);
  const onProgress = (): void => {
    throw new Error('of the listener');
  };
  await expect(pool.clean({ onProgress })).rejects.toThrow('of the listener');
  expect(pool.engine.cleaner.held).toBe(false);
  expect((await pool.clean({ maxVictims: 2 })).victims).toBe(2);
  await expectAll(pool, models);
  await pool.close();
  await device.close();
});
