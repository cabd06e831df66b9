// I/O commands of the NVM command set (NVM Command Set 1.0, section 3).

import { Cdw0, Cdw12, Dsm, DsmRange, IoOp, Sqe } from '../../../lib/drivers/nvme/commands.js';
import type { Controller } from './controller.js';
import { Dma } from './dma.js';
import { Oncs } from './options.js';
import type { TwinNamespace } from './storage.js';
import { Code, TWO_32, wide } from './wire.js';

const COPY_ENTRY_BYTES = 32;
/** MSSRL, MCL and MSRC of the identify page. */
const COPY_RANGE_BLOCKS_MAX = 128;
const COPY_BLOCKS_MAX = 1024;
const COPY_RANGES_MAX = 8;

/** Commands that are there only when ONCS says so. */
const OPTIONAL: Readonly<Record<number, number>> = {
  [IoOp.COMPARE]: Oncs.COMPARE,
  [IoOp.DATASET_MANAGEMENT]: Oncs.DSM,
  [IoOp.WRITE_ZEROES]: Oncs.WRITE_ZEROES,
  [IoOp.VERIFY]: Oncs.VERIFY,
  [IoOp.COPY]: Oncs.COPY,
};

export class IoCommands {
  private readonly controller: Controller;

  constructor(controller: Controller) {
    this.controller = controller;
  }

  execute(sqe: Uint32Array): number {
    const { controller } = this;
    const opcode = sqe[Sqe.cdw0]! & 0xff;
    const optional = OPTIONAL[opcode] ?? 0;
    if ((controller.options.oncs & optional) !== optional) return Code.INVALID_OPCODE | Code.DNR;
    if ((sqe[Sqe.cdw0]! & (Cdw0.FUSE_FIRST | Cdw0.FUSE_SECOND)) !== 0) return invalidField();
    if (opcode === IoOp.FLUSH) return this.flush(sqe[Sqe.nsid]!);
    const namespace = controller.namespaces.get(sqe[Sqe.nsid]!);
    if (namespace === undefined) return Code.INVALID_NAMESPACE | Code.DNR;
    switch (opcode) {
      case IoOp.READ:
      case IoOp.WRITE:
      case IoOp.COMPARE:
        return this.move(namespace, opcode, sqe);
      case IoOp.WRITE_ZEROES:
        return this.writeZeroes(namespace, sqe);
      case IoOp.VERIFY:
        return rangeStatus(namespace, wide(sqe, Sqe.cdw10), blocksOf(sqe));
      case IoOp.DATASET_MANAGEMENT:
        return this.manageDatasets(namespace, sqe);
      case IoOp.COPY:
        return this.copy(namespace, sqe);
      default:
        return Code.INVALID_OPCODE | Code.DNR;
    }
  }

  /** Finds the data of a read, write or compare; any other has none. */
  place(sqe: Uint32Array): number {
    const opcode = sqe[Sqe.cdw0]! & 0xff;
    const namespace = this.controller.namespaces.get(sqe[Sqe.nsid]!);
    const isTransfer = opcode === IoOp.READ || opcode === IoOp.WRITE || opcode === IoOp.COMPARE;
    if (!isTransfer || namespace === undefined) return Code.INVALID_OPCODE;
    const access = opcode === IoOp.READ ? Dma.writes : Dma.reads;
    const bytes = blocksOf(sqe) * namespace.bufferUnit;
    return this.controller.transfer.gather(sqe, bytes, access, false);
  }

  private flush(nsid: number): number {
    const { controller } = this;
    if (nsid === 0xffffffff) {
      controller.settleAll();
      return Code.SUCCESS;
    }
    const namespace = controller.namespaces.get(nsid);
    if (namespace === undefined) return Code.INVALID_NAMESPACE | Code.DNR;
    namespace.settle();
    return Code.SUCCESS;
  }

  private move(namespace: TwinNamespace, opcode: number, sqe: Uint32Array): number {
    const { controller } = this;
    const { transfer, options } = controller;
    const lba = wide(sqe, Sqe.cdw10);
    const blocks = blocksOf(sqe);
    const bytes = blocks * namespace.bufferUnit;
    // Extended metadata counts towards the limit (NVM 1.0, 4.1.5: MDTS), separate one does not.
    if (options.mdts > 0 && bytes > 4096 * 2 ** options.mdts) return invalidField();
    const range = rangeStatus(namespace, lba, blocks);
    if (range !== Code.SUCCESS) return range;
    const access = opcode === IoOp.READ ? Dma.writes : Dma.reads;
    const status = transfer.gather(sqe, bytes, access, false);
    if (status !== Code.SUCCESS) return status;
    if (opcode === IoOp.READ) {
      controller.logs.reads++;
      transfer.scatter(namespace.read(lba, blocks));
      return this.readMetadata(namespace, sqe, lba, blocks);
    }
    const buffer = new Uint8Array(bytes);
    transfer.collect(buffer);
    const metadata = this.takeMetadata(namespace, sqe, blocks);
    if (typeof metadata === 'number') return metadata;
    if (opcode === IoOp.COMPARE) return compare(namespace, lba, blocks, buffer, metadata);
    controller.logs.writes++;
    namespace.write(lba, blocks, buffer, metadata);
    this.settleIfAsked(namespace, sqe, lba, blocks);
    return Code.SUCCESS;
  }

  /** FUA, or a cache that is off: durable before the completion. */
  private settleIfAsked(ns: TwinNamespace, sqe: Uint32Array, lba: number, blocks: number): void {
    const isForced = (sqe[Sqe.cdw12]! & Cdw12.FUA) !== 0;
    if (isForced || !this.controller.features.isCaching) ns.settle(lba, blocks);
  }

