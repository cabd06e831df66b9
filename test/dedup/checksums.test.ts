// Pools with data checksums: a block that is not what was written is found when it is read.

import { describe, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { Feature, Super } from '../../lib/dedup/format/layout.js';
import { checksum } from '../../lib/dedup/format/superblock.js';
import { Op, Status, type BlockDevice } from '../../lib/hpdi/index.js';
import { addressSpace } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';
import { collect, put } from '../support/requests.js';
import { PAGE, range, read, write } from './contents.js';

const BLOCKS = 2048;
const SMALL = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };

async function stand(
  dataChecksum = true,
  llrrm: BlockDevice | null = null,
  uri = 'ram:64MiB',
): Promise<[Pool, BlockDevice, BlockDevice]> {
  const device = await open(uri);
  await Pool.create(device, { thn: 4, sampling: 1, dataChecksum, llrrmThreshold: 1 });
  const pool = await Pool.open(device, { ...SMALL, llrrm });
  await pool.createVolume('a', BLOCKS * PAGE);
  return [pool, device, pool.openVolume('a')];
}

/** Changes a bit of every block of the device that has a content. */
async function flip(device: BlockDevice, content: number): Promise<number> {
  const page = device.memory.alloc(PAGE);
  const per = PAGE / device.info.blockSize;
  let flipped = 0;
  for (let at = 0; at < device.info.blocks; at += per) {
    await device.read(at, page);
    if (contentOf(page.u32, 0) !== content) continue;
    page.u8[1000] = page.u8[1000]! ^ 16;
    await device.write(at, page);
    flipped++;
  }
  page.free();
  return flipped;
}

