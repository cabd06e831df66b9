import { describe, expect, it } from 'vitest';
import { resolveFunction } from '../../lib/pci/index.js';
import { treeOf } from '../cli/tree.js';

const DISK = '0000:01:00.0';
const SECOND = '0000:02:00.0';
const folder = `/sys/devices/pci0000:00/0000:00:1c.0/${DISK}`;
const head = '/sys/devices/virtual/nvme-subsystem/nvme-subsys1';

const machine = () =>
  treeOf({
    [`/sys/bus/pci/devices/${DISK}`]: `->../../../devices/pci0000:00/0000:00:1c.0/${DISK}`,
    [`/sys/bus/pci/devices/${SECOND}/class`]: '0x010802',
    '/sys/bus/pci/devices/10000:e1:00.0/class': '0x010802',
    [`${folder}/nvme/nvme0/nvme0n1/nvme0n1p1/partition`]: '1',
    [`${folder}/virtio5/net/eth0/operstate`]: 'up',
    '/sys/class/nvme/nvme0': `->../../devices/pci0000:00/0000:00:1c.0/${DISK}/nvme/nvme0`,
    '/sys/class/block/nvme0n1p1': `->../../..${folder}/nvme/nvme0/nvme0n1/nvme0n1p1`,
    '/sys/class/net/eth0': `->../../devices/pci0000:00/0000:00:1c.0/${DISK}/virtio5/net/eth0`,
    '/sys/class/net/lo/operstate': 'unknown',
    '/dev/nvme0n1p1': '',
    '/dev/disk/by-id/nvme-x': '->../../nvme0n1p1',
    // A namespace that two controllers share.
    [`${head}/nvme1`]: `->../../../pci0000:00/0000:00:1c.0/${DISK}/nvme/nvme0`,
    [`${head}/nvme2`]: `->../../../../bus/pci/devices/${SECOND}`,
    [`${head}/nvme1n1/dev`]: '259:7',
    '/sys/class/block/nvme1n1': `->../../devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1`,
  });

describe('the name of a PCI function', () => {
  it.each([
    [DISK, DISK],
    ['01:00.0', DISK],
    ['0000:02:00.0', SECOND],
    ['10000:E1:00.0', '10000:e1:00.0'],
    ['nvme0', DISK],
    ['nvme0n1p1', DISK],
    ['/dev/nvme0n1p1', DISK],
    ['/dev/disk/by-id/nvme-x', DISK],
    ['eth0', DISK],
  ])('%s is %s', (name, address) => {
    expect(resolveFunction(machine(), name)).toBe(address);
  });

  it.each([
    ['0000:01:00.1', `Did you mean ${DISK}?`],
    ['03:00.0', 'Did you mean 0000:0'],
    ['eth1', `Did you mean eth0 (${DISK})?`],
    ['nvme0n1p2', `Did you mean nvme0n1p1 (${DISK})?`],
    ['lo', 'Only PCI functions can be bound'],
    ['nvme1n1', 'Give the address of the one that is meant.'],
  ])('%s is unknown: %s', (name, hint) => {
    expect(() => resolveFunction(machine(), name)).toThrowError(
      expect.objectContaining({
        code: 'NO_SUCH_DEVICE',
        exitCode: 3,
        hint: expect.stringContaining(hint) as string,
      }) as Error,
    );
  });

  it('has none near where there are none', () => {
    expect(() => resolveFunction(treeOf({}), 'eth0')).toThrowError(
      expect.objectContaining({ hint: 'This machine shows no PCI functions.' }) as Error,
    );
  });
});
