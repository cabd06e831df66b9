// Taking a device for one pool alone.

import { PenstockError } from '../errors.js';
import type { BlockDevice } from '../hpdi/index.js';

/** How long a device may take to come free, and between two tries. */
const CLAIM_MS = 1000;
const CLAIM_AGAIN_MS = 20;

/**
 * Takes a device, the pool's or its low-latency memory. One of a process that has just died comes
 * free within moments. Throws POOL_BUSY.
 */
export async function claim(device: BlockDevice): Promise<void> {
  const until = performance.now() + CLAIM_MS;
  for (;;) {
    try {
      device.claim();
      return;
    } catch (cause) {
      if (!(cause instanceof PenstockError) || cause.code !== 'DEVICE_BUSY') throw cause;
      if (performance.now() < until) {
        await new Promise((resolve) => setTimeout(resolve, CLAIM_AGAIN_MS));
        continue;
      }
      const { hint } = cause;
      const message = `${device.uri} is open elsewhere, as a pool or as a pool's fast memory`;
      throw new PenstockError('POOL_BUSY', message, { hint, exitCode: 3, cause });
    }
  }
}
