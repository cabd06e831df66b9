// One domain of page-tables.ts: maps the segment that it is told of, reads a byte of every page,
// and says what that cost; or lets go of it. Segments come as descriptors from 4 on.

import { readFileSync } from 'node:fs';
import { addressSpace, type Segment } from '../lib/memory/index.js';

/** This process; its owner is domain 1, and all others' slots are free to map at. */
const DOMAIN = 2;
const PAGE_BYTES = 4096;
const COLLECTIONS_MAX = 100;

export interface MapRequest {
  /** Of the descriptors given, from 0 on. */
  descriptor: number;
  /** In the slot of this domain. */
  slot: number;
  address: number;
  bytes: number;
  pageBytes: number;
}

export interface MapReply {
  /** Page faults that mapping and reading took. */
  faults: number;
  /** KiB of page tables that the kernel counts for this process more than before. */
  tablesKib: number;
  elapsedMs: number;
}

let segment: Segment | null = null;
let slot = DOMAIN + 1;
/** Keeps the loop from being optimised away. */
let sum = 0;

function tablesKib(): number {
  return Number(/^VmPTE:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1]);
}

function touch(bytes: Uint8Array): void {
  for (let i = 0; i < bytes.length; i += PAGE_BYTES) sum += bytes[i]!;
}

function map(request: MapRequest): MapReply {
  const tables = tablesKib();
  const started = performance.now();
  const faults = process.resourceUsage().minorPageFault;
  slot = request.slot;
  segment = addressSpace().admit(4 + request.descriptor, request);
  touch(segment.u8);
  return {
    faults: process.resourceUsage().minorPageFault - faults,
    elapsedMs: performance.now() - started,
    tablesKib: tablesKib() - tables,
  };
}

/** Resolves when the addresses are free again. */
async function unmap(): Promise<void> {
  segment?.close();
  segment = null;
  for (let i = 0; i < COLLECTIONS_MAX && addressSpace().holds(slot); i++) {
    globalThis.gc!();
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  if (addressSpace().holds(slot)) throw new Error('a view of the segment is left');
}

if (process.send !== undefined) {
  addressSpace().join(DOMAIN);
  // Compiles the loop and takes the memory it needs, before anything is counted.
  for (let i = 0; i < 40; i++) touch(new Uint8Array(1 << 20));
  process.on('message', (request: MapRequest | null) => {
    if (request !== null) process.send!(map(request));
    else void unmap().then(() => process.send!(sum >= 0));
  });
  process.send(true);
}
