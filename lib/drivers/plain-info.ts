// The facts of a device that sets hardly any limit: what null and ram have in common.

import { Flag, Op, type DeviceInfo } from '../hpdi/index.js';

const OPERATIONS =
  (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);
const MAX_TRANSFER_BYTES = 2 ** 30;

/** Any alignment, up to 1 GiB an operation, nothing durable. */
export function plainInfo(
  blockSize: number,
  blocks: number,
  description: DeviceInfo['description'],
): DeviceInfo {
  return {
    blockSize,
    blocks,
    maxTransferBlocks: MAX_TRANSFER_BYTES / blockSize,
    maxSegments: 0,
    addressAlign: 1,
    segmentAlign: 1,
    boundary: 0,
    atomicBlocks: 1,
    volatileCache: false,
    canLoan: false,
    loanStable: false,
    metadataBytes: 0,
    zones: null,
    operations: OPERATIONS,
    flags: Flag.FUA,
    readOnly: false,
    durable: false,
    physicalBlockSize: blockSize,
    description,
  };
}
