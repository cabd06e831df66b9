// A volume of a pool on a device that another process serves keeps the contract, too: what the pool
// writes itself is in memory that the server maps. What becomes of it when the server dies.

import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { Pool } from '../../lib/dedup/index.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { currentDomain } from '../../lib/idc/index.js';
import { open } from '../../lib/open.js';
import { DeviceWorld } from '../idc/device-support.js';
import { contractSuite } from '../support/contract.js';
import { range, read, write } from './contents.js';

const world = new DeviceWorld();

afterAll(async () => {
  currentDomain()?.close();
  await world.close();
});

contractSuite(
  'dedup: on idc:',
  async () => {
    const served = await world.serve('ram:64MiB');
    const data = await open(served.uri);
    await Pool.create(data, { sampling: 1 });
    const pool = await Pool.open(data, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
    await pool.createVolume('one', 2 ** 24);
    const { backend } = pool.openVolume('one');
    const close = backend.close.bind(backend);
    backend.close = async () => {
      await close();
      await pool.close();
      await data.close();
    };
    return { device: new BlockDevice(backend), remove: async () => void (await served.end()) };
  },
  { data: true, discardZeroes: true, modelRuns: 3 },
);

it('ends when the server dies, and has what was flushed with the next one', async () => {
  const image = join(world.folder, 'pool');
  const served = await world.serve(`file:${image}?create=64MiB`, [], 'mortal');
  const data = await open(served.uri);
  await Pool.create(data, { sampling: 1 });
  const pool = await Pool.open(data, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
  await pool.createVolume('one', 2 ** 24);
  const disk = pool.openVolume('one');
  await write(disk, 0, range(1, 64));
  await disk.flush();
  await served.end('SIGKILL');
  await expect(write(disk, 100, range(100, 8))).rejects.toMatchObject({ code: 'DEVICE_GONE' });
  await expect(read(disk, 0, 8)).rejects.toMatchObject({ code: 'DEVICE_GONE' });
  await expect(pool.checkpoint()).rejects.toMatchObject({ code: 'POOL_FAILED' });
  await disk.close();
  await pool.close();
  await data.close().catch(() => undefined);
  const next = await world.serve(`file:${image}`, [], 'next');
  const again = await open(next.uri);
  const opened = await Pool.open(again, { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 });
  const same = opened.openVolume('one');
  expect(await read(same, 0, 64)).toEqual(range(1, 64));
  await same.close();
  await opened.close();
  await again.close();
  await next.end();
});
