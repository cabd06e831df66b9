// The setup commands on real drivers: what a guest's kernel makes of what they write.

import { describe, expect, it } from 'vitest';
import { needGuest } from './available.js';
import { device, e1000e, nvme } from './devices.js';
import { runGuest } from './guest.js';

const LIMIT_MS = 240_000;
const FREE = '0000:00:05.0';
const SWAP = '0000:00:06.0';
const NIC = '0000:00:07.0';
const PAIR = ['0000:00:08.0', '0000:00:08.1'] as const;

describe('penstock bind', () => {
  it(
    'takes what is free, refuses what is in use, and unbind repairs what a crash leaves',
    async (context) => {
      await needGuest(context);
      const { exitCode, stderr, results } = await runGuest({
        name: 'bind',
        command: ['node', 'dist/test/guest/programs/setup.js', FREE, SWAP, NIC, ...PAIR],
        disks: { free: { bytes: 2 ** 26 }, swap: { bytes: 2 ** 26 } },
        devices: [
          ...nvme({ id: 'a', serial: 'free', namespaces: ['free'], more: { addr: '5.0' } }),
          ...nvme({ id: 'b', serial: 'swap', namespaces: ['swap'], more: { addr: '6.0' } }),
          ...e1000e({ more: { addr: '7.0' } }),
          // Two functions of one slot without ACS are one group.
          ...nvme({
            id: 'c',
            serial: 'first',
            namespaces: [],
            more: { addr: '8.0', multifunction: true },
          }),
          ...device('nvme', { id: 'd', serial: 'second', addr: '8.1' }),
        ],
        modules: ['nvme', 'e1000e'],
        timeoutMs: LIMIT_MS,
      });
      expect({ exitCode, stderr }).toMatchObject({ exitCode: 0 });
      expect(results).toMatchObject({
        dryRun: { code: 0, driver: 'nvme' },
        bind: { code: 0, driver: 'vfio-pci', uid: 1000, inGroup: true },
        notes: 'penstock: loaded the kernel module vfio-pci\n',
        'status of the bound': { driver: 'vfio-pci', bound: { state: 'bound' }, refusals: [] },
        swap: { code: 1, error: 'DEVICE_IN_USE', driver: 'nvme', forced: 1 },
        claimed: { code: 1, error: 'DEVICE_IN_USE' },
        nic: { code: 1, error: 'DEVICE_IN_USE', forced: 0, driver: 'vfio-pci', after: 'e1000e' },
        group: { code: 3, error: 'GROUP_NOT_VIABLE', both: 0, drivers: ['vfio-pci', 'vfio-pci'] },
        'in use': { code: 1, error: 'DEVICE_IN_USE', after: 0 },
        crashes: [
          { state: 'unchanged', code: 0, driver: 'nvme', served: true },
          { state: 'half-bound', code: 0, driver: 'nvme', served: true },
          { state: 'half-bound', code: 0, driver: 'nvme', served: true },
          { state: 'bound', code: 0, driver: 'nvme', served: true },
        ],
        hugepages: { code: 0, reserved: 4, tooMany: 3, error: 'OUT_OF_HUGEPAGES' },
        records: [],
      });
      const said = (name: string) => (results[name] as { message: string }).message;
      expect(said('swap')).toMatch(/^0000:00:06\.0 stays as it is: nvme\d+n1 is swap$/);
      expect(said('claimed')).toMatch(
        /nvme\d+n1 or a partition of it is opened exclusively; .* is open in process/,
      );
      expect(said('nic')).toContain('route to 192.0.2.0/24 (');
      expect(said('group')).toContain(`${PAIR[1]} (nvme)`);
      expect(said('in use')).toMatch(/\/dev\/vfio\/\d+ is open in process \d+ \(sleep 1000\)/);
    },
    LIMIT_MS + 10_000,
  );
});
