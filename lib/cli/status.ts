// `penstock status`: what could be bound, what stands against it, what is bound and by whom;
// hugepages and VFIO. Reads only: what would open a device exclusively is left to `bind`.

import type { Command } from 'commander';
import {
  type BindState,
  type FunctionFacts,
  type HugepagePool,
  type Holders,
  type Machine,
  type Refusal,
  bindState,
  groupMembers,
  groupObstacles,
  hostMachine,
  isUserDriver,
  readFacts,
  readHolders,
  readHugepages,
  readRecord,
  recordedAddresses,
  refusalsToBind,
  usesOf,
} from '../pci/index.js';
import { formatSize } from '../units.js';
import { poolJson } from './hugepages.js';
import { listDevices } from './list.js';
import { Exit, printJson, printNote, printText, table } from './output.js';
import type { Finish } from './program.js';

const MODULES: readonly string[] = ['vfio', 'vfio_pci', 'vfio_iommu_type1'];

export interface StatusEntry {
  readonly address: string;
  readonly kind: string;
  /** The kernel's names: disks and network interfaces. */
  readonly names: readonly string[];
  readonly driver: string;
  readonly driver_override: string;
  readonly iommu_group: string;
  /** Whether nothing of the kernel is in its group beside it; null without a group. */
  readonly group_viable: boolean | null;
  readonly group_members: readonly string[];
  readonly in_use_by: readonly string[];
  /** What `bind` would say; it looks more closely. */
  readonly refusals: readonly Omit<Refusal, 'address'>[];
  /** Null when penstock did not bind it; '' where the record cannot be read. */
  readonly bound: {
    readonly state: BindState | 'unknown';
    readonly since: string;
    readonly driver: string;
    readonly original_driver: string;
  } | null;
  /** Its group's node and that node's owner; '' and -1 when there is none. */
  readonly node: string;
  readonly node_uid: number;
}

export interface Status {
  readonly functions: readonly StatusEntry[];
  readonly hugepages: readonly HugepagePool[];
  readonly vfio: {
    readonly modules: readonly string[];
    readonly container: boolean;
    readonly iommu_groups: number;
  };
}

export function configure(command: Command, finish: Finish): void {
  command.action((options: { json?: boolean }) => {
    const status = readStatus(hostMachine());
    if (process.geteuid?.() !== 0) {
      printNote('not root: other processes and the records of bindings cannot be seen');
    }
    if (options.json === true) {
      printJson('status', { ...status, hugepages: status.hugepages.map(poolJson) });
    } else printText(formatStatus(status));
    finish(Exit.OK);
  });
}

export function readStatus(machine: Machine): Status {
  const { root } = machine;
  const holders = readHolders(root);
  const known = new Map(listDevices(root, holders).pci.map((entry) => [entry.address, entry]));
  const recorded = recordedAddresses(root);
  const taken = root
    .list('/sys/bus/pci/devices')
    .filter((address) => isUserDriver(readFacts(root, address)?.driver ?? ''));
  const addresses = [...new Set([...known.keys(), ...recorded, ...taken])].sort();
  const functions = addresses.map((address) => {
    const entry = known.get(address);
    const names = [...(entry?.block_devices ?? []), ...(entry?.interfaces ?? [])];
    const kind = entry?.kind ?? 'other';
    const bound = recorded.includes(address) ? boundBy(machine, address) : null;
    return { address, kind, names, bound, ...describe(machine, holders, address) };
  });
  return {
    functions,
    hugepages: readHugepages(root),
    vfio: {
      modules: MODULES.filter((name) => root.exists(`/sys/module/${name}`)),
      container: root.exists('/dev/vfio/vfio'),
      iommu_groups: root.list('/sys/kernel/iommu_groups').length,
    },
  };
}

type Description = Omit<StatusEntry, 'address' | 'kind' | 'names' | 'bound'>;

