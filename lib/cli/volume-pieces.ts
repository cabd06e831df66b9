// A volume's bytes in pieces, several in flight: what import and export have in common.

import type { BlockDevice } from '../hpdi/index.js';
import type { DmaBuffer } from '../memory/index.js';

/** Of a pool's block. */
export const BLOCK_BYTES = 4096;
/**
 * A piece is one write of 256 blocks: as many as a pool looks at together, so that runs which are
 * stored already are found whole.
 */
export const PIECE_BYTES = 2 ** 20;
const PIECES_IN_FLIGHT = 8;

const ZEROS = new Uint8Array(PIECE_BYTES);

/**
 * Calls `work` for each piece of the first `bytes` (whole blocks) of a volume, with a buffer of the
 * piece's size. The first failure, or `signal`, ends it, once what is in flight has ended. Resolves
 * with how many bytes it got through, from the first one on: fewer than `bytes` by `signal` alone.
 */
export async function eachPiece(
  disk: BlockDevice,
  bytes: number,
  signal: AbortSignal,
  work: (at: number, buffer: DmaBuffer) => Promise<void>,
): Promise<number> {
  let next = 0;
  let failed = false;
  const lane = async (): Promise<void> => {
    while (next < bytes && !failed && !signal.aborted) {
      const at = next;
      next += PIECE_BYTES;
      const buffer = disk.memory.alloc(Math.min(PIECE_BYTES, bytes - at));
      try {
        await work(at, buffer);
      } finally {
        buffer.free();
      }
    }
  };
  const lanes = Array.from({ length: PIECES_IN_FLIGHT }, () =>
    lane().catch((error: unknown) => {
      failed = true;
      throw error;
    }),
  );
  for (const result of await Promise.allSettled(lanes)) {
    if (result.status === 'rejected') throw result.reason;
  }
  return Math.min(next, bytes);
}

export function isZeros(u8: Uint8Array): boolean {
  return Buffer.compare(u8, ZEROS.subarray(0, u8.length)) === 0;
}

/** Of bytes and seconds, as `160 MB/s`. */
export function formatRate(bytes: number, seconds: number): string {
  return `${(bytes / 1e6 / Math.max(seconds, 1e-6)).toFixed(0)} MB/s`;
}
