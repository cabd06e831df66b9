// What a device may touch, and what is left when its user is killed.
//
//   nvme-isolation ADDRESS SLOW   all of it; SLOW is a controller with a slow disk
//   nvme-isolation reader SLOW    has reads in flight, and waits to be killed
//   nvme-isolation next SLOW      uses the same addresses afterwards

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Op } from '../../../lib/hpdi/index.js';
import { addressSpace, open, PenstockError, type BlockDevice } from '../../../lib/index.js';
import { put } from '../../support/requests.js';
import { report } from '../inside.js';
import { bindAll, kernelLines } from '../nvme-inside.js';
import { RawController } from '../nvme-raw.js';

const program = process.argv[1]!;
const READS = 48;
const READ_BYTES = 131072;
const SECRET = 0x53;
const ON_DISK = 0xd1;
const NEXT_WORD = 0x0badcafe;

/** A physical address of the kernel: what a device reaches where nothing translates. */
function kernelCode(): number {
  const line = /([0-9a-f]+)-[0-9a-f]+ : Kernel code/.exec(readFileSync('/proc/iomem', 'utf8'));
  return Number.parseInt(line![1]!, 16);
}

const holds = (bytes: Uint8Array, value: number) => bytes.every((byte) => byte === value);

async function strayAddresses(address: string): Promise<void> {
  const controller = await RawController.open(address);
  const { page } = controller;
  // Memory of this process that the device was not given.
  const secret = addressSpace().create(2 ** 21, { pageBytes: 4096 });
  secret.u8.fill(SECRET);
  page.u8.fill(ON_DISK);
  report('prepared', controller.write(0, page.address));

  const code = kernelCode();
  report('statuses', {
    read: controller.read(0, secret.address),
    kernel: controller.read(0, code),
    identify: controller.identify(secret.address + 4096),
    write: controller.write(8, secret.address),
  });
  report('memory is as it was', holds(secret.u8, SECRET));
  page.u8.fill(0xee);
  report('read back', controller.read(8, page.address));
  report('secret bytes on the disk', page.u8.filter((byte) => byte === SECRET).length);
  page.u8.fill(0xee);
  controller.read(0, page.address);
  report('what was given is reached', holds(page.u8, ON_DISK));
  await controller.close();
  const faults = kernelLines(/DMAR: \[DMA (Read|Write)/);
  const at = (value: number) => `fault addr 0x${value.toString(16)}`;
  report('faults', {
    ofTheDevice: faults.every((line) => line.includes(address.slice(5))),
    memory: faults.some((line) => line.includes(at(secret.address))),
    count: faults.length,
  });
  secret.close();
}

/** Memory at the same address in each of these processes. */
function workspace() {
  return addressSpace().create(READS * READ_BYTES, { pageBytes: 4096 });
}

async function reader(address: string): Promise<void> {
  const space = workspace();
  const device = await open(`nvme:${address}/1`);
  const queue = device.queue({ depth: 64 });
  const blocks = READ_BYTES / device.info.blockSize;
  for (let tag = 0; tag < READS; tag++) {
    const at = space.address + tag * READ_BYTES;
    put(queue, { op: Op.READ, tag, blocks, lba: tag * blocks, address: at });
  }
  queue.submit();
  const done = queue.poll(64);
  process.stdout.write(`${JSON.stringify({ inFlight: READS - done, at: space.address })}\n`);
  setInterval(() => undefined, 1000);
}

/** The device, once the kernel has taken it back from the process that was killed. */
async function openSoon(uri: string): Promise<BlockDevice> {
  for (let tries = 0; ; tries++) {
    try {
      return await open(uri);
    } catch (error) {
      if (!(error instanceof PenstockError) || error.code !== 'GROUP_BUSY' || tries > 100)
        throw error;
    }
    await sleep(50);
  }
}

async function next(address: string): Promise<void> {
  const space = workspace();
  space.u32.fill(NEXT_WORD);
  const wrong = () => space.u32.filter((word) => word !== NEXT_WORD).length;
  const before = wrong();
  const device = await openSoon(`nvme:${address}/1`);
  const buffer = device.memory.alloc(4096);
  buffer.u8.fill(0x77);
  await device.write(0, buffer);
  buffer.u8.fill(0);
  await device.read(0, buffer);
  // Reads of the process before would have come by now.
  await sleep(1000);
  const result = { at: space.address, before, after: wrong(), works: holds(buffer.u8, 0x77) };
  process.stdout.write(`${JSON.stringify(result)}\n`);
  await device.close();
}

async function killed(address: string): Promise<void> {
  const stdio = ['ignore', 'pipe', 'inherit'] as const;
  const child = spawn(process.execPath, [program, 'reader', address], { stdio: [...stdio] });
  const [line] = (await once(child.stdout.setEncoding('utf8'), 'data')) as [string];
  child.kill('SIGKILL');
  const after = spawnSync(process.execPath, [program, 'next', address], {
    encoding: 'utf8',
    stdio: [...stdio],
  });
  report('killed', JSON.parse(line));
  report('next', JSON.parse(after.stdout));
}

const [, , mode = '', slow = ''] = process.argv;
if (mode === 'reader') await reader(slow);
else if (mode === 'next') await next(slow);
else {
  bindAll();
  await strayAddresses(mode);
  await killed(slow);
}
