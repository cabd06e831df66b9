import { expect, it } from 'vitest';
import { groupMembers, listFunctions } from '../../lib/pci/facts.js';
import { treeOf } from '../cli/tree.js';

it('sysfs says what a function is, who has it, and what it has of virtual ones', () => {
  const physical = '/sys/bus/pci/devices/0000:01:00.0';
  const virtual = '/sys/bus/pci/devices/0000:01:00.1';
  const root = treeOf({
    [`${physical}/class`]: '0x010802',
    [`${physical}/vendor`]: '0x144d',
    [`${physical}/device`]: '0xa824',
    [`${physical}/modalias`]: 'pci:v0000144Dd0000A824',
    [`${physical}/driver`]: '->../../../bus/pci/drivers/nvme',
    [`${physical}/driver_override`]: '(null)',
    [`${physical}/iommu_group`]: '->../../../kernel/iommu_groups/7',
    [`${physical}/numa_node`]: '1',
    [`${physical}/sriov_totalvfs`]: '32',
    [`${physical}/sriov_numvfs`]: '1',
    [`${virtual}/class`]: '0x010802',
    [`${virtual}/vendor`]: '0x144d',
    [`${virtual}/device`]: '0xa824',
    [`${virtual}/driver_override`]: 'vfio-pci',
    [`${virtual}/physfn`]: '->../0000:01:00.0',
    [`${virtual}/numa_node`]: '-1',
    '/sys/kernel/iommu_groups/7/devices/0000:01:00.0': '/',
    '/sys/kernel/iommu_groups/7/devices/0000:09:00.0': '/',
  });
  const facts = { classCode: 0x010802, vendor: 0x144d, device: 0xa824 };
  const first = {
    ...facts,
    address: '0000:01:00.0',
    driver: 'nvme',
    driverOverride: '',
    group: '7',
    modalias: 'pci:v0000144Dd0000A824',
    numaNode: 1,
    virtualFunctionsMax: 32,
    virtualFunctions: 1,
    physicalFunction: '',
  };
  const second = {
    ...facts,
    address: '0000:01:00.1',
    driver: '',
    driverOverride: 'vfio-pci',
    group: '',
    modalias: '',
    numaNode: -1,
    virtualFunctionsMax: 0,
    virtualFunctions: 0,
    physicalFunction: '0000:01:00.0',
  };
  expect(listFunctions(root)).toEqual([first, second]);
  expect(groupMembers(root, '7')).toEqual([first]); // one of them went meanwhile
});
