// Why a PCI function may not be taken from its driver. Every check only looks; all of them run, for
// all functions, before the first change. What would lose data is refused whatever is asked for;
// what would cut somebody off can be forced.

import { blockNodesOf, blockUses } from './block-uses.js';
import {
  CLASS_BRIDGE,
  type FunctionFacts,
  functionFolder,
  groupObstacles,
  isUserDriver,
  isVfioDriver,
} from './facts.js';
import { type Holders, type Use, deviceNode } from './holders.js';
import type { Machine } from './machine.js';
import { interfaceUses, interfacesOf } from './network-uses.js';
import { type Process, processWords } from './processes.js';
import type { Root } from './root.js';

export interface Refusal {
  readonly address: string;
  readonly code: string;
  readonly reason: string;
  readonly hint: string;
  /** Whether `--force` lifts it. */
  readonly forceable: boolean;
}

export interface CheckOptions {
  /** The driver that is to have it. */
  readonly driver: string;
  /** Functions that are bound together: they do not stand in each other's way. */
  readonly together: ReadonlySet<string>;
  /**
   * Whether block devices are opened exclusively for a moment, which tells of holders that nothing
   * else shows (ZFS, a mount in a vanished namespace). It can make a mount of that moment fail, so
   * that what only shows the machine does without.
   */
  readonly probe: boolean;
}

/** What stands against giving the function to `options.driver`; nothing when it has it already. */
export function refusalsToBind(
  machine: Machine,
  holders: Holders,
  facts: FunctionFacts,
  options: CheckOptions,
): Refusal[] {
  if (facts.classCode >>> 16 === CLASS_BRIDGE) {
    const reason = 'it is a bridge, not a device';
    return [refusal(facts, 'NOT_BINDABLE', reason, 'Name the device behind it.')];
  }
  const toVfio = isVfioDriver(options.driver);
  return [
    ...(toVfio ? refusalsOfGroup(machine, facts, options.together) : []),
    ...(facts.driver === options.driver ? [] : refusalsToRelease(machine, holders, facts, options)),
  ];
}

/** What stands against taking the function from the driver that has it. */
export function refusalsToRelease(
  machine: Machine,
  holders: Holders,
  facts: FunctionFacts,
  { probe }: Pick<CheckOptions, 'probe'>,
): Refusal[] {
  const { root } = machine;
  if (facts.driver === '') return [];
  const refusals: Refusal[] = [];
  if (!root.exists(`${functionFolder(facts.address)}/driver/unbind`)) {
    const reason = `the driver ${facts.driver} cannot be unbound`;
    refusals.push(refusal(facts, 'NOT_BINDABLE', reason, 'It is built into this kernel for good.'));
  }
  for (const { words, hint, weight } of usesOf(machine, holders, facts, { probe })) {
    if (weight === 'harmless') continue;
    const forceable = weight === 'forceable';
    refusals.push({
      address: facts.address,
      code: 'DEVICE_IN_USE',
      reason: words,
      hint,
      forceable,
    });
  }
  return refusals;
}

/** What uses a function, by way of the driver that has it. */
export function usesOf(
  machine: Machine,
  holders: Holders,
  facts: FunctionFacts,
  { probe }: Pick<CheckOptions, 'probe'>,
): Use[] {
  if (facts.driver === '') return [];
  const uses = isUserDriver(facts.driver) ? usesByProcesses : usesByKernel;
  return uses(machine, holders, facts, probe);
}

function refusalsOfGroup(
  machine: Machine,
  facts: FunctionFacts,
  together: ReadonlySet<string>,
): Refusal[] {
  const { root } = machine;
  if (facts.group === '') {
    return [refusal(facts, 'NO_IOMMU', 'it is in no IOMMU group', iommuHint(root))];
  }
  const others = groupObstacles(root, facts.group, together);
  if (others.length === 0) return [];
  const names = others.map(({ address, driver }) => `${address} (${driver})`).join(', ');
  return [
    refusal(
      facts,
      'GROUP_NOT_VIABLE',
      `drivers of the kernel have others of its IOMMU group ${facts.group}: ${names}`,
      'Name them too, so that all are bound together; or put the device into another slot.',
    ),
  ];
}

/** What to do where there is no IOMMU, by what the machine is. */
export function iommuHint(root: Root): string {
  const cpu = root.read('/proc/cpuinfo');
  const without = 'without one --driver uio_pci_generic gives up its protection';
  if (/^flags\s*:.*\bhypervisor\b/m.test(cpu)) {
    return `Give this virtual machine an IOMMU (QEMU: -device intel-iommu); ${without}.`;
  }
  return cpu.includes('AuthenticAMD')
    ? `Turn on AMD-Vi in the firmware and boot with iommu=pt; ${without}.`
    : `Turn on VT-d in the firmware and boot with intel_iommu=on; ${without}.`;
}

/** Uses of a function that the kernel drives: its disks and interfaces, virtual functions of it. */
function usesByKernel(
  machine: Machine,
  holders: Holders,
  facts: FunctionFacts,
  probe: boolean,
): Use[] {
  const { root } = machine;
  const addresses = machine.networkAddresses();
  return withoutRepeats([
    ...usesOfBlocks(machine, holders, facts, probe),
    ...interfacesOf(root, facts.address).flatMap((name) =>
      interfaceUses(root, holders, name, addresses),
    ),
    ...hiddenInterface(root, facts.address),
    ...virtualFunctions(root, facts.address),
  ]);
}

