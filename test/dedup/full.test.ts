// A pool that is full all the time: writes that find no space leave what was there, everything else
// is as it was written, whatever is shared, freed and given out again meanwhile.

import { expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { PenstockError } from '../../lib/errors.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock, VolumeModel } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';

const PAGE = 4096;
const BLOCKS = 16_000;
const PARALLEL = 6;
const STEPS = 500;

it.each([1, 2])(
  'does as its model does, seed %i',
  async (seed) => {
    const random = new Random(seed);
    const device = await open('ram:40MiB');
    await Pool.create(device, { thn: 2, sampling: 1 });
    const pool = await Pool.open(device, { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 });
    await pool.createVolume('one', BLOCKS * PAGE);
    const disk = pool.openVolume('one');
    const model = new VolumeModel('one', BLOCKS);
    let content = 1;
    let full = 0;
    const part = Math.floor(BLOCKS / PARALLEL);
    for (let step = 0; step < STEPS; step++) {
      const works = Array.from({ length: PARALLEL }, async (_, i) => {
        const count = random.between(1, 60);
        const first = i * part + random.below(part - count);
        if (random.chance(0.1)) {
          for (let b = 0; b < count; b++) model.tries(first + b, 0);
          await disk.discard(first, count).then(() => model.settles(first, count, 0), noSpace);
          return;
        }
        // What was written lately is often written again.
        const old = random.chance(0.6) ? Math.max(1, content - random.below(6000)) : content;
        const base = old + count <= content ? old : content;
        if (base === content) content += count;
        const buffer = disk.memory.alloc(count * PAGE);
        for (let b = 0; b < count; b++) {
          fillBlock(buffer.u32, b * 1024, base + b);
          model.tries(first + b, base + b);
        }
        await disk.write(first, buffer).then(() => model.settles(first, count, base), noSpace);
        buffer.free();
      });
      await Promise.all(works);
    }
    expect(full).toBeGreaterThan(50);
    const buffer = disk.memory.alloc(BLOCKS * PAGE);
    await disk.read(0, buffer);
    for (let block = 0; block < BLOCKS; block++) {
      model.adopt(block, contentOf(buffer.u32, block * 1024));
    }
    buffer.free();
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();

    function noSpace(error: unknown): void {
      if (!(error instanceof PenstockError) || error.code !== 'NO_SPACE') throw error;
      full++;
    }
  },
  60_000,
);

it('ends writes that find no node with NO_SPACE, whatever a checkpoint waits for', async () => {
  // Each block has a leaf of its own: it is nodes that there is no room for, and a checkpoint which
  // would free some waits for writes that are under way.
  const device = await open('ram:24MiB');
  await Pool.create(device, { thn: 1, sampling: 1 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 23, indexBytes: 2 ** 20 });
  await pool.createVolume('wide', 2 ** 40);
  const disk = pool.openVolume('wide');
  const random = new Random(7);
  const counts = { OK: 0, NO_SPACE: 0 };
  for (let round = 0; round < 60; round++) {
    const works = Array.from({ length: 64 }, async () => {
      const buffer = disk.memory.alloc(PAGE);
      // Zeros take no block, and a node all the same.
      fillBlock(buffer.u32, 0, random.chance(0.3) ? 0 : random.between(1, 2 ** 30));
      const code = await disk.write(random.below(2 ** 28), buffer).then(
        () => 'OK',
        (error: PenstockError) => error.code,
      );
      buffer.free();
      counts[code as keyof typeof counts]++;
    });
    await Promise.all(works);
  }
  expect(counts.OK).toBeGreaterThan(1000);
  expect(counts.NO_SPACE).toBeGreaterThan(100);
  expect(counts.OK + counts.NO_SPACE).toBe(60 * 64);
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

/** A pool whose extents of data have holes, and no place for a node beside what is put aside. */
async function withoutNodes(): Promise<{ device: BlockDevice; pool: Pool; disk: BlockDevice }> {
  const device = await open('ram:24MiB');
  await Pool.create(device, { thn: 1, sampling: 1 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 23, indexBytes: 2 ** 20 });
  await pool.createVolume('data', 2 ** 30);
  await pool.createVolume('wide', 2 ** 40);
  const data = pool.openVolume('data');
  const disk = pool.openVolume('wide');
  const buffer = disk.memory.alloc(64 * PAGE);
  let written = 0;
  for (let isFull = false; !isFull;) {
    for (let b = 0; b < 64; b++) fillBlock(buffer.u32, b * 1024, written + b + 1);
    isFull = await data.write(written, buffer).then(
      () => false,
      () => true,
    );
    if (!isFull) written += 64;
  }
  for (let at = 0; at < written; at += 16) await data.discard(at, 8);
  await pool.checkpoint();
  // Zeros: leaves of the map, and no blocks.
  buffer.free();
  const page = disk.memory.alloc(PAGE);
  page.u8.fill(0);
  const random = new Random(3);
  let refused = 0;
  for (let i = 0; refused < 200 && i < 20_000; i++) {
    await disk.write(random.below(2 ** 28), page).catch(() => refused++);
  }
  page.free();
  expect(refused).toBe(200);
  await data.close();
  return { device, pool, disk };
}

it('is closed, and opens, where no node is left', async () => {
  const { device, pool, disk } = await withoutNodes();
  await pool.checkpoint();
  await disk.close();
  await pool.close();
  const again = await Pool.open(device, { cacheBytes: 2 ** 23, indexBytes: 2 ** 20 });
  await again.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('has volumes deleted where no node is left, and room after that', async () => {
  const { device, pool, disk } = await withoutNodes();
  await disk.close();
  await pool.deleteVolume('wide');
  await pool.settle();
  await pool.createVolume('more', 2 ** 40);
  const more = pool.openVolume('more');
  const buffer = more.memory.alloc(PAGE);
  fillBlock(buffer.u32, 0, 7);
  for (let i = 0; i < 20; i++) await more.write(i * 2 ** 20, buffer);
  buffer.free();
  await more.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});
