// A volume of a dedup pool keeps the contract of HPDI, as every other device.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Pool } from '../../lib/dedup/index.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contractSuite, type Opened } from '../support/contract.js';
import { openOnTwin } from '../support/nvme-open.js';

const BYTES = 16 * 2 ** 20;
const KEEPS = { data: true, discardZeroes: true };
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };

async function onDevice(
  uri: string,
  thn: number,
  remove?: () => void,
  blockSize?: number,
  dataChecksum?: boolean,
): Promise<Opened> {
  return over(await open(uri), thn, remove, blockSize, dataChecksum);
}

/** A volume that closes its pool and its device. */
async function over(
  data: BlockDevice,
  thn: number,
  remove?: () => void | Promise<void>,
  blockSize = 4096,
  dataChecksum = false,
): Promise<Opened> {
  await Pool.create(data, { thn, sampling: 1, dataChecksum });
  const pool = await Pool.open(data, OPEN);
  await pool.createVolume('one', BYTES);
  const backend: Backend = pool.openVolume('one', { blockSize }).backend;
  const close = backend.close.bind(backend);
  backend.close = async () => {
    await close();
    await pool.close();
    await data.close();
  };
  return { device: new BlockDevice(backend), ...(remove === undefined ? {} : { remove }) };
}

contractSuite('dedup: on ram:', () => onDevice('ram:64MiB', 8), KEEPS);
contractSuite(
  'dedup: every block, on blocks of 4096',
  () => onDevice('ram:64MiB?bs=4096', 1),
  KEEPS,
);
contractSuite(
  'dedup: with data checksums',
  () => onDevice('ram:64MiB', 8, undefined, 4096, true),
  KEEPS,
);

function onFile(blockSize: number): Promise<Opened> {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-dedup-'));
  const uri = `file:${join(folder, 'pool')}?create=64MiB`;
  return onDevice(uri, 8, () => rmSync(folder, { recursive: true }), blockSize);
}

contractSuite('dedup: on file:', () => onFile(4096), KEEPS);
// A discard of a part of a page does nothing.
const SECTORS = { data: true, discardZeroes: false };
contractSuite('dedup: 512, on ram:', () => onDevice('ram:64MiB', 8, undefined, 512), SECTORS);
contractSuite(
  'dedup: 512, on blocks of 4096',
  () => onDevice('ram:64MiB?bs=4096', 1, undefined, 512),
  SECTORS,
);
contractSuite('dedup: 512, on file:', () => onFile(512), SECTORS);

contractSuite(
  'dedup: on nvme:',
  async () => {
    const { device, twin } = await openOnTwin({
      namespaces: [{ blocks: (64 * 2 ** 20) / 4096, blockSize: 4096 }],
      dma: 'reached',
    });
    return over(device, 8, () => twin.stop());
  },
  { ...KEEPS, modelRuns: 3 },
);
