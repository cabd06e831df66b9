// Low-latency memory of a pool: what is copied there and read from there, and that nothing of it is
// needed: neither its blocks nor the device. (Blocks that are freed: llrrm-reuse.test.ts.)

import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { checkPool, Pool, repairPool, type OpenOptions } from '../../lib/dedup/index.js';
import { faultControl } from '../../lib/drivers/fault/index.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { Random } from '../soak/harness.js';
import { PAGE, range, read, write } from './contents.js';

const BLOCKS = 1024;
const SMALL = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const folder = mkdtempSync(join(tmpdir(), 'penstock-llrrm-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** The next warning of the process. */
const warned = async (): Promise<unknown> => ((await once(process, 'warning')) as [unknown])[0];

interface Stand {
  device: BlockDevice;
  fast: BlockDevice;
  pool: Pool;
  disks: BlockDevice[];
}

/** A pool with four volumes of the same 64 blocks, and a tier of so many pages. */
async function stand(fastUri = 'ram:1MiB', options: object = {}): Promise<Stand> {
  const device = await open('ram:64MiB');
  const fast = await open(fastUri);
  await Pool.create(device, { thn: 4, sampling: 1, ...options });
  const pool = await Pool.open(device, { ...SMALL, llrrm: fast });
  const disks: BlockDevice[] = [];
  for (const name of ['a', 'b', 'c', 'd']) {
    await pool.createVolume(name, BLOCKS * PAGE);
    const disk = pool.openVolume(name);
    await write(disk, 0, range(100, 64));
    disks.push(disk);
  }
  await pool.settle();
  return { device, fast, pool, disks };
}

async function end({ device, fast, pool, disks }: Stand): Promise<void> {
  for (const disk of disks) await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
  await fast.close();
}

const deviceReads = (pool: Pool): number => pool.stats().device.reads;
const tierOf = (pool: Pool): NonNullable<ReturnType<Pool['stats']>['llrrm']> => pool.stats().llrrm!;

describe('blocks with as many references as the threshold', () => {
  it('are read from low-latency memory, and the data device is not asked', async () => {
    const made = await stand();
    expect(tierOf(made.pool)).toMatchObject({ promoted: 64, used: 64 });
    const before = deviceReads(made.pool);
    for (const disk of made.disks) {
      expect(await read(disk, 0, 16)).toEqual(range(100, 16));
      expect(await read(disk, 63, 1)).toEqual([163]);
    }
    expect(deviceReads(made.pool)).toBe(before);
    expect(tierOf(made.pool)).toMatchObject({ reads: 8, blocks: 4 * 17 });
    await end(made);
  });

  it('are left alone below it, and where they are read in long runs', async () => {
    const made = await stand('ram:1MiB', { llrrmThreshold: 5 });
    expect(tierOf(made.pool)).toMatchObject({ promoted: 0 });
    await made.pool.configure({ llrrmThreshold: 4 });
    expect(await read(made.disks[0]!, 0, 64)).toEqual(range(100, 64));
    await made.pool.settle();
    expect(tierOf(made.pool)).toMatchObject({ promoted: 0 });
    await end(made);
  });

  it('are copied when they are read in short runs, by choice only then', async () => {
    const made = await stand('ram:1MiB', { llrrmPolicy: 'random' });
    const [a] = made.disks;
    expect(tierOf(made.pool)).toMatchObject({ promoted: 0 });
    expect(await read(a!, 8, 4)).toEqual(range(108, 4));
    await made.pool.settle();
    expect(tierOf(made.pool)).toMatchObject({ promoted: 4 });
    const before = deviceReads(made.pool);
    expect(await read(a!, 8, 4)).toEqual(range(108, 4));
    expect(deviceReads(made.pool)).toBe(before);
    // Of nobody else's: one reference is not worth it.
    await write(a!, 500, range(900, 4));
    expect(await read(a!, 500, 4)).toEqual(range(900, 4));
    await made.pool.settle();
    expect(tierOf(made.pool)).toMatchObject({ promoted: 4 });
    await end(made);
  });

  it('are those of clones, too, whose maps share the references', async () => {
    const made = await stand('ram:1MiB', { llrrmPolicy: 'random' });
    const [a] = made.disks;
    await write(a!, 500, range(900, 8));
    for (const name of ['e', 'f', 'g']) await made.pool.copyVolume('a', name, 'clone');
    const clone = made.pool.openVolume('g');
    expect(await read(clone, 500, 8)).toEqual(range(900, 8));
    await made.pool.settle();
    expect(tierOf(made.pool)).toMatchObject({ promoted: 8 });
    made.disks.push(clone);
    await end(made);
  });
});

describe('short runs of sets that are looked at', () => {
  it('are shared with what is in low-latency memory, and only with that', async () => {
    const made = await stand();
    const [a] = made.disks;
    const used = (): number => made.pool.stats().data_blocks_used;
    const before = { used: used(), reads: deviceReads(made.pool) };
    // Two known blocks between new ones: shorter than THN, which is 4.
    await write(a!, 200, [5000, 5001, 5002, 110, 111, 5003, 5004, 5005]);
    expect(used()).toBe(before.used + 6);
    expect(deviceReads(made.pool)).toBe(before.reads);
    expect(made.pool.stats().written).toMatchObject({ short: 2 });
    expect(await read(a!, 200, 8)).toEqual([5000, 5001, 5002, 110, 111, 5003, 5004, 5005]);
    // The blocks that were just written have one reference.
    await write(a!, 300, [6000, 6001, 5003, 5004, 6002, 6003]);
    expect(used()).toBe(before.used + 12);
    await end(made);
  });

  it('do not take blocks of a long run that begins within them', async () => {
    const made = await stand();
    const { disks, pool } = made;
    await write(disks[0]!, 200, [4000, 4002, 4003, 4004, 4005, 4006]);
    for (const disk of disks) await write(disk, 300, [4010, 4001, 4002, 4011]);
    await pool.settle();
    const { data_blocks_used: before } = pool.stats();
    const contents = [5000, 4001, 4002, 4003, 4004, 4005, 5001, 5002];
    await write(disks[0]!, 400, contents);
    expect(pool.stats().data_blocks_used).toBe(before + 3);
    expect(pool.stats().written).toMatchObject({ short: 1 });
    expect(await read(disks[0]!, 400, 8)).toEqual(contents);
    await end(made);
  });

  it('are stored as new without it', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 4, sampling: 1 });
    const pool = await Pool.open(device, SMALL);
    await pool.createVolume('a', BLOCKS * PAGE);
    const disk = pool.openVolume('a');
    for (let at = 0; at < 256; at += 64) await write(disk, at, range(100, 64));
    const { data_blocks_used: before } = pool.stats();
    await write(disk, 300, [1, 2, 110, 111, 3, 4]);
    expect(pool.stats().data_blocks_used).toBe(before + 6);
    expect(pool.stats().llrrm).toBeNull();
    await disk.close();
    await pool.close();
    await device.close();
  });
});

