// The NVMe driver keeps the contract of HPDI on controllers of QEMU, behind VFIO and an IOMMU: the
// suite that runs on software twins, compiled, in one guest.

import { describe, expect, it } from 'vitest';
import { needGuest } from './available.js';
import { nvme } from './devices.js';
import { runGuest } from './guest.js';
import type { ContractCase } from './programs/nvme-contract.js';
import type { SuiteResult } from './suite.js';

const LIMIT_MS = 240_000;
const BYTES = 16 * 2 ** 20;
/** Where the controllers are: slots of the first bus. */
const SPACES = '0000:00:05.0';
const SMALL = '0000:00:06.0';
const BUFFER = '0000:00:07.0';
const MANY = '0000:00:08.0';

/** What differs is spread over few cases: each of them costs 10 s. With what shows of it. */
const CASES: readonly [name: string, uri: string, shown: object][] = [
  [
    '512-byte blocks, adaptive',
    `nvme:${SPACES}/1`,
    { blockSize: 512, description: { completion: 'adaptive', shadowDoorbells: true } },
  ],
  [
    '4 KiB blocks, transfers of 8 KiB, interrupts',
    `nvme:${SMALL}/1?completion=interrupt`,
    { blockSize: 4096, maxTransferBlocks: 2, description: { namespace: 1 } },
  ],
  [
    'memory buffer, PRP lists, polled',
    `nvme:${BUFFER}/1?cmb=1&entries=256&sgl=0&completion=polled`,
    {
      maxTransferBlocks: 32,
      description: { completion: 'polled', submissionRings: 'controller memory buffer' },
    },
  ],
  [
    '64 queues, third namespace, no shadow doorbells',
    `nvme:${MANY}/3?queues=64&shadow=0`,
    { description: { queues: 64, namespace: 3, shadowDoorbells: false } },
  ],
];

function at(slot: number, serial: string) {
  return { id: serial, serial, more: { addr: `${slot}.0` } };
}

/** A namespace of another controller than that of `uri`, which is open with other keys. */
function readOnlyUri(uri: string): string {
  return uri.startsWith(`nvme:${MANY}`)
    ? `nvme:${SMALL}/1?readonly=1`
    : `nvme:${MANY}/1?readonly=1`;
}

describe('the NVMe driver on QEMU', () => {
  it(
    'keeps the contract of HPDI',
    async (context) => {
      await needGuest(context);
      const cases = CASES.map(([name, uri]): ContractCase => ({
        name,
        uri,
        readOnly: readOnlyUri(uri),
      }));
      const disk = { bytes: BYTES };
      const { exitCode, stderr, results } = await runGuest({
        command: ['node', 'dist/test/guest/programs/nvme-contract.js', JSON.stringify(cases)],
        disks: { a: disk, b: disk, c: disk, d: disk, e: disk, f: disk },
        devices: [
          ...nvme({ ...at(5, 'spaces'), namespaces: ['a'] }),
          ...nvme({ ...at(6, 'small'), mdts: 1, namespaces: [{ disk: 'd', logicalBlock: 4096 }] }),
          ...nvme({ ...at(7, 'buffer'), mdts: 2, cmbMiB: 16, namespaces: ['e'] }),
          ...nvme({
            ...at(8, 'many'),
            ioQueues: 64,
            namespaces: ['b', { disk: 'c', logicalBlock: 4096 }, 'f'],
          }),
        ],
        timeoutMs: LIMIT_MS,
      });
      expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
      for (const [name, , shown] of CASES) {
        expect(results[`${name}: device`], name).toMatchObject(shown);
        const { passed, failed } = results[name] as SuiteResult;
        expect(failed, name).toEqual({});
        expect(passed.length, name).toBeGreaterThan(40);
      }
    },
    LIMIT_MS + 10_000,
  );
});
