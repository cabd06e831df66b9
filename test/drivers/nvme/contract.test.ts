// The NVMe driver keeps the contract of HPDI on twins of many kinds; the guest tests run the same
// suite on QEMU's controller (test/guest).

import { expect } from 'vitest';
import { contractSuite, type Opened } from '../../support/contract.js';
import { openOnTwin } from '../../support/nvme-open.js';
import type { NvmeTwinOptions } from '../../support/nvme-twin/index.js';

const BYTES = 16 * 2 ** 20;

const DISK = { namespaces: [{ blocks: BYTES / 512, blockSize: 512 }] };

const KINDS: readonly [string, NvmeTwinOptions, Record<string, string>][] = [
  ['registers trapped', { ...DISK, mapped: 'none' }, {}],
  [
    'doorbells mapped, blocks of 4096',
    {
      namespaces: [{ blocks: BYTES / 4096, blockSize: 4096 }],
      mapped: 'doorbells',
    },
    {},
  ],
  ['small transfers, PRP lists only', { ...DISK, mdts: 1 }, { sgl: '0' }],
  ['SGLs', { ...DISK, mdts: 5, sgls: 2 }, {}],
  ['shadow doorbells', { ...DISK, shadowDoorbells: 'lazy' }, {}],
  ['controller memory buffer', { ...DISK, cmbBytes: 4 * 2 ** 20 }, { cmb: '1', entries: '256' }],
  ['small rings, few queues', { ...DISK, entriesMax: 64, queuesMax: 3 }, {}],
  ['memory mapped when it is first used', { ...DISK, dma: 'reached' }, {}],
  ['polled', { ...DISK, vectors: 0 }, { completion: 'polled' }],
];

for (const [name, options, keys] of KINDS) {
  const open = async (query: Record<string, string>): Promise<Opened> => {
    const { device, twin } = await openOnTwin(options, { ...keys, ...query });
    return {
      device,
      remove: () => {
        twin.stop();
        expect(twin.check()).toEqual([]);
      },
    };
  };
  contractSuite(`nvme: ${name}`, () => open({}), {
    data: true,
    discardZeroes: true,
    openReadOnly: () => open({ readonly: '1' }),
    modelRuns: 3,
  });
}
