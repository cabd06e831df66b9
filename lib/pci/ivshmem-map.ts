// Maps the memory of an ivshmem device at the address that it has in every domain.
//
// By sysfs' `resource2`, never `resource2_wc`: write-combining gives up the order of stores that
// everything between domains rests on.

import { errnoCode, PenstockError } from '../errors.js';
import { addressSpace, type Segment } from '../memory/index.js';
import { native } from '../native.js';
import { functionFolder } from './facts.js';
import { listIvshmem, MEMORY_BAR } from './ivshmem.js';
import { type Machine } from './machine.js';
import { resolveFunction } from './names.js';

const O_RDONLY = 0;
const O_RDWR = 2;

export interface RegionPlace {
  /** Where it begins in the address space: in this process's slot when it is `writable`. */
  readonly address: number;
  /** For a domain's own region; all others are mapped for reading, by a descriptor for reading. */
  readonly writable: boolean;
}

/** See index.ts. */
export function mapRegion(machine: Machine, named: string, place: RegionPlace): Segment {
  const { root } = machine;
  const address = resolveFunction(root, named);
  const facts = listIvshmem(root).find((device) => device.address === address);
  if (facts === undefined || facts.bytes === 0) {
    const what = facts === undefined ? 'is no ivshmem device' : 'was given no memory by firmware';
    throw new PenstockError('NO_SUCH_DEVICE', `${address} ${what}`, {
      hint: `ivshmem devices: ${listed(listIvshmem(root).map((device) => device.address))}`,
      exitCode: 3,
    });
  }
  const fd = openMemory(machine, address, place.writable);
  try {
    const { bytes } = facts;
    const space = addressSpace();
    return place.writable
      ? space.import(fd, { bytes, address: place.address })
      : space.attach(fd, { bytes, address: place.address });
  } finally {
    native.fileClose(fd);
  }
}

function openMemory(machine: Machine, address: string, writable: boolean): number {
  const folder = functionFolder(address);
  const path = `${folder}/resource${MEMORY_BAR}`;
  try {
    // Without a driver nobody has turned on the decoding of its BARs, unless firmware did.
    if (machine.root.read(`${folder}/enable`) === '0') machine.write(`${folder}/enable`, '1');
    return native.fileOpen(path, writable ? O_RDWR : O_RDONLY, 0);
  } catch (cause) {
    if (!/^(EACCES|EPERM)$/.test(errnoCode(cause))) throw cause;
    throw new PenstockError('PERMISSION_DENIED', `this user may not map the memory of ${address}`, {
      hint: `as root: echo 1 > ${folder}/enable; chown USER ${path}`,
      exitCode: 3,
      cause,
    });
  }
}

function listed(names: readonly string[]): string {
  return names.length === 0 ? 'none' : names.join(', ');
}
