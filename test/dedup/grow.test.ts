// A pool on a device that grows: it uses what is new, also while it is in use, and as soon as that
// is durable.

import { mkdtempSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock } from '../soak/dedup-model.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const folder = mkdtempSync(join(tmpdir(), 'penstock-grow-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Writes blocks of their own contents, 64 at a time, till there is no space; how many were. */
async function fill(disk: BlockDevice, from: number): Promise<number> {
  const buffer = disk.memory.alloc(64 * PAGE);
  try {
    for (let block = from; ; block += 64) {
      for (let i = 0; i < 64; i++) fillBlock(buffer.u32, i * 1024, block + i + 1);
      const full = await disk.write(block, buffer).then(
        () => false,
        (error: unknown) => (expect(error).toMatchObject({ code: 'NO_SPACE' }), true),
      );
      if (full) return block;
    }
  } finally {
    buffer.free();
  }
}

async function compare(disk: BlockDevice, blocks: number): Promise<void> {
  const buffer = disk.memory.alloc(blocks * PAGE);
  await disk.read(0, buffer);
  for (let block = 0; block < blocks; block++) {
    if (contentOf(buffer.u32, block * 1024) !== block + 1) expect(block).toBe('as it was written');
  }
  buffer.free();
}

it('uses what a file has gained, while it is open', async () => {
  const path = join(folder, 'pool.img');
  const device = await open(`file:${path}?create=24MiB`);
  await Pool.create(device, { thn: 0 });
  let pool = await Pool.open(device, OPEN);
  await pool.createVolume('one', 2 ** 30);
  let disk = pool.openVolume('one');
  const first = await fill(disk, 0);
  expect(await pool.grow()).toBe(0);
  truncateSync(path, 90 * MIB);
  expect(await pool.grow()).toBe(64 * MIB);
  expect(pool.stats().physical_blocks).toBe((88 * MIB) / PAGE);
  const second = await fill(disk, first);
  expect(second - first).toBeGreaterThan((60 * MIB) / PAGE);
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  pool = await Pool.open(device, OPEN);
  disk = pool.openVolume('one');
  await compare(disk, second);
  truncateSync(path, 80 * MIB);
  await expect(pool.grow()).rejects.toMatchObject({ code: 'POOL_TRUNCATED', exitCode: 3 });
  truncateSync(path, 90 * MIB);
  await device.refresh();
  await disk.close();
  await pool.close();
  await device.close();
});

it('grows as far as its root pages go', async () => {
  const ram = await ramDriver.open(String(32 * MIB), new Map(), 'ram:32MiB');
  let info = ram.info;
  const grown = Object.create(ram, { info: { get: () => info } }) as Backend;
  const device = new BlockDevice(grown);
  await Pool.create(device, { thn: 0 });
  let pool = await Pool.open(device, OPEN);
  const most = 80 * 1016 * 2 ** 30;
  info = { ...info, blocks: (most + 4 * MIB) / info.blockSize };
  await expect(pool.grow()).rejects.toMatchObject({
    code: 'POOL_TOO_LARGE',
    message: expect.stringContaining('79.38 TiB') as string,
  });
  expect(pool.info.pages).toBe((32 * MIB) / PAGE);
  info = { ...info, blocks: most / info.blockSize };
  const small = { code: 'BAD_OPTION', message: expect.stringContaining('21 MiB') as string };
  await expect(pool.grow()).rejects.toMatchObject(small);
  await pool.close();
  pool = await Pool.open(device, { ...OPEN, cacheBytes: 21 * MIB });
  expect(await pool.grow()).toBe(most - 32 * MIB);
  // Blocks may need more than 32 bits now.
  expect(pool.engine.parts.space.endGroup).toBe(most / (4 * MIB));
  await pool.createVolume('one', 2 ** 20);
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true, volumes: 1 });
  await device.close();
});