describe('when it is full', () => {
  it('what is read stays, and what is cold makes room', async () => {
    const made = await stand('ram:160KiB', { llrrmPolicy: 'random' });
    const [a] = made.disks;
    const { slots } = tierOf(made.pool);
    expect(slots).toBeLessThan(64);
    for (let at = 0; at < 64; at += 4) {
      // Twice: what is read once takes nobody's place.
      for (let i = 0; i < 2; i++) {
        await read(a!, at, 4);
        await made.pool.settle();
      }
      for (let i = 0; i < 3; i++) await read(a!, 0, 4);
    }
    const before = deviceReads(made.pool);
    expect(await read(a!, 0, 4)).toEqual(range(100, 4));
    expect(deviceReads(made.pool)).toBe(before);
    expect(tierOf(made.pool).evicted).toBeGreaterThan(0);
    expect(tierOf(made.pool).used).toBeLessThanOrEqual(slots);
    for (let at = 0; at < 64; at++) expect(await read(a!, at, 1)).toEqual([100 + at]);
    await end(made);
  });
});

describe('when it is full of blocks of long runs', () => {
  it('those of a short run that was shared take their place', async () => {
    const made = await stand('ram:160KiB');
    const { disks, pool } = made;
    const { slots, used } = tierOf(pool);
    expect(used).toBe(slots);
    await write(disks[0]!, 200, [5000, 5001, 160, 161, 5002, 5003]);
    await pool.settle();
    expect(tierOf(pool)).toMatchObject({ evicted: 2, used: slots });
    const before = deviceReads(pool);
    expect(await read(disks[0]!, 202, 2)).toEqual([160, 161]);
    expect(deviceReads(pool)).toBe(before);
    await end(made);
  });
});

