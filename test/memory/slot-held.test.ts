// Whether a process has let go of a domain's slot: asked before the slot goes to another domain.

import { closeSync } from 'node:fs';
import { beforeAll, describe, expect, it } from 'vitest';
import { addressSpace } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { childResult } from '../fault/child.js';
import { expectInvalid } from '../native/support.js';
import { claimOf, sharedSegment, type Claim } from './peer.js';

const OWNER = 9; // this process's domain; children are domain 1
let fd: number;
let claim: Claim;

beforeAll(() => {
  addressSpace().join(OWNER);
  const segment = sharedSegment();
  claim = claimOf(segment);
  fd = segment.descriptor();
  return () => {
    closeSync(fd);
    segment.close();
  };
});

/**
 * In scope of `body`: `space`, `claim`, `admit()`, `held()` of the slot and its two neighbours,
 * and `collect()`, which has garbage collected and finalised.
 */
function member<T>(body: string): Promise<T> {
  const begin = `
    const space = lib.addressSpace();
    const claim = ${JSON.stringify(claim)};
    const admit = () => space.admit(3, claim);
    const held = () => [${OWNER - 1}, ${OWNER}, ${OWNER + 1}].map((domain) => space.holds(domain));
    const collect = async () => {
      for (let i = 0; i < 5; i++) { gc(); await new Promise((r) => setTimeout(r, 5)); }
    };
  `;
  return childResult<T>(begin + body, { fds: [fd], nodeOptions: ['--expose-gc'] });
}

const NO = [false, false, false];
const YES = [false, true, false];

describe('a slot', () => {
  it('is held by a live segment, own or admitted, and no other slot is', () => {
    const space = addressSpace();
    const others = Array.from({ length: 255 }, (_, i) => i + 1).filter((d) => space.holds(d));
    expect(others).toEqual([OWNER]);
    expect(native.memorySlotHeld(OWNER)).toBe(true);
  });

  it('is held from admission until no ArrayBuffer is left', async () => {
    const seen = await member(`
      const seen = [held()];
      let segment = admit();
      seen.push(held());
      let view = segment.u8;
      segment.close();
      segment = null;
      await collect();
      seen.push(held()); // the view is left
      const first = view[0];
      view = null;
      await collect();
      seen.push(held());
      segment = admit(); // and again at the same address
      seen.push(held(), first, segment.u8[0] !== 0);
      console.log(JSON.stringify(seen));
    `);
    expect(seen).toEqual([NO, YES, YES, NO, YES, 0, true]);
  });

  it('is held by any of several segments', async () => {
    // The last granules of the slot, and its first.
    const last = (OWNER + 1) * 2 ** 36 - claim.bytes;
    const seen = await member(`
      const seen = [];
      const some = [${last}, ${OWNER} * 2 ** 36].map((address) => {
        const segment = space.admit(3, { ...claim, address });
        seen.push(held());
        return segment;
      });
      for (let segment; (segment = some.pop()) !== undefined; segment = null) {
        segment.close();
        segment = null;
        await collect();
        seen.push(held());
      }
      console.log(JSON.stringify(seen));
    `);
    expect(seen).toEqual([YES, YES, YES, NO]);
  });

  it('is held by a worker that keeps a view', async () => {
    const seen = await member(`
      const worker = startWorker(\`
        let view = lib.addressSpace().find(workerData).u8;
        parentPort.on('message', async () => {
          view = null;
          lib.addressSpace().holds(${OWNER}); // learns what was closed
          for (let i = 0; i < 5; i++) { gc(); await new Promise((r) => setTimeout(r, 5)); }
          parentPort.postMessage('gone');
        });
        parentPort.postMessage('holding');
      \`, (admit(), claim.address));
      await nextMessage(worker);
      space.find(claim.address).close();
      await collect();
      const seen = [held()];
      worker.postMessage('let go');
      await nextMessage(worker);
      seen.push(held());
      await worker.terminate();
      console.log(JSON.stringify(seen));
    `);
    expect(seen).toEqual([YES, NO]);
  });

  it('is let go when the worker that admitted it ends', async () => {
    const seen = await member(`
      const worker = startWorker(\`
        lib.addressSpace().admit(3, workerData);
        parentPort.postMessage('holding');
        setInterval(() => {}, 1000);
      \`, claim);
      await nextMessage(worker);
      const seen = [held()];
      await worker.terminate();
      await collect();
      seen.push(held());
      console.log(JSON.stringify(seen));
    `);
    expect(seen).toEqual([YES, NO]);
  });

  it('is held by a DMA domain until it drops the segment, though views are gone', async () => {
    const seen = await member(`
      const { native } = lib;
      const dma = native.dmaOpen();
      const { id } = admit();
      native.dmaHold(dma, id);
      native.dmaMark(dma, id, 1);
      space.find(claim.address).close();
      await collect();
      const seen = [held(), native.dmaStale(dma)];
      native.dmaDrop(dma, claim.address);
      seen.push(held());
      native.dmaClose(dma);
      console.log(JSON.stringify(seen));
    `);
    expect(seen).toEqual([YES, [claim.address, claim.bytes], NO]);
  });

  it('is held by nothing that was refused', async () => {
    const seen = await member(`
      let code = '';
      try { space.admit(3, { ...claim, bytes: 2 * claim.bytes }); } catch (e) { code = e.code; }
      console.log(JSON.stringify([code, held()]));
    `);
    expect(seen).toEqual(['ADMISSION_REFUSED', NO]);
  });
});

describe('memorySlotHeld', () => {
  it('takes the number of a domain', () => {
    for (const wrong of [0, 256, 1.5, '9', undefined]) {
      expectInvalid(() => native.memorySlotHeld(wrong as number));
    }
  });
});
