// A device that another process serves keeps the contract as any driver does, whatever device it
// is.

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll } from 'vitest';
import { currentDomain } from '../../lib/idc/index.js';
import { open } from '../../lib/open.js';
import { contractSuite, type Expectations, type Opened } from '../support/contract.js';
import { DeviceWorld } from './device-support.js';

const BYTES = 16 * 2 ** 20;
const KEEPS: Expectations = { data: true, discardZeroes: true };
const world = new DeviceWorld();
let files = 0;

afterAll(async () => {
  currentDomain()?.close();
  await world.close();
});

/** A server for each device that is opened; it ends with it. */
async function openServed(device: string, keys = '', remove = (): void => {}): Promise<Opened> {
  const served = await world.serve(device);
  return {
    device: await open(`${served.uri}${keys}`),
    remove: async () => {
      await served.end();
      remove();
    },
  };
}

function openFile(keys: string, own = ''): Promise<Opened> {
  const path = join(world.folder, `file${files++}`);
  return openServed(`file:${path}?create=${BYTES}${keys}`, own, () => rmSync(path));
}

async function openReadOnlyFile(keys: string): Promise<Opened> {
  const path = join(world.folder, `file${files++}`);
  const made = await open(`file:${path}?create=${BYTES}`);
  await made.close();
  return openServed(`file:${path}?readonly=1${keys}`, '', () => rmSync(path));
}

contractSuite('idc: ram', () => openServed(`ram:${BYTES}`), KEEPS);
contractSuite('idc: ram, blocks of 4096', () => openServed(`ram:${BYTES}?bs=4096`), KEEPS);
contractSuite('idc: null', () => openServed(`null:${BYTES}`), {
  data: false,
  discardZeroes: false,
});
contractSuite('idc: file', () => openFile(''), {
  ...KEEPS,
  openReadOnly: () => openReadOnlyFile(''),
});
contractSuite('idc: file, direct', () => openFile('&direct=1'), {
  ...KEEPS,
  openReadOnly: () => openReadOnlyFile('&direct=1'),
});
contractSuite(
  'idc: ram that reorders and delays',
  () => openServed(`ram:${BYTES}?fault.reorder=0.7&fault.delayUs=50&fault.delayProbability=0.3`),
  KEEPS,
);
contractSuite(
  'idc: file, faults at the client',
  () => openFile('', '?fault.delayUs=50&fault.reorder=0.3&reconnect=1'),
  KEEPS,
);