describe('a device that lets the pool down', () => {
  it('gives back other bytes: they are not used, and the copy is gone', async () => {
    const made = await stand();
    const [a] = made.disks;
    const noise = made.fast.memory.alloc(made.fast.info.blocks * made.fast.info.blockSize);
    noise.u8.fill(0x5a);
    await made.fast.write(0, noise);
    noise.free();
    expect(await read(a!, 0, 16)).toEqual(range(100, 16));
    // A short run is compared with the data device then.
    await write(a!, 200, [5000, 5001, 140, 141, 5002, 5003]);
    expect(await read(a!, 200, 6)).toEqual([5000, 5001, 140, 141, 5002, 5003]);
    expect(made.pool.stats().written).toMatchObject({ short: 2 });
    expect(tierOf(made.pool).damaged).toBeGreaterThan(1);
    expect(made.pool.llrrm.state).toBe('on');
    await end(made);
  });

  it('dies under reads and writes: all of them succeed, and it is not asked again', async () => {
    const warning = warned();
    const made = await stand('ram:1MiB?fault.seed=1&fault.delayUs=300');
    const control = faultControl(made.fast.backend)!;
    const reads = made.disks.flatMap((disk) =>
      range(0, 30).map(async (i) => expect(await read(disk, i, 2)).toEqual(range(100 + i, 2))),
    );
    await new Promise((resolve) => setImmediate(resolve));
    await control.cut({ survive: 0 });
    await Promise.all(reads);
    for (const disk of made.disks) expect(await read(disk, 5, 8)).toEqual(range(105, 8));
    await write(made.disks[0]!, 200, range(7000, 16));
    expect(await read(made.disks[0]!, 200, 16)).toEqual(range(7000, 16));
    // Nothing waits to be copied: neither what was read, nor what has references enough by now.
    for (const disk of made.disks) await write(disk, 300, range(7000, 16));
    await made.pool.settle();
    expect(made.pool.llrrm).toMatchObject({ state: 'degraded', why: 'the device is gone' });
    expect(made.pool.stats()).toMatchObject({
      llrrm_state: 'degraded',
      llrrm_why: 'the device is gone',
    });
    expect(await warning).toMatchObject({ code: 'PENSTOCK_LLRRM_DEGRADED' });
    await end(made);
  });

  it('fails now and then, and more often than it may', async () => {
    const made = await stand('ram:1MiB?fault.seed=3&fault.errors=0.2&fault.errorOps=READ');
    for (let round = 0; round < 30; round++) {
      for (const disk of made.disks)
        expect(await read(disk, round, 8)).toEqual(range(100 + round, 8));
    }
    expect(tierOf(made.pool).errors).toBeGreaterThanOrEqual(16);
    expect(made.pool.llrrm.state).toBe('degraded');
    await end(made);
  });
});

