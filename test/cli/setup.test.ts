// The commands that set a machine up. On the machine itself only what changes nothing is run.

import { describe, expect, it } from 'vitest';
import { userId } from '../../lib/cli/bind.js';
import { pageCount } from '../../lib/cli/hugepages.js';
import { formatStatus, readStatus } from '../../lib/cli/status.js';
import { bindFunctions } from '../../lib/pci/index.js';
import { MadeUpKernel } from '../pci/made-up-kernel.js';
import { penstock } from './command.js';
import { treeOf } from './tree.js';

const DISK = '0000:00:04.0';
const NIC = '0000:00:05.0';

function machine(): MadeUpKernel {
  return new MadeUpKernel(
    [
      {
        address: DISK,
        natural: 'nvme',
        group: '4',
        files: { 'nvme/nvme0/nvme0n1/dev': '259:0', 'nvme/nvme0/nvme0n1/size': '2048' },
      },
      { address: NIC, natural: 'e1000e', group: '5', classCode: '0x020000' },
      { address: '0000:00:05.1', natural: 'snd', group: '5', classCode: '0x040300' },
      { address: '0000:00:1f.0', natural: '', classCode: '0x060100' },
    ],
    {
      '/sys/block/nvme0n1': `->../devices/pci0000:00/${DISK}/nvme/nvme0/nvme0n1`,
      '/proc/swaps': 'Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2',
      '/sys/module/vfio_pci/': '/',
      '/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages': '8',
      '/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages': '5',
    },
  );
}

describe('status', () => {
  it('says of each function what it is, who uses it, and what bind would say', () => {
    const { functions, hugepages, vfio } = readStatus(machine().machine);
    expect(functions.map(({ address }) => address)).toEqual([DISK, NIC]);
    expect(functions[0]).toEqual({
      address: DISK,
      kind: 'nvme',
      names: ['nvme0n1'],
      driver: 'nvme',
      driver_override: '',
      iommu_group: '4',
      group_viable: true,
      group_members: [],
      in_use_by: ['nvme0n1 is swap'],
      refusals: [
        {
          code: 'DEVICE_IN_USE',
          reason: 'nvme0n1 is swap',
          hint: 'swapoff /dev/nvme0n1',
          forceable: false,
        },
      ],
      bound: null,
      node: '',
      node_uid: -1,
    });
    expect(functions[1]).toMatchObject({
      group_viable: false,
      group_members: ['0000:00:05.1'],
      refusals: [{ code: 'GROUP_NOT_VIABLE' }],
    });
    expect(hugepages).toMatchObject([{ reserved: 8, free: 5, node: null }]);
    expect(vfio).toEqual({ modules: ['vfio_pci'], container: false, iommu_groups: 2 });
  });

  it('shows what is bound, by whom, and who has it', async () => {
    const kernel = machine();
    await bindFunctions(kernel.machine, [NIC, '0000:00:05.1'], { uid: 1000 });
    kernel.addProcess(12, 'node nic.js', '/dev/vfio/5');
    const { functions } = readStatus(kernel.machine);
    expect(functions.map(({ address }) => address)).toEqual([DISK, NIC, '0000:00:05.1']);
    expect(functions[1]).toMatchObject({
      driver: 'vfio-pci',
      in_use_by: ['/dev/vfio/5 is open in process 12 (node nic.js)'],
      refusals: [],
      bound: { state: 'bound', since: '2026-01-02T03:04:05.000Z', original_driver: 'e1000e' },
      node: '/dev/vfio/5',
      node_uid: 1000,
    });
    expect(functions[2]).toMatchObject({ kind: 'other', bound: { original_driver: 'snd' } });
  });

  it('tells a half-bound device, a device that went, and a record nobody can read', async () => {
    const kernel = machine();
    await bindFunctions(kernel.machine, [NIC, '0000:00:05.1']);
    kernel.put('/sys/bus/pci/devices/0000:00:05.1/driver_override', '(null)');
    kernel.unplug(NIC);
    kernel.put('/run/penstock/bind-0000:00:04.0.json', '{');
    const status = readStatus(kernel.machine);
    expect(status.functions.map(({ bound }) => bound?.state)).toEqual([
      'unknown',
      'gone',
      'half-bound',
    ]);
    const text = formatStatus(status);
    expect(text).toMatch(/^0000:00:05\.0 .* gone since .*, was e1000e: unbind repairs/m);
    expect(text).toMatch(/^0000:00:05\.1 .* half-bound since .*, was snd: unbind repairs/m);
    expect(text).toMatch(/^0000:00:04\.0 .* unreadable record: unbind gives it back/m);
  });

  it('is a table for people', () => {
    const lines = formatStatus(readStatus(machine().machine)).split('\n');
    expect(lines[0]?.split(/ {2,}/)).toEqual([
      ...['FUNCTION', 'NAME', 'DRIVER', 'GROUP', 'VIABLE', 'BIND', 'BY US', 'IN USE BY'],
    ]);
    expect(lines[1]?.split(/ {2,}/)).toEqual([
      ...[DISK, 'nvme0n1', 'nvme', '4', 'yes', 'DEVICE_IN_USE', '-', 'nvme0n1 is swap'],
    ]);
    expect(lines.slice(-2)).toEqual([
      'hugepages  2 MiB: 8 reserved, 5 free',
      'vfio       vfio_pci loaded, 2 IOMMU groups',
    ]);
  });

  it('changes nothing and claims nothing', () => {
    const kernel = machine();
    const tried: string[] = [];
    const tryOpen = (path: string): string => (tried.push(path), '');
    readStatus({ ...kernel.machine, tryOpen });
    expect([...tried, ...kernel.changes]).toEqual([]);
  });

  it('reads the machine it runs on, without the addon', async () => {
    const env = { PENSTOCK_ADDON: '/nonexistent.node' };
    const { stdout, exitCode } = await penstock(['status', '--json'], { env });
    expect(exitCode).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({ schema: 'penstock.status/1' });
    expect((await penstock(['status'])).stdout).toMatch(/^hugepages {2}/m);
  });
});