function describe(machine: Machine, holders: Holders, address: string): Description {
  const { root } = machine;
  const facts = readFacts(root, address) ?? absent(address);
  const { driver, group } = facts;
  const members = groupMembers(root, group).filter((member) => member.address !== address);
  const viable = groupObstacles(root, group, new Set([address])).length === 0;
  const options = { driver: 'vfio-pci', together: new Set([address]), probe: false };
  const node = group !== '' && root.exists(`/dev/vfio/${group}`) ? `/dev/vfio/${group}` : '';
  return {
    driver,
    driver_override: facts.driverOverride,
    iommu_group: group,
    group_viable: group === '' ? null : viable,
    group_members: members.map((member) => member.address),
    in_use_by: usesOf(machine, holders, facts, { probe: false }).map(({ words }) => words),
    refusals: refusalsToBind(machine, holders, facts, options).map(
      ({ address: _address, ...refusal }) => refusal,
    ),
    node,
    node_uid: node === '' ? -1 : machine.ownerOf(node),
  };
}

/** A device that went: nothing is known of it, nothing can be done with it. */
function absent(address: string): FunctionFacts {
  const words = { driver: '', driverOverride: '', group: '', modalias: '', physicalFunction: '' };
  const numbers = { numaNode: -1, virtualFunctionsMax: 0, virtualFunctions: 0 };
  return { address, classCode: 0, vendor: 0, device: 0, ...words, ...numbers };
}

function boundBy({ root }: Machine, address: string): StatusEntry['bound'] {
  const record = readRecord(root, address);
  if (record === null) return { state: 'unknown', since: '', driver: '', original_driver: '' };
  const { since, driver, originalDriver } = record;
  return { state: bindState(root, record), since, driver, original_driver: originalDriver };
}

export function formatStatus({ functions, hugepages, vfio }: Status): string {
  const heading = ['FUNCTION', 'NAME', 'DRIVER', 'GROUP', 'VIABLE', 'BIND', 'BY US', 'IN USE BY'];
  const rows = functions.map((entry) => [
    entry.address,
    entry.names.join(' ') || entry.kind,
    entry.driver || '-',
    entry.iommu_group || '-',
    entry.group_viable === null ? '-' : entry.group_viable ? 'yes' : 'no',
    bindWords(entry),
    boundWords(entry),
    useWords(entry),
  ]);
  const pools = hugepages
    .filter(({ node }) => node === null)
    .map(({ pageBytes, reserved, free }) => {
      return `${formatSize(pageBytes)}: ${reserved} reserved, ${free} free`;
    });
  const modules = vfio.modules.length === 0 ? 'not loaded' : `${vfio.modules.join(' ')} loaded`;
  return [
    rows.length === 0 ? 'No PCI storage or network devices.\n' : table(heading, rows),
    `hugepages  ${pools.length === 0 ? 'none' : pools.join('; ')}`,
    `vfio       ${modules}, ${vfio.iommu_groups} IOMMU groups`,
  ].join('\n');
}

/** What `penstock bind` would do with it. */
function bindWords({ driver, refusals }: StatusEntry): string {
  const codes = [...new Set(refusals.map(({ code }) => code))];
  if (codes.length > 0) return codes.join(' ');
  return isUserDriver(driver) ? 'bound' : 'free';
}

/** The first two: a NIC may have a hundred routes. */
function useWords({ in_use_by: uses }: StatusEntry): string {
  const more = uses.length > 2 ? [`${uses.length - 2} more`] : [];
  return [...uses.slice(0, 2), ...more].join(', ') || 'nothing';
}

function boundWords({ bound }: StatusEntry): string {
  if (bound === null) return '-';
  const was = bound.original_driver === '' ? '' : `, was ${bound.original_driver}`;
  switch (bound.state) {
    case 'bound':
      return `since ${bound.since}${was}`;
    case 'unknown':
      return 'unreadable record: unbind gives it back';
    default:
      return `${bound.state} since ${bound.since}${was}: unbind repairs`;
  }
}
