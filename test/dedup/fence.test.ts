// Two owners of one device that no lock keeps apart, as two hosts have it: who opened the pool
// first finds that it is another's now, and writes no metadata any more.

import { describe, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { PAGE, range, read, write } from './contents.js';

const BLOCKS = 64;
const OPEN = { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 };
const FENCED = { code: 'POOL_BUSY', exitCode: 3 };

/** Ways to the same memory, each a device of its own. */
async function ways(count: number): Promise<{ ram: Backend; devices: BlockDevice[] }> {
  const ram = await ramDriver.open('48MiB', new Map(), 'ram:');
  const devices = Array.from({ length: count }, () => {
    const inner = Object.create(ram) as Backend;
    inner.close = async () => {};
    return new BlockDevice(inner);
  });
  return { ram, devices };
}

async function fill(pool: Pool, name: string, content: number): Promise<void> {
  const disk = pool.openVolume(name);
  await write(disk, 0, range(content, BLOCKS));
  await disk.flush();
  await disk.close();
}

async function contentsOf(pool: Pool, name: string): Promise<number[]> {
  const disk = pool.openVolume(name);
  return read(disk, 0, BLOCKS).finally(() => disk.close());
}

async function outcome(work: Promise<void>): Promise<PromiseSettledResult<void>> {
  const [ended] = await Promise.allSettled([work]);
  return ended;
}

describe('a pool that another owner has opened since', () => {
  it.each(['recovers', 'has closed it, too'])(
    'is not written by the first: that %s',
    async (how) => {
      const { ram, devices } = await ways(3);
      await Pool.create(devices[0]!);
      const first = await Pool.open(devices[0]!, OPEN);
      await first.createVolume('one', BLOCKS * PAGE);
      await fill(first, 'one', 1000);
      const second = await Pool.open(devices[1]!, OPEN);
      expect(second.info.epoch).toBe(first.info.epoch + 1);
      await second.createVolume('two', BLOCKS * PAGE);
      await fill(second, 'two', 2000);
      if (how !== 'recovers') await second.close();
      const before = second.info.checkpoint;
      await expect(first.createVolume('three', BLOCKS * PAGE)).rejects.toMatchObject(FENCED);
      await expect(first.checkpoint()).rejects.toMatchObject(FENCED);
      expect(() => first.openVolume('one')).toThrow(expect.objectContaining(FENCED));
      await first.close();
      if (how === 'recovers') {
        await fill(second, 'two', 3000);
        await second.close();
      }
      const last = await Pool.open(devices[2]!, OPEN);
      expect(last.recovery).toBeNull();
      expect(last.info.checkpoint).toBe(before + (how === 'recovers' ? 2 : 1));
      expect(last.volumes.map(({ name }) => name)).toEqual(['one', 'two']);
      const two = how === 'recovers' ? 3000 : 2000;
      expect(await contentsOf(last, 'one')).toEqual(range(1000, BLOCKS));
      expect(await contentsOf(last, 'two')).toEqual(range(two, BLOCKS));
      await last.close();
      expect(await checkPool(devices[2]!, { data: true })).toMatchObject({ clean: true });
      await ram.close();
    },
  );

  it('flushes nothing any more: what was written is not durable in it', async () => {
    const { ram, devices } = await ways(2);
    await Pool.create(devices[0]!);
    const first = await Pool.open(devices[0]!, OPEN);
    await first.createVolume('one', BLOCKS * PAGE);
    const disk = first.openVolume('one');
    await write(disk, 0, range(1, BLOCKS));
    await disk.flush();
    const second = await Pool.open(devices[1]!, OPEN);
    await expect(first.checkpoint()).rejects.toMatchObject(FENCED);
    const ended = { code: 'DEVICE_ERROR' };
    await expect(write(disk, 0, range(100, 1))).rejects.toMatchObject(ended);
    await expect(disk.flush()).rejects.toMatchObject(ended);
    await disk.close();
    await first.close();
    await second.close();
    await ram.close();
  });

  it('is found at the last close, which fails', async () => {
    const { ram, devices } = await ways(2);
    await Pool.create(devices[0]!);
    const first = await Pool.open(devices[0]!, OPEN);
    const second = await Pool.open(devices[1]!, OPEN);
    await expect(first.close()).rejects.toMatchObject(FENCED);
    await second.close();
    await ram.close();
  });

  it('was made anew', async () => {
    const { ram, devices } = await ways(2);
    await Pool.create(devices[0]!);
    const first = await Pool.open(devices[0]!, OPEN);
    await Pool.create(devices[1]!, { force: true });
    await expect(first.checkpoint()).rejects.toMatchObject(FENCED);
    await first.close();
    expect(await checkPool(devices[1]!)).toMatchObject({ clean: true, volumes: 0 });
    await ram.close();
  });

  it('was opened at the same moment by two: one of them goes on', async () => {
    const { ram, devices } = await ways(3);
    await Pool.create(devices[0]!);
    const opened = await Promise.allSettled([
      Pool.open(devices[0]!, OPEN),
      Pool.open(devices[1]!, OPEN),
    ]);
    let going = 0;
    for (const each of opened) {
      const ended = each.status === 'rejected' ? each : await outcome(each.value.checkpoint());
      if (ended.status === 'rejected') expect(ended.reason).toMatchObject(FENCED);
      else going++;
    }
    expect(going).toBe(1);
    for (const each of opened) if (each.status === 'fulfilled') await each.value.close();
    expect(await checkPool(devices[2]!)).toMatchObject({ clean: true });
    await ram.close();
  });
});
