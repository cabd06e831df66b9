// As little of an NVMe controller as shows that DMA and interrupts work: an admin queue and
// Identify Controller (NVM Express Base 2.0, sections 3.1.3 and 5.17). Not a driver: that is
// lib/drivers/nvme.

import type { Segment } from '../../../lib/memory/index.js';
import type { PciFunction } from '../../../lib/pci/index.js';

const enum Register {
  cc = 5,
  csts = 7,
  aqa = 9,
  asq = 10,
  acq = 12,
}

const ENTRIES = 8;
const READY_LIMIT_MS = 10_000;
let tail = 0;
let head = 0;

function registers(pci: PciFunction): Uint32Array {
  return pci.bar(0).words(0, 4096)!;
}

function waitReady(words: Uint32Array, ready: number): void {
  const deadline = performance.now() + READY_LIMIT_MS;
  while ((words[Register.csts]! & 1) !== ready) {
    if (performance.now() > deadline) throw new Error(`CSTS.RDY did not become ${ready}`);
  }
}

/** Its admin queues become the first two pages of the segment. */
export function startController(pci: PciFunction, segment: Segment): void {
  const words = registers(pci);
  words[Register.cc] = 0;
  waitReady(words, 0);
  tail = head = 0;
  segment.u8.fill(0, 0, 8192);
  words[Register.aqa] = ((ENTRIES - 1) << 16) | (ENTRIES - 1);
  for (const [index, at] of [0, 4096].entries()) {
    const register = index === 0 ? Register.asq : Register.acq;
    words[register] = (segment.address + at) >>> 0;
    words[register + 1] = Math.floor((segment.address + at) / 2 ** 32);
  }
  words[Register.cc] = (4 << 20) | (6 << 16) | 1;
  waitReady(words, 1);
}

export function stopController(pci: PciFunction): void {
  registers(pci)[Register.cc] = 0;
  waitReady(registers(pci), 0);
}

/** Identify Controller into `address`; the status field of its completion. */
export function identify(pci: PciFunction, segment: Segment, address: number): number {
  const sqe = segment.u32.subarray(tail * 16, tail * 16 + 16);
  sqe.fill(0);
  sqe[0] = 0x06;
  sqe[6] = address >>> 0;
  sqe[7] = Math.floor(address / 2 ** 32);
  sqe[10] = 1;
  tail = (tail + 1) % ENTRIES;
  const doorbells = pci.bar(0).words(0x1000, 8)!;
  doorbells[0] = tail;
  const deadline = performance.now() + READY_LIMIT_MS;
  const status = 1024 + head * 4 + 3;
  while ((segment.u32[status]! >>> 16) % 2 === 0) {
    if (performance.now() > deadline) throw new Error('Identify was not completed');
  }
  head += 1;
  doorbells[1] = head;
  return segment.u32[status]! >>> 17;
}
