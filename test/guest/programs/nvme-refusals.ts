// Why a controller cannot be opened or memory not be used: `nvme-refusals ADDRESS OTHER`. Other
// modes are run by it, as another user with little memory to lock, and as a domain out of reach.

import { spawnSync } from 'node:child_process';
import { chownSync } from 'node:fs';
import { Op } from '../../../lib/hpdi/index.js';
import { addressSpace, open } from '../../../lib/index.js';
import { one } from '../../support/requests.js';
import { bindDriver, loadModules, pciDevices, report } from '../inside.js';
import { refusal } from '../nvme-inside.js';

const program = process.argv[1]!;
const NOBODY = 65534;
/** Enough for the driver's own memory, too little for what is to be read into. */
const LOCKED_BYTES = 24 * 2 ** 20;

/** The same program in another mode; what it reports comes as ours. */
function run(before: readonly string[], ...args: string[]): void {
  const [command = '', ...rest] = [...before, process.execPath, program, ...args];
  const stdio = ['ignore', 'inherit', 'pipe', 3] as const;
  const { status, stderr } = spawnSync(command, rest, { encoding: 'utf8', stdio: [...stdio] });
  if (status !== 0) throw new Error(`${args[0]}: ${stderr}`);
}

/** As a user who may open `mine` and not `other`, with a limit on locked memory. */
async function limited(mine: string, other: string): Promise<void> {
  report('denied', await refusal(() => open(`nvme:${other}/1`)));
  const device = await open(`nvme:${mine}/1`);
  const large = addressSpace().create(2 * LOCKED_BYTES, { pageBytes: 4096 });
  const queue = device.queue({ depth: 4 });
  const read = { op: Op.READ, blocks: 1, lba: 0 };
  const done = await one(queue, { ...read, address: large.address });
  report('too large', device.explain(done.status));
  // What is small enough is not the worse for it.
  const buffer = device.memory.alloc(device.info.blockSize);
  report('small', (await one(queue, { ...read, address: buffer.address })).code);
  await queue.close();
  buffer.free();
  large.close();
  await device.close();
  spawnSync('prlimit', ['--pid', String(process.pid), '--memlock=1048576:1048576']);
  report('open with too little', await refusal(() => open(`nvme:${mine}/1`)));
}

async function all(mine: string, other: string): Promise<void> {
  report('no module', await refusal(() => open(`nvme:${mine}/1`)));
  loadModules('vfio-pci', 'nvme');
  bindDriver(mine, 'nvme');
  report('not bound', await refusal(() => open(`nvme:${mine}/1`)));
  for (const address of [mine, other]) bindDriver(address, 'vfio-pci');
  run([], 'far', mine);
  const { group } = pciDevices().find(({ address }) => address === mine)!;
  chownSync(`/dev/vfio/${group}`, NOBODY, NOBODY);
  const asNobody = ['setpriv', `--reuid=${NOBODY}`, '--clear-groups'];
  run(['prlimit', `--memlock=${LOCKED_BYTES}`, ...asNobody], 'limited', mine, other);
  const device = await open(`nvme:${mine}/1`);
  report('other keys', await refusal(() => open(`nvme:${mine}/1?queues=3`)));
  await device.close();
}

const [, , mode = '', first = '', second = ''] = process.argv;
if (mode === 'limited') await limited(first, second);
else if (mode === 'far') {
  addressSpace().join(9);
  report('far', await refusal(() => open(`nvme:${first}/1`)));
} else await all(mode, first);
