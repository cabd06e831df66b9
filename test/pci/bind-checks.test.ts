import { describe, expect, it } from 'vitest';
import { bindFunctions } from '../../lib/pci/index.js';
import { type MadeUpDevice, MadeUpKernel } from './made-up-kernel.js';

const DISK = '0000:00:04.0';
const NIC = '0000:00:05.0';
const DISK_FOLDER = `/sys/devices/pci0000:00/${DISK}`;
const BLOCK = `${DISK_FOLDER}/nvme/nvme0/nvme0n1`;
const disk: MadeUpDevice = {
  address: DISK,
  natural: 'nvme',
  group: '4',
  files: {
    'nvme/nvme0/nvme0n1/dev': '259:0',
    'nvme/nvme0/nvme0n1/nvme0n1p1/partition': '1',
    'nvme/nvme0/nvme0n1/nvme0n1p1/dev': '259:1',
    'nvme/nvme0/ng0n1/dev': '240:0',
  },
};
const nic: MadeUpDevice = {
  address: NIC,
  natural: 'e1000e',
  group: '5',
  classCode: '0x020000',
  files: { 'net/eth0/operstate': 'up', 'net/eth0/flags': '0x1003' },
};
const seen = {
  '/sys/block/nvme0n1': `->../devices/pci0000:00/${DISK}/nvme/nvme0/nvme0n1`,
  '/sys/class/net/eth0': `->../../devices/pci0000:00/${NIC}/net/eth0`,
  '/proc/self/mountinfo': '22 1 0:21 / /proc rw - proc proc rw',
};

interface Refused {
  code: string;
  message: string;
  hint: string;
  exitCode: number;
  refusals: { code: string; reason: string; hint: string; forceable: boolean }[];
}

function kernelWith(files: Record<string, string>, ...more: MadeUpDevice[]): MadeUpKernel {
  return new MadeUpKernel([disk, nic, ...more], { ...seen, ...files });
}

async function refusedBy(kernel: MadeUpKernel, address: string, force = false): Promise<Refused> {
  const refused = await bindFunctions(kernel.machine, [address], { force }).then(
    () => ({ code: 'NOT REFUSED', refusals: [] }),
    (error: unknown) => error,
  );
  expect(kernel.changes).toEqual([]);
  return refused as Refused;
}

async function reasons(kernel: MadeUpKernel, address: string): Promise<string[]> {
  const { code, refusals } = await refusedBy(kernel, address);
  expect(code).toBe('DEVICE_IN_USE');
  return refusals.map(({ reason }) => reason);
}

/** Mapped device over `below`, of LVM. */
function mapped(name: string, label: string, number: string, below: string) {
  return {
    [`${below}/holders/${name}`]: '/',
    [`/sys/block/${name}/dm/name`]: label,
    [`/sys/block/${name}/dm/uuid`]: 'LVM-x',
    [`/sys/block/${name}/dev`]: number,
  };
}

