// What programs in guests do with NVMe controllers of QEMU. Their slots are the test's choice
// (`more: { addr }`), so that their addresses are known.

import { closeSync, constants, openSync, readdirSync, readlinkSync, readSync } from 'node:fs';
import { PenstockError } from '../../lib/errors.js';
import { bindDriver, loadModules, pciDevices } from './inside.js';

const NVME_CLASS = 0x010802;

/** Addresses of the controllers of this guest. */
export function controllers(): string[] {
  return pciDevices()
    .filter((device) => device.class === NVME_CLASS)
    .map((device) => device.address);
}

/** Gives all controllers to vfio-pci. */
export function bindAll(): string[] {
  loadModules('vfio-pci');
  const all = controllers();
  for (const address of all) bindDriver(address, 'vfio-pci');
  return all;
}

/** Code, message and hint of the error that `attempt` ends with; 'none' when it ends well. */
export async function refusal(attempt: () => unknown): Promise<unknown> {
  try {
    await attempt();
    return 'none';
  } catch (error) {
    if (!(error instanceof PenstockError)) return String(error);
    return { code: error.code, message: error.message, hint: error.hint };
  }
}

/** What this process has open, by what it is. */
export function openFiles(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      return [];
    }
  });
}

/** What is open beyond what was, but for what Node opens at its first need. */
export function newFiles(before: readonly string[]): string[] {
  const known = [...before];
  return openFiles().filter((file) => {
    if (file === '/dev/null') return false;
    const at = known.indexOf(file);
    if (at >= 0) known.splice(at, 1);
    return at < 0;
  });
}

/** Lines of the kernel's log so far that `pattern` matches. */
export function kernelLines(pattern: RegExp): string[] {
  const fd = openSync('/dev/kmsg', constants.O_RDONLY | constants.O_NONBLOCK);
  const lines: string[] = [];
  const record = Buffer.alloc(8192);
  try {
    for (;;) {
      const text = record.toString('utf8', 0, readSync(fd, record));
      if (pattern.test(text)) lines.push(text.slice(text.indexOf(';') + 1).trimEnd());
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
  } finally {
    closeSync(fd);
  }
  return lines;
}
