// What the driver goes by of the identify pages (NVM Express Base 2.0, section 5.17; NVM Command Set
// 1.0, section 4.1.5). Nothing in them is trusted: what cannot be is an error, what is unlikely is
// cut to what the driver can use.

import { PenstockError } from '../../errors.js';
import { Flag, Op, type DeviceInfo } from '../../hpdi/index.js';

/** Largest transfer of one command: its PRP list is one page, whatever the buffer's offset. */
const TRANSFER_BYTES_MAX = 2 ** 20;
const NLB_MAX = 65536;

export interface ControllerFacts {
  readonly serial: string;
  readonly model: string;
  readonly firmware: string;
  readonly version: number;
  /** Bytes of one command's data at most. */
  readonly transferBytesMax: number;
  readonly namespacesMax: number;
  /** Oacs.DBBUF, … as the page has them. */
  readonly oacs: number;
  readonly oncs: number;
  readonly volatileCache: boolean;
  /** SGLs may describe data. */
  readonly sgl: boolean;
  /** Event requests that may be outstanding, at least 1. */
  readonly eventRequests: number;
  readonly errorLogEntries: number;
  /** Blocks written all or nothing, also when the power goes. */
  readonly atomicBlocks: number;
}

export const enum Oacs {
  DBBUF = 1 << 8,
}

export const enum Oncs {
  COMPARE = 1 << 0,
  WRITE_UNCORRECTABLE = 1 << 1,
  DSM = 1 << 2,
  WRITE_ZEROES = 1 << 3,
  VERIFY = 1 << 7,
  COPY = 1 << 8,
}

function word16(page: Uint8Array, at: number): number {
  return page[at]! | (page[at + 1]! << 8);
}

function word32(page: Uint8Array, at: number): number {
  return (word16(page, at) | (word16(page, at + 2) << 16)) >>> 0;
}

/** A 64-bit number; above 2^53 the nearest, which no device has. */
function word64(page: Uint8Array, at: number): number {
  return word32(page, at + 4) * 2 ** 32 + word32(page, at);
}

/** ASCII, right trimmed; what cannot be printed is a question mark. */
function text(page: Uint8Array, at: number, bytes: number): string {
  let result = '';
  for (let i = at; i < at + bytes; i++) {
    const code = page[i]!;
    if (code === 0) break;
    result += code >= 0x20 && code < 0x7f ? String.fromCharCode(code) : '?';
  }
  return result.trim();
}

export function controllerFacts(page: Uint8Array): ControllerFacts {
  const mdts = page[77]!;
  const limit = mdts === 0 || mdts > 20 ? TRANSFER_BYTES_MAX : 4096 * 2 ** mdts;
  const sgls = word32(page, 536);
  return {
    serial: text(page, 4, 20),
    model: text(page, 24, 40),
    firmware: text(page, 64, 8),
    version: word32(page, 80),
    transferBytesMax: Math.min(limit, TRANSFER_BYTES_MAX),
    namespacesMax: word32(page, 516),
    oacs: word16(page, 256),
    oncs: word16(page, 520),
    volatileCache: (page[525]! & 1) !== 0,
    sgl: (sgls & 3) === 1 || (sgls & 3) === 2,
    eventRequests: page[259]! + 1,
    errorLogEntries: page[262]! + 1,
    atomicBlocks: word16(page, 528) + 1,
  };
}

export interface NamespaceFacts {
  readonly nsid: number;
  readonly blocks: number;
  readonly blockSize: number;
  /** Blocks that no command should cross a multiple of; 0: none. */
  readonly boundary: number;
  readonly atomicBlocks: number;
  readonly readOnly: boolean;
  /** Deallocated blocks read as zeros. */
  readonly zeroesDeallocated: boolean;
}

/** A namespace as its page describes it. BAD_NAMESPACE when that cannot be used. */
export function namespaceFacts(
  nsid: number,
  page: Uint8Array,
  controller: ControllerFacts,
): NamespaceFacts {
  const flbas = page[26]!;
  const index = (flbas & 0xf) | ((flbas >>> 1) & 0x30);
  const format = word32(page, 128 + index * 4);
  const lbads = (format >>> 16) & 0xff;
  const metadataBytes = format & 0xffff;
  const blocks = word64(page, 0);
  if (index > Math.min(63, page[25]!) || lbads < 9 || lbads > 16) {
    throw unusable(nsid, `its format ${index} has blocks of 2^${lbads} bytes`);
  }
  const blockSize = 2 ** lbads;
  if (!Number.isSafeInteger(blocks * blockSize)) throw unusable(nsid, `it says ${blocks} blocks`);
  if (metadataBytes > 0) throw unusable(nsid, `its blocks have ${metadataBytes} bytes of metadata`);
  const nsfeat = page[24]!;
  const own = (nsfeat & 2) !== 0 ? word16(page, 36) + 1 : controller.atomicBlocks;
  return {
    nsid,
    blocks,
    blockSize,
    boundary: word16(page, 46),
    atomicBlocks: own,
    readOnly: (page[99]! & 1) !== 0,
    zeroesDeallocated: (page[33]! & 7) === 1,
  };
}

function unusable(nsid: number, why: string): PenstockError {
  return new PenstockError('BAD_NAMESPACE', `namespace ${nsid} cannot be used: ${why}`, {
    hint: 'format it with blocks of 512 bytes to 64 KiB without metadata (`nvme format`)',
  });
}

/** What HPDI is told of a namespace. */
export function namespaceInfo(
  namespace: NamespaceFacts,
  controller: ControllerFacts,
  description: DeviceInfo['description'],
): DeviceInfo {
  const { blockSize, blocks, boundary, readOnly } = namespace;
  const { oncs } = controller;
  let operations = (1 << Op.READ) | (1 << Op.FLUSH) | (1 << Op.RAW);
  if (!readOnly) {
    operations |= 1 << Op.WRITE;
    if ((oncs & Oncs.DSM) !== 0) operations |= 1 << Op.DISCARD;
    if ((oncs & Oncs.WRITE_ZEROES) !== 0) operations |= 1 << Op.WRITE_ZEROES;
  }
  return {
    blockSize,
    blocks,
    maxTransferBlocks: Math.min(NLB_MAX, Math.max(1, controller.transferBytesMax / blockSize)),
    maxSegments: 0,
    addressAlign: 4,
    segmentAlign: blockSize,
    boundary,
    atomicBlocks: Math.max(1, namespace.atomicBlocks),
    volatileCache: controller.volatileCache,
    canLoan: false,
    loanStable: false,
    metadataBytes: 0,
    zones: null,
    operations,
    flags: Flag.FUA,
    readOnly,
    durable: true,
    physicalBlockSize: blockSize,
    description,
  };
}
