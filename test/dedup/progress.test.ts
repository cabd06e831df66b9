// Nothing that a pool waits for waits for what it holds: sets, checkpoints, counts and frames.

import { expect, it } from 'vitest';
import { Miss } from '../../lib/dedup/durable/pages.js';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { Stream } from '../../lib/dedup/space/allocator.js';
import { Status } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { range, read, write } from './contents.js';
import { turn } from './turn.js';

const LEAF = 512;

/** A write whose answers of the device the pool gets when they are released. */
async function held(
  pool: Pool,
  begin: () => Promise<void>,
): Promise<{ slow: Promise<void>; release: () => void }> {
  const { writing } = pool.engine;
  const answers: [number, number][] = [];
  writing.answered = (...answer) => void answers.push(answer);
  const slow = begin();
  while (answers.length === 0) await turn(pool);
  Reflect.deleteProperty(writing, 'answered');
  const release = (): void => answers.forEach((answer) => writing.answered(...answer));
  return { slow, release };
}

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
  const { slow, release } = await held(pool, () => write(data!, 100, [1]));
  const taken = engine.checkpoint();
  while (!checkpoint.waitsFor(0) && !checkpoint.waitsFor(1)) await turn(pool);
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
  release();
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

it('has frames for counts beside those that a checkpoint holds which waits', async () => {
  const leaves = 14;
  const device = await open('ram:64GiB?sparse=1');
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 });
  await pool.createVolume('far', 2 ** 26);
  await pool.createVolume('others', 2 ** 30);
  const [disk, others] = ['far', 'others'].map((name) => pool.openVolume(name));
  const { engine } = pool;
  const { allocator, checkpoint } = engine.parts;
  // Each block is in a group of its own, whose other extents are others'.
  for (let i = 0; i < leaves * LEAF; i++) {
    await write(disk!, (i % leaves) * LEAF + Math.floor(i / leaves), [i + 1]);
    for (let k = 0; k < 4; k++) {
      if (k > 0) await write(others!, 3 * i + k - 1, [1_000_000 + 3 * i + k]);
      allocator.letGo(Stream.blocks);
    }
  }
  await pool.checkpoint();
  const { slow, release } = await held(pool, () => write(disk!, leaves * LEAF, [5]));
  let isOver = false;
  const discarded = disk!.discard(0, leaves * LEAF).then(() => (isOver = true));
  const isWaiting = (): boolean => checkpoint.waitsFor(0) || checkpoint.waitsFor(1);
  while (!isWaiting() && !isOver) await turn(pool);
  expect(isWaiting()).toBe(true);
  // A page of counts comes in a turn: as many as there are frames for.
  for (let i = 0; i < 4000; i++) await turn(pool);
  release();
  await Promise.all([slow, discarded]);
  expect(await read(disk!, leaves * LEAF - 1, 2)).toEqual([0, 5]);
  await disk!.close();
  await others!.close();
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true });
  await device.close();
});

it('plans a set anew that a checkpoint waits for when the journal is full', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
  await pool.createVolume('data', 2 ** 24);
  const disk = pool.openVolume('data');
  const { engine } = pool;
  const { checkpoint, journal } = engine.parts;
  const { slow, release } = await held(pool, () => write(disk, 100, [1]));
  const taken = engine.checkpoint();
  while (!checkpoint.waitsFor(0) && !checkpoint.waitsFor(1)) await turn(pool);
  // An entry each.
  let last: Promise<void> = Promise.resolve();
  let writes = 0;
  for (let isWritten = true; isWritten; writes++) {
    isWritten = false;
    last = write(disk, writes % 64, [2 + writes]).then(() => void (isWritten = true));
    for (let i = 0; i < 20 && !isWritten; i++) await turn(pool);
  }
  expect(journal.isFull).toBe(true);
  release();
  await Promise.all([slow, last]);
  expect(await taken).toBe(true);
  expect(await read(disk, 100, 1)).toEqual([1]);
  expect(await read(disk, (writes - 1) % 64, 1)).toEqual([1 + writes]);
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it.each([
  ['which the device made', 'ram:24MiB'],
  ['with a loan', 'ram:24MiB?fault.seed=1'],
])('has blocks that a checkpoint frees for a set whose comparison, %s, failed', async (_, uri) => {
  const device = await open(uri);
  await Pool.create(device, { thn: 1, sampling: 1 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
  await pool.createVolume('data', 2 ** 26);
  const disk = pool.openVolume('data');
  let filled = 0;
  await expect(
    (async () => {
      for (; ; filled += 64) await write(disk, filled, range(1 + filled, 64));
    })(),
  ).rejects.toMatchObject({ code: 'NO_SPACE' });
  await pool.checkpoint();
  for (let content = 1_000_000; pool.engine.parts.allocator.room > 0; content++) {
    await write(disk, filled++, [content]).catch(() => undefined);
  }
  // What is freed now is free after a checkpoint.
  const { planner, io, space } = pool.engine.parts;
  await disk.discard(0, 64);
  expect(space.reusable[0]! + space.reusable[1]!).toBe(64);
  const compared = planner.compared.bind(planner);
  const matched = planner.matched.bind(planner);
  let fails = 1;
  planner.compared = (run, status, lo, hi) => {
    if (fails-- <= 0) return compared(run, status, lo, hi);
    if ((lo | hi) !== 0) io.release(lo, hi);
    return compared(run, Status.MEDIA_ERROR, 0, 0);
  };
  planner.matched = (run, status) => {
    return matched(run, fails-- <= 0 ? status : Status.MEDIA_ERROR);
  };
  await write(disk, 0, range(65, 8));
  expect(fails).toBeLessThan(1);
  expect(await read(disk, 0, 8)).toEqual(range(65, 8));
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it("moves a node that is nobody else's, whatever its counts' frame is by then", async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
  await pool.createVolume('data', 2 ** 24);
  const disk = pool.openVolume('data');
  await write(disk, 0, range(1, 64));
  await pool.checkpoint();
  const { allocator, space } = pool.engine.parts;
  const take = allocator.take.bind(allocator);
  const countIn = space.countIn.bind(space);
  const settle = space.settle.bind(space);
  // Taking a node may have had the frame go to another page, till it is looked up again.
  let isGone = false;
  let taken = 0;
  space.settle = () => {
    isGone = false;
    return settle();
  };
  allocator.take = (stream, wanted) => {
    isGone = false;
    const got = take(stream, wanted);
    if (stream === Stream.nodes && got > 0) {
      isGone = true;
      taken++;
    }
    return got;
  };
  space.countIn = (frame, pbn) => (isGone ? 0 : countIn(frame, pbn));
  await write(disk, 3, [1000]);
  Reflect.deleteProperty(allocator, 'take');
  Reflect.deleteProperty(space, 'countIn');
  Reflect.deleteProperty(space, 'settle');
  expect(taken).toBeGreaterThan(0);
  await disk.close();
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true });
  await device.close();
});
