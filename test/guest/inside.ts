// What a program in a guest uses to talk to its test, and to see the guest's devices.
//
// Its test sends lines to stdin and reads what is written to descriptor 3.

import {
  existsSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { execFileSync } from 'node:child_process';
import { basename, join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';

const CHANNEL_FD = 3;
const PCI = '/sys/bus/pci/devices';

function write(value: unknown): void {
  let rest = Buffer.from(`${JSON.stringify(value)}\n`);
  while (rest.length > 0) rest = rest.subarray(writeSync(CHANNEL_FD, rest));
}

/** A message for the test: what `guest.message` gives. */
export function say(message: unknown): void {
  write(message);
}

/** A value that the test finds in `results` under this name. */
export function report(name: string, value: unknown): void {
  write({ report: name, value });
}

let input: Interface | undefined;
const heard: string[] = [];
const readers: ((line: string) => void)[] = [];

/** The next line that the test sent. Only a wait for it keeps the program alive. */
export async function hear(): Promise<string> {
  input ??= listen();
  if (heard.length > 0) return heard.shift()!;
  process.stdin.ref();
  return new Promise((resolve) => readers.push(resolve));
}

function listen(): Interface {
  const lines = createInterface({ input: process.stdin });
  lines.on('line', (line) => {
    const reader = readers.shift();
    if (reader === undefined) heard.push(line);
    else reader(line);
    if (readers.length === 0) process.stdin.unref();
  });
  process.stdin.unref();
  return lines;
}

export interface PciDevice {
  /** `0000:00:01.0` */
  address: string;
  vendor: number;
  device: number;
  /** Class, subclass and programming interface, 24 bits. */
  class: number;
  driver: string | undefined;
  /** Number of its IOMMU group. */
  group: number | undefined;
}

/** Devices of the guest, those the harness uses itself (on 00:1e) left out. */
export function pciDevices(): PciDevice[] {
  return readdirSync(PCI)
    .filter((address) => !address.startsWith('0000:00:1e.'))
    .sort()
    .map((address) => {
      const number = (name: string) => Number(readFileSync(join(PCI, address, name), 'utf8'));
      const group = linkOf(address, 'iommu_group');
      return {
        address,
        vendor: number('vendor'),
        device: number('device'),
        class: number('class'),
        driver: linkOf(address, 'driver'),
        group: group === undefined ? undefined : Number(group),
      };
    });
}

function linkOf(address: string, name: string): string | undefined {
  const path = join(PCI, address, name);
  return existsSync(path) ? basename(readlinkSync(path)) : undefined;
}

/** Takes a device from its driver and gives it to `driver`, whose module is loaded. */
export function bindDriver(address: string, driver: string): void {
  const folder = join(PCI, address);
  if (existsSync(join(folder, 'driver'))) writeFileSync(join(folder, 'driver/unbind'), address);
  writeFileSync(join(folder, 'driver_override'), driver);
  writeFileSync('/sys/bus/pci/drivers_probe', address);
  const bound = linkOf(address, 'driver');
  if (bound !== driver) throw new Error(`${address} went to ${bound ?? 'no driver'}`);
}

export function loadModules(...names: string[]): void {
  execFileSync('modprobe', ['-a', ...names], { stdio: ['ignore', 'inherit', 'inherit'] });
}

/** Waits for something that a driver makes a moment after it was bound. */
export async function until<T>(look: () => T | undefined | false, what: string): Promise<T> {
  for (let tries = 0; tries < 200; tries++) {
    const seen = look();
    if (seen !== undefined && seen !== false) return seen;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${what} did not come`);
}