describe('a low-latency device that a pool remembers', () => {
  const uris = (name: string): [string, string] => [
    `file:${join(folder, name)}?create=64MiB`,
    `file:${join(folder, `${name}-fast`)}?create=1MiB`,
  ];
  const opened = async (uri: string, options: OpenOptions = {}): Promise<Pool> => {
    const device = await open(uri);
    return Pool.open(device, { ...SMALL, openLlrrm: open, ...options }).catch(async (error) => {
      await device.close();
      throw error;
    });
  };
  const closed = async (pool: Pool): Promise<void> => {
    await pool.close();
    await pool.device.close();
  };
  const filled = async (name: string): Promise<[string, string]> => {
    const [uri, fastUri] = uris(name);
    const device = await open(uri);
    const fast = await open(fastUri);
    await Pool.create(device, { thn: 4, sampling: 1, llrrm: fast });
    await device.close();
    await fast.close();
    const pool = await opened(uri);
    expect(pool.llrrm).toEqual({ state: 'on', uri: fastUri.replace('?create=1MiB', ''), why: '' });
    for (const volume of ['a', 'b', 'c', 'd']) {
      await pool.createVolume(volume, BLOCKS * PAGE);
      const disk = pool.openVolume(volume);
      await write(disk, 0, range(100, 64));
      await disk.close();
    }
    await pool.settle();
    await closed(pool);
    return [uri, fastUri];
  };

  it('keeps its copies over a close in order, but not over anything else', async () => {
    const [uri] = await filled('kept');
    let pool = await opened(uri);
    expect(tierOf(pool)).toMatchObject({ used: 64, promoted: 0 });
    const disk = pool.openVolume('b');
    expect(await read(disk, 10, 16)).toEqual(range(110, 16));
    expect(tierOf(pool)).toMatchObject({ blocks: 16, promoted: 0, damaged: 0 });
    await disk.close();
    await closed(pool);
    // Opened without it meanwhile: blocks may have changed.
    await closed(await opened(uri, { llrrm: null }));
    pool = await opened(uri);
    expect(tierOf(pool)).toMatchObject({ used: 0 });
    await closed(pool);
  });

  it('is not missed by a repair', async () => {
    const [uri] = await filled('repaired');
    const pool = await opened(uri);
    await closed(pool);
    const device = await open(uri);
    const page = device.memory.alloc(PAGE);
    page.u8.fill(0);
    // The superblock before the last one.
    const slot = (pool.info.checkpoint + 1) & 1;
    await device.write((slot * PAGE) / device.info.blockSize, page);
    page.free();
    const warnings: Error[] = [];
    const listener = (warning: Error): void => void warnings.push(warning);
    process.on('warning', listener);
    expect(await repairPool(device)).toMatchObject({ done: true, check: { clean: true } });
    await new Promise((resolve) => setTimeout(resolve, 20));
    process.off('warning', listener);
    expect(warnings).toEqual([]);
    await device.close();
    const again = await opened(uri);
    expect(again.llrrm.state).toBe('on');
    await closed(again);
  });

  it('is missed, and the pool works without it', async () => {
    const [uri, fastUri] = await filled('missed');
    rmSync(new URL(fastUri.replace('?create=1MiB', '')).pathname);
    const device = await open(uri);
    const warning = warned();
    const pool = await Pool.open(device, {
      ...SMALL,
      openLlrrm: async () => open('file:/nowhere'),
    });
    expect(await warning).toMatchObject({
      code: 'PENSTOCK_LLRRM_DEGRADED',
      message: expect.stringContaining('/nowhere') as string,
      detail: expect.stringContaining('pool set --llrrm') as string,
    });
    expect(pool.stats()).toMatchObject({ llrrm: null, llrrm_state: 'degraded' });
    expect(pool.llrrm).toMatchObject({
      state: 'degraded',
      uri: fastUri.replace('?create=1MiB', ''),
    });
    expect(pool.llrrm.why).toContain('/nowhere');
    const disk = pool.openVolume('c');
    expect(await read(disk, 0, 64)).toEqual(range(100, 64));
    await disk.close();
    await closed(pool);
  });

  it('is another one that holds something else: it is not written to', async () => {
    const [uri] = await filled('other');
    const other = await open('ram:1MiB');
    const page = other.memory.alloc(PAGE);
    page.u8.fill(7);
    await other.write(3 * (PAGE / other.info.blockSize), page);
    await other.write(0, page);
    await expect(opened(uri, { llrrm: other })).rejects.toMatchObject({
      code: 'LLRRM_FOREIGN',
      exitCode: 3,
    });
    await other.read(0, page);
    expect(page.u8.every((byte) => byte === 7)).toBe(true);
    const pool = await opened(uri);
    await pool.configure({ llrrm: other });
    await closed(pool);
    const again = await opened(uri, { llrrm: other });
    expect(again.llrrm.state).toBe('on');
    await again.configure({ llrrm: null });
    await closed(again);
    const without = await opened(uri);
    expect(without.llrrm).toEqual({ state: 'none', uri: '', why: '' });
    await closed(without);
    page.free();
    await other.close();
  });

  it('cannot be the data device, nor too small', async () => {
    const device = await open('ram:64MiB');
    const make = (llrrm: BlockDevice): Promise<void> => Pool.create(device, { llrrm, force: true });
    await expect(make(device)).rejects.toMatchObject({ code: 'BAD_OPTION', exitCode: 2 });
    const tiny = await open('ram:4KiB');
    await expect(make(tiny)).rejects.toMatchObject({ code: 'LLRRM_BAD_DEVICE', exitCode: 2 });
    await tiny.close();
    await device.close();
  });

  it('goes by a volume URI, too', async () => {
    const [uri] = await filled('uri');
    const path = uri.replace('?create=64MiB', '');
    const disk = await open(`dedup:${path}?dedup.llrrm=ram%3A1MiB#a`).catch(async (error) => error);
    expect(disk).not.toBeInstanceOf(Error);
    expect(await read(disk, 3, 2)).toEqual([103, 104]);
    await disk.close();
    await expect(open(`dedup:${path}?dedup.llrrm=ram%3A4KiB#a`)).rejects.toMatchObject({
      code: 'LLRRM_BAD_DEVICE',
    });
  });
});