describe('a disk', () => {
  it('is free when nothing uses it', async () => {
    const kernel = kernelWith({});
    expect(await bindFunctions(kernel.machine, [DISK])).toHaveLength(1);
  });

  it.each<[string, Record<string, string>, string, string]>([
    [
      'mounted',
      { '/proc/self/mountinfo': '30 1 259:1 / /mnt/a\\040b rw - ext4 /dev/nvme0n1p1 rw' },
      'nvme0n1p1 is mounted on /mnt/a b',
      'umount /mnt/a b',
    ],
    [
      'mounted for process 1 alone',
      {
        '/proc/self/ns/mnt': '->mnt:[1]',
        '/proc/1/ns/mnt': '->mnt:[2]',
        '/proc/1/comm': 'systemd',
        '/proc/1/mountinfo': '30 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw',
      },
      'nvme0n1 is mounted on /srv for process 1 (systemd)',
      'nsenter -t 1 -m umount /srv',
    ],
    [
      'mounted in a container',
      {
        '/proc/self/ns/mnt': '->mnt:[1]',
        '/proc/812/ns/mnt': '->mnt:[9]',
        '/proc/812/cmdline': 'postgres\0-D\0/data',
        '/proc/812/mountinfo': '30 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw',
      },
      'nvme0n1 is mounted on /data for process 812 (postgres -D /data)',
      'nsenter -t 812 -m umount /data',
    ],
    [
      'mounted under a number of the file system',
      { '/proc/self/mountinfo': '31 1 0:40 /@ /b rw shared:1 - btrfs /dev/nvme0n1 rw' },
      'nvme0n1 is mounted on /b',
      'umount /b',
    ],
    [
      'a further device of a btrfs',
      { '/sys/fs/btrfs/f00d/devices/nvme0n1p1/': '/' },
      'nvme0n1p1 is part of the mounted btrfs f00d',
      'Unmount',
    ],
    [
      'swap',
      { '/proc/swaps': 'Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2' },
      'nvme0n1p1 is swap',
      'swapoff /dev/nvme0n1p1',
    ],
    [
      'in a volume that nothing uses',
      mapped('dm-0', 'vg--a-root', '254:0', `${BLOCK}/nvme0n1p1`),
      'nvme0n1p1 is part of dm-0 (vg--a-root)',
      'vgchange -an vg-a',
    ],
    [
      'in a volume on a volume that is mounted',
      {
        ...mapped('dm-0', 'vg-pv', '254:0', `${BLOCK}/nvme0n1p1`),
        ...mapped('dm-1', 'vg-root', '254:1', '/sys/block/dm-0'),
        '/proc/self/mountinfo': '30 1 254:1 / / rw - ext4 /dev/mapper/vg-root rw',
      },
      'nvme0n1p1 is part of dm-0 (vg-pv), part of dm-1 (vg-root), mounted on /',
      'umount /',
    ],
    [
      'in an array with a partition that is swap',
      {
        [`${BLOCK}/holders/md0`]: '/',
        '/sys/block/md0/md/level': 'raid1',
        '/sys/block/md0/md0p1/partition': '1',
        '/proc/swaps': 'Filename Type Size Used Priority\n/dev/md0p1 partition 1 0 -2',
      },
      'nvme0n1 is part of md0, md0p1: swap',
      'swapoff /dev/md0p1; mdadm --stop /dev/md0',
    ],
    [
      'under a loop device',
      { '/sys/block/loop3/loop/backing_file': '/dev/nvme0n1p1' },
      'nvme0n1p1 is under loop3',
      'losetup -d /dev/loop3',
    ],
    [
      'exported by the kernel',
      {
        '/sys/kernel/config/nvmet/subsystems/nqn.a/namespaces/1/enable': '1',
        '/sys/kernel/config/nvmet/subsystems/nqn.a/namespaces/1/device_path': '/dev/nvme0n1',
        '/sys/kernel/config/target/core/iblock_0/x/udev_path': '/dev/vdz',
      },
      'nvme0n1 is exported by nvmet as nqn.a, namespace 1',
      'echo 0 > /sys/kernel/config/nvmet/subsystems/nqn.a/namespaces/1/enable',
    ],
    [
      'the physical function of others',
      { [`${DISK_FOLDER}/sriov_numvfs`]: '2' },
      'it has 2 virtual functions enabled',
      'sriov_numvfs',
    ],
  ])('is refused, forced or not: %s', async (_what, files, reason, hint) => {
    const kernel = kernelWith(files);
    for (const force of [false, true]) {
      const refused = await refusedBy(kernel, DISK, force);
      expect(refused).toMatchObject({ code: 'DEVICE_IN_USE', exitCode: 1 });
      expect(refused.refusals.map((refusal) => refusal.reason)).toEqual([reason]);
      expect(refused.message).toBe(`${DISK} stays as it is: ${reason}`);
      expect(refused.hint).toContain(hint);
      expect(refused.hint).toContain('--force does not lift this');
    }
  });

  it('is refused when somebody has opened it exclusively, who is named if seen', async () => {
    const kernel = kernelWith({});
    kernel.busy.add('/dev/nvme0n1');
    expect(await reasons(kernel, DISK)).toEqual([
      'nvme0n1 or a partition of it is opened exclusively',
    ]);
    kernel.addProcess(99, 'mkfs.ext4 /dev/nvme0n1', '/dev/nvme0n1');
    expect(await reasons(kernel, DISK)).toEqual([
      'nvme0n1 or a partition of it is opened exclusively; ' +
        'nvme0n1 is open in process 99 (mkfs.ext4 /dev/nvme0n1)',
    ]);
    expect((await refusedBy(kernel, DISK, true)).code).toBe('DEVICE_IN_USE');
  });

  it('that a process merely has open can be forced', async () => {
    const kernel = kernelWith({});
    kernel.addProcess(7, 'qemu-system-x86_64', '/dev/nvme0n1p1');
    kernel.addProcess(8, 'nvme', '/dev/ng0n1', '/dev/nvme0');
    expect(await reasons(kernel, DISK)).toEqual([
      'nvme0n1p1 is open in process 7 (qemu-system-x86_64)',
      'nvme0 is open in process 8 (nvme)',
      'ng0n1 is open in process 8 (nvme)',
    ]);
    expect((await refusedBy(kernel, DISK)).hint).toContain('--force takes it all the same');
    expect(await bindFunctions(kernel.machine, [DISK], { force: true })).toHaveLength(1);
  });

  it('counts for its controllers when the kernel shows it on their subsystem', async () => {
    const head = '/sys/devices/virtual/nvme-subsystem/nvme-subsys0';
    const kernel = new MadeUpKernel([{ ...disk, files: { 'nvme/nvme0/nvme0c0n1/hidden': '1' } }], {
      '/sys/block/nvme0c0n1': `->../devices/pci0000:00/${DISK}/nvme/nvme0/nvme0c0n1`,
      '/sys/block/nvme0n1': '->../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1',
      [`${head}/nvme0`]: `->../../../pci0000:00/${DISK}/nvme/nvme0`,
      [`${head}/nvme0n1/dev`]: '259:0',
      '/sys/class/nvme-subsystem/nvme-subsys0':
        '->../../devices/virtual/nvme-subsystem/nvme-subsys0',
      '/proc/self/mountinfo': '30 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw',
    });
    expect(await reasons(kernel, DISK)).toEqual(['nvme0n1 is mounted on /srv']);
  });
});