describe('a block whose bytes have changed on the device', () => {
  it('is a MEDIA_ERROR to who reads it, and its neighbours are read', async () => {
    const [pool, device, disk] = await stand();
    await write(disk, 0, range(100, 64));
    expect(await flip(device, 130)).toBe(1);
    expect(await read(disk, 0, 30)).toEqual(range(100, 30));
    await expect(read(disk, 30, 1)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
    await expect(read(disk, 0, 64)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
    expect(await read(disk, 31, 33)).toEqual(range(131, 33));
    expect(pool.stats().checksums).toMatchObject({ damaged: 2 });
    // What is written again is whole.
    await write(disk, 28, range(128, 8));
    expect(await read(disk, 0, 64)).toEqual(range(100, 64));
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('is not shared with what is written, nor copied to low-latency memory', async () => {
    const fast = await open('ram:1MiB');
    const [pool, device, disk] = await stand(true, fast);
    await write(disk, 0, range(100, 16));
    await pool.settle();
    expect(pool.stats().llrrm).toMatchObject({ used: 16 });
    // The copies are whole: they are read.
    expect(await flip(device, 105)).toBe(1);
    expect(await read(disk, 0, 16)).toEqual(range(100, 16));
    await write(disk, 100, range(100, 16));
    expect(await read(disk, 100, 16)).toEqual(range(100, 16));
    // Those of the copies, too: the data device is asked then, and says that it is damaged.
    const noise = fast.memory.alloc(fast.info.blocks * fast.info.blockSize);
    noise.u8.fill(9);
    await fast.write(0, noise);
    noise.free();
    await expect(read(disk, 4, 4)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
    expect(await read(disk, 100, 16)).toEqual(range(100, 16));
    await disk.close();
    await pool.close();
    await device.close();
    await fast.close();
  });

  it('is given out as it is without them', async () => {
    const [pool, device, disk] = await stand(false);
    await write(disk, 0, range(100, 8));
    expect(await flip(device, 103)).toBe(1);
    expect(await read(disk, 0, 8)).toEqual([100, 101, 102, -1, 104, 105, 106, 107]);
    expect(pool.stats().checksums).toBeNull();
    await disk.close();
    await pool.close();
    await device.close();
  });
});

// The device compares a run by itself, or lends its bytes, where the run's blocks lie apart in
// memory too.
it.each([
  ['ram:64MiB', false],
  ['ram:64MiB', true],
  ['ram:64MiB?fault.seed=1', false],
])('shares no block with one that is other bytes by now: %s, apart %s', async (uri, isApart) => {
  const [pool, device, disk] = await stand(false, null, uri);
  await write(disk, 0, range(100, 64));
  expect(await flip(device, 130)).toBe(1);
  expect(await flip(device, 163)).toBe(1);
  const { io } = pool.engine.parts;
  const { reads } = io;
  if (isApart) {
    const buffers = range(0, 64).map((i) => {
      const buffer = disk.memory.alloc(2 * PAGE);
      fillBlock(buffer.u32, 0, 100 + i);
      return buffer;
    });
    const queue = disk.queue({ depth: 64 });
    for (const [i, { address }] of buffers.entries()) {
      put(queue, { op: Op.WRITE, blocks: 1, lba: 500 + i, address });
    }
    queue.submit();
    for (const { code } of await collect(queue, 64)) expect(code).toBe(Status.OK);
    await queue.close();
    for (const buffer of buffers) buffer.free();
  } else {
    await write(disk, 500, range(100, 64));
  }
  // It says that something differs; what, is seen by the bytes.
  expect(io.reads - reads).toBe(uri === 'ram:64MiB' && !isApart ? 2 : 1);
  expect(pool.stats().written).toMatchObject({ same: 62, unequal: 2, fresh: 66 });
  expect(pool.stats().stages.compare_ms).toBeGreaterThan(0);
  expect(await read(disk, 500, 64)).toEqual(range(100, 64));
  const before = io.reads;
  await write(disk, 600, range(101, 29));
  expect(io.reads - before).toBe(1);
  expect(pool.stats().written).toMatchObject({ same: 62 + 29, unequal: 2 });
  await disk.close();
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true });
  await device.close();
});

it.each([true, false])(
  'keeps what was in the buffer when it was taken, whatever becomes of it: %s',
  async (dataChecksum) => {
    // What is written is compared with what is stored, which comes late: after the buffer has
    // changed, though the machine has other work meanwhile.
    const uri = 'ram:64MiB?fault.delayUs=25000';
    const [pool, device, disk] = await stand(dataChecksum, null, uri);
    const buffer = disk.memory.alloc(64 * PAGE);
    for (let round = 0; round < 10; round++) {
      const taken = range(1000 * round + 1, 64);
      const later = range(1000 * round + 501, 64);
      await write(disk, 0, taken);
      for (const [b, content] of taken.entries()) fillBlock(buffer.u32, b * 1024, content);
      const writing = disk.write(100, buffer);
      // It is taken with the microtask; from then on the buffer is nobody's.
      await Promise.resolve().then(() => undefined);
      await new Promise((resolve) => process.nextTick(resolve));
      for (const [b, content] of later.entries()) fillBlock(buffer.u32, b * 1024, content);
      await writing;
      expect(await read(disk, 0, 64)).toEqual(taken);
      // Without checksums it was the client's memory that was compared, and stored.
      expect(await read(disk, 100, 64)).toEqual(dataChecksum ? taken : later);
    }
    expect(pool.stats().written.unequal > 0).toBe(!dataChecksum);
    buffer.free();
    await disk.close();
    await pool.close();
    // There, what is stored is not what its fingerprint was made of.
    expect((await checkPool(device, { data: true })).clean).toBe(dataChecksum);
    expect(await checkPool(device)).toMatchObject({ clean: true });
    await device.close();
  },
);

it('everything at random is as its model, through reopening', async () => {
  const random = new Random(5);
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 4, sampling: 1, dataChecksum: true });
  let pool = await Pool.open(device, SMALL);
  await pool.createVolume('a', BLOCKS * PAGE);
  const model = new Array<number>(BLOCKS).fill(0);
  let content = 1;
  for (let round = 0; round < 6; round++) {
    const disk = pool.openVolume('a');
    for (let step = 0; step < 40; step++) {
      const works = Array.from({ length: 20 }, async (_, lane) => {
        // Each in a part of its own.
        const first = lane * 100 + random.below(60);
        const count = random.between(1, 40);
        const contents = random.chance(0.5)
          ? Array.from({ length: count }, () => content++)
          : range(7, count);
        model.splice(first, count, ...contents);
        await write(disk, first, contents);
      });
      await Promise.all(works);
      const first = random.below(BLOCKS - 300);
      expect(await read(disk, first, 300)).toEqual(model.slice(first, first + 300));
    }
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    pool = await Pool.open(device, SMALL);
  }
  await pool.close();
  await device.close();
});

it('memory that is closed under a write fails that write alone', async () => {
  const [pool, device, disk] = await stand(true, null, 'ram:64MiB?fault.delayUs=50000');
  const queue = disk.queue({ depth: 64, split: false });
  const blocks = 16;
  const buffer = disk.memory.alloc(blocks * PAGE);
  for (let b = 0; b < blocks; b++) fillBlock(buffer.u32, b * 1024, b + 1);
  const segment = addressSpace().create(2 ** 21);
  const add = (tag: number, address: number): void => {
    put(queue, { op: Op.WRITE, tag, blocks, lba: 2 * tag * blocks, address });
  };
  // So many, apart from each other, that no memory is left for copies: the last waits as it is.
  const before = 40;
  for (let tag = 0; tag < before; tag++) add(tag, buffer.address);
  add(before, segment.address);
  queue.submit();
  segment.close();
  const done = await collect(queue, before + 1);
  const failed = done.filter(({ code }) => code !== Status.OK);
  expect(failed).toMatchObject([{ tag: before, code: Status.BAD_ADDRESS }]);
  await queue.close();
  const zeros = new Array<number>(blocks).fill(0);
  const written = Array.from({ length: before }, () => [...range(1, blocks), ...zeros]).flat();
  const found = await read(disk, 0, (2 * before + 1) * blocks);
  expect(found).toEqual([...written, ...zeros]);
  buffer.free();
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('is an incompatible feature: who does not know it leaves the pool alone', async () => {
  const [pool, device, disk] = await stand();
  await disk.close();
  await pool.close();
  const page = device.memory.alloc(PAGE);
  const per = PAGE / device.info.blockSize;
  for (const slot of [0, 1]) {
    await device.read(slot * per, page);
    expect(page.u32[Super.incompatible]).toBe(Feature.dataChecksum);
    page.u32[Super.incompatible] = Feature.dataChecksum | 2;
    page.u32[1] = checksum(page.u32, page.u32[Super.uuid]!);
    await device.write(slot * per, page);
  }
  await expect(Pool.open(device, SMALL)).rejects.toMatchObject({ code: 'NEWER_FORMAT' });
  page.free();
  await device.close();
});
