// What the driver goes by of the identify pages (NVM Express Base 2.0, section 5.17; NVM Command
// Set 1.0, section 4.1.5). Nothing in them is trusted: what cannot be is an error, what is unlikely
// is cut to what the driver can use.

import { PenstockError } from '../../errors.js';
import { Flag, Op, type DeviceInfo } from '../../hpdi/index.js';
import { Oncs, parseController, Sgls, Vwc } from './identify-controller.js';
import {
  checkNamespace,
  deallocatedReads,
  formatInUse,
  parseNamespace,
} from './identify-namespace.js';
import { stripeBytes, type Quirk } from './quirks.js';

/** Largest transfer of one command: its PRP list is one page, whatever the buffer's offset. */
const TRANSFER_BYTES_MAX = 2 ** 20;
const NLB_MAX = 65536;
const PAGE = 4096;
/** Identify Namespace, nsfeat: the atomic sizes of the namespace hold, not the controller's. */
const NSFEAT_ATOMICS = 1 << 1;

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
  /** No command should cross a multiple of it; 0: none. */
  readonly stripeBytes: number;
}

export function controllerFacts(page: Uint8Array, quirks: ReadonlySet<Quirk>): ControllerFacts {
  const controller = parseController(page);
  const { mdts, sgls } = controller;
  const limit = mdts === 0 || mdts > 20 ? TRANSFER_BYTES_MAX : 4096 * 2 ** mdts;
  const sgl = sgls & Sgls.SUPPORT_MASK;
  return {
    serial: controller.sn,
    model: controller.mn,
    firmware: controller.fr,
    version: controller.ver,
    transferBytesMax: Math.min(limit, TRANSFER_BYTES_MAX),
    namespacesMax: controller.nn,
    oacs: controller.oacs,
    oncs: quirks.has('no-write-zeroes') ? controller.oncs & ~Oncs.WRITE_ZEROES : controller.oncs,
    stripeBytes: quirks.has('stripe') ? stripeBytes(controller, PAGE) : 0,
    volatileCache: (controller.vwc & Vwc.PRESENT) !== 0,
    sgl: sgl === Sgls.SUPPORTED || sgl === Sgls.DWORD_ALIGNED,
    eventRequests: controller.aerl + 1,
    errorLogEntries: controller.elpe + 1,
    atomicBlocks: controller.awupf + 1,
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

/** A namespace as its page describes it; null when it is not active. BAD_NAMESPACE. */
export function namespaceFacts(
  nsid: number,
  page: Uint8Array,
  controller: ControllerFacts,
): NamespaceFacts | null {
  const namespace = parseNamespace(page);
  if (namespace.nsze === 0n) return null;
  const problem = checkNamespace(namespace).find(({ fatal }) => fatal);
  const format = formatInUse(namespace);
  if (problem !== undefined || format === null) {
    throw unusable(nsid, problem?.problem ?? 'its format is unknown');
  }
  const { blockBytes, metadataBytes } = format;
  const blocks = Number(namespace.nsze);
  if (!Number.isSafeInteger(blocks * blockBytes)) throw unusable(nsid, `it says ${blocks} blocks`);
  if (metadataBytes > 0) {
    throw unusable(nsid, `its blocks have ${metadataBytes} bytes of metadata`);
  }
  const ownAtomics = (namespace.nsfeat & NSFEAT_ATOMICS) !== 0;
  return {
    nsid,
    blocks,
    blockSize: blockBytes,
    boundary: namespace.noiob !== 0 ? namespace.noiob : controller.stripeBytes / blockBytes,
    atomicBlocks: ownAtomics ? namespace.nawupf + 1 : controller.atomicBlocks,
    readOnly: (namespace.nsattr & 1) !== 0,
    zeroesDeallocated: deallocatedReads(namespace) === 'zeros',
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
    if ((oncs & Oncs.DATASET_MANAGEMENT) !== 0) operations |= 1 << Op.DISCARD;
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
