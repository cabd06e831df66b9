// Options that several drivers' URIs have in common.

import { PenstockError } from '../errors.js';
import { parseSize } from '../units.js';

/** Block size from a URI's `bs`: a power of two from 512 to 64 KiB; 512 when absent. */
export function parseBlockSize(text: string | undefined): number {
  const bytes = text === undefined ? 512 : parseSize(text);
  if (bytes >= 512 && bytes <= 65536 && Number.isInteger(Math.log2(bytes))) return bytes;
  throw new PenstockError('BAD_OPTION', `bs=${text} is no block size`, {
    hint: 'a power of two from 512 to 64k',
    exitCode: 2,
  });
}

/** A key that is on (`1`, `true`, or without value) or off (`0`, `false`, absent). */
export function parseSwitch(key: string, text: string | undefined): boolean {
  if (text === undefined || text === '0' || text === 'false') return false;
  if (text === '' || text === '1' || text === 'true') return true;
  throw new PenstockError('BAD_OPTION', `${key}=${text} is neither on nor off`, {
    hint: `write ${key}=1 or ${key}=0`,
    exitCode: 2,
  });
}
