// Every driver keeps the contract: plain, behind transparent faults, delays and shuffled order,
// traced, and with a volatile cache that loses its data at a cut.

import { mkdtempSync, rmdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe } from 'vitest';
import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { driver as fileDriver } from '../../lib/drivers/file/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { BlockDevice, type Backend, type DriverModule } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contractSuite, type Expectations, type Opened } from '../support/contract.js';
import { attachLoop, loopObstacle } from '../support/loop.js';

const BYTES = 16 * 2 ** 20;
const KEEPS: Expectations = { data: true, discardZeroes: true };

let folder = '';
let files = 0;

function newFile(): string {
  if (folder === '') folder = mkdtempSync(join(tmpdir(), 'penstock-contract-'));
  return join(folder, `disk${files++}`);
}

afterAll(() => {
  // Every device removed its own: rmdir fails when something was left.
  if (folder !== '') rmdirSync(folder);
});

async function openUri(uri: string): Promise<Opened> {
  return { device: await open(uri) };
}

/** A new file for each device; `keys` as in the URI. */
async function openFile(keys: string): Promise<Opened> {
  const file = newFile();
  const device = await open(`file:${file}?create=${BYTES}${keys}`);
  return { device, remove: () => rmSync(file) };
}

async function openReadOnlyFile(keys: string): Promise<Opened> {
  const made = await openFile('');
  const { path } = made.device.info.description;
  await made.device.close();
  const device = await open(`file:${String(path)}?readonly=1${keys}`);
  return { device, remove: () => made.remove?.() };
}

/** A device behind a volatile cache that `cut` empties. */
async function openCached(
  module: DriverModule,
  path: string,
  query: [string, string][],
): Promise<Opened> {
  const inner: Backend = await module.open(path, new Map(query), `${module.scheme}:${path}`);
  const backend = wrapFault(inner, new Map([['cache', '256k']]));
  const control = faultControl(backend)!;
  const cut = async (): Promise<void> => {
    await control.cut();
    control.heal();
  };
  return { device: new BlockDevice(backend), cut };
}

const WRAPPED = [
  ['', ''],
  ['?', 'fault.seed=1'],
  ['?', 'fault.delayUs=50&fault.delayProbability=0.3'],
  ['?', 'fault.reorder=0.7&fault.seed=3'],
] as const;

for (const [mark, keys] of WRAPPED) {
  const rest = keys === '' ? '' : `&${keys}`;
  const ram = `ram:${BYTES}${mark}${keys}`;
  contractSuite(ram, () => openUri(ram), KEEPS);
  const sparse = `ram:1TiB?sparse=1${rest}`;
  contractSuite(sparse, () => openUri(sparse), KEEPS);
  const empty = `null:${BYTES}${mark}${keys}`;
  contractSuite(empty, () => openUri(empty), { data: false, discardZeroes: false });
  contractSuite(`file: buffered ${keys}`, () => openFile(rest), {
    ...KEEPS,
    openReadOnly: () => openReadOnlyFile(rest),
  });
  contractSuite(`file: direct ${keys}`, () => openFile(`&direct=1${rest}`), {
    ...KEEPS,
    openReadOnly: () => openReadOnlyFile(`&direct=1${rest}`),
  });
}

contractSuite('ram: blocks of 4096', () => openUri(`ram:${BYTES}?bs=4096`), KEEPS);

contractSuite(
  'ram: behind a volatile cache',
  () => openCached(ramDriver, String(BYTES), []),
  KEEPS,
);

contractSuite(
  'file: behind a volatile cache',
  async () => {
    const file = newFile();
    const opened = await openCached(fileDriver, file, [['create', String(BYTES)]]);
    return { ...opened, remove: () => rmSync(file) };
  },
  KEEPS,
);

contractSuite(
  'ram: traced',
  async () => {
    const file = newFile();
    const device = await open(`ram:${BYTES}?trace.to=${file}`);
    return { device, remove: () => rmSync(file) };
  },
  KEEPS,
);

contractSuite(
  'file: faults within, a trace around them',
  async () => {
    const file = newFile();
    const opened = await openFile(`&fault.delayUs=20&trace.to=${file}`);
    return { ...opened, remove: () => (rmSync(file), opened.remove?.()) };
  },
  KEEPS,
);

const obstacle = loopObstacle();
if (obstacle !== '') console.warn(`loop devices are not tested: ${obstacle}`);

describe.runIf(obstacle === '')('loop block devices', () => {
  async function openLoop(keys: string): Promise<Opened> {
    const loop = attachLoop(newFile(), BYTES);
    try {
      return { device: await open(`file:${loop.path}${keys}`), remove: () => loop.detach() };
    } catch (error) {
      loop.detach();
      throw error;
    }
  }

  const readOnly = { openReadOnly: () => openLoop('?readonly=1') };
  contractSuite('loop, buffered', () => openLoop(''), { ...KEEPS, ...readOnly });
  contractSuite('loop, direct', () => openLoop('?direct=1'), KEEPS);
  contractSuite('loop, direct, faults', () => openLoop('?direct=1&fault.delayUs=50'), KEEPS);
});
