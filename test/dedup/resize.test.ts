// Volumes of other sizes: what lies within stays, what was cut off is zeros when they grow again,
// and its space comes back.

import { describe, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { Stream } from '../../lib/dedup/space/allocator.js';
import { faultControl } from '../../lib/drivers/fault/index.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contentOf } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';
import { PAGE, write } from './contents.js';

const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
/** Places round which levels and leaves of a map end, in blocks. */
const ENDS = [1, 2, 511, 512, 513, 1024, 262_143, 262_144, 262_145, 270_000, 1_000_000, 2 ** 28];

async function readOne(disk: BlockDevice, block: number): Promise<number> {
  const buffer = disk.memory.alloc(PAGE);
  await disk.read(block, buffer);
  const content = contentOf(buffer.u32, 0);
  buffer.free();
  return content;
}

async function compare(pool: Pool, name: string, model: Map<number, number>): Promise<void> {
  const disk = pool.openVolume(name);
  for (const [block, content] of model) {
    if (block < disk.info.blocks)
      expect([block, await readOne(disk, block)]).toEqual([block, content]);
  }
  await disk.close();
}

describe('a volume', () => {
  it('whose map is higher than it needs to be grows, and keeps it', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 4, sampling: 1 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 1024 * PAGE);
    const disk = pool.openVolume('one');
    await write(disk, 0, [1, 2, 3]);
    await disk.close();
    const { trees, catalogue } = pool.engine.parts;
    const one = catalogue.get('one');
    while (!trees.raise(one)) await pool.engine.turn();
    one.changed = true;
    for (const blocks of [2048, 2048, 300_000]) {
      await pool.resizeVolume('one', blocks * PAGE);
      expect(one).toMatchObject({ bytes: blocks * PAGE, level: 2 });
    }
    await compare(pool, 'one', new Map([0, 1, 2].map((at) => [at, at + 1])));
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it.each([1, 2, 3])('is as its model does, seed %i', async (seed) => {
    const random = new Random(seed);
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 4, sampling: 1 });
    let pool = await Pool.open(device, OPEN);
    const size = (): number => random.pick(ENDS);
    let blocks = size();
    await pool.createVolume('one', blocks * PAGE);
    /** By block that was ever written; 0 where it was cut off. */
    const model = new Map<number, number>();
    const frozen: { name: string; model: Map<number, number> }[] = [];
    let content = 1;
    for (let step = 0; step < 60; step++) {
      const disk = pool.openVolume('one');
      expect(disk.info.blocks).toBe(blocks);
      for (let i = 0; i < 4; i++) {
        const count = Math.min(blocks, random.between(1, 24));
        const first = Math.max(0, Math.min(blocks, size() + 4) - count);
        const contents = Array.from({ length: count }, () => content++);
        await write(disk, first, contents);
        for (const [at, each] of contents.entries()) model.set(first + at, each);
      }
      await disk.close();
      if (random.chance(0.2)) {
        const name = `s${step}`;
        await pool.copyVolume('one', name, 'snapshot');
        frozen.push({ name, model: new Map([...model].filter(([block]) => block < blocks)) });
      }
      blocks = size();
      for (const block of model.keys()) if (block >= blocks) model.set(block, 0);
      await pool.resizeVolume('one', blocks * PAGE, { shrink: true });
      if (random.chance(0.3)) {
        await pool.close();
        expect(await checkPool(device)).toMatchObject({ clean: true });
        pool = await Pool.open(device, OPEN);
      }
      await compare(pool, 'one', model);
      if (frozen.length > 2) await pool.deleteVolume(frozen.shift()!.name);
    }
    for (const each of frozen) await compare(pool, each.name, each.model);
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('is named in the checkpoint that has its new root, whenever that begins', async () => {
    const device = await open('ram:64MiB?fault.cache=64MiB&fault.delayUs=2000');
    const control = faultControl(device.backend)!;
    await Pool.create(device);
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', PAGE);
    const disk = pool.openVolume('one');
    await write(disk, 0, [7]);
    await disk.close();
    await pool.checkpoint();
    // It begins in the very step in which the map gets its first level.
    const { checkpoint } = pool.engine.parts;
    const { done } = checkpoint;
    const begun = pool.checkpoint().catch(() => undefined);
    const resized = pool.resizeVolume('one', 262_145 * PAGE).catch((error: unknown) => error);
    while (checkpoint.done === done) await new Promise(setImmediate);
    await control.cut({ survive: 0 });
    await begun;
    expect(await resized).toMatchObject({ code: 'POOL_FAILED' });
    await pool.close().catch(() => undefined);
    control.heal();
    const again = await Pool.open(device, OPEN);
    await compare(again, 'one', new Map([[0, 7]]));
    await again.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('keeps its map as it is when there is room for a part of the new one', async () => {
    const device = await open('ram:40MiB');
    await Pool.create(device);
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', PAGE);
    const disk = pool.openVolume('one');
    await write(disk, 0, [7]);
    await disk.close();
    await pool.checkpoint();
    // Two levels more need two nodes: all places are given out but for one.
    const { allocator, space, catalogue } = pool.engine.parts;
    const taken: number[] = [];
    do if (allocator.take(Stream.nodes, 1) === 1) taken.push(allocator.pbn);
    while (!allocator.full);
    space.unreserve(taken.pop()!);
    const resized = pool.resizeVolume('one', 262_145 * PAGE);
    await expect(resized).rejects.toMatchObject({ code: 'NO_SPACE' });
    expect(catalogue.get('one')).toMatchObject({ bytes: PAGE, level: 0 });
    await pool.checkpoint();
    expect(await pool.check({ data: true })).toMatchObject({ clean: true });
    for (const pbn of taken) space.unreserve(pbn);
    await pool.resizeVolume('one', 262_145 * PAGE);
    await compare(pool, 'one', new Map([[0, 7]]));
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('gives back what is cut off', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 0 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 40);
    const before = pool.stats().data_blocks_used;
    const disk = pool.openVolume('one');
    for (let leaf = 0; leaf < 1000; leaf++) await write(disk, leaf * 100_000, [leaf + 1]);
    await disk.close();
    await pool.resizeVolume('one', 2 ** 31, { shrink: true });
    await pool.settle();
    await pool.checkpoint();
    const { data_blocks_used: used, logical_blocks_used: mapped } = pool.stats();
    expect(mapped).toBe(6);
    expect(used).toBeLessThan(before + 20);
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('grows while it is open, for those who look again', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device);
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 20);
    const disk = pool.openVolume('one');
    await write(disk, 255, [7]);
    const grown = pool.resizeVolume('one', 2 ** 33);
    expect(() => pool.openVolume('one')).toThrow(expect.objectContaining({ code: 'VOLUME_BUSY' }));
    expect((await disk.refresh()).blocks).toBe(256);
    await expect(write(disk, 256, [8])).rejects.toMatchObject({ code: 'BAD_RANGE' });
    await grown;
    let told = 0;
    disk.onChange(({ blocks }) => (told = blocks));
    expect((await disk.refresh()).blocks).toBe(2 ** 21);
    expect(told).toBe(2 ** 21);
    await write(disk, 2 ** 21 - 1, [9]);
    expect([await readOne(disk, 255), await readOne(disk, 256)]).toEqual([7, 0]);
    expect(await readOne(disk, 2 ** 21 - 1)).toBe(9);
    const smaller = pool.resizeVolume('one', 2 ** 20, { shrink: true });
    await expect(smaller).rejects.toMatchObject({ code: 'VOLUME_BUSY' });
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('says what cannot be', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device);
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 30);
    await pool.copyVolume('one', 'frozen', 'snapshot');
    const resize = (name: string, bytes: number) => expect(pool.resizeVolume(name, bytes)).rejects;
    await resize('one', 2 ** 29).toMatchObject({ code: 'WOULD_SHRINK', exitCode: 2 });
    await resize('one', 5000).toMatchObject({ code: 'BAD_SIZE' });
    await resize('one', 2 ** 50).toMatchObject({ code: 'BAD_SIZE' });
    await resize('none', 2 ** 30).toMatchObject({ code: 'NO_SUCH_VOLUME' });
    await resize('frozen', 2 ** 31).toMatchObject({ code: 'READ_ONLY' });
    // A checkpoint is under way, so the copy is not taken yet.
    const begun = pool.checkpoint();
    const copied = pool.copyVolume('one', 'two', 'clone');
    await resize('one', 2 ** 31).toMatchObject({ code: 'VOLUME_BUSY' });
    await Promise.all([begun, copied]);
    await pool.resizeVolume('one', 2 ** 31);
    expect(pool.volumes.map(({ bytes }) => bytes)).toEqual([2 ** 31, 2 ** 30, 2 ** 30]);
    await pool.close();
    await device.close();
  });
});
