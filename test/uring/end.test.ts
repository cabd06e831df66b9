// An environment that ends with operations in flight: the kernel is waited for, and addresses it
// may still write to are never given to anybody else.

import { describe, expect, it } from 'vitest';
import { childResult } from '../fault/child.js';

/** A worker reads an eventfd into its segment and is ended: are its addresses used again? */
async function usedAgain(signalled: boolean): Promise<boolean> {
  return childResult<boolean>(`
    const worker = startWorker(\`
      const segment = lib.addressSpace().create(1, { pageBytes: 4096 });
      const fd = lib.native.eventfdCreate();
      if (workerData) lib.native.eventfdSignal(fd);
      const ring = lib.Ring.open({ entries: 2 });
      const at = ring.next();
      ring.sqes[at] = 22; // READ
      ring.sqes[at + 1] = fd;
      ring.sqes[at + 4] = segment.address % 2 ** 32;
      ring.sqes[at + 5] = Math.floor(segment.address / 2 ** 32) + lib.ADDRESS_BASE_HIGH;
      ring.sqes[at + 6] = 8;
      ring.submit();
      parentPort.on('message', () => ring.ready());
      parentPort.postMessage(segment.address);
    \`, ${signalled});
    const address = await nextMessage(worker);
    await worker.terminate();
    const made = Array.from({ length: 3 }, () => lib.addressSpace().create(1, { pageBytes: 4096 }));
    console.log(made.some((segment) => segment.address === address));
  `);
}

describe('an environment that ends', () => {
  it('gives its addresses back when nothing is in flight', async () => {
    expect(await usedAgain(true)).toBe(true);
  });

  it('never gives back addresses that an operation could not be waited out of', async () => {
    expect(await usedAgain(false)).toBe(false);
  });
});
