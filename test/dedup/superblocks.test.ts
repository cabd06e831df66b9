// One superblock that the device cannot read: it may be the newer one, so the other one is no
// state to go on from; a repair goes by it all the same, and a new pool needs neither.

import { beforeAll, describe, expect, it } from 'vitest';
import { checkPool, Pool, repairPool } from '../../lib/dedup/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import type { Backend, BlockDevice } from '../../lib/hpdi/index.js';
import { withBadPages } from './bad-pages.js';
import { sound, type PoolImage } from './pool-image.js';

const UNREAD = { code: 'MEDIA_ERROR' };
let whole: PoolImage;

beforeAll(async () => {
  whole = await sound();
});

/** The pool, with superblocks that cannot be read. */
async function unread(...slots: number[]): Promise<[device: BlockDevice, ram: Backend]> {
  const ram = await ramDriver.open('256MiB', new Map(), 'ram:256MiB');
  const bad = new Set<number>();
  const device = withBadPages(ram, bad);
  await whole.put(device);
  for (const slot of slots) bad.add(slot);
  return [device, ram];
}

describe.each([0, 1])('a pool whose superblock %i cannot be read', (slot) => {
  const name = slot === 0 ? 'superblock A' : 'superblock B';

  it('does not open, and a check says what can be done', async () => {
    const [device, ram] = await unread(slot);
    const refused = await Pool.open(device).catch((error: unknown) => error);
    expect(refused).toMatchObject(UNREAD);
    expect(String(refused)).toContain(name);
    expect((refused as { hint: string }).hint).toContain('check --repair');
    const { findings } = await checkPool(device);
    expect(findings).toMatchObject([{ kind: 'superblock', where: { pbn: slot } }]);
    expect(findings[0]!.message).toContain('does not open');
    expect(findings[0]!.message).not.toContain('mends');
    await device.close();
    await ram.close();
  });

  it('is repaired by the other one', async () => {
    const [device, ram] = await unread(slot);
    expect(await repairPool(device)).toMatchObject({ done: true, check: { clean: true } });
    const pool = await Pool.open(device);
    expect(pool.volumes).toHaveLength(3);
    await pool.close();
    await device.close();
    await ram.close();
  });

  it('is a pool, which another one replaces only by force', async () => {
    const [device, ram] = await unread(slot);
    await expect(Pool.create(device)).rejects.toMatchObject({ code: 'POOL_EXISTS' });
    await Pool.create(device, { force: true });
    await (await Pool.open(device)).close();
    expect(await checkPool(device)).toMatchObject({ clean: true, volumes: 0 });
    await device.close();
    await ram.close();
  });
});

it('where neither can be read, a pool is made by force alone', async () => {
  const [device, ram] = await unread(0, 1);
  await expect(Pool.open(device)).rejects.toMatchObject(UNREAD);
  await expect(Pool.create(device)).rejects.toMatchObject(UNREAD);
  await Pool.create(device, { force: true });
  await (await Pool.open(device)).close();
  await device.close();
  await ram.close();
});
