// Faults of drives, and what the driver makes of them: media errors, a command that gets stuck,
// resets and namespaces that go under load. Every section reports what it saw; its arguments are
// addresses.

import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { nvmeControl } from '../../../lib/drivers/nvme/index.js';
import { Op } from '../../../lib/hpdi/index.js';
import { open, PenstockError, type BlockDevice, type Queue } from '../../../lib/index.js';
import { collect, one, put } from '../../support/requests.js';
import { bindDriver, hear, loadModules, report, say, until } from '../inside.js';
import { newFiles, openFiles, refusal } from '../nvme-inside.js';
import { VerifiedLoad } from '../nvme-load.js';

const [, , flawed = '', slow = '', first = '', second = ''] = process.argv;

/** Has the test do something to the guest's devices. */
async function ask(what: string): Promise<void> {
  say(what);
  await hear();
}

interface Counters {
  retries: number;
  timeouts: number;
  resets: number;
}

function countersOf(queue: Queue): Counters {
  const { retries, timeouts, resets } = queue.driver.counters as unknown as Counters;
  return { retries, timeouts, resets };
}

async function withDevice(uri: string, use: (device: BlockDevice) => Promise<void>) {
  const device = await open(uri);
  try {
    await use(device);
  } finally {
    await device.close();
  }
}

/** Sectors that cannot be read (100), written (200), or read at the first try (300). */
async function media(device: BlockDevice): Promise<void> {
  const buffer = device.memory.alloc(8192);
  const queue = device.queue({ depth: 4 });
  const request = { address: buffer.address, blocks: 8 };
  const outcome = async (op: number, lba: number) => {
    const before = countersOf(queue).retries;
    const { status } = await one(queue, { op, lba, ...request });
    const { code, message, hint } = device.explain(status);
    return { code, message, hint, retries: countersOf(queue).retries - before };
  };
  report('unreadable', await outcome(Op.READ, 96));
  report('unwritable', await outcome(Op.WRITE, 200));
  report('readable at the second try', await outcome(Op.READ, 300));
  report('next to it', await outcome(Op.READ, 104));
  report('for people', await refusal(() => device.read(100, buffer)));
  await queue.close();
  buffer.free();
}

/**
 * A write that does not end: aborted, then the controller is reset. Writes that were issued later
 * are in the drive, too, and are issued again.
 */
async function stuck(device: BlockDevice): Promise<void> {
  const queue = device.queue({ depth: 8 });
  const buffer = device.memory.alloc(65536);
  const write = (tag: number) => {
    put(queue, { op: Op.WRITE, tag, blocks: 128, lba: tag * 128, address: buffer.address });
    queue.submit();
  };
  await ask('brake');
  write(0); // takes what the drive does in minutes now
  await collect(queue, 1);
  write(1);
  await sleep(2000);
  write(2);
  write(3);
  await sleep(200);
  await ask('release'); // for writes to come; those under way wait for longer than they may
  const done = await collect(queue, 3);
  const { counters } = nvmeControl(device)!;
  report('stuck', {
    codes: Object.fromEntries(done.map(({ tag, status }) => [tag, device.explain(status).code])),
    explained: device.explain(done.find(({ tag }) => tag === 1)!.status),
    aborts: counters.aborts,
    resets: counters.resets,
    queue: countersOf(queue),
  });
  const after = await one(queue, {
    op: Op.READ,
    tag: 4,
    blocks: 128,
    lba: 0,
    address: buffer.address,
  });
  report('after the reset', device.explain(after.status).code);
  await queue.close();
  buffer.free();
}

/** The kernel's name of a controller. */
async function kernelName(address: string): Promise<string> {
  return until(
    () =>
      readdirSync('/sys/class/nvme').find(
        (name) => readFileSync(`/sys/class/nvme/${name}/address`, 'utf8').trim() === address,
      ),
    `the kernel's controller ${address}`,
  );
}

/** A namespace is detached and attached again by another controller of the subsystem. */
async function namespaces(): Promise<void> {
  bindDriver(second, 'nvme');
  const other = `/dev/${await kernelName(second)}`;
  const nvme = (command: string) =>
    execFileSync('nvme', [command, other, '--namespace-id=2', '--controllers=0']);
  const stays = await open(`nvme:${first}/1`);
  const goes = await open(`nvme:${first}/2`);
  const events: unknown[] = [];
  const forget = nvmeControl(stays)!.onEvent(({ kind, page, namespaces: nsids }) =>
    events.push({ kind, page, nsids }),
  );
  const steady = new VerifiedLoad(stays, { depth: 4, blocks: 8, firstLba: 0, seed: 1 });
  const ending = new VerifiedLoad(goes, { depth: 4, blocks: 8, firstLba: 0, seed: 2 });
  const running = steady.run();
  const ended = ending.run();
  await until(() => ending.operations > 20, 'operations');
  nvme('detach-ns');
  report('detached', await ended);
  report('blocks of what went', goes.info.blocks);
  report('opening it', await refusal(() => open(`nvme:${first}/2`)));
  const before = steady.operations;
  await until(() => steady.operations > before + 20, 'operations of the other namespace');
  nvme('attach-ns');
  await until(() => goes.info.blocks > 0, 'the namespace');
  await goes.flush();
  report('blocks of what came', goes.info.blocks);
  steady.stop();
  report('its neighbour', await running);
  report('events', events);
  forget();
  await steady.close();
  await ending.close();
  await goes.close();
  await stays.close();
}

async function main(): Promise<void> {
  loadModules('vfio-pci', 'nvme');
  for (const address of [flawed, slow, first]) bindDriver(address, 'vfio-pci');
  report('no such namespace', await refusal(() => open(`nvme:${slow}/7`)));
  const before = openFiles();
  await withDevice(`nvme:${flawed}/1`, media);
  await withDevice(`nvme:${slow}/1?timeout=4s&queues=2`, stuck);
  await namespaces();
  report('files left open', newFiles(before));
}

await main().catch((error: unknown) => {
  if (error instanceof PenstockError) console.error(error.code, error.hint);
  throw error;
});
