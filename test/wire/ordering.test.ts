// What the language does not promise and the stack relies on: plain loads in a polling loop are not
// hoisted, a record is visible before the index that publishes it, and the fence keeps a sleeper's
// look behind its own announcement. All in compiled code, warmed up until it is optimised.

import { describe, expect, it } from 'vitest';
import { addressSpace } from '../../lib/memory/index.js';
import { childResult } from '../fault/child.js';

describe('a plain load in a loop', () => {
  it('sees what another thread stores', async () => {
    const seen = await childResult<{ polls: number; value: number }>(`
      const words = lib.addressSpace().create(1, { pageBytes: 4096 }).u32;
      function poll(index, expected, limit) {
        let polls = 0;
        while (words[index] === expected && polls < limit) polls++;
        return polls;
      }
      for (let i = 0; i < 2000; i++) poll(1, 0, 1000); // optimised by now
      const worker = startWorker(\`
        const { u32 } = lib.addressSpace().find(workerData);
        parentPort.once('message', () => { setTimeout(() => { u32[1] = 77; }, 30); });
        parentPort.postMessage('ready');
      \`, lib.addressSpace().list()[0].address);
      await nextMessage(worker);
      worker.postMessage('go');
      const polls = poll(1, 0, 2 ** 36);
      console.log(JSON.stringify({ polls, value: words[1] }));
      process.exit(0);
    `);
    expect(seen.value).toBe(77);
    expect(seen.polls).toBeGreaterThan(0);
  });
});

describe('publish', () => {
  it('shows a record whole, never the index without the record', async () => {
    const torn = await childResult<number>(`
      const words = lib.addressSpace().create(1, { pageBytes: 4096 }).u32;
      const COUNT = 200000, SIZE = 64;
      const worker = startWorker(\`
        const { u32 } = lib.addressSpace().find(workerData.address);
        parentPort.postMessage('ready');
        for (let i = 1; i <= workerData.count; i++) {
          let polls = 0;
          while (i - u32[16] > workerData.size) if (++polls > 1e9) throw new Error('stuck');
          const at = 64 + (i % workerData.size) * 8;
          for (let w = 0; w < 8; w++) u32[at + w] = i + w;
          lib.publish(u32, 0, i);
        }
      \`, { address: lib.addressSpace().list()[0].address, count: COUNT, size: SIZE });
      await nextMessage(worker);
      let torn = 0;
      for (let i = 1; i <= COUNT; i++) {
        let polls = 0;
        while (words[0] < i) if (++polls > 1e9) throw new Error('stuck');
        const at = 64 + (i % SIZE) * 8;
        for (let w = 0; w < 8; w++) if (words[at + w] !== i + w) torn++;
        words[16] = i;
      }
      console.log(torn);
      process.exit(0);
    `);
    expect(torn).toBe(0);
  });
});

describe('fence', () => {
  it('lets at least one of two threads see the other (store, fence, load)', async () => {
    const both = await childResult<{ missed: number; rounds: number }>(`
      const segment = lib.addressSpace().create(1, { pageBytes: 4096 });
      const words = segment.u32;
      const ROUNDS = 100000;
      const body = \`
        const { u32 } = lib.addressSpace().find(workerData.address);
        const { me } = workerData, other = 1 - me;
        parentPort.postMessage('ready');
        // Words: 0 and 16 the flags, 32 and 48 what each saw, 64 and 80 how far each is.
        for (let round = 1; round <= workerData.rounds; round++) {
          u32[me * 16] = round;
          lib.fence();
          u32[32 + me * 16] = u32[other * 16] >= round ? 1 : 0;
          lib.fence();
          u32[64 + me * 16] = round;
          let polls = 0;
          while (u32[64 + other * 16] < round) if (++polls > 1e9) throw new Error('stuck');
          if (me === 0) {
            if (u32[32] === 0 && u32[48] === 0) u32[128]++;
            // A busy machine makes each round slow: what is done by then has to do.
            if (Date.now() > workerData.deadline) u32[112] = 1;
            u32[96] = round;
          } else {
            while (u32[96] < round) if (++polls > 1e9) throw new Error('stuck');
          }
          if (u32[112] === 1) break;
        }
        parentPort.postMessage('done');
      \`;
      const deadline = Date.now() + 3000;
      const data = { address: segment.address, rounds: ROUNDS, deadline };
      const workers = [0, 1].map((me) => startWorker(body, { ...data, me }));
      await Promise.all(workers.map(nextMessage));
      await Promise.all(workers.map(nextMessage));
      console.log(JSON.stringify({ missed: words[128], rounds: words[96] }));
      process.exit(0);
    `);
    expect(both.missed).toBe(0);
    expect(both.rounds).toBeGreaterThan(0);
  });

  it('touches no shared word', async () => {
    const { fence } = await import('../../lib/wire/index.js');
    const segment = addressSpace().create(1, { pageBytes: 4096 });
    fence();
    expect(segment.u32.every((word) => word === 0)).toBe(true);
    segment.close();
  });
});
