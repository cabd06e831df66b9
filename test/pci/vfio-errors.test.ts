import { describe, expect, it } from 'vitest';
import type { FunctionFacts } from '../../lib/pci/facts.js';
import { groupNotViable, openError, readyFunction, setupError } from '../../lib/pci/vfio-errors.js';
import { openVfio } from '../../lib/pci/vfio.js';
import { treeOf } from '../cli/tree.js';

const ADDRESS = '0000:01:00.0';

function functionOf(address: string, driver: string, group = '14'): Record<string, string> {
  const folder = `/sys/bus/pci/devices/${address}`;
  return {
    [`${folder}/class`]: '0x010802',
    [`${folder}/vendor`]: '0x144d',
    [`${folder}/device`]: '0xa808',
    ...(driver === '' ? {} : { [`${folder}/driver`]: `->/sys/bus/pci/drivers/${driver}` }),
    ...(group === '' ? {} : { [`${folder}/iommu_group`]: `->../kernel/iommu_groups/${group}` }),
    ...(group === '' ? {} : { [`/sys/kernel/iommu_groups/${group}/devices/${address}`]: '/' }),
  };
}

const VFIO = { '/dev/vfio/vfio': '' };

function errno(code: string, syscall = 'open'): Error {
  return Object.assign(new Error(`${syscall}: ${code}`), { code, errno: 1, syscall });
}

function errorWith(code: string, hint: RegExp): Error {
  return expect.objectContaining({ code, hint: expect.stringMatching(hint), exitCode: 3 }) as Error;
}

describe('before anything is opened', () => {
  it.each([
    [
      'an address that is none',
      'nvme0',
      functionOf(ADDRESS, 'vfio-pci'),
      'NO_SUCH_DEVICE',
      /0000:/,
    ],
    [
      'no such function',
      '02:00.0',
      functionOf(ADDRESS, 'vfio-pci'),
      'NO_SUCH_DEVICE',
      /Did you mean 0000:01/,
    ],
    ['no IOMMU', ADDRESS, functionOf(ADDRESS, 'vfio-pci', ''), 'NO_IOMMU', /VT-d or AMD-Vi/],
    ['no VFIO', ADDRESS, functionOf(ADDRESS, 'nvme'), 'VFIO_MISSING', /modprobe vfio-pci/],
    [
      'the kernel’s driver',
      ADDRESS,
      { ...functionOf(ADDRESS, 'nvme'), ...VFIO },
      'NOT_BOUND',
      /bind/,
    ],
    ['no driver', ADDRESS, { ...functionOf(ADDRESS, ''), ...VFIO }, 'NOT_BOUND', /0000:01:00\.0/],
  ])('%s', async (_what, address, files, code, hint) => {
    const root = treeOf(files);
    expect(() => readyFunction(root, address)).toThrow(errorWith(code, hint));
    await expect(openVfio(address, root)).rejects.toThrow(errorWith(code, hint));
  });

  it('takes short addresses, and the variants of vfio-pci', () => {
    const root = treeOf({ ...functionOf(ADDRESS, 'mlx5-vfio-pci'), ...VFIO });
    expect(readyFunction(root, '01:00.0')).toMatchObject({ address: ADDRESS, group: '14' });
  });
});

describe('by what a call answers', () => {
  const facts: FunctionFacts = {
    address: ADDRESS,
    classCode: 0x010802,
    vendor: 0x144d,
    device: 0xa808,
    driver: 'vfio-pci',
    driverOverride: '',
    group: '14',
    modalias: '',
    numaNode: -1,
    virtualFunctionsMax: 0,
    virtualFunctions: 0,
    physicalFunction: '',
  };

  it.each([
    ['/dev/vfio/vfio', 'ENOENT', 'VFIO_MISSING', /modprobe/],
    ['/dev/vfio/14', 'EACCES', 'PERMISSION_DENIED', /chown \S+ \/dev\/vfio\/14/],
    ['/dev/vfio/14', 'EBUSY', 'GROUP_BUSY', /fuser \/dev\/vfio\/14/],
    ['/dev/vfio/14', 'ENOENT', 'VFIO_FAILED', /cause/],
  ])('opening %s: %s', (path, code, expected, hint) => {
    const cause = errno(code);
    expect(openError(path, cause)).toEqual(errorWith(expected, hint));
    expect(openError(path, cause)).toMatchObject({ cause });
  });

  it('an IOMMU that does not remap interrupts', () => {
    const cause = errno('EPERM', 'ioctl(VFIO_SET_IOMMU)');
    expect(setupError(facts, cause)).toEqual(errorWith('NO_IOMMU', /allow_unsafe_interrupts/));
    expect(setupError(facts, errno('EINVAL'))).toEqual(errorWith('VFIO_FAILED', /kernel log/));
  });

  it('names the members of a group that the kernel has', () => {
    const root = treeOf({
      ...functionOf(ADDRESS, 'vfio-pci'),
      ...functionOf('0000:01:00.1', 'e1000e'),
      ...functionOf('0000:01:00.2', 'vfio-pci'),
      ...functionOf('0000:01:00.3', ''),
    });
    const error = groupNotViable(root, facts);
    expect(error).toEqual(errorWith('GROUP_NOT_VIABLE', /^penstock bind 0000:01:00\.1$/));
    expect(error.message).toMatch(/0000:01:00\.1 \(e1000e\)$/);
  });

  it('leaves mistakes of the program as they are', () => {
    const mistake = new TypeError('x');
    expect(openError('/dev/vfio/14', mistake)).toBe(mistake);
    expect(setupError(facts, mistake)).toBe(mistake);
  });
});
