// Pools as their users meet them: what cannot be opened, space that ends, buffers that change under
// way, volumes by URI, and that nothing is left behind.

import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, describe, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { Head, Super } from '../../lib/dedup/format/layout.js';
import { checksum } from '../../lib/dedup/format/superblock.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { addressSpace, type DmaBuffer } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock } from '../soak/dedup-model.js';
import { PAGE, range, read } from './contents.js';

const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const BAD_BLOCKS = 8;
/** Beyond what the others write. */
const SHORT_AT = 2000;
const SCRIBBLER = new URL('../../dist/test/support/dedup-scribbler.js', import.meta.url);
const folder = mkdtempSync(join(tmpdir(), 'penstock-pool-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** A pool on memory, with what is to be closed. */
async function onRam(uri = 'ram:64MiB', options = {}): Promise<[Pool, BlockDevice]> {
  const device = await open(uri);
  await Pool.create(device, { thn: 4, sampling: 1, ...options });
  return [await Pool.open(device, OPEN), device];
}

function filled(disk: BlockDevice, contents: readonly number[]): DmaBuffer {
  const buffer = disk.memory.alloc(contents.length * PAGE);
  for (const [i, content] of contents.entries()) fillBlock(buffer.u32, i * 1024, content);
  return buffer;
}

describe('a pool that cannot be had', () => {
  it('is NOT_A_POOL, POOL_TOO_SMALL, POOL_EXISTS, POOL_BAD_DEVICE', async () => {
    const device = await open('ram:64MiB');
    await expect(Pool.open(device)).rejects.toMatchObject({ code: 'NOT_A_POOL', exitCode: 3 });
    await Pool.create(device);
    await expect(Pool.create(device)).rejects.toMatchObject({ code: 'POOL_EXISTS' });
    await Pool.create(device, { force: true });
    for (const wrong of [{ thn: 257 }, { thn: 1.5 }, { sampling: 3 }, { llrrmThreshold: 0 }]) {
      const made = Pool.create(device, { ...wrong, force: true });
      await expect(made).rejects.toMatchObject({ code: 'BAD_OPTION', exitCode: 2 });
    }
    await expect(Pool.open(device, { thn: NaN })).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await device.close();
    const small = await open('ram:8MiB');
    await expect(Pool.create(small)).rejects.toMatchObject({ code: 'POOL_TOO_SMALL' });
    await small.close();
    const wide = await open('ram:64MiB?bs=8192');
    await expect(Pool.create(wide)).rejects.toMatchObject({ code: 'POOL_BAD_DEVICE' });
    await wide.close();
  });

  it('is POOL_BUSY in this process and in another', async () => {
    const uri = `file:${join(folder, 'busy')}?create=64MiB`;
    const device = await open(uri);
    await Pool.create(device);
    const pool = await Pool.open(device, OPEN);
    await expect(Pool.open(device)).rejects.toMatchObject({ code: 'POOL_BUSY' });
    const again = await open(uri);
    await expect(Pool.open(again)).rejects.toMatchObject({ code: 'POOL_BUSY', exitCode: 3 });
    await again.close();
    const main = join(import.meta.dirname, '../../dist/lib/cli/main.js');
    const other = spawnSync(process.execPath, [main, 'pool', 'info', uri, '--json'], {
      encoding: 'utf8',
    });
    expect(other.status).toBe(3);
    expect(JSON.parse(other.stdout)).toMatchObject({ error: { code: 'POOL_BUSY' } });
    await pool.close();
    await device.close();
    const after = await open(uri);
    await (await Pool.open(after, OPEN)).close();
    await after.close();
  });

  it('is POOL_TRUNCATED on a shorter device, NEWER_FORMAT with unknown features', async () => {
    const path = join(folder, 'short');
    const device = await open(`file:${path}?create=64MiB`);
    await Pool.create(device);
    const page = device.memory.alloc(PAGE);
    await device.read(0, page);
    const before = page.u8.slice();
    page.u32[Super.incompatible] = 4;
    page.u32[Head.crc] = checksum(page.u32, page.u32[Super.uuid]!);
    await device.write(0, page);
    await expect(Pool.open(device)).rejects.toMatchObject({ code: 'NEWER_FORMAT' });
    page.u8.set(before);
    await device.write(0, page);
    await device.close();
    truncateSync(path, 2 ** 25);
    const short = await open(`file:${path}`);
    await expect(Pool.open(short)).rejects.toMatchObject({ code: 'POOL_TRUNCATED' });
    await short.close();
  });

  it('keeps its devices from being closed under it', async () => {
    const device = await open('ram:64MiB?fault.delayUs=2000');
    const fast = await open('ram:2MiB');
    await Pool.create(device);
    const pool = await Pool.open(device, { ...OPEN, llrrm: fast });
    await pool.createVolume('one', 2 ** 24);
    const disk = pool.openVolume('one');
    const buffer = filled(disk, range(1, 16));
    const write = disk.write(0, buffer);
    const busy = { code: 'DEVICE_BUSY', hint: 'close that first' };
    await expect(device.close()).rejects.toMatchObject(busy);
    await expect(fast.close()).rejects.toMatchObject(busy);
    await write;
    expect(await read(disk, 0, 16)).toEqual(range(1, 16));
    buffer.free();
    await disk.close();
    await pool.close();
    await fast.close();
    await device.close();
  });

  it('leaves nothing behind', async () => {
    const before = addressSpace().list().length;
    const device = await open('ram:64MiB');
    await expect(Pool.open(device)).rejects.toThrow();
    await Pool.create(device);
    await (await Pool.open(device, OPEN)).close();
    await device.close();
    expect(addressSpace().list().length).toBe(before);
  });
});

it('of 64 TiB opens, with the memory of a small one, and keeps what is written', async () => {
  const device = await open('ram:64TiB?sparse=1');
  await Pool.create(device);
  // As anybody opens it: its index may take 2 GiB, and takes none before there is anything.
  const before = process.memoryUsage.rss();
  let pool = await Pool.open(device);
  expect(process.memoryUsage.rss() - before).toBeLessThan(2 ** 26);
  await pool.createVolume('one', 64 * 2 ** 40);
  const disk = pool.openVolume('one');
  const places = [0, 2 ** 31, disk.info.blocks - 8];
  for (const [i, place] of places.entries()) {
    const buffer = filled(disk, range(10 * i + 1, 8));
    await disk.write(place, buffer);
    buffer.free();
  }
  await disk.close();
  await pool.close();
  pool = await Pool.open(device, OPEN);
  const again = pool.openVolume('one');
  for (const [i, place] of places.entries()) {
    expect(await read(again, place, 8)).toEqual(range(10 * i + 1, 8));
  }
  await again.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

describe('volumes', () => {
  it('have names, sizes, and are there after the pool was closed', async () => {
    const [pool, device] = await onRam();
    await pool.createVolume('one', 2 ** 30);
    await pool.createVolume('huge', 64 * 2 ** 40);
    await expect(pool.createVolume('one', 2 ** 20)).rejects.toMatchObject({
      code: 'VOLUME_EXISTS',
    });
    await expect(pool.createVolume('no/name', 2 ** 20)).rejects.toMatchObject({
      code: 'BAD_VOLUME_NAME',
    });
    await expect(pool.createVolume('odd', 1000)).rejects.toMatchObject({ code: 'BAD_SIZE' });
    const disk = pool.openVolume('huge');
    const last = disk.info.blocks - 3;
    const buffer = filled(disk, [7, 8, 9]);
    await disk.write(last, buffer);
    buffer.free();
    await disk.close();
    await pool.close();
    const again = await Pool.open(device, OPEN);
    expect(again.recovery).toBe(null);
    expect(again.volumes.map(({ name }) => name)).toEqual(['one', 'huge']);
    const reopened = again.openVolume('huge');
    expect(await read(reopened, last - 1, 4)).toEqual([0, 7, 8, 9]);
    expect(() => again.openVolume('none')).toThrow(/no volume 'none'/);
    await reopened.close();
    await again.close();
    await device.close();
  });

  it('are there by the hundred', async () => {
    const [pool, device] = await onRam();
    const names = range(0, 300).map((i) => `v${i}`);
    await Promise.all(names.map((name) => pool.createVolume(name, 2 ** 22)));
    await pool.close();
    const again = await Pool.open(device, OPEN);
    expect(again.volumes.map(({ name }) => name)).toEqual(names);
    await again.close();
    expect(await checkPool(device)).toMatchObject({ clean: true, volumes: 300 });
    await device.close();
  });

  it('of one pool share it when they are opened by URI', async () => {
    const uri = `file:${join(folder, 'shared')}?create=64MiB`;
    const device = await open(uri);
    await Pool.create(device, { thn: 4 });
    const pool = await Pool.open(device);
    await pool.createVolume('a', 2 ** 22);
    await pool.createVolume('b', 2 ** 22);
    await pool.close();
    await device.close();
    const [a, b] = await Promise.all([open(`dedup:${uri}#a`), open(`dedup:${uri}#b`)]);
    const buffer = filled(a, range(1, 64));
    await a.write(0, buffer);
    buffer.free();
    await a.close();
    expect(await read(b, 0, 2)).toEqual([0, 0]);
    await b.close();
    const again = await open(`dedup:${uri}#a`);
    expect(await read(again, 0, 64)).toEqual(range(1, 64));
    await again.close();
    await expect(open(`dedup:${uri}#c`)).rejects.toMatchObject({ code: 'NO_SUCH_VOLUME' });
    await expect(open(`dedup:${uri}`)).rejects.toMatchObject({ code: 'BAD_URI' });
    const other = open(`dedup+tcp:${uri}#a`);
    await expect(other).rejects.toMatchObject({ code: 'UNKNOWN_TRANSPORT' });
    await expect(open(`dedup:${uri}&dedup.tnh=3#a`)).rejects.toMatchObject({
      code: 'UNKNOWN_KEY',
    });
  });
});

describe('space', () => {
  it('that ends is NO_SPACE, nothing is lost, and what is freed is used again', async () => {
    const [pool, device] = await onRam('ram:48MiB');
    await pool.createVolume('one', 2 ** 30);
    const disk = pool.openVolume('one');
    let written = 0;
    for (;;) {
      const buffer = filled(disk, range(1 + written, 128));
      const error = await disk.write(written, buffer).catch((reason: unknown) => reason);
      buffer.free();
      if (error !== undefined) {
        expect(error).toMatchObject({ code: 'NO_SPACE' });
        break;
      }
      written += 128;
    }
    expect(written * PAGE).toBeGreaterThan(2 ** 24);
    expect(await read(disk, 0, written)).toEqual(range(1, written));
    // Overwriting needs room, too; discarding gives it.
    for (let round = 0; round < 4; round++) {
      await disk.discard(0, 1024);
      for (let at = 0; at < 1024; at += 128) {
        const buffer = filled(disk, range(10 ** 6 * (round + 1) + at, 128));
        await disk.write(at, buffer);
        buffer.free();
      }
    }
    expect(await read(disk, 0, 1024)).toEqual(range(4 * 10 ** 6, 1024));
    expect(await read(disk, 1024, written - 1024)).toEqual(range(1025, written - 1024));
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('of a device in one extent after the other is found again in the holes', async () => {
    const [pool, device] = await onRam('ram:48MiB', { thn: 0 });
    await pool.createVolume('one', 2 ** 26);
    const disk = pool.openVolume('one');
    const blocks = 5000;
    const contents = new Array<number>(blocks).fill(0);
    // Every block many times over, in an order that leaves holes everywhere.
    for (let i = 0, content = 1; i < 30; i++) {
      const works: Promise<void>[] = [];
      for (let at = (i * 37) % 64; at + 40 < blocks; at += 64) {
        const part = range(content, 1 + ((at * 7 + i) % 40));
        content += part.length;
        const buffer = filled(disk, part);
        works.push(disk.write(at, buffer).then(() => buffer.free()));
        for (const [b, each] of part.entries()) contents[at + b] = each;
      }
      await Promise.all(works);
    }
    expect(await read(disk, 0, blocks)).toEqual(contents);
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });
});

describe('the index', () => {
  it('has the memory that the pool was made with, or that it is opened with', async () => {
    const device = await open('ram:64MiB');
    const wrong = { code: 'BAD_OPTION' };
    await expect(Pool.create(device, { indexBytes: 4096 })).rejects.toMatchObject(wrong);
    await Pool.create(device, { indexBytes: 3 * 2 ** 20 });
    const bytesOf = async (options: { indexBytes?: number }, next?: number): Promise<number> => {
      const pool = await Pool.open(device, { cacheBytes: 2 ** 20, ...options });
      try {
        if (next !== undefined) await pool.configure({ indexBytes: next });
        return pool.engine.parts.index.bytes;
      } finally {
        await pool.close();
      }
    };
    expect(await bytesOf({})).toBe(3 * 2 ** 20);
    expect(await bytesOf({ indexBytes: 2 ** 20 })).toBe(2 ** 20);
    await expect(bytesOf({ indexBytes: 5 })).rejects.toMatchObject(wrong);
    expect(await bytesOf({}, 0)).toBe(3 * 2 ** 20);
    expect(await bytesOf({})).toBe(2 ** 21);
    await expect(bytesOf({}, 2 ** 32)).rejects.toMatchObject(wrong);
    await device.close();
  });

  it('forgets what was at a place that is written again', async () => {
    const device = await open('ram:32MiB');
    await Pool.create(device, { thn: 4, sampling: 1 });
    const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
    await pool.createVolume('one', 2 ** 26);
    const disk = pool.openVolume('one');
    let content = 1;
    for (let round = 0; round < 24; round++) {
      // Every block once in 16 rounds, none with its neighbour.
      const works: Promise<void>[] = [];
      for (let at = (round * 7) % 16; at < 4096; at += round === 0 ? 64 : 16) {
        const count = round === 0 ? 64 : 1;
        const buffer = filled(disk, range(content, count));
        content += count;
        works.push(disk.write(at, buffer).then(() => buffer.free()));
      }
      await Promise.all(works);
      await pool.checkpoint();
    }
    expect(content).toBeGreaterThan(9000);
    // (What was in an extent that came to be empty goes by its age.)
    const { blocksTotal } = pool.engine.parts.space;
    expect(pool.stats().index.entries).toBeLessThan(1.2 * blocksTotal);
    await disk.close();
    await pool.close();
    await device.close();
  });

  it('samples no less for what is not there any more', async () => {
    const device = await open('ram:32MiB');
    await Pool.create(device, { thn: 4, sampling: 1 });
    // Room for 8192 entries; as many blocks are never in use.
    const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 2 ** 16 });
    await pool.createVolume('one', 2 ** 26);
    const disk = pool.openVolume('one');
    const write = async (to: number, content: number): Promise<void> => {
      for (let at = 0; at < 3072; at += 128) {
        const buffer = filled(disk, range(content + at, 128));
        await disk.write(to + at, buffer);
        buffer.free();
      }
    };
    for (let round = 0; round < 12; round++) await write(0, 1 + round * 4096);
    expect(pool.stats().index).toMatchObject({ rate: 1, entries: 8192 });
    const before = pool.stats().written.same;
    await write(8192, 1 + 11 * 4096);
    expect(pool.stats().written.same - before).toBe(3072);
    await disk.close();
    await pool.close();
    await device.close();
  });

  it('that is too small samples less, and goes on finding what it has', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 4, sampling: 1 });
    const pool = await Pool.open(device, { cacheBytes: 2 ** 21, indexBytes: 4096 });
    await pool.createVolume('one', 2 ** 26);
    const disk = pool.openVolume('one');
    for (let at = 0; at < 4096; at += 128) {
      const buffer = filled(disk, range(1 + at, 128));
      await disk.write(at, buffer);
      buffer.free();
      await pool.checkpoint();
    }
    const { index } = pool.stats();
    expect(index.rate).toBeGreaterThan(4);
    expect(index.entries).toBeLessThanOrEqual(512);
    const before = pool.stats().written.same;
    const buffer = filled(disk, range(1 + 4096 - 256, 256));
    await disk.write(8000, buffer);
    buffer.free();
    expect(pool.stats().written.same - before).toBeGreaterThan(100);
    await disk.close();
    await pool.close();
    expect(pool.info.sampling).toBe(index.rate);
    await device.close();
  });
});

describe('a client that changes its buffer while it is written', () => {
  it.each([
    ['a pool', 1000, false],
    ['a pool with low-latency memory', 300, true],
  ])(
    'harms its own blocks only, in %s, %i times',
    async (_, rounds, isTiered) => {
      // With a threshold of 1 all that is written is copied there, and compared there later.
      const device = await open('ram:64MiB');
      const llrrm = isTiered ? await open('ram:16MiB') : null;
      await Pool.create(device, { thn: 4, sampling: 1, llrrmThreshold: 1 });
      const pool = await Pool.open(device, { ...OPEN, llrrm });
      await pool.createVolume('bad', 2 ** 26);
      await pool.createVolume('good', 2 ** 26);
      const bad = pool.openVolume('bad');
      const good = pool.openVolume('good');
      const buffer = bad.memory.alloc(BAD_BLOCKS * PAGE);
      const control = new Int32Array(new SharedArrayBuffer(8));
      const { address } = buffer;
      const worker = new Worker(SCRIBBLER, {
        workerData: { control, address, blocks: BAD_BLOCKS },
      });
      const ended = once(worker, 'exit');
      await once(worker, 'message');
      for (let round = 0; round < rounds; round++) {
        const mine = range(1 + round * BAD_BLOCKS, BAD_BLOCKS);
        Atomics.store(control, 0, mine[0]!);
        // Until it is there for the first time.
        while (contentOf(buffer.u32, 0) !== mine[0]) await new Promise(setImmediate);
        const at = (round % 200) * BAD_BLOCKS;
        await bad.write(at, buffer);
        if (isTiered) await pool.settle();
        // Whoever writes what the other one said it would must get that back.
        const own = filled(good, mine);
        await good.write(at, own);
        own.free();
        expect(await read(good, at, BAD_BLOCKS)).toEqual(mine);
        // Also in runs that are shared only for what is in low-latency memory.
        const short = filled(good, [0, ...mine.slice(2, 4), 0]);
        await good.write(SHORT_AT, short);
        short.free();
        expect(await read(good, SHORT_AT, 4)).toEqual([0, ...mine.slice(2, 4), 0]);
      }
      Atomics.store(control, 0, -1);
      await ended;
      buffer.free();
      // It did happen: what was stored was not what had been hashed.
      const { written, llrrm: tier } = pool.stats();
      expect(written.unequal).toBeGreaterThan(0);
      expect(written.same).toBeGreaterThan(0);
      expect(written.short > 0 && tier!.compared > 0).toBe(isTiered);
      await bad.close();
      await good.close();
      await pool.close();
      expect(await checkPool(device)).toMatchObject({ clean: true });
      await device.close();
      await llrrm?.close();
    },
    60_000,
  );
});
