// The NVMe driver on QEMU's controller, in this process: registers by the test protocol, data by
// DMA into its segments. What a real controller model answers is tested here; interrupts, VFIO and
// the IOMMU are tested in guests.

import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { openNvme } from '../../lib/drivers/nvme/index.js';
import { parseSettings } from '../../lib/drivers/nvme/settings.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { contractSuite, type Opened } from '../support/contract.js';
import { PciBus } from '../support/qtest-pci.js';
import { Qtest } from '../support/qtest.js';
import { pattern } from '../support/requests.js';
import { isQemuThere, needQemu } from './available.js';
import { nvme, type Disk, type NvmeOptions } from './devices.js';

const SLOT = 4;
const LIMIT_MS = 300_000;
const BYTES = 2 ** 18;
const SECTOR = 512;
const EIO = 5;

/** The driver knows controllers by their address. */
let machines = 0;

interface Setup {
  disk?: Disk;
  controller?: Partial<NvmeOptions>;
  keys?: Readonly<Record<string, string>>;
}

async function open(setup: Setup): Promise<Opened & { machine: Qtest }> {
  const { disk, controller, keys } = setup;
  const machine = await Qtest.start({
    disks: { disk: disk ?? { bytes: 2 ** 24 } },
    devices: nvme({
      serial: 'driven',
      namespaces: ['disk'],
      ...controller,
      more: { addr: SLOT },
    }),
    timeoutMs: LIMIT_MS,
  });
  try {
    const pci = new PciBus(machine).place(SLOT);
    const settings = parseSettings(new Map(Object.entries(keys ?? {})), true);
    const address = `qtest-${machines++}`;
    const backend = await openNvme(`nvme:${address}/1`, address, 1, settings, async () => pci);
    const device = new BlockDevice(backend);
    return { device, machine, remove: () => machine.close() };
  } catch (error) {
    await machine.close();
    throw error;
  }
}

describe("the NVMe driver on QEMU's controller", () => {
  it('writes what is then in the image, and reads it back', async (context) => {
    needQemu(context);
    const { device, machine } = await open({ controller: { mdts: 5 } });
    try {
      const written = device.memory.alloc(BYTES);
      const read = device.memory.alloc(BYTES);
      written.u8.set(pattern(BYTES, 1));
      await device.write(8, written);
      await device.flush();
      await device.read(8, read);
      expect(Buffer.compare(read.u8, written.u8)).toBe(0);
      const image = readFileSync(machine.disks['disk']!);
      expect(image.subarray(8 * SECTOR, 8 * SECTOR + BYTES).equals(written.u8)).toBe(true);
    } finally {
      await device.close();
      await machine.close();
    }
  });

  it('passes on what the medium answers', async (context) => {
    needQemu(context);
    const faults = [{ iotype: 'read', sector: 100, errno: EIO } as const];
    const { device, machine } = await open({ disk: { bytes: 2 ** 20, faults } });
    try {
      const buffer = device.memory.alloc(SECTOR);
      await device.read(99, buffer);
      await expect(device.read(100, buffer)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
      await device.read(101, buffer);
    } finally {
      await device.close();
      await machine.close();
    }
  });
});

const KINDS: readonly [string, Setup][] = [
  ['as it is', {}],
  ['small transfers, PRP lists only', { controller: { mdts: 1 }, keys: { sgl: '0' } }],
  [
    'blocks of 4096, rings in controller memory',
    {
      controller: { cmbMiB: 4, namespaces: [{ disk: 'disk', logicalBlock: 4096 }] },
      keys: { cmb: '1', entries: '256' },
    },
  ],
];

for (const [name, setup] of isQemuThere() ? KINDS : []) {
  contractSuite(`nvme on qtest: ${name}`, () => open(setup), {
    data: true,
    discardZeroes: true,
    openReadOnly: () => open({ ...setup, keys: { ...setup.keys, readonly: '1' } }),
    modelRuns: 1,
  });
}
