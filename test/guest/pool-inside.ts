// A pool on a real controller's namespace: what the guest makes of it, and what its host finds in
// the image afterwards.

import { checkPool, Pool } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';
import { range, read, write } from '../dedup/contents.js';

const BYTES = 2 ** 24;
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };

export interface PoolFacts {
  readonly contents: Record<string, readonly number[]>;
  readonly used: number;
  readonly clean: boolean;
}

/** Two volumes of the same 512 blocks, a snapshot of one, and changes to it after that. */
export async function makePool(uri: string): Promise<PoolFacts> {
  const device = await open(uri);
  await Pool.create(device, { thn: 4, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  for (const name of ['a', 'b']) {
    await pool.createVolume(name, BYTES);
    const disk = pool.openVolume(name);
    for (let at = 0; at < 512; at += 128) await write(disk, at, range(1 + at, 128));
    await disk.flush();
    await disk.close();
  }
  await pool.copyVolume('a', 'before', 'snapshot');
  const disk = pool.openVolume('a');
  await write(disk, 100, range(9000, 50));
  await disk.discard(400, 112);
  await disk.close();
  await pool.close();
  await device.close();
  return lookAtPool(uri);
}

/** What the pool of a device holds. */
export async function lookAtPool(uri: string): Promise<PoolFacts> {
  const device = await open(uri);
  const { clean } = await checkPool(device, { data: true });
  const pool = await Pool.open(device, OPEN);
  const contents: Record<string, readonly number[]> = {};
  for (const name of ['a', 'b', 'before']) {
    const disk = pool.openVolume(name);
    contents[name] = await read(disk, 0, 512);
    await disk.close();
  }
  const used = pool.stats().data_blocks_used;
  await pool.close();
  await device.close();
  return { contents, used, clean };
}
