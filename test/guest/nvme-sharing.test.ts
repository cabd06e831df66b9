// One NVMe controller and its namespaces in many hands: Linux' own driver and ours in turn, several
// namespaces, threads, and all queues at once.

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { needGuest } from './available.js';
import { nvme } from './devices.js';
import { startGuest } from './guest.js';
import { pattern } from '../support/requests.js';

const LIMIT_MS = 300_000;
const KERNEL = '0000:00:05.0';
const MANY = '0000:00:06.0';
const FEW = '0000:00:07.0';
/** Where the kernel wrote first: see programs/nvme-interop.ts. */
const KERNEL_FROM = 8 * 2 ** 20;

/** A load that lost nothing, misplaced nothing and touched no buffer that was not its own. */
const SOUND = {
  reads: expect.any(Number) as number,
  writes: expect.any(Number) as number,
  wrong: 0,
  touched: 0,
  codes: { OK: expect.any(Number) as number },
  explained: {},
};

describe('an NVMe controller of QEMU', () => {
  it(
    'changes hands with the kernel, and has many users at once',
    async (context) => {
      await needGuest(context);
      const program = 'dist/test/guest/programs';
      await using guest = await startGuest({
        name: 'with shared controllers',
        script: [
          `node ${program}/nvme-interop.js ${KERNEL}`,
          `node ${program}/nvme-together.js ${KERNEL} ${MANY} ${FEW}`,
        ].join(' &&\n'),
        disks: { a: {}, b: {}, c: {}, d: {}, e: {} },
        devices: [
          ...nvme({
            id: 'kernel',
            serial: 'kernel',
            namespaces: ['a', { disk: 'b', logicalBlock: 4096 }, 'c'],
            more: { addr: '5.0' },
          }),
          ...nvme({
            id: 'many',
            serial: 'many',
            ioQueues: 64,
            namespaces: ['d'],
            more: { addr: '6.0' },
          }),
          ...nvme({
            id: 'few',
            serial: 'few',
            ioQueues: 2,
            namespaces: ['e'],
            more: { addr: '7.0' },
          }),
        ],
        timeoutMs: LIMIT_MS,
      });
      const { exitCode, stderr, results } = await guest.done;
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });

      expect(results['driver to kernel']).toEqual([{}, {}]);
      expect(results['kernel to driver']).toEqual([{}, {}]);
      expect(results['kernel again']).toBe(true);
      // What both read is what the image holds, and not what one of them has in a cache.
      const at = KERNEL_FROM + 4096;
      for (const name of ['a', 'b']) {
        const image = readFileSync(guest.disks[name]!).subarray(at, at + 4096);
        expect(image.equals(pattern(4096, KERNEL_FROM)), name).toBe(true);
      }

      expect(results['namespaces']).toEqual([SOUND, SOUND, SOUND]);
      expect(results['workers']).toEqual([SOUND, SOUND, SOUND, SOUND, SOUND]);
      expect(results['queues again']).toBe(7);
      expect(results['resets']).toBe(0);

      const refused = {
        code: 'NO_QUEUES',
        message: expect.stringMatching(/^all \d+ queue pairs are in use$/) as string,
        hint: expect.stringContaining('queues=') as string,
      };
      const all = (count: number) => ({
        queues: count,
        worked: count,
        wrong: 0,
        touched: 0,
        refused,
      });
      expect(results['/1?queues=64&entries=64']).toEqual({ ...all(64), shadow: true });
      expect(results['/1?shadow=0']).toEqual({ ...all(2), shadow: false });
    },
    LIMIT_MS + 10_000,
  );
});
