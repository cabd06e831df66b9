// Regions of memory that a guest shares with others through its QEMU: BAR 2 of ivshmem-plain
// (QEMU, docs/specs/ivshmem-spec.rst), as sysfs shows it.
//
// Nothing in a region says which it is: its owner can write there what it likes, and would pass for
// another. Who a region belongs to is known by the PCI address that QEMU's command line gave it.

import { listFunctions, functionFolder } from './facts.js';
import type { Root } from './root.js';

const VENDOR = 0x1af4;
const DEVICE = 0x1110;
/** The BAR that is the memory. */
export const MEMORY_BAR = 2;

export interface IvshmemFacts {
  readonly address: string;
  /** Size of the memory; a power of two. */
  readonly bytes: number;
}

/** By PCI address. */
export function listIvshmem(root: Root): IvshmemFacts[] {
  return listFunctions(root)
    .filter(({ vendor, device }) => vendor === VENDOR && device === DEVICE)
    .map(({ address }) => ({ address, bytes: memoryBytes(root, address) }));
}

/** From sysfs' `resource`: a line `start end flags` per BAR; 0 where the firmware gave no room. */
function memoryBytes(root: Root, address: string): number {
  const line = root.read(`${functionFolder(address)}/resource`).split('\n')[MEMORY_BAR] ?? '';
  const [start = '0', end = '0'] = line.split(' ');
  return BigInt(end) === 0n ? 0 : Number(BigInt(end) - BigInt(start)) + 1;
}
