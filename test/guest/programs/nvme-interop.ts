// Data of the driver and of Linux' nvme driver on the same namespaces (1: blocks of 512 bytes,
// 2: of 4096): what one wrote the other reads. One controller changes hands three times.

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  fsyncSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  writeSync,
} from 'node:fs';
import { open } from '../../../lib/index.js';
import type { BlockDevice } from '../../../lib/hpdi/index.js';
import { fillPattern, pattern } from '../../support/requests.js';
import { bindDriver, loadModules, report, until } from '../inside.js';

/** Sizes of transfers in bytes, from one block of 4096 to more than a command takes. */
const SIZES = [4096, 8192, 12288, 65536, 131072, 1048576 + 4096];
/** The first half of a namespace is written here by the driver, from 8 MiB on by the kernel. */
const KERNEL_FROM = 8 * 2 ** 20;
const ZEROED = { from: KERNEL_FROM - 2 ** 20, bytes: 64 * 1024 };

const address = process.argv[2]!;

/** Where each transfer starts; odd multiples of 4096 in between. */
function places(from: number): { at: number; bytes: number; seed: number }[] {
  let at = from + 4096;
  return SIZES.map((bytes, seed) => {
    const place = { at, bytes, seed: seed + from };
    at += bytes + 4096;
    return place;
  });
}

function differing(got: Uint8Array, wanted: Uint8Array): number {
  return got.findIndex((byte, i) => byte !== wanted[i]);
}

async function writeByDriver(device: BlockDevice): Promise<void> {
  const { blockSize } = device.info;
  for (const { at, bytes, seed } of places(0)) {
    const buffer = device.memory.alloc(bytes);
    fillPattern(buffer.u8, seed);
    await device.write(at / blockSize, buffer);
    buffer.free();
  }
  const smallest = device.memory.alloc(blockSize);
  fillPattern(smallest.u8, 77);
  await device.write(0, smallest);
  smallest.free();
  // Blocks that are made zeros after they were written.
  const buffer = device.memory.alloc(ZEROED.bytes);
  fillPattern(buffer.u8, 78);
  await device.write(ZEROED.from / blockSize, buffer);
  await device.writeZeroes((ZEROED.from + 4096) / blockSize, 4096 / blockSize);
  await device.discard((ZEROED.from + 16384) / blockSize, 8192 / blockSize);
  buffer.free();
  await device.flush();
}

/** What of a kernel's disk differs from what `writeByDriver` left, by offset. */
function checkByKernel(path: string, blockSize: number): Record<string, number> {
  const fd = openSync(path, 'r');
  const wrong: Record<string, number> = {};
  const check = (at: number, wanted: Uint8Array): void => {
    const got = new Uint8Array(wanted.length);
    readSync(fd, got, 0, got.length, at);
    const offset = differing(got, wanted);
    if (offset >= 0) wrong[at] = offset;
  };
  for (const { at, bytes, seed } of places(0)) check(at, pattern(bytes, seed));
  check(0, pattern(blockSize, 77));
  const zeroed = pattern(ZEROED.bytes, 78);
  zeroed.fill(0, 4096, 8192);
  zeroed.fill(0, 16384, 16384 + 8192);
  check(ZEROED.from, zeroed);
  closeSync(fd);
  return wrong;
}

function writeByKernel(path: string): void {
  const fd = openSync(path, 'r+');
  for (const { at, bytes, seed } of places(KERNEL_FROM)) {
    writeSync(fd, pattern(bytes, seed), 0, bytes, at);
  }
  fsyncSync(fd);
  closeSync(fd);
  // Also past the page cache, and blocks that the kernel zeroes.
  const direct = ['oflag=direct', 'conv=notrunc', 'bs=4096', 'count=3', 'seek=2000'];
  execFileSync('dd', ['if=/proc/self/exe', `of=${path}`, ...direct], { stdio: 'ignore' });
  execFileSync('blkdiscard', ['-z', '-o', '0', '-l', '4096', path]);
}

async function checkByDriver(device: BlockDevice): Promise<Record<string, number>> {
  const { blockSize } = device.info;
  const wrong: Record<string, number> = {};
  const check = async (at: number, wanted: Uint8Array): Promise<void> => {
    const buffer = device.memory.alloc(wanted.length);
    await device.read(at / blockSize, buffer);
    const offset = differing(buffer.u8, wanted);
    if (offset >= 0) wrong[at] = offset;
    buffer.free();
  };
  for (const { at, bytes, seed } of places(KERNEL_FROM)) await check(at, pattern(bytes, seed));
  const dd = readFileSync(execFileSync('which', ['dd'], { encoding: 'utf8' }).trim());
  await check(2000 * 4096, dd.subarray(0, 3 * 4096));
  await check(0, new Uint8Array(4096));
  // What the driver wrote before is still there, but for the first blocks.
  for (const { at, bytes, seed } of places(0)) await check(at, pattern(bytes, seed));
  return wrong;
}

/** Path of the kernel's disk for a namespace: its name does not say which it is. */
function diskOf(nsid: number): Promise<string> {
  return until(() => {
    const name = readdirSync('/sys/block').find((disk) => {
      const folder = `/sys/block/${disk}`;
      if (!readlinkSync(folder).includes(`/${address}/`)) return false;
      return readFileSync(`${folder}/nsid`, 'utf8').trim() === String(nsid);
    });
    return name === undefined ? undefined : `/dev/${name}`;
  }, `the disk of namespace ${nsid}`);
}

async function withDevices<T>(use: (device: BlockDevice) => Promise<T>): Promise<T[]> {
  bindDriver(address, 'vfio-pci');
  const devices = [await open(`nvme:${address}/1`), await open(`nvme:${address}/2`)];
  const results: T[] = [];
  for (const device of devices) results.push(await use(device));
  for (const device of devices) await device.close();
  return results;
}

loadModules('vfio-pci', 'nvme');
await withDevices(writeByDriver);
bindDriver(address, 'nvme');
const disks = [await diskOf(1), await diskOf(2)];
report('driver to kernel', [checkByKernel(disks[0]!, 512), checkByKernel(disks[1]!, 4096)]);
for (const disk of disks) writeByKernel(disk);
report('kernel to driver', await withDevices(checkByDriver));
bindDriver(address, 'nvme');
report('kernel again', (await diskOf(1)).startsWith('/dev/nvme'));
