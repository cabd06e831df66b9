// Domains that share nothing but regions: two processes, and the same calls as by a hub. What only
// guests show is in test/guest/ivshmem.test.ts.

import { afterEach, describe, expect, it } from 'vitest';
import { MemoryObject } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { runChild, type Ended } from '../fault/child.js';

const BYTES = 2 ** 26;
const cleanups: (() => void)[] = [];

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

/** Writable and read-only descriptors of the regions of domains 1 and 2. */
function makeRegions(): { own: number; other: number }[] {
  const objects = [1, 2].map(() => {
    const object = new MemoryObject(BYTES, 4096);
    const readOnly = object.readOnly();
    cleanups.push(() => native.fileClose(readOnly));
    cleanups.push(() => object.close());
    return { writable: object.fd, readOnly };
  });
  return [0, 1].map((i) => ({ own: objects[i]!.writable, other: objects[1 - i]!.readOnly }));
}

/** Runs a domain, numbered from 1: `domain` and `other` in scope, its name is `d1` or `d2`. */
function runDomain(number: number, regions: { own: number; other: number }[], body: string) {
  const { own, other } = regions[number - 1]!;
  const begin = `
    const SLOT = 2 ** 36;
    const space = lib.addressSpace();
    const domain = await lib.joinRegions({
      name: 'd${number}',
      domain: ${number},
      map: () => ({
        own: space.import(3, { bytes: ${BYTES}, address: ${number} * SLOT }),
        peers: [space.attach(4, { bytes: ${BYTES}, address: ${3 - number} * SLOT })],
      }),
    });
    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  `;
  return runChild(begin + body, { fds: [own, other] });
}

const ECHO = `
  const ended = new Promise((resolve) => {
    domain.listen('echo', async (channel) => {
      for await (const message of channel) await message.reply(message);
      resolve();
    });
  });
`;

function expectFine(...ends: Ended[]): void {
  for (const { code, stderr } of ends) expect(stderr === '' ? code : stderr).toBe(0);
}

describe('domains by regions', () => {
  it('have channels and loans, and end in order', async () => {
    const regions = makeRegions();
    const second = runDomain(2, regions, `${ECHO} await ended; domain.close();`);
    const first = await runDomain(
      1,
      regions,
      `
      const channel = await domain.connect('d2', 'echo');
      for (let i = 0; i < 300; i++) {
        const buffer = domain.alloc(65536);
        const { address } = buffer;
        buffer.u32[0] = i;
        buffer.u32[16383] = i * 7;
        const reply = await channel.request(buffer);
        if (reply.body.address !== address || reply.body.via !== 2) throw new Error('another');
        if (reply.u32[0] !== i || reply.u32[16383] !== i * 7) throw new Error('changed');
        reply.release();
      }
      console.log(JSON.stringify([domain.loans(), (await domain.members()).map((m) => m.name)]));
      channel.close();
      await sleep(100);
      domain.close();
      `,
    );
    expectFine(first, await second);
    expect(JSON.parse(first.stdout)).toEqual([{ lent: [], held: [] }, ['d1', 'd2']]);
  });

  it('see a death by its silence, get all holds back, and meet the next life', async () => {
    const regions = makeRegions();
    const victim = runDomain(
      2,
      regions,
      `
      domain.listen('keep', async (channel) => {
        for await (const message of channel) {
          if (message.aux === 9) setTimeout(() => process.kill(process.pid, 9), 300);
        }
      });
      `,
    );
    const survivor = runDomain(
      1,
      regions,
      `
      const channel = await domain.connect('d2', 'keep');
      for (let i = 0; i < 10; i++) await channel.send(domain.alloc(4096), { aux: i });
      const before = domain.loans().lent[0].holds;
      let code = '';
      try {
        for (;;) {
          await channel.send(domain.alloc(4096));
          await sleep(50);
        }
      } catch (error) {
        code = error.code;
      }
      const taken = domain.loans().lent.length;
      channel.close();
      const again = await domain.connect('d2', 'echo', { timeoutMs: 15000 });
      const reply = await again.request(domain.alloc(512));
      reply.release();
      console.log(JSON.stringify([before, code, taken]));
      again.close();
      await sleep(100);
      domain.close();
      `,
    );
    expect((await victim).signal).toBe('SIGKILL');
    const next = runDomain(2, regions, `${ECHO} await ended; domain.close();`);
    const ended = await survivor;
    expectFine(ended, await next);
    expect(JSON.parse(ended.stdout)).toEqual([10, 'PEER_GONE', 0]);
  }, 30_000);
});
