// Nothing that a pool waits for waits for what it holds: sets, checkpoints, counts and frames.

import { expect, it } from 'vitest';
import { Miss } from '../../lib/dedup/durable/pages.js';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { Stream } from '../../lib/dedup/space/allocator.js';
import { open } from '../../lib/open.js';
import { range, read, write } from './contents.js';
import { turn } from './turn.js';

const LEAF = 512;

it('plans a set anew that a checkpoint waits for, behind one that finds no node', async () => {
  const device = await open('ram:24MiB');
  await Pool.create(device, { thn: 1, sampling: 1 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 23, indexBytes: 2 ** 20 });
  await pool.createVolume('data', 2 ** 24);
  await pool.createVolume('wide', 2 ** 40);
  const [data, wide] = ['data', 'wide'].map((name) => pool.openVolume(name));
  await write(data!, 0, range(1, 8));
  const { engine } = pool;
  const { checkpoint, allocator } = engine.parts;
  // One is with the device when a checkpoint begins.
  const { writing } = engine;
  const held: [number, number][] = [];
  writing.answered = (...answer) => void held.push(answer);
  const slow = write(data!, 100, [1]);
  while (held.length === 0) await turn(pool);
  const taken = engine.checkpoint();
  while (!checkpoint.waitsFor(0) && !checkpoint.waitsFor(1)) await turn(pool);
  Reflect.deleteProperty(writing, 'answered');
  // The next one has its data there sooner, and finds no node till that checkpoint is over.
  const take = allocator.take.bind(allocator);
  allocator.take = (stream, wanted) => {
    if (stream !== Stream.nodes || !checkpoint.waitsFor(0) === !checkpoint.waitsFor(1))
      return take(stream, wanted);
    allocator.full = true;
    return 0;
  };
  const blocked = write(wide!, 7 * LEAF, [50]);
  for (let i = 0; i < 20; i++) await turn(pool);
  for (const answer of held) writing.answered(...answer);
  await Promise.all([slow, blocked]);
  expect(await taken).toBe(true);
  allocator.take = take;
  expect(await read(data!, 100, 1)).toEqual([1]);
  expect(await read(wide!, 7 * LEAF, 1)).toEqual([50]);
  await data!.close();
  await wide!.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('ends a checkpoint that was asked for under a load that keeps the cache full', async () => {
  // Half of what is written while one is under way makes the next one due.
  const device = await open('ram:256MiB?fault.delayUs=3000');
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 });
  await pool.createVolume('wide', 2 ** 40);
  const disk = pool.openVolume('wide');
  const { checkpoint } = pool.engine.parts;
  let isOver = false;
  let next = 0;
  const lane = async (): Promise<void> => {
    while (!isOver) await write(disk, next++ * LEAF, [next]);
  };
  const lanes = Array.from({ length: 100 }, lane);
  const began = checkpoint.done;
  while (checkpoint.done < began + 2) await new Promise((resolve) => setTimeout(resolve, 5));
  const copied = pool.copyVolume('wide', 'copy', 'snapshot').then(() => (isOver = true));
  const most = checkpoint.done + 10;
  while (!isOver && checkpoint.done < most) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(isOver).toBe(true);
  await copied;
  await Promise.all(lanes);
  await disk.close();
  await pool.close();
  await device.close();
});

it.each(['discarded', 'copied and written', 'deleted'])(
  'has frames for the counts of a leaf whose blocks lie in as many groups: %s',
  async (how) => {
    const device = await open('ram:8GiB?sparse=1');
    await Pool.create(device, { thn: 0 });
    const pool = await Pool.open(device, { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 });
    await pool.createVolume('far', 2 ** 24);
    const disk = pool.openVolume('far');
    const { allocator } = pool.engine.parts;
    // Each block is in an extent of its own, and 4 leaves take turns.
    for (let i = 0; i < 4 * LEAF; i++) {
      await write(disk, (i % 4) * LEAF + Math.floor(i / 4), [i + 1]);
      allocator.letGo(Stream.blocks);
    }
    await pool.checkpoint();
    expect(pool.stats().cache.frames).toBeGreaterThan(1000);
    if (how === 'discarded') {
      for (let leaf = 0; leaf < 4; leaf++) await disk.discard(leaf * LEAF, LEAF);
    } else if (how === 'copied and written') {
      await pool.copyVolume('far', 'copy', 'snapshot');
      for (let leaf = 0; leaf < 4; leaf++) await write(disk, leaf * LEAF + 7, [10_000 + leaf]);
    }
    await disk.close();
    if (how === 'deleted') {
      await pool.deleteVolume('far');
      await pool.settle();
      expect(pool.stats().data_blocks_used).toBeLessThan(32);
    }
    await pool.close();
    expect(await checkPool(device)).toMatchObject({ clean: true });
    await device.close();
  },
);

it('ends a look for duplicates in more extents than the cache has frames for', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 8, sampling: 1 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 });
  await pool.createVolume('one', 2 ** 24);
  const disk = pool.openVolume('one');
  await write(disk, 0, range(1, 64));
  const { space, pages } = pool.engine.parts;
  // As if each page that comes had another one go.
  let looks = 0;
  space.fingerprints = () => {
    looks++;
    pages.loads++;
    return Miss.wait;
  };
  const { fresh } = pool.stats().written;
  const again = write(disk, 100, range(1, 64));
  while (pool.stats().written.fresh === fresh) await turn(pool);
  Reflect.deleteProperty(space, 'fingerprints');
  await again;
  expect(looks).toBeGreaterThan(pages.frames);
  expect(pool.stats().written.fresh).toBe(fresh + 64);
  expect(await read(disk, 100, 64)).toEqual(range(1, 64));
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});
