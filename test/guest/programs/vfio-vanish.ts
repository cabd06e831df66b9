// Opens an NVMe controller behind a port, takes the power from its slot, and reports what becomes
// of registers, reset and close. It may not come to its end: the kernel keeps its close for a
// minute.

import { closeSync, openSync, readlinkSync, readSync, writeSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PenstockError } from '../../../lib/errors.js';
import { openVfio } from '../../../lib/pci/index.js';
import { bindDriver, pciDevices, report, say } from '../inside.js';

const CAPABILITY_PCIE = 0x10;
const SLOT_CONTROL = 0x18;
/** Power controller off, indicators off, no notifications: PCI Express Base 3.0, 7.8.10. */
const POWER_OFF = 0x17f9;

/** A register of two bytes in a function's config space, by sysfs. */
class Config {
  private readonly fd: number;
  private readonly bytes = Buffer.alloc(2);

  constructor(address: string) {
    this.fd = openSync(`/sys/bus/pci/devices/${address}/config`, 'r+');
  }

  read16(offset: number): number {
    readSync(this.fd, this.bytes, 0, 2, offset);
    return this.bytes.readUInt16LE(0);
  }

  write16(offset: number, value: number): void {
    this.bytes.writeUInt16LE(value, 0);
    writeSync(this.fd, this.bytes, 0, 2, offset);
  }

  /** Offset of the capability in the standard list. */
  find(id: number): number {
    let offset = this.read16(0x34) & 0xfc;
    while (offset !== 0 && (this.read16(offset) & 0xff) !== id) {
      offset = this.read16(offset) >>> 8;
    }
    return offset;
  }

  close(): void {
    closeSync(this.fd);
  }
}

/** Result of a promise and how the event loop fared meanwhile. */
async function watched(promise: Promise<unknown>): Promise<unknown> {
  let beats = 0;
  const heart = setInterval(() => beats++, 50);
  const started = performance.now();
  const code = await promise.then(
    () => 'done',
    (error: PenstockError) => error.code,
  );
  clearInterval(heart);
  const seconds = (performance.now() - started) / 1000;
  return { code, seconds, loopTurned: beats > seconds * 5 };
}

const address = pciDevices().find((one) => one.class === 0x010802)!.address;
const port = basename(dirname(readlinkSync(`/sys/bus/pci/devices/${address}`)));
bindDriver(address, 'vfio-pci');
const pci = await openVfio(address);
const bar = pci.bar(0);
report('before', { vs: bar.read32(8), gone: pci.gone });
const config = new Config(port);
config.write16(config.find(CAPABILITY_PCIE) + SLOT_CONTROL, POWER_OFF);
config.close();
for (let tries = 0; tries < 100 && !pci.gone; tries++) {
  await sleep(50);
  bar.read32(8);
}
report('after', { vs: bar.read32(8), gone: pci.gone, lost: bar.lost });
report('reset', await watched(pci.reset()));
report('registers', bar.read32(8));
report('close', await watched(pci.close()));
say('done');