describe('users and amounts', () => {
  it('are names or numbers', () => {
    const root = treeOf({ '/etc/passwd': 'root:x:0:0::/:/bin/sh\nada:x:1000:100::/:/bin/sh' });
    expect([userId(root, 'ada'), userId(root, '77')]).toEqual([1000, 77]);
    expect(() => userId(root, 'aad')).toThrowError(
      expect.objectContaining({ code: 'UNKNOWN_USER', exitCode: 2 }) as Error,
    );
  });

  it('are pages, or their bytes', () => {
    expect([pageCount('512', 2 ** 21), pageCount('1GiB', 2 ** 21)]).toEqual([512, 512]);
    expect(() => pageCount('3M', 2 ** 21)).toThrowError('no whole number of pages');
  });
});

describe('the commands', () => {
  it.each([
    ['bind', 2, "missing required argument 'function'"],
    ['bind 7f:1f.7 --dry-run', 3, "no PCI function '7f:1f.7'"],
    ['bind 7f:1f.7 --dry-run --user nobody --driver uio_pci_generic', 2, '--user does not go with'],
    ['bind 7f:1f.7 --dry-run --user 1 --driver x --json', 2, '--user does not go with'],
    ['unbind', 2, 'either functions or --all'],
    ['unbind 7f:1f.7 --all', 2, 'either functions or --all'],
    ['unbind 7f:1f.7 --dry-run', 3, "no PCI function '7f:1f.7'"],
    ['hugepages 1 --size 3MiB --dry-run', 2, 'no hugepages of 3 MiB'],
    ['hugepages many --dry-run', 2, "'many' is not a size"],
    ['hugepages --numa x', 2, "'x' is no NUMA node"],
  ])('penstock %s exits with %d', async (words, exitCode, message) => {
    const ended = await penstock(words.split(' '));
    expect(ended.exitCode).toBe(exitCode);
    expect(ended.stderr).toContain(message);
  });

  it('unbind --all has nothing to do where nothing is bound', async () => {
    const ended = await penstock(['unbind', '--all', '--dry-run', '--json']);
    expect(ended.exitCode).toBe(0);
    expect(JSON.parse(ended.stdout)).toMatchObject({
      schema: 'penstock.unbind/1',
      dry_run: true,
      functions: [],
    });
  });

  it('hugepages shows pools', async () => {
    const ended = await penstock(['hugepages', '--json']);
    expect(ended).toMatchObject({ exitCode: 0, stderr: '' });
    const { schema, pools } = JSON.parse(ended.stdout) as { schema: string; pools: object[] };
    expect(schema).toBe('penstock.hugepages/1');
    for (const pool of pools) expect(pool).toHaveProperty('page_bytes');
  });
});

describe('a refusal in JSON', () => {
  it('lists each reason', async () => {
    const kernel = machine();
    const refused = await bindFunctions(kernel.machine, [DISK]).catch((error: unknown) => error);
    expect(JSON.parse(JSON.stringify(refused))).toMatchObject({
      code: 'DEVICE_IN_USE',
      refusals: [{ address: DISK, code: 'DEVICE_IN_USE', reason: 'nvme0n1 is swap' }],
    });
  });
});
