// A volume of a pool on a device that another process serves keeps the contract, too: what the pool
// writes itself is in memory that the server maps.

import { afterAll } from 'vitest';
import { Pool } from '../../lib/dedup/index.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { currentDomain } from '../../lib/idc/index.js';
import { open } from '../../lib/open.js';
import { DeviceWorld } from '../idc/device-support.js';
import { contractSuite } from '../support/contract.js';

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
