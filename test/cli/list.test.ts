import { describe, expect, it } from 'vitest';
import { formatDevices, listDevices } from '../../lib/cli/list.js';
import { fileRoot } from '../../lib/pci/index.js';
import { treeOf } from './tree.js';

const GIB = 2 ** 30;
const SECTORS_1_GIB = String(GIB / 512);

/** An NVMe drive with two partitions, behind an IOMMU, bound to the kernel's driver. */
const nvme = {
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/class': '0x010802',
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/vendor': '0x144d',
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/device': '0xa808',
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/numa_node': '0',
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/driver': '->/sys/bus/pci/drivers/nvme',
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/iommu_group': '->../kernel/iommu_groups/14',
  '/sys/bus/pci/devices/0000:01:00.0': '->../../../devices/pci0000:00/0000:00:1c.0/0000:01:00.0',
  ...disk('/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/nvme/nvme0/nvme0n1', '259:0'),
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/nvme/nvme0/nvme0n1/nsid': '1',
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/nvme/nvme0/nvme0n1/device/model':
    'Samsung SSD 970',
  '/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/nvme/nvme0/nvme0n1/device/device/driver':
    '->/sys/bus/pci/drivers/nvme',
  ...partition('/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/nvme/nvme0/nvme0n1', 1, '259:1'),
  ...partition('/sys/devices/pci0000:00/0000:00:1c.0/0000:01:00.0/nvme/nvme0/nvme0n1', 2, '259:2'),
  '/sys/block/nvme0n1': '->../devices/pci0000:00/0000:00:1c.0/0000:01:00.0/nvme/nvme0/nvme0n1',
};

function disk(folder: string, number: string): Record<string, string> {
  return {
    [`${folder}/dev`]: number,
    [`${folder}/size`]: SECTORS_1_GIB,
    [`${folder}/ro`]: '0',
    [`${folder}/queue/logical_block_size`]: '4096',
  };
}

function partition(folder: string, index: number, number: string): Record<string, string> {
  const name = `${folder.slice(folder.lastIndexOf('/') + 1)}p${index}`;
  return {
    [`${folder}/${name}/partition`]: String(index),
    [`${folder}/${name}/dev`]: number,
    [`${folder}/${name}/size`]: '2048',
    [`${folder}/${name}/ro`]: '0',
  };
}

function nic(address: string, name: string, vendor: string, device: string) {
  const folder = `/sys/devices/pci0000:00/${address}`;
  return {
    [`${folder}/class`]: '0x020000',
    [`${folder}/vendor`]: vendor,
    [`${folder}/device`]: device,
    [`${folder}/net/${name}/operstate`]: 'up',
    [`/sys/bus/pci/devices/${address}`]: `->../../../devices/pci0000:00/${address}`,
    [`/sys/class/net/${name}`]: `->../../devices/pci0000:00/${address}/net/${name}`,
  };
}

describe('list of block devices', () => {
  it('reads size, driver, model and address, and ties partitions to their disk', () => {
    const { block } = listDevices(treeOf(nvme));
    expect(block.map((entry) => entry.name)).toEqual(['nvme0n1', 'nvme0n1p1', 'nvme0n1p2']);
    expect(block[0]).toEqual({
      name: 'nvme0n1',
      kind: 'disk',
      uri: 'file:/dev/nvme0n1',
      size_bytes: GIB,
      block_bytes: 4096,
      model: 'Samsung SSD 970',
      driver: 'nvme',
      pci_address: '0000:01:00.0',
      read_only: false,
      backing_file: '',
      held_by: [],
    });
    expect(block[1]).toMatchObject({ kind: 'partition', size_bytes: 2 ** 20, driver: 'nvme' });
  });

  it('says what holds a device, a disk being held by its partitions too', () => {
    const root = treeOf({
      ...nvme,
      '/proc/self/mountinfo': [
        '30 1 259:1 / /mnt/a\\040b rw - ext4 /dev/nvme0n1p1 rw',
        '31 1 0:40 /@ /btr rw shared:1 - btrfs /dev/nvme0n1p1 rw',
        '32 1 0:21 / /proc rw - proc proc rw',
      ].join('\n'),
      '/proc/swaps':
        'Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2\n/f file 1 0 -3',
      '/sys/block/nvme0n1/nvme0n1p2/holders/dm-0': '/',
      '/sys/block/dm-0/dm/name': 'vg-root',
    });
    const { block } = listDevices(root);
    const held = Object.fromEntries(block.map((entry) => [entry.name, entry.held_by]));
    expect(held).toEqual({
      nvme0n1: [
        'nvme0n1p1: mounted on /mnt/a b',
        'nvme0n1p1: mounted on /btr',
        'nvme0n1p2: swap',
        'nvme0n1p2: part of dm-0 (vg-root)',
      ],
      nvme0n1p1: ['mounted on /mnt/a b', 'mounted on /btr'],
      nvme0n1p2: ['swap', 'part of dm-0 (vg-root)'],
    });
  });

  it('shows a loop device with its file and leaves out what has no size', () => {
    const { block } = listDevices(
      treeOf({
        ...disk('/sys/block/loop0', '7:0'),
        '/sys/block/loop0/loop/backing_file': '/tmp/disk.img',
        ...disk('/sys/block/loop1', '7:1'),
        '/sys/block/loop1/size': '0',
        ...disk('/sys/block/cciss!c0d0', '104:0'),
      }),
    );
    expect(block).toHaveLength(2);
    expect(block[0]).toMatchObject({ uri: 'file:/dev/cciss/c0d0', kind: 'disk' });
    expect(block[1]).toMatchObject({ kind: 'loop', backing_file: '/tmp/disk.img' });
  });
});