function usesOfBlocks(
  machine: Machine,
  holders: Holders,
  { address }: FunctionFacts,
  probe: boolean,
): Use[] {
  const { root } = machine;
  const nodes = blockNodesOf(root, address);
  const opened = (name: string): Use[] =>
    holders.opened(deviceNode(name)).map((process) => openUse(name, process));
  const uses: Use[] = [];
  const held = new Set<string>();
  for (const node of nodes) {
    for (const use of blockUses(root, holders, node)) {
      uses.push({ ...use, words: `${node.name} is ${use.words}` });
      held.add(node.disk);
    }
  }
  for (const { name, disk } of nodes) {
    // Who claims a partition claims its disk; and a use that is known already needs no other proof.
    const claimed =
      probe && name === disk && !held.has(disk) && isClaimed(machine, deviceNode(name));
    if (claimed) uses.push(claimUse(name, opened(name)));
    else uses.push(...opened(name));
  }
  return [...uses, ...characterNames(root, address).flatMap(opened)];
}

function isClaimed(machine: Machine, path: string): boolean {
  return machine.tryOpen(path, 'exclusively') === 'EBUSY';
}

/** An interface on two bridges' way names its route twice. */
function withoutRepeats(uses: readonly Use[]): Use[] {
  return uses.filter((use, index) => uses.findIndex(({ words }) => words === use.words) === index);
}

function claimUse(name: string, opened: readonly Use[]): Use {
  const who = opened.map(({ words }) => `; ${words}`).join('');
  return {
    words: `${name} or a partition of it is opened exclusively${who}`,
    hint: `fuser -v ${deviceNode(name)}, lsblk or zpool status may tell who has it`,
    weight: 'fixed',
  };
}

function openUse(name: string, process: Process): Use {
  const hint = `end process ${process.pid}`;
  return { words: `${name} is open in ${processWords(process)}`, hint, weight: 'forceable' };
}

/** Of /dev/nvme0 and /dev/ng0n1. */
function characterNames(root: Root, address: string): string[] {
  return root.list(`${functionFolder(address)}/nvme`).flatMap((controller) => {
    const inside = root.list(`${functionFolder(address)}/nvme/${controller}`);
    return [controller, ...inside.filter((name) => /^ng\d+n\d+$/.test(name))];
  });
}

/**
 * Sysfs shows interfaces of one's own network namespace only; the folder `net` stays for those that
 * were moved into another (a container's).
 */
function hiddenInterface(root: Root, address: string): Use[] {
  const folder = functionFolder(address);
  const below = root.list(folder).filter((name) => /^virtio\d+$/.test(name));
  const hidden = ['', ...below.map((name) => `/${name}`)].some(
    (name) => root.exists(`${folder}${name}/net`) && root.list(`${folder}${name}/net`).length === 0,
  );
  if (!hidden) return [];
  const hint = 'ip netns list and the list of containers tell which; end that use.';
  const words = 'its network interface is in another network namespace';
  return [{ words, hint, weight: 'forceable' }];
}

/** Virtual functions go with the driver of their physical function, whoever uses them. */
function virtualFunctions(root: Root, address: string): Use[] {
  const count = Number(root.read(`${functionFolder(address)}/sriov_numvfs`) || '0');
  if (count === 0) return [];
  const hint = `echo 0 > ${functionFolder(address)}/sriov_numvfs`;
  return [{ words: `it has ${count} virtual functions enabled`, hint, weight: 'fixed' }];
}

/** Uses of a function that was given to processes: who has its group, or its uio device, open. */
function usesByProcesses(
  machine: Machine,
  holders: Holders,
  facts: FunctionFacts,
  probe: boolean,
): Use[] {
  const { root } = machine;
  const folder = functionFolder(facts.address);
  const paths = [
    ...(facts.group === '' ? [] : [`/dev/vfio/${facts.group}`]),
    ...root.list(`${folder}/vfio-dev`).map((name) => `/dev/vfio/devices/${name}`),
    ...root.list(`${folder}/uio`).map((name) => `/dev/${name}`),
  ];
  return paths.flatMap((path): Use[] => {
    const processes = holders.opened(path);
    if (processes.length > 0) {
      return processes.map((process) => ({
        words: `${path} is open in ${processWords(process)}`,
        hint: `end process ${process.pid}`,
        weight: 'fixed',
      }));
    }
    // The kernel lets a group be open once: EBUSY tells of a process that cannot be seen from here.
    const group = isVfioDriver(facts.driver) && path.startsWith('/dev/vfio/');
    if (!probe || !group || machine.tryOpen(path, 'for writing') !== 'EBUSY') return [];
    const words = `${path} is open in a process that cannot be seen from here`;
    return [
      { words, hint: `fuser -v ${path} as root of the machine tells which`, weight: 'fixed' },
    ];
  });
}

function refusal(facts: FunctionFacts, code: string, reason: string, hint: string): Refusal {
  return { address: facts.address, code, reason, hint, forceable: false };
}