const ROUTES = 'Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n';
const IPV6_ROUTES = [
  `${'0'.repeat(32)} 00 ${'0'.repeat(32)} 00 ${'f'.repeat(32)} 1 1 0 00200200 lo`,
  `fe80${'0'.repeat(28)} 40 ${'0'.repeat(32)} 00 ${'0'.repeat(32)} 100 1 0 00000001 eth0`,
  `ff00${'0'.repeat(28)} 08 ${'0'.repeat(32)} 00 ${'0'.repeat(32)} 100 1 0 00000001 eth0`,
  `20010db8${'0'.repeat(23)}1 80 ${'0'.repeat(32)} 00 ${'0'.repeat(32)} 0 1 0 80200001 eth0`,
];

describe('a NIC', () => {
  it('that is up, with what belongs to its link only, is free', async () => {
    const kernel = kernelWith({ '/proc/net/ipv6_route': IPV6_ROUTES.join('\n') });
    kernel.addresses.set('eth0', ['fe80::5054:ff:fe12:3456']);
    expect(await bindFunctions(kernel.machine, [NIC])).toHaveLength(1);
  });

  it.each<[string, Record<string, string>, string[]]>([
    [
      'routes, the default one first',
      {
        '/proc/net/route':
          ROUTES +
          'eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n' +
          'eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0',
      },
      ['default route (eth0)', 'route to 192.0.2.0/24 (eth0)'],
    ],
    [
      'a route of IPv6',
      {
        '/proc/net/ipv6_route':
          `20010db8${'0'.repeat(24)} 20 ${'0'.repeat(32)} 00 ` +
          `${'0'.repeat(32)} 100 1 0 00000001 eth0`,
      },
      ['route to 2001:db8::/32 (eth0)'],
    ],
    [
      'membership of a bridge that carries the default route',
      {
        '/sys/class/net/br0/bridge/bridge_id': '1',
        [`/sys/devices/pci0000:00/${NIC}/net/eth0/upper_br0`]: '/',
        [`/sys/devices/pci0000:00/${NIC}/net/eth0/master`]: '->../../../../virtual/net/br0',
        '/proc/net/route': `${ROUTES}br0 00000000 010200C0 0003 0 0 0 00000000 0 0 0`,
      },
      ['eth0 is a member of bridge br0', 'default route by br0 (eth0)'],
    ],
    [
      'membership of a bond',
      {
        '/sys/class/net/bond0/bonding/mode': '1',
        [`/sys/devices/pci0000:00/${NIC}/net/eth0/master`]: '->../../../../virtual/net/bond0',
      },
      ['eth0 is a member of bond bond0'],
    ],
    [
      'a VLAN',
      { [`/sys/devices/pci0000:00/${NIC}/net/eth0/upper_eth0.7`]: '/' },
      ['eth0 carries eth0.7'],
    ],
  ])('is refused, unless forced, for %s', async (_what, files, words) => {
    const kernel = kernelWith(files);
    expect(await reasons(kernel, NIC)).toEqual(words);
    expect((await refusedBy(kernel, NIC)).hint).toContain('--force takes it all the same');
    expect(await bindFunctions(kernel.machine, [NIC], { force: true })).toHaveLength(1);
  });

  it('is refused for addresses', async () => {
    const kernel = kernelWith({});
    kernel.addresses.set('eth0', ['192.0.2.7', 'fe80::1', '2001:db8::1']);
    expect(await reasons(kernel, NIC)).toEqual([
      'address 192.0.2.7 (eth0)',
      'address 2001:db8::1 (eth0)',
    ]);
  });

  it('is refused when its interface was moved into a network namespace', async () => {
    const virtio = { ...nic, files: { 'virtio3/net/': '/' } };
    for (const moved of [{ ...nic, files: { 'net/': '/' } }, virtio]) {
      const kernel = new MadeUpKernel([moved]);
      const words = 'its network interface is in another network namespace';
      expect(await reasons(kernel, NIC)).toEqual([words]);
    }
  });
});

