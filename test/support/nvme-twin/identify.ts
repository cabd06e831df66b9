// Identify data structures, written by their offsets (NVMe Base 2.0, section 5.17.2; NVM Command
// Set 1.0, section 4.1.5), not by the driver's tables, so that one checks the other.

import { Cns } from '../../../lib/drivers/nvme/commands.js';
import type { ResolvedOptions } from './options.js';
import type { TwinNamespace } from './storage.js';

export const PAGE_BYTES = 4096;
const CONTROLLER_ID = 1;
const SPACE = 0x20;

export interface IdentifyFacts {
  readonly options: ResolvedOptions;
  readonly namespaces: ReadonlyMap<number, TwinNamespace>;
}

/** A page, or null when the twin does not know the CNS, or undefined when nsid is none. */
export function identifyPage(
  facts: IdentifyFacts,
  cns: number,
  nsid: number,
  csi: number,
): Uint8Array | null | undefined {
  const { namespaces } = facts;
  switch (cns) {
    case Cns.CONTROLLER:
      return controllerPage(facts.options);
    case Cns.NAMESPACE:
    case Cns.ALLOCATED_NAMESPACE:
      return nsid === 0xffffffff ? commonPage() : namespacePage(facts, nsid);
    case Cns.ACTIVE_NAMESPACES:
    case Cns.ALLOCATED_NAMESPACES:
      return listPage(namespaces, nsid);
    case Cns.CSI_ACTIVE_NAMESPACES:
      return csi === 0 ? listPage(namespaces, nsid) : null;
    case Cns.NAMESPACE_DESCRIPTORS:
      return namespaces.has(nsid) ? descriptorPage(nsid) : undefined;
    case Cns.CSI_NAMESPACE:
      if (csi !== 0) return null;
      return namespaces.has(nsid) ? new Uint8Array(PAGE_BYTES) : undefined;
    case Cns.CSI_CONTROLLER:
      return csi === 0 ? new Uint8Array(PAGE_BYTES) : null;
    case Cns.INDEPENDENT_NAMESPACE:
      return namespaces.has(nsid) ? independentPage() : undefined;
    case Cns.NAMESPACE_CONTROLLERS:
    case Cns.CONTROLLERS:
      return controllersPage();
    case Cns.IO_COMMAND_SETS:
      return commandSetsPage();
    default:
      return null;
  }
}

function blank(): Buffer {
  return Buffer.alloc(PAGE_BYTES);
}

function putText(page: Buffer, at: number, bytes: number, text: string): void {
  page.fill(SPACE, at, at + bytes);
  page.write(text.slice(0, bytes), at, 'latin1');
}

function controllerPage(options: ResolvedOptions): Uint8Array {
  const page = blank();
  page.writeUInt16LE(0x1b36, 0);
  page.writeUInt16LE(0x1af4, 2);
  putText(page, 4, 20, options.serial);
  putText(page, 24, 40, options.model);
  putText(page, 64, 8, options.firmware);
  page[72] = 6; // RAB
  page[77] = options.mdts;
  page.writeUInt16LE(CONTROLLER_ID, 78);
  page.writeUInt32LE(options.version, 80);
  page.writeUInt32LE(0x100, 92); // OAES: namespace attribute notices
  page[111] = 1; // CNTRLTYPE: I/O controller
  page.writeUInt16LE(options.shadowDoorbells === 'none' ? 0 : 0x100, 256); // OACS
  page[258] = options.acl;
  page[259] = options.aerl;
  page[260] = 0x03; // FRMW: one slot, read-only
  page[261] = 0x04; // LPA: extended data of Get Log Page
  page[262] = options.elpe;
  page.writeUInt16LE(343, 266); // WCTEMP
  page.writeUInt16LE(353, 268); // CCTEMP
  page[512] = 0x66;
  page[513] = 0x44;
  page.writeUInt32LE(options.namespacesMax, 516);
  page.writeUInt16LE(options.oncs, 520);
  // VWC: a cache there, and Flush takes all namespaces.
  page[525] = options.volatileCache ? 0x07 : 0x06;
  page.writeUInt16LE(0, 526); // AWUN
  page.writeUInt16LE(0x1, 534); // OCFS: copy descriptor format 0
  page.writeUInt32LE(sglSupport(options), 536);
  page.write('nqn.2014-08.org.nvmexpress:uuid:7077696e-0000-4000-8000-000000000001', 768, 'latin1');
  page.writeUInt16LE(2500, 2048); // power state 0, maximum power
  return page;
}

/** SGLS: how addresses must be aligned, bit buckets, SGL for metadata, excess length. */
function sglSupport(options: ResolvedOptions): number {
  if (options.sgls === 0) return 0;
  return options.sgls | (1 << 16) | (1 << 19) | (options.sglExcess ? 1 << 18 : 0);
}

function namespacePage(facts: IdentifyFacts, nsid: number): Uint8Array | undefined {
  if (nsid === 0 || nsid > facts.options.namespacesMax) return undefined;
  const page = blank();
  const namespace = facts.namespaces.get(nsid);
  // An inactive namespace is a page of zeros.
  if (namespace === undefined) return page;
  for (const at of [0, 8, 16]) page.writeBigUInt64LE(BigInt(namespace.blocks), at);
  page[25] = 0; // NLBAF: one format
  page[26] = namespace.extended ? 0x10 : 0; // FLBAS
  page[27] = namespace.metadataBytes > 0 ? (namespace.extended ? 0x1 : 0x2) : 0; // MC
  page[33] = 0x09; // DLFEAT: deallocated blocks read zeros; Write Zeroes may deallocate
  page.writeUInt16LE(128, 74); // MSSRL
  page.writeUInt32LE(1024, 76); // MCL
  page[80] = 7; // MSRC
  page.writeBigUInt64LE(BigInt(0x7077_0000 + nsid), 120); // EUI64
  page.writeUInt16LE(namespace.metadataBytes, 128);
  page[130] = Math.log2(namespace.blockSize);
  return page;
}

/** What all namespaces have in common: the format. */
function commonPage(): Uint8Array {
  return blank();
}

function listPage(namespaces: ReadonlyMap<number, TwinNamespace>, above: number): Uint8Array {
  const page = blank();
  const ids = [...namespaces.keys()].filter((id) => id > above).sort((a, b) => a - b);
  for (const [i, id] of ids.slice(0, PAGE_BYTES / 4).entries()) page.writeUInt32LE(id, i * 4);
  return page;
}

/** EUI64, then the command set. */
function descriptorPage(nsid: number): Uint8Array {
  const page = blank();
  page.set([1, 8], 0);
  page.writeBigUInt64LE(BigInt(0x7077_0000 + nsid), 4);
  page.set([4, 1], 12);
  return page;
}

function independentPage(): Uint8Array {
  const page = blank();
  page[14] = 1; // NSTAT: ready
  return page;
}

function controllersPage(): Uint8Array {
  const page = blank();
  page.writeUInt16LE(1, 0);
  page.writeUInt16LE(CONTROLLER_ID, 2);
  return page;
}

function commandSetsPage(): Uint8Array {
  const page = blank();
  page.writeUInt32LE(1, 0);
  return page;
}
