// What nvme-cli prints of a controller that the kernel has, and what penstock prints of the same,
// before and after VFIO has it. Reports each output, as base64, by the words that made it. Then a
// pool on its first namespace.

import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { buildProgram } from '../../../lib/cli/program.js';
import { bindDriver, loadModules, pciDevices, report, until } from '../inside.js';
import { makePool } from '../pool-inside.js';

const NVME_CLASS = 0x010802;
const NSIDS = ['1', '2', '3'];
const FORMS = ['normal', 'json', 'binary'];

function peer(...words: string[]): void {
  report(`nvme ${words.join(' ')}`, execFileSync('nvme', words).toString('base64'));
}

/** In this process, since a start of Node takes seconds in here. ADDRESS is the controller's. */
async function ours(address: string, ...words: string[]): Promise<void> {
  const parts: Buffer[] = [];
  const { write } = process.stdout;
  process.stdout.write = (data: string | Uint8Array): boolean => {
    parts.push(Buffer.from(data as string));
    return true;
  };
  try {
    const program = await buildProgram(['nvme'], () => undefined);
    const given = words.map((word) => (word === 'ADDRESS' ? address : word));
    await program.parseAsync(['nvme', ...given], { from: 'user' });
  } finally {
    process.stdout.write = write;
  }
  report(`penstock ${words.join(' ')}`, Buffer.concat(parts).toString('base64'));
}

async function main(): Promise<void> {
  const controller = pciDevices().find((device) => device.class === NVME_CLASS);
  if (controller === undefined) throw new Error('there is no NVMe controller');
  const { address } = controller;
  loadModules('nvme', 'vfio-pci');
  const there = (): boolean => NSIDS.every((nsid) => existsSync(`/dev/nvme0n${nsid}`));
  await until(() => there() || undefined, 'namespaces');
  for (const form of FORMS) {
    for (const page of ['id-ctrl', 'smart-log', 'error-log']) peer(page, '/dev/nvme0', '-o', form);
    for (const nsid of NSIDS) peer('id-ns', '/dev/nvme0', '-n', nsid, '-o', form);
  }
  peer('list');
  peer('list', '-o', 'json');
  await ours(address, 'list');
  await ours(address, 'list', '--json');
  bindDriver(address, 'vfio-pci');
  report('address', address);
  for (const page of ['id-ctrl', 'smart-log', 'error-log'])
    await ours(address, page, 'ADDRESS', '-b');
  for (const nsid of NSIDS) await ours(address, 'id-ns', 'ADDRESS', '-n', nsid, '-b');
  await ours(address, 'show-regs', 'ADDRESS', '--json');
  await ours(address, 'reset', 'ADDRESS', '--json');
  await ours(address, 'list', '-o', 'json');
  report('pool', await makePool(`nvme:${address}/1`));
}

await main();