it('everything at random, with copies that are damaged now and then, is as its model', async () => {
  const random = new Random(11);
  const made = await stand('ram:400KiB');
  const models = made.disks.map(() => [
    ...range(100, 64),
    ...new Array<number>(BLOCKS - 64).fill(0),
  ]);
  const series: number[][] = [range(100, 64)];
  let content = 10_000;
  const noise = made.fast.memory.alloc(PAGE);
  for (let step = 0; step < 600; step++) {
    const v = random.below(4);
    const model = models[v]!;
    const disk = made.disks[v]!;
    const kind = random.below(20);
    if (kind < 4) {
      const fresh = random.chance(0.3) ? range((content += 100), random.between(4, 40)) : null;
      const old = random.pick(series);
      const from = random.below(old.length - 1);
      const contents = fresh ?? old.slice(from, from + random.between(1, 24));
      if (fresh !== null) series.push(fresh);
      const first = random.below(BLOCKS - contents.length);
      await write(disk, first, contents);
      model.splice(first, contents.length, ...contents);
    } else if (kind < 19) {
      const count = random.pick([1, 1, 4, 8, 40]);
      const first = random.below(BLOCKS - count);
      expect(await read(disk, first, count)).toEqual(model.slice(first, first + count));
    } else {
      noise.u32.fill(step);
      const pages = (made.fast.info.blocks * made.fast.info.blockSize) / PAGE;
      const page = random.below(pages);
      await made.fast.write((page * PAGE) / made.fast.info.blockSize, noise);
    }
    if (step % 100 === 99) await made.pool.checkpoint();
  }
  noise.free();
  expect(tierOf(made.pool).reads).toBeGreaterThan(50);
  expect(tierOf(made.pool).damaged).toBeGreaterThan(0);
  for (const [v, disk] of made.disks.entries()) {
    expect(await read(disk, 0, BLOCKS)).toEqual(models[v]);
  }
  await end(made);
});