describe('list of PCI devices', () => {
  it('describes an NVMe drive with its group, size, holders and URI', () => {
    const root = treeOf({
      ...nvme,
      '/usr/share/misc/pci.ids': [
        '144c  Other',
        '144d  Samsung Electronics Co Ltd',
        '\ta804  NVMe SSD Controller SM961',
        '\ta808  NVMe SSD Controller SM981',
        '\t\t144d a801  SSD 970 EVO',
        '144e  Another',
        '\ta808  Wrong',
      ].join('\n'),
      '/proc/self/mountinfo': '30 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw',
    });
    expect(listDevices(root).pci).toEqual([
      {
        address: '0000:01:00.0',
        kind: 'nvme',
        uri: 'nvme:0000:01:00.0/1',
        class: '0x010802',
        vendor: '0x144d',
        device: '0xa808',
        model: 'Samsung Electronics Co Ltd NVMe SSD Controller SM981',
        driver: 'nvme',
        iommu_group: '14',
        numa_node: 0,
        size_bytes: GIB,
        block_devices: ['nvme0n1'],
        interfaces: [],
        held_by: ['nvme0n1p1: mounted on /'],
      },
    ]);
  });

  it('marks the NIC of the default route, over a bridge too, and one that is merely up', () => {
    const root = treeOf({
      ...nic('0000:00:03.0', 'eth0', '0x8086', '0x10d3'),
      '/sys/devices/pci0000:00/0000:00:03.0/net/eth0/upper_br0': '/',
      '/sys/class/net/br0/operstate': 'up',
      ...nic('0000:00:04.0', 'eth1', '0x8086', '0x10d3'),
      ...nic('0000:00:05.0', 'eth2', '0x15b3', '0x1017'),
      ...nic('0000:00:06.0', 'eth3', '0x8086', '0x10d3'),
      '/proc/net/route': [
        'Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT',
        'br0 00000000 010200C0 0003 0 0 0 00000000 0 0 0',
        'eth1 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0',
      ].join('\n'),
      '/proc/net/ipv6_route':
        `${'0'.repeat(32)} 00 ${'0'.repeat(32)} 00 ${'0'.repeat(32)} 1 1 0 3 eth2\n` +
        `${'0'.repeat(32)} 00 ${'0'.repeat(32)} 00 ${'0'.repeat(32)} 1 1 0 200200 lo`,
    });
    const { pci } = listDevices(root);
    expect(pci.map((entry) => [entry.uri, entry.kind, entry.held_by])).toEqual([
      ['e1000e:0000:00:03.0', 'e1000e', ['eth0 carries br0', 'default route by br0 (eth0)']],
      ['e1000e:0000:00:04.0', 'e1000e', ['route to 192.0.2.0/24 (eth1)']],
      ['', 'network', ['default route (eth2)']],
      ['e1000e:0000:00:06.0', 'e1000e', ['eth3 is up']],
    ]);
    expect(pci[2]?.model).toBe('0x15b3:1017');
  });

  it('knows virtio devices by their id, old and new, and leaves the others out', () => {
    const files: Record<string, string> = {};
    for (const [slot, device] of ['0x1042', '0x1001', '0x1041', '0x1048', '0x1044'].entries()) {
      const folder = `/sys/bus/pci/devices/0000:00:0${slot}.0`;
      files[`${folder}/class`] = '0xffff00';
      files[`${folder}/vendor`] = '0x1af4';
      files[`${folder}/device`] = device;
    }
    expect(listDevices(treeOf(files)).pci.map((entry) => [entry.kind, entry.uri])).toEqual([
      ['virtio-blk', 'virtio-blk:0000:00:00.0'],
      ['virtio-blk', 'virtio-blk:0000:00:01.0'],
      ['virtio-net', 'virtio-net:0000:00:02.0'],
      ['virtio-scsi', ''],
    ]);
  });
});

describe('the table', () => {
  it('aligns columns and says when there is nothing', () => {
    expect(formatDevices(listDevices(treeOf({})))).toBe(
      'No block devices.\n\nNo PCI storage or network devices.\n',
    );
    const lines = formatDevices(listDevices(treeOf(nvme))).split('\n');
    const [heading = '', row = ''] = lines;
    expect(row.indexOf('1 GiB')).toBe(heading.indexOf('SIZE'));
    expect(row.indexOf('nothing')).toBe(heading.indexOf('HELD BY'));
    expect(lines[2]).toContain('  file:/dev/nvme0n1p1');
  });

  it('reads the machine it runs on', () => {
    for (const entry of listDevices(fileRoot()).block) {
      expect(entry.size_bytes).toBeGreaterThan(0);
      expect([512, 1024, 2048, 4096, 65536]).toContain(entry.block_bytes);
    }
  });
});
