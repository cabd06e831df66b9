// Promised space, warnings before the pool is full, and what happens when it is.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import type { Engine } from '../../lib/dedup/engine.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { fillBlock } from '../soak/dedup-model.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const folder = mkdtempSync(join(tmpdir(), 'penstock-reserve-'));
afterAll(() => rmSync(folder, { recursive: true }));

let content = 1;

async function write(disk: BlockDevice, first: number, count: number): Promise<void> {
  const buffer = disk.memory.alloc(count * PAGE);
  for (let i = 0; i < count; i++) fillBlock(buffer.u32, i * 1024, content++);
  await disk.write(first, buffer).finally(() => buffer.free());
}

/** Writes from a block on till there is no space; how many blocks were written. */
async function fill(disk: BlockDevice, from = 0): Promise<number> {
  for (const count of [64, 1]) {
    for (;;) {
      const full = await write(disk, from, count).then(
        () => false,
        (error: unknown) => (expect(error).toMatchObject({ code: 'NO_SPACE' }), true),
      );
      if (full) break;
      from += count;
    }
  }
  return from;
}

describe('what is promised', () => {
  it('is there for who it was promised to, and for nobody else', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 0 });
    let pool = await Pool.open(device, OPEN);
    await pool.createVolume('safe', 2 ** 30, { reserve: 16 * MIB });
    await pool.createVolume('other', 2 ** 30);
    // With nodes for their map.
    const promised = 4096 + 16 + 253;
    expect(pool.stats().reserved_blocks).toBe(promised);
    let other = pool.openVolume('other');
    const taken = await fill(other);
    expect(pool.stats()).toMatchObject({
      free_blocks: 0,
      space: 'full',
      reserved_blocks: promised,
    });
    await other.close();
    await pool.close();
    pool = await Pool.open(device, OPEN);
    const safe = pool.openVolume('safe');
    for (let block = 0; block < 4096; block += 256) await write(safe, block, 256);
    other = pool.openVolume('other');
    await expect(write(other, taken, 1)).rejects.toMatchObject({ code: 'NO_SPACE' });
    // What it has it may write again, also now.
    for (let block = 0; block < 4096; block += 256) await write(safe, block, 256);
    await other.close();
    await safe.close();
    await pool.deleteVolume('safe');
    await pool.settle();
    other = pool.openVolume('other');
    for (let block = 0; block < 4000; block += 250) await write(other, taken + block, 250);
    await other.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });

  it('is promised once, and not what is not there', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device);
    const pool = await Pool.open(device, OPEN);
    const make = (name: string, reserve: number) =>
      expect(pool.createVolume(name, 2 ** 30, { reserve })).resolves.toBeUndefined();
    const fail = (name: string, reserve: number) =>
      expect(pool.createVolume(name, 2 ** 30, { reserve })).rejects;
    await fail('one', 64 * MIB).toMatchObject({ code: 'NO_SPACE' });
    await fail('one', 2 ** 31).toMatchObject({ code: 'BAD_SIZE' });
    await fail('one', 5000).toMatchObject({ code: 'BAD_SIZE' });
    await make('one', 32 * MIB);
    await fail('two', 32 * MIB).toMatchObject({ code: 'NO_SPACE' });
    await make('two', 12 * MIB);
    expect(pool.volumes.map(({ reserved }) => reserved * PAGE)).toEqual([32 * MIB, 12 * MIB]);
    await pool.resizeVolume('one', 8 * MIB, { shrink: true });
    await make('three', 16 * MIB);
    await pool.deleteVolume('two');
    expect(pool.stats().reserved_blocks).toBe((24 * MIB) / PAGE + 24 + 253);
    await pool.close();
    expect(await checkPool(device)).toMatchObject({ clean: true, volumes: 2 });
    await device.close();
  });
});

describe('all that can be promised', () => {
  it.each([
    ['an empty pool', 0],
    ['one with little left', 11_500],
    ['one that is nearly full', 12_900],
  ])('is there, twice, in %s', async (_, taken) => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 0 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('other', 2 ** 30);
    const other = pool.openVolume('other');
    for (let block = 0; block < taken; block += 100) await write(other, block, 100);
    const asked = pool.createVolume('all', 2 ** 30, { reserve: 2 ** 30 });
    const refused: unknown = await asked.catch((error: unknown) => error);
    const most = Number(/^(\d+) bytes/.exec((refused as Error).message)![1]);
    expect(most).toBeGreaterThan(0);
    const asks = (bytes: number) => pool.createVolume('all', 2 ** 30, { reserve: bytes });
    await expect(asks(most + PAGE)).rejects.toMatchObject({ code: 'NO_SPACE' });
    await asks(most);
    await fill(other, taken);
    const all = pool.openVolume('all');
    const blocks = most / PAGE;
    for (let round = 0; round < 3; round++) {
      for (let at = 0; at < blocks; at += 64) await write(all, at, Math.min(64, blocks - at));
    }
    await all.close();
    await other.close();
    await pool.close();
    expect(await checkPool(device)).toMatchObject({ clean: true });
    await device.close();
  });
});