  private readMetadata(ns: TwinNamespace, sqe: Uint32Array, lba: number, blocks: number): number {
    if (!hasSeparateMetadata(ns)) return Code.SUCCESS;
    const { transfer } = this.controller;
    const status = transfer.gatherMetadata(sqe, blocks * ns.metadataBytes, Dma.writes);
    if (status === Code.SUCCESS) transfer.scatter(ns.readMetadata(lba, blocks));
    return status;
  }

  private takeMetadata(
    ns: TwinNamespace,
    sqe: Uint32Array,
    blocks: number,
  ): Uint8Array | number | null {
    if (!hasSeparateMetadata(ns)) return null;
    const { transfer } = this.controller;
    const metadata = new Uint8Array(blocks * ns.metadataBytes);
    const status = transfer.gatherMetadata(sqe, metadata.length, Dma.reads);
    if (status !== Code.SUCCESS) return status;
    transfer.collect(metadata);
    return metadata;
  }

  private writeZeroes(namespace: TwinNamespace, sqe: Uint32Array): number {
    const lba = wide(sqe, Sqe.cdw10);
    const blocks = blocksOf(sqe);
    const status = rangeStatus(namespace, lba, blocks);
    if (status !== Code.SUCCESS) return status;
    namespace.zero(lba, blocks);
    this.settleIfAsked(namespace, sqe, lba, blocks);
    return Code.SUCCESS;
  }

  /** Deallocated blocks read zeros (DLFEAT). */
  private manageDatasets(namespace: TwinNamespace, sqe: Uint32Array): number {
    const { transfer } = this.controller;
    const count = (sqe[Sqe.cdw10]! & 0xff) + 1;
    const list = new Uint32Array(count * DsmRange.words);
    const status = transfer.gather(sqe, list.byteLength, Dma.reads, true);
    if (status !== Code.SUCCESS) return status;
    transfer.collect(new Uint8Array(list.buffer));
    for (let at = 0; at < list.length; at += DsmRange.words) {
      const range = rangeStatus(namespace, wide(list, at + DsmRange.slbaLo), list[at + 1]!);
      if (range !== Code.SUCCESS) return range;
    }
    if ((sqe[Sqe.cdw11]! & Dsm.DEALLOCATE) === 0) return Code.SUCCESS;
    for (let at = 0; at < list.length; at += DsmRange.words) {
      namespace.zero(wide(list, at + DsmRange.slbaLo), list[at + DsmRange.blocks]!);
    }
    return Code.SUCCESS;
  }

  /** Source ranges of format 0, one after the other to the blocks from SDLBA on. */
  private copy(namespace: TwinNamespace, sqe: Uint32Array): number {
    const { transfer } = this.controller;
    const count = (sqe[Sqe.cdw12]! & 0xff) + 1;
    if ((sqe[Sqe.cdw12]! & 0xf00) !== 0) return invalidField();
    if (count > COPY_RANGES_MAX) return Code.COMMAND_SIZE_LIMIT | Code.DNR;
    const list = new Uint32Array((count * COPY_ENTRY_BYTES) / 4);
    const status = transfer.gather(sqe, list.byteLength, Dma.reads, true);
    if (status !== Code.SUCCESS) return status;
    transfer.collect(new Uint8Array(list.buffer));
    const ranges = Array.from({ length: count }, (_, i) => ({
      lba: wide(list, i * 8 + 2),
      blocks: (list[i * 8 + 4]! & 0xffff) + 1,
    }));
    let to = wide(sqe, Sqe.cdw10);
    const total = ranges.reduce((sum, { blocks }) => sum + blocks, 0);
    const tooLong = ranges.some(({ blocks }) => blocks > COPY_RANGE_BLOCKS_MAX);
    if (tooLong || total > COPY_BLOCKS_MAX) return Code.COMMAND_SIZE_LIMIT | Code.DNR;
    for (const { lba, blocks } of [{ lba: to, blocks: total }, ...ranges]) {
      const range = rangeStatus(namespace, lba, blocks);
      if (range !== Code.SUCCESS) return range;
    }
    for (const { lba, blocks } of ranges) {
      const metadata = hasSeparateMetadata(namespace) ? namespace.readMetadata(lba, blocks) : null;
      namespace.write(to, blocks, namespace.read(lba, blocks), metadata);
      to += blocks;
    }
    return Code.SUCCESS;
  }
}

function blocksOf(sqe: Uint32Array): number {
  return (sqe[Sqe.cdw12]! & Cdw12.NLB_MASK) + 1;
}

function hasSeparateMetadata(namespace: TwinNamespace): boolean {
  return namespace.metadataBytes > 0 && !namespace.extended;
}

function rangeStatus(namespace: TwinNamespace, lba: number, blocks: number): number {
  // Above 2^53 a sum would be rounded; no namespace has so many blocks.
  const isInside = lba < TWO_32 * 2 ** 21 && lba + blocks <= namespace.blocks;
  return isInside ? Code.SUCCESS : Code.LBA_OUT_OF_RANGE | Code.DNR;
}

function compare(
  namespace: TwinNamespace,
  lba: number,
  blocks: number,
  buffer: Uint8Array,
  metadata: Uint8Array | null,
): number {
  const isEqual = Buffer.from(namespace.read(lba, blocks)).equals(buffer);
  if (!isEqual) return Code.COMPARE_FAILURE;
  if (metadata === null) return Code.SUCCESS;
  const stored = Buffer.from(namespace.readMetadata(lba, blocks));
  return stored.equals(metadata) ? Code.SUCCESS : Code.COMPARE_FAILURE;
}

function invalidField(): number {
  return Code.INVALID_FIELD | Code.DNR;
}
