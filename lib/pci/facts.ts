// What sysfs says of PCI functions (Documentation/ABI/testing/sysfs-bus-pci), read anew at each
// call.

import type { Root } from './root.js';

/** Base class of bridges, and bridge to another PCI bus (PCI Code and ID Assignment, 1.7). */
export const CLASS_BRIDGE = 0x06;
const CLASS_PCI_BRIDGE = 0x0604;

export interface FunctionFacts {
  readonly address: string;
  /** Base class << 16 | sub-class << 8 | programming interface. */
  readonly classCode: number;
  readonly vendor: number;
  readonly device: number;
  /** '' when no driver has it. */
  readonly driver: string;
  /** '' when there is none. */
  readonly driverOverride: string;
  /** Number of its IOMMU group; '' without an IOMMU. */
  readonly group: string;
  /** What modprobe finds the module by that the kernel would drive it with. */
  readonly modalias: string;
  /** -1 when unknown. */
  readonly numaNode: number;
  /** Virtual functions it can have (SR-IOV), and those that are enabled. */
  readonly virtualFunctionsMax: number;
  readonly virtualFunctions: number;
  /** Of a virtual function, the address of its physical one; '' for others. */
  readonly physicalFunction: string;
}

const FUNCTIONS = '/sys/bus/pci/devices';

/** Every function of the machine. */
export function listFunctions(root: Root): FunctionFacts[] {
  return root.list(FUNCTIONS).flatMap((address) => readFacts(root, address) ?? []);
}

export function functionFolder(address: string): string {
  return `${FUNCTIONS}/${address}`;
}

/** Null when there is no such function (any more). */
export function readFacts(root: Root, address: string): FunctionFacts | null {
  const folder = functionFolder(address);
  if (!root.exists(folder)) return null;
  const override = root.read(`${folder}/driver_override`);
  return {
    address,
    classCode: Number(root.read(`${folder}/class`)),
    vendor: Number(root.read(`${folder}/vendor`)),
    device: Number(root.read(`${folder}/device`)),
    driver: root.linkName(`${folder}/driver`),
    driverOverride: override === '(null)' ? '' : override,
    group: root.linkName(`${folder}/iommu_group`),
    modalias: root.read(`${folder}/modalias`),
    numaNode: Number(root.read(`${folder}/numa_node`) || '-1'),
    virtualFunctionsMax: Number(root.read(`${folder}/sriov_totalvfs`)),
    virtualFunctions: Number(root.read(`${folder}/sriov_numvfs`)),
    physicalFunction: root.linkName(`${folder}/physfn`),
  };
}

/** The functions of the group, the given one included. */
export function groupMembers(root: Root, group: string): FunctionFacts[] {
  if (group === '') return [];
  return root
    .list(`/sys/kernel/iommu_groups/${group}/devices`)
    .map((address) => readFacts(root, address))
    .filter((facts) => facts !== null);
}

/** Members beside these that keep the function's group from being given to VFIO. */
export function groupObstacles(
  root: Root,
  group: string,
  beside: ReadonlySet<string>,
): FunctionFacts[] {
  return groupMembers(root, group).filter(
    (member) => !beside.has(member.address) && !leavesGroupViable(member),
  );
}

/** Whether a group stays viable with this member: the kernel's own rule (linux, vfio and pci). */
export function leavesGroupViable({ driver, classCode }: FunctionFacts): boolean {
  if (driver === '' || classCode >>> 8 === CLASS_PCI_BRIDGE) return true;
  return isVfioDriver(driver) || driver === 'pci-stub' || driver === 'pcieport';
}

/** vfio-pci and its variants for single devices (mlx5-vfio-pci, …). */
export function isVfioDriver(driver: string): boolean {
  return /vfio[-_]pci$/.test(driver);
}

/** Drivers that hand a device to a process: nothing of the kernel uses it. */
export function isUserDriver(driver: string): boolean {
  return isVfioDriver(driver) || /^(uio_pci_generic|igb_uio|pci-stub)$/.test(driver);
}
