// Features that this version does not know, in each word of the superblock that has some: what may
// be done with such a pool, and what stays of them (docs/format.md, "Superblock").

import { beforeAll, describe, expect, test } from 'vitest';
import { checkPool, Pool, repairPool } from '../../lib/dedup/index.js';
import { PoolImage, sound } from './pool-image.js';

const COMPATIBLE = 12;
const INCOMPATIBLE = 13;
const READ_COMPATIBLE = 14;
const UNKNOWN = 0x8000_0100;
let whole: PoolImage;

beforeAll(async () => {
  whole = await sound();
});

/** The pool with features in a word of both superblocks, and a root page to be repaired. */
function having(word: number): PoolImage {
  const image = whole.copy();
  for (const pbn of [0, 1]) image.change(pbn, (words) => (words[word] = UNKNOWN));
  image.flip(image.root);
  return image;
}

describe('unknown features', () => {
  test('that are compatible: all goes on, and they stay', async () => {
    const device = await having(COMPATIBLE).device();
    expect(await checkPool(device)).toMatchObject({ findings: [{ kind: 'root' }] });
    const report = await repairPool(device);
    expect(report).toMatchObject({ done: true, left: [], check: { clean: true } });
    const repaired = await PoolImage.of(device);
    const pool = await Pool.open(device);
    await pool.close();
    const opened = await PoolImage.of(device);
    for (const image of [repaired, opened]) {
      for (const pbn of [0, 1]) expect(image.page(pbn)[COMPATIBLE]).toBe(UNKNOWN);
    }
    expect(opened.page(opened.superblock)[6]).toBeGreaterThan(
      repaired.page(repaired.superblock)[6]!,
    );
    await device.close();
  });

  test('that forbid writing: it is checked, and neither opened nor repaired', async () => {
    const image = having(READ_COMPATIBLE);
    const device = await image.device();
    expect(await checkPool(device)).toMatchObject({ findings: [{ kind: 'root' }] });
    const refused = { code: 'NEWER_FORMAT', exitCode: 3 };
    await expect(Pool.open(device)).rejects.toMatchObject(refused);
    await expect(repairPool(device)).rejects.toMatchObject(refused);
    await expect(repairPool(device, { dryRun: true })).rejects.toMatchObject(refused);
    await expect(Pool.create(device)).rejects.toMatchObject({ code: 'POOL_EXISTS' });
    expect(Buffer.compare((await PoolImage.of(device)).u8, image.u8)).toBe(0);
    await device.close();
  });

  test('that forbid opening: nothing is read', async () => {
    const image = having(INCOMPATIBLE);
    const device = await image.device();
    const refused = { code: 'NEWER_FORMAT', exitCode: 3 };
    await expect(checkPool(device)).rejects.toMatchObject(refused);
    await expect(Pool.open(device)).rejects.toMatchObject(refused);
    await expect(repairPool(device)).rejects.toMatchObject(refused);
    await expect(Pool.create(device)).rejects.toMatchObject({ code: 'POOL_EXISTS' });
    expect(Buffer.compare((await PoolImage.of(device)).u8, image.u8)).toBe(0);
    await device.close();
  });
});