describe('what the kernel would not do', () => {
  it.each(['0x060000', '0x060400', '0x060100'])('a bridge is refused: %s', async (classCode) => {
    const kernel = new MadeUpKernel([{ ...disk, natural: 'pcieport', classCode }]);
    expect(await refusedBy(kernel, DISK, true)).toMatchObject({
      code: 'NOT_BINDABLE',
      message: `${DISK} stays as it is: it is a bridge, not a device`,
    });
  });

  it('a driver that cannot be unbound is named', async () => {
    const kernel = kernelWith({});
    const { rmSync } = await import('node:fs');
    rmSync(`${kernel.folder}/sys/bus/pci/drivers/nvme/unbind`);
    expect(await refusedBy(kernel, DISK, true)).toMatchObject({
      code: 'NOT_BINDABLE',
      message: `${DISK} stays as it is: the driver nvme cannot be unbound`,
    });
  });

  it.each([
    ['flags : fpu hypervisor', 'QEMU: -device intel-iommu'],
    ['vendor_id : GenuineIntel', 'intel_iommu=on'],
    ['vendor_id : AuthenticAMD', 'AMD-Vi'],
  ])('without an IOMMU it says how to get one: %s', async (cpuinfo, hint) => {
    const alone = { address: DISK, natural: 'nvme' };
    const kernel = new MadeUpKernel([alone], { '/proc/cpuinfo': cpuinfo });
    const refused = await refusedBy(kernel, DISK, true);
    expect(refused).toMatchObject({ code: 'NO_IOMMU', exitCode: 3 });
    expect(refused.hint).toContain(hint);
  });
});

describe('an IOMMU group', () => {
  const sibling = { ...nic, address: '0000:00:04.1', group: '4', files: {} };
  const other = { ...sibling, address: '0000:00:04.2', natural: 'ahci' };

  it('with others in use by drivers of the kernel is not viable: they are named', async () => {
    const kernel = kernelWith({}, sibling, other);
    expect(await refusedBy(kernel, DISK, true)).toMatchObject({
      code: 'GROUP_NOT_VIABLE',
      exitCode: 3,
      message:
        `${DISK} stays as it is: drivers of the kernel have others of its IOMMU group 4: ` +
        '0000:00:04.1 (e1000e), 0000:00:04.2 (ahci)',
    });
    const addresses = [DISK, '0000:00:04.1', '0000:00:04.2'];
    expect(await bindFunctions(kernel.machine, addresses)).toHaveLength(3);
  });

  it.each([
    ['a bridge', { ...sibling, natural: 'shpchp', classCode: '0x060400' }],
    ['pcieport', { ...sibling, natural: 'pcieport' }],
    ['pci-stub', { ...sibling, natural: 'pci-stub' }],
    ['vfio-pci', { ...sibling, natural: 'vfio-pci' }],
    ['a variant of vfio-pci', { ...sibling, natural: 'mlx5_vfio_pci' }],
    ['one without a driver', { ...sibling, bound: false }],
  ])('is viable with %s', async (_what, member) => {
    const kernel = kernelWith({}, member);
    expect(await bindFunctions(kernel.machine, [DISK])).toHaveLength(1);
  });

  it('does not matter to drivers that do without', async () => {
    const kernel = kernelWith({}, sibling);
    kernel.modules.add('uio_pci_generic');
    const options = { driver: 'uio_pci_generic' };
    expect(await bindFunctions(kernel.machine, [DISK], options)).toHaveLength(1);
  });
});

describe('several functions', () => {
  it('are refused together, each with its reasons', async () => {
    const kernel = kernelWith({
      '/proc/swaps': 'Filename Type Size Used Priority\n/dev/nvme0n1 partition 1 0 -2',
    });
    kernel.addresses.set('eth0', ['192.0.2.7']);
    await expect(bindFunctions(kernel.machine, [DISK, NIC], { force: true })).rejects.toMatchObject(
      { message: `${DISK} stays as it is: nvme0n1 is swap` },
    );
    await expect(bindFunctions(kernel.machine, [DISK, NIC])).rejects.toMatchObject({
      message:
        `${DISK} stays as it is: nvme0n1 is swap\n` +
        `  ${NIC} stays as it is: address 192.0.2.7 (eth0)`,
    });
    expect(kernel.changes).toEqual([]);
  });
});
