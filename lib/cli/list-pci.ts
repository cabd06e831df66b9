// PCI functions that this stack can drive or that hold storage and networks: class 01 (storage), 02
// (network), and virtio's network, block and SCSI devices whatever class they claim. From sysfs
// (Documentation/ABI/testing/sysfs-bus-pci); virtio device ids as in virtio 1.2, section 4.1.2.

import {
  type Holders,
  type Root,
  interfaceUses,
  interfacesOf,
  listFunctions,
} from '../pci/index.js';
import type { BlockEntry } from './list-block.js';

const CLASS_STORAGE = 0x01;
const CLASS_NVME = 0x0108;
const CLASS_NETWORK = 0x02;
const VENDOR_VIRTIO = 0x1af4;
const VENDOR_INTEL = 0x8086;
/** Virtio device types: net, block, SCSI host. */
const VIRTIO_KINDS: Readonly<Record<number, PciKind>> = {
  1: 'virtio-net',
  2: 'virtio-blk',
  8: 'virtio-scsi',
};
/** Transitional virtio devices have ids of their own: 0x1000 net, 0x1001 block, 0x1004 SCSI. */
const VIRTIO_TRANSITIONAL: Readonly<Record<number, number>> = { 0x1000: 1, 0x1001: 2, 0x1004: 8 };
/** 82574L, which QEMU calls e1000e, and its siblings of the same register layout. */
const E1000E_DEVICES: readonly number[] = [0x10d3, 0x10f6];

export type PciKind =
  'nvme' | 'e1000e' | 'virtio-net' | 'virtio-blk' | 'virtio-scsi' | 'network' | 'storage';

export interface PciEntry {
  readonly address: string;
  readonly kind: PciKind;
  /** Opens it once it is bound to vfio-pci; '' where this stack has no driver for it. */
  readonly uri: string;
  /** Class, vendor and device ids, hexadecimal. */
  readonly class: string;
  readonly vendor: string;
  readonly device: string;
  readonly model: string;
  /** Kernel driver bound to it; '' for none. */
  readonly driver: string;
  /** '' without an IOMMU. */
  readonly iommu_group: string;
  /** -1 when unknown. */
  readonly numa_node: number;
  /** Of its block devices together; 0 for a NIC or when its driver shows none. */
  readonly size_bytes: number;
  readonly block_devices: readonly string[];
  readonly interfaces: readonly string[];
  readonly held_by: readonly string[];
}

export function listPciDevices(
  root: Root,
  holders: Holders,
  blocks: readonly BlockEntry[],
): PciEntry[] {
  const names = readPciNames(root);
  const entries: PciEntry[] = [];
  for (const facts of listFunctions(root)) {
    const { address, classCode, vendor, device } = facts;
    const kind = kindOf(classCode, vendor, device);
    if (kind === null) continue;
    const disks = blocks.filter(
      (block) => block.pci_address === address && block.kind !== 'partition',
    );
    const interfaces = interfacesOf(root, address);
    entries.push({
      address,
      kind,
      uri: uriOf(root, kind, address),
      class: hex(classCode, 6),
      vendor: hex(vendor, 4),
      device: hex(device, 4),
      model: names(vendor, device),
      driver: facts.driver,
      iommu_group: facts.group,
      numa_node: facts.numaNode,
      size_bytes: disks.reduce((sum, disk) => sum + disk.size_bytes, 0),
      block_devices: disks.map((disk) => disk.name),
      interfaces,
      held_by: [
        ...disks.flatMap((disk) => disk.held_by.map((holder) => nameOnce(disk.name, holder))),
        ...interfaces.flatMap((name) => interfaceUses(root, holders, name).map((use) => use.words)),
      ],
    });
  }
  return entries;
}

function kindOf(classCode: number, vendor: number, device: number): PciKind | null {
  if (vendor === VENDOR_VIRTIO && device >= 0x1000 && device < 0x1080) {
    const type = device >= 0x1040 ? device - 0x1040 : VIRTIO_TRANSITIONAL[device];
    return (type === undefined ? undefined : VIRTIO_KINDS[type]) ?? null;
  }
  if (classCode >>> 8 === CLASS_NVME) return 'nvme';
  if (classCode >>> 16 === CLASS_NETWORK) {
    return vendor === VENDOR_INTEL && E1000E_DEVICES.includes(device) ? 'e1000e' : 'network';
  }
  return classCode >>> 16 === CLASS_STORAGE ? 'storage' : null;
}

function uriOf(root: Root, kind: PciKind, address: string): string {
  switch (kind) {
    case 'nvme':
      return `nvme:${address}/${firstNamespace(root, address)}`;
    case 'virtio-blk':
    case 'virtio-net':
    case 'e1000e':
      return `${kind}:${address}`;
    default:
      return '';
  }
}

/** The lowest namespace the kernel's driver shows; 1 when that driver is not bound. */
function firstNamespace(root: Root, address: string): number {
  const folder = `/sys/bus/pci/devices/${address}/nvme`;
  for (const controller of root.list(folder)) {
    for (const child of root.list(`${folder}/${controller}`)) {
      const nsid = Number(root.read(`${folder}/${controller}/${child}/nsid`));
      if (nsid > 0) return nsid;
    }
  }
  return 1;
}

/** Names from the system's pci.ids where there is one, else the ids. */
function readPciNames(root: Root): (vendor: number, device: number) => string {
  const text = root.read('/usr/share/misc/pci.ids') || root.read('/usr/share/hwdata/pci.ids');
  return (vendor, device) => {
    const section = new RegExp(`^${hex(vendor, 4).slice(2)}  (.+)((?:\\n(?:\\t|#).*)*)`, 'm');
    const found = section.exec(text);
    if (found === null) return `${hex(vendor, 4)}:${hex(device, 4).slice(2)}`;
    const line = new RegExp(`^\\t${hex(device, 4).slice(2)}  (.+)`, 'm').exec(found[2] ?? '');
    return `${found[1] ?? ''} ${line?.[1] ?? hex(device, 4)}`;
  };
}

/** `vda: mounted on /`, and `vda1: mounted on /` where the holder names its partition already. */
function nameOnce(disk: string, holder: string): string {
  return holder.startsWith(disk) ? holder : `${disk}: ${holder}`;
}

function hex(value: number, digits: number): string {
  return `0x${value.toString(16).padStart(digits, '0')}`;
}
