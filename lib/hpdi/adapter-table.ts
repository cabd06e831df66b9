// Which requests the adapter passes on as they are, by operation.

import type { DeviceInfo } from './info.js';
import { Op } from './records.js';

/** Passed on whatever it says (FLUSH, RAW, what the device must refuse itself). */
export const KIND_PASS = 0;
/** Passed on when size and address fit. */
export const KIND_TRANSFER = 1;
/** Passed on when the size fits; there is no buffer. */
export const KIND_RANGE = 2;
/** Always the adapter's work. */
export const KIND_SLOW = 3;

const EMULATED = (1 << Op.READ_LOAN) | (1 << Op.COMPARE) | (1 << Op.COPY) | (1 << Op.WRITE_ZEROES);

/** Whether a device with the adapter before it does an operation. */
export function emulates(info: DeviceInfo, op: number): boolean {
  if (op < 0 || op > 31) return false;
  return ((info.operations | emulatedOperations(info)) & (1 << op)) !== 0;
}

/** Whether an operation changes blocks. */
export function changes(op: number): boolean {
  return op === Op.WRITE || op === Op.COPY || op === Op.WRITE_ZEROES || op === Op.ZONE_APPEND;
}

/** The operations the adapter adds to a device. */
export function emulatedOperations(info: DeviceInfo): number {
  if ((info.operations & (1 << Op.READ)) === 0) return 0;
  const writes = (1 << Op.COPY) | (1 << Op.WRITE_ZEROES);
  return info.readOnly ? EMULATED & ~writes : EMULATED;
}

/** One kind per operation code. */
export function passTable(info: DeviceInfo): Uint8Array {
  const table = new Uint8Array(256).fill(KIND_PASS);
  table[Op.READ] = KIND_TRANSFER;
  table[Op.WRITE] = KIND_TRANSFER;
  table[Op.DISCARD] = KIND_RANGE;
  for (const op of [Op.READ_LOAN, Op.COMPARE, Op.COPY]) table[op] = KIND_SLOW;
  const native = (info.operations & (1 << Op.WRITE_ZEROES)) !== 0;
  table[Op.WRITE_ZEROES] = native || info.readOnly ? KIND_RANGE : KIND_SLOW;
  return table;
}