describe('a pool that fills', () => {
  it('tells of it in time, and once', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 0 });
    const refused = Pool.open(device, { ...OPEN, lowSpace: 0.9, criticalSpace: 0.5 });
    await expect(refused).rejects.toMatchObject({ code: 'BAD_OPTION' });
    const pool = await Pool.open(device, { ...OPEN, lowSpace: 0.5, criticalSpace: 0.75 });
    const told: string[] = [];
    pool.onSpace((state) => told.push(state));
    await pool.createVolume('one', 2 ** 30);
    expect(pool.space).toBe('ok');
    const disk = pool.openVolume('one');
    const reach = async (from: number, part: number): Promise<number> => {
      for (; pool.stats().used_percent < 100 * part; from += 16) await write(disk, from, 16);
      const seen = told.length;
      await expect.poll(() => told.length, { timeout: 5000 }).toBeGreaterThan(seen - 1);
      return from;
    };
    let at = await reach(0, 0.5);
    await expect.poll(() => told, { timeout: 5000 }).toEqual(['low']);
    at = await reach(at, 0.75);
    await expect.poll(() => told, { timeout: 5000 }).toEqual(['low', 'critical']);
    await fill(disk, at);
    await expect.poll(() => told, { timeout: 5000 }).toEqual(['low', 'critical', 'full']);
    await disk.discard(0, 2 ** 18);
    await expect.poll(() => told, { timeout: 5000 }).toEqual(['low', 'critical', 'full', 'ok']);
    await disk.close();
    await pool.close();
    await device.close();
  });

  it('is full when writes find no room, whatever waits to be freed for nodes', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 0 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 30);
    const disk = pool.openVolume('one');
    // In pieces that do not end where leaves of the map do.
    let at = 0;
    for (; pool.stats().used_percent < 96; at += 16) await write(disk, at, 16);
    await fill(disk, at);
    expect(pool.space).toBe('full');
    await disk.close();
    await pool.close();
    await device.close();
  });

  it('warns the process that has its volumes by URI, whenever there is less', async () => {
    const image = `file:${join(folder, 'warned')}`;
    const device = await open(`${image}?create=64MiB`);
    await Pool.create(device, { thn: 0 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 30);
    await pool.close();
    await device.close();
    const warnings: (Error & { code?: string; detail?: string })[] = [];
    const listener = (warning: Error): void => void warnings.push(warning);
    process.on('warning', listener);
    const states = (): (string | undefined)[] =>
      warnings.map(({ message }) => / is (\w+): \d+ % in use or promised$/.exec(message)?.[1]);
    const tells = (...all: string[]) => expect.poll(states, { timeout: 5000 }).toEqual(all);
    try {
      const disk = await open(`dedup:${image}#one`);
      const other = await open(`dedup:${image}#one`);
      const { allocator, space } = (disk.backend as unknown as { engine: Engine }).engine.parts;
      const used = (): number => 1 - allocator.room / space.blocksTotal;
      let at = 0;
      for (const [part, all] of [
        [0.82, ['low']],
        [0.96, ['low', 'critical']],
      ] as const) {
        for (; used() < part; at += 16) await write(disk, at, 16);
        await tells(...all);
      }
      await fill(disk, at);
      await tells('low', 'critical', 'full');
      expect(warnings[0]).toMatchObject({
        code: 'PENSTOCK_POOL_SPACE',
        message: expect.stringContaining(`space of the pool of ${image} is low: 8`) as string,
        detail: expect.stringContaining('penstock pool grow') as string,
      });
      // No word when there is more again; but when it gets less anew.
      await disk.discard(0, at);
      await new Promise((resolve) => setTimeout(resolve, 500));
      expect(states()).toEqual(['low', 'critical', 'full']);
      await fill(disk);
      // How many states it passes depends on when it is looked at.
      const last = () => warnings.length > 3 && states().at(-1);
      await expect.poll(last, { timeout: 5000 }).toBe('full');
      await disk.close();
      await other.close();
      expect(warnings.splice(0).length).toBeLessThan(7);
      // At once for a pool that has little when it is opened.
      const again = await open(`dedup:${image}#one`);
      await expect
        .poll(states, { timeout: 5000 })
        .toEqual([expect.stringMatching(/full|critical/)]);
      await again.close();
    } finally {
      process.off('warning', listener);
    }
  });

  it('refuses writes at once, without a checkpoint each', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 0 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 30);
    const disk = pool.openVolume('one');
    const end = await fill(disk);
    const before = pool.stats().checkpoints.done;
    for (let i = 0; i < 100; i++) {
      // What comes free, a block and nodes at a time, is not enough.
      if (i % 10 === 0) await disk.discard(i, 1);
      await expect(write(disk, end, 64)).rejects.toMatchObject({ code: 'NO_SPACE' });
    }
    expect(pool.stats().checkpoints.done - before).toBeLessThan(3);
    // It does for as many.
    await write(disk, end, 4);
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  });
});
