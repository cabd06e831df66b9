// Sizes, durations and near misses as people write them (floor 0).
//
// Sizes are powers of 1024 whichever suffix is used (k, K, KB, KiB), as fio does; a bare number is
// bytes. A bare duration is seconds. What does not parse is a PenstockError of the usage kind.

import { PenstockError } from './errors.js';

const SIZE_EXPONENTS: Readonly<Record<string, number>> = { '': 0, k: 1, m: 2, g: 3, t: 4, p: 5 };
const SIZE_NAMES = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;
const SIZE_PATTERN = /^(\d+(?:\.\d+)?|\.\d+)\s*([kmgtp]?)(?:i?b)?$/i;

const DURATION_SECONDS: Readonly<Record<string, number>> = {
  us: 1e-6,
  ms: 1e-3,
  '': 1,
  s: 1,
  m: 60,
  h: 3600,
  d: 86400,
};
const DURATION_PATTERN = /^(\d+(?:\.\d+)?|\.\d+)\s*(us|ms|s|m|h|d|)$/i;

/** Bytes of '512', '4k', '1GiB', '1.5G'; a whole number below 2^53. Throws BAD_SIZE. */
export function parseSize(text: string): number {
  const match = SIZE_PATTERN.exec(text.trim());
  const exponent = SIZE_EXPONENTS[(match?.[2] ?? '').toLowerCase()];
  if (match === null || exponent === undefined) {
    throw usage('BAD_SIZE', `'${text}' is not a size`, 'Write it like 512, 4k, 16MiB or 1.5G.');
  }
  const bytes = Number(match[1]) * 1024 ** exponent;
  if (!Number.isSafeInteger(bytes)) {
    throw usage(
      'BAD_SIZE',
      `'${text}' is not a whole number of bytes below 2^53`,
      'Write it in a smaller unit, without a fraction.',
    );
  }
  return bytes;
}

/** '512 B', '4 KiB', '1.5 GiB': the largest unit that gives at least 1, at most two decimals. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (Math.abs(value) >= 1024 && unit < SIZE_NAMES.length - 1) {
    value /= 1024;
    unit++;
  }
  // 1023.999 KiB would print as 1024 KiB.
  if (Math.abs(value) >= 1023.995 && unit < SIZE_NAMES.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number(value.toFixed(2))} ${SIZE_NAMES[unit] ?? ''}`;
}

/** Seconds of '3', '500ms', '2m', '1h'. Throws BAD_DURATION. */
export function parseDuration(text: string): number {
  const match = DURATION_PATTERN.exec(text.trim());
  const scale = DURATION_SECONDS[(match?.[2] ?? '').toLowerCase()];
  if (match === null || scale === undefined) {
    throw usage(
      'BAD_DURATION',
      `'${text}' is not a duration`,
      'Write it like 3 (seconds), 500ms, 2m or 1h.',
    );
  }
  const amount = Number(match[1]);
  // 500 / 1000 is exact where 500 * 0.001 need not be.
  return scale < 1 ? amount / Math.round(1 / scale) : amount * scale;
}

/**
 * The known word that the fewest edits turn `word` into, the first of several; '' when none is
 * known.
 */
export function nearest(word: string, known: Iterable<string>): string {
  let best = '';
  let bestEdits = Infinity;
  for (const candidate of known) {
    const edits = editDistance(word.toLowerCase(), candidate.toLowerCase());
    if (edits < bestEdits) {
      best = candidate;
      bestEdits = edits;
    }
  }
  return best;
}

/** Insertions, deletions, replacements and swaps of neighbours that turn `from` into `to`. */
function editDistance(from: string, to: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: to.length + 1 }, (_, column) => column);
  for (let row = 1; row <= from.length; row++) {
    const current = [row];
    for (let column = 1; column <= to.length; column++) {
      const same = from[row - 1] === to[column - 1];
      let edits = Math.min(
        (last[column] ?? 0) + 1,
        (current[column - 1] ?? 0) + 1,
        (last[column - 1] ?? 0) + (same ? 0 : 1),
      );
      const swapped = from[row - 1] === to[column - 2] && from[row - 2] === to[column - 1];
      if (row > 1 && column > 1 && swapped) {
        edits = Math.min(edits, (beforeLast[column - 2] ?? 0) + 1);
      }
      current.push(edits);
    }
    beforeLast = last;
    last = current;
  }
  return last[to.length] ?? 0;
}

function usage(code: string, message: string, hint: string): PenstockError {
  return new PenstockError(code, message, { hint, exitCode: 2 });
}
