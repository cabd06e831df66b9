// Which requests the adapter passes on as they are, by operation.

import type { DeviceInfo } from './info.js';
import { Op } from './records.js';

const EMULATED = (1 << Op.READ_LOAN) | (1 << Op.COMPARE) | (1 << Op.COPY) | (1 << Op.WRITE_ZEROES);

const CHANGING =
  (1 << Op.WRITE) |
  (1 << Op.DISCARD) |
  (1 << Op.WRITE_ZEROES) |
  (1 << Op.COPY) |
  (1 << Op.ZONE_APPEND);

/** Whether a device with the adapter before it does an operation. */
export function emulates(info: DeviceInfo, op: number): boolean {
  if (op < 0 || op > 31) return false;
  return ((info.operations | emulatedOperations(info)) & (1 << op)) !== 0;
}

/** Whether an operation changes blocks. */
export function changes(op: number): boolean {
  return (CHANGING & (op < 32 ? 1 << op : 0)) !== 0;
}

/** The operations the adapter adds to a device. */
export function emulatedOperations(info: DeviceInfo): number {
  if ((info.operations & (1 << Op.READ)) === 0) return 0;
  const writes = (1 << Op.COPY) | (1 << Op.WRITE_ZEROES);
  return info.readOnly ? EMULATED & ~writes : EMULATED;
}

/** Sets of operations, a bit (1 << Op) each; what is in none is passed on whatever it says. */
export interface PassMasks {
  /** Always the adapter's work. */
  slow: number;
  /** Passed on when the size fits. */
  sized: number;
  /** Of these, those with a buffer: passed on when that is aligned. */
  transfer: number;
}

export function passMasks(info: DeviceInfo): PassMasks {
  const compare = 1 << Op.COMPARE;
  const transfer = (1 << Op.READ) | (1 << Op.WRITE) | compare;
  let sized = (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.DISCARD);
  let slow = 1 << Op.COPY;
  if ((info.operations & compare) !== 0) sized |= compare;
  else slow |= compare;
  // Loans of the device's own keep to what loans promise, or they are of no use here.
  const loan = 1 << Op.READ_LOAN;
  if ((info.operations & loan) !== 0 && info.canLoan && info.loanStable) sized |= loan;
  else slow |= loan;
  const zeroes = 1 << Op.WRITE_ZEROES;
  if ((info.operations & zeroes) !== 0 || info.readOnly) sized |= zeroes;
  else slow |= zeroes;
  return { slow, sized, transfer };
}
