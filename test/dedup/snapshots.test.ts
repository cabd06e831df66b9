// Snapshots, clones and deletes: what each has stays its own, and space comes back when the last
// one that uses it goes.

import { expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contentOf } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';
import { PAGE, write } from './contents.js';

const BLOCKS = 2000;
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };

async function read(disk: BlockDevice): Promise<number[]> {
  const buffer = disk.memory.alloc(BLOCKS * PAGE);
  await disk.read(0, buffer);
  const contents = Array.from({ length: BLOCKS }, (_, i) => contentOf(buffer.u32, i * 1024));
  buffer.free();
  return contents;
}

it('are as their models, through copies, writes, deletes and reopening', async () => {
  const random = new Random(7);
  const device = await open('ram:96MiB');
  await Pool.create(device, { thn: 4, sampling: 1 });
  let pool = await Pool.open(device, OPEN);
  await pool.createVolume('v0', BLOCKS * PAGE);
  const models = new Map<string, number[]>([['v0', new Array<number>(BLOCKS).fill(0)]]);
  const frozen = new Set<string>();
  let content = 1;
  for (let step = 0; step < 120; step++) {
    const name = random.pick([...models.keys()]);
    const model = models.get(name)!;
    const choice = random.below(10);
    if (choice < 6 && !frozen.has(name)) {
      const count = random.between(1, 200);
      const first = random.below(BLOCKS - count);
      const contents = Array.from({ length: count }, () => content++);
      const disk = pool.openVolume(name);
      await write(disk, first, contents);
      await disk.close();
      model.splice(first, count, ...contents);
    } else if (choice < 8 && models.size < 8) {
      const copy = `v${content++}`;
      const kind = random.pick(['snapshot', 'clone'] as const);
      await pool.copyVolume(name, copy, kind);
      models.set(copy, model.slice());
      if (kind === 'snapshot') frozen.add(copy);
    } else if (choice === 8 && models.size > 3 && name !== 'v0') {
      await pool.deleteVolume(name);
      models.delete(name);
    } else if (step % 5 === 0) {
      await pool.close();
      expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
      pool = await Pool.open(device, OPEN);
    }
  }
  for (const [name, model] of models) {
    const disk = pool.openVolume(name);
    expect(await read(disk)).toEqual(model);
    if (frozen.has(name)) {
      await expect(write(disk, 0, [1])).rejects.toMatchObject({ code: 'READ_ONLY' });
    }
    await expect(pool.deleteVolume(name)).rejects.toMatchObject({ code: 'VOLUME_BUSY' });
    await disk.close();
  }
  await pool.settle();
  await pool.close();
  const report = await checkPool(device, { data: true });
  expect(report).toMatchObject({ clean: true, volumes: models.size });
  pool = await Pool.open(device, OPEN);
  for (const name of models.keys()) await pool.deleteVolume(name);
  await pool.settle();
  await pool.checkpoint();
  // What is left is the catalogue.
  expect(pool.stats().data_blocks_used).toBeLessThan(8);
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true, volumes: 0, blocks: 0 });
  await device.close();
});

it('goes on deleting where a pool was closed, and holds up nobody', async () => {
  const device = await open('ram:192MiB');
  await Pool.create(device, { thn: 0 });
  // All of the map is in memory: it is not pages that the walk waits for.
  let pool = await Pool.open(device, { ...OPEN, cacheBytes: 2 ** 25 });
  await pool.createVolume('large', 2 ** 40);
  await pool.createVolume('small', 2 ** 22);
  const large = pool.openVolume('large');
  // One block in each of many leaves.
  for (let leaf = 0; leaf < 3000; leaf += 50) {
    await Promise.all(
      Array.from({ length: 50 }, (_, i) => write(large, (leaf + i) * 512, [leaf + i + 1])),
    );
  }
  await large.close();
  const before = pool.stats().data_blocks_used;
  await pool.deleteVolume('large');
  expect(pool.engine.parts.catalogue.deleting.length).toBe(1);
  expect(pool.stats().data_blocks_used).toBeGreaterThan(before / 2);
  // In the middle of it, others write as always.
  while (pool.stats().data_blocks_used > before / 2) await new Promise(setImmediate);
  const small = pool.openVolume('small');
  await write(small, 0, [5, 6, 7]);
  expect(pool.engine.parts.catalogue.deleting.length).toBe(1);
  expect(pool.stats().data_blocks_used).toBeGreaterThan(before / 4);
  await small.close();
  const left = pool.stats().data_blocks_used;
  await pool.close();
  pool = await Pool.open(device, OPEN);
  expect(pool.volumes.map(({ name }) => name)).toEqual(['small']);
  // What was done before is not to be done again, and the rest still is.
  expect(pool.engine.parts.catalogue.deleting.length).toBe(1);
  expect(pool.stats().data_blocks_used).toBeGreaterThan(before / 4);
  expect(pool.stats().data_blocks_used).toBeLessThan(left + 10);
  await pool.createVolume('large', 2 ** 30);
  await pool.settle();
  expect(pool.stats().data_blocks_used).toBeLessThan(before - 5900);
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true, volumes: 2 });
  await device.close();
});

it('use the space of what was deleted, blocks and nodes, again and again', async () => {
  const device = await open('ram:48MiB');
  await Pool.create(device, { thn: 4, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  let content = 1;
  const models = new Map<string, Map<number, number>>();
  for (let cycle = 0; cycle < 14; cycle++) {
    const name = `c${cycle}`;
    await pool.createVolume(name, 2 ** 36);
    const disk = pool.openVolume(name);
    const model = new Map<number, number>();
    models.set(name, model);
    // Some blocks in each of many leaves, twice, so that nodes move to where nodes of others were.
    for (let i = 0; i < 320; i++) {
      if (i === 160) await pool.checkpoint();
      const first = (i % 160) * 997 + cycle + (i < 160 ? 0 : 20);
      const contents = Array.from({ length: 6 }, () => content++);
      await write(disk, first, contents);
      for (const [at, each] of contents.entries()) model.set(first + at, each);
    }
    await disk.close();
    if (cycle >= 2) {
      await pool.deleteVolume(`c${cycle - 2}`);
      models.delete(`c${cycle - 2}`);
      await pool.settle();
      await pool.checkpoint();
    }
    for (const [each, wanted] of models) {
      const kept = pool.openVolume(each);
      const buffer = kept.memory.alloc(PAGE);
      for (const [lbn, value] of wanted) {
        await kept.read(lbn, buffer);
        if (contentOf(buffer.u32, 0) !== value) expect(`${each} at ${lbn}`).toBe('as written');
      }
      buffer.free();
      await kept.close();
    }
  }
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});
