// Controllers behind ports that go and come while they are used: the kernel asks for one back, one
// is added, one is pulled out. Its arguments are the addresses of the ports, in this order.

import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { nvmeControl } from '../../../lib/drivers/nvme/index.js';
import { open, type BlockDevice } from '../../../lib/index.js';
import { bindDriver, hear, loadModules, report, say, until } from '../inside.js';
import { LoadWorker } from '../nvme-crew.js';
import { newFiles, openFiles, refusal } from '../nvme-inside.js';
import { VerifiedLoad } from '../nvme-load.js';

const [, , asked = '', added = '', pulled = ''] = process.argv;

/** The function behind a port, when there is one. */
function behind(port: string): string | undefined {
  return readdirSync(`/sys/bus/pci/devices/${port}`).find((name) => /^0000:..:00\.0$/.test(name));
}

/** A load in this thread and one in a worker, until the device goes by what `begin` starts. */
async function lose(device: BlockDevice, begin: () => void) {
  const theirs = { depth: 4, blocks: 8, firstLba: 64, seed: 1 };
  const [worker] = await LoadWorker.crew(device.handle(), [theirs]);
  const own = new VerifiedLoad(device, { depth: 4, blocks: 8, firstLba: 0, seed: 2 });
  const running = own.run();
  await until(() => own.operations > 20, 'operations');
  begin();
  const loads = [await running, await worker!.ended()];
  await own.close();
  const state = nvmeControl(device)!.state;
  const queue = await refusal(() => device.queue({ depth: 4 }));
  const started = performance.now();
  await device.close();
  return { loads, state, queue, closedInTime: performance.now() - started < 8000 };
}

async function isAskedFor(): Promise<void> {
  const address = behind(asked)!;
  bindDriver(address, 'vfio-pci');
  const before = openFiles();
  const device = await open(`nvme:${address}/1?queues=4`);
  report('asked for', await lose(device, () => say('ask')));
  await until(() => behind(asked) === undefined, 'the end of the device');
  report('open again', await refusal(() => open(`nvme:${address}/1`)));
  report('files left open', newFiles(before));
}

function isBound(address: string): boolean {
  try {
    bindDriver(address, 'vfio-pci');
    return true;
  } catch {
    return false;
  }
}

async function isAdded(): Promise<void> {
  say('add');
  const address = await until(() => behind(added), 'the new device');
  // The kernel shows a device a moment before it lets drivers have it.
  await until(() => isBound(address), 'its driver');
  const device = await open(`nvme:${address}/1`);
  const load = new VerifiedLoad(device, { depth: 4, blocks: 8, firstLba: 0, seed: 3 });
  const running = load.run();
  await until(() => load.operations > 20, 'operations');
  load.stop();
  report('added', await running);
  await load.close();
  await device.close();
}

/**
 * Power off at the slot (Slot Control of the port), without a word to the driver. Everything is on
 * one CPU by then: QEMU 7.2 ends when another one rings a doorbell of what it is just removing (of
 * its own lists, freed by then). Commands are in flight nevertheless.
 */
function pullOut(): void {
  execFileSync('taskset', ['--all-tasks', '--cpu-list', '--pid', '0', String(process.pid)]);
  execFileSync('setpci', ['-s', pulled, 'CAP_EXP+18.w=17f9']);
}

async function isPulled(): Promise<void> {
  const address = behind(pulled)!;
  bindDriver(address, 'vfio-pci');
  const device = await open(`nvme:${address}/1?queues=4&timeout=5s`);
  report('pulled out', await lose(device, pullOut));
}

loadModules('vfio-pci');
await isAskedFor();
await isAdded();
await isPulled();
// The kernel may keep the process for a minute now, while it closes what is not there any more.
say('done');
await hear();
