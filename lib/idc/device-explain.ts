// What the detail bits of a served device's status mean: its driver is in another process.

import { getSystemErrorName } from 'node:util';

/** Drivers whose details are errno values. */
const ERRNO_SCHEMES: readonly string[] = ['file'];

export function explainServed(scheme: string, _code: number, detail: number): string {
  if (detail === 0) return '';
  if (ERRNO_SCHEMES.includes(scheme)) return getSystemErrorName(-detail);
  return `0x${detail.toString(16)} of ${scheme}:`;
}
