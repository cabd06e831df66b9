// `nvme list`: namespaces as nvme-cli 2.3 prints them. Drives of the kernel are shown as sysfs has
// them (Documentation/ABI/stable/sysfs-class-nvme), without being opened; those of vfio-pci are
// asked.
//
// What sysfs of the kernel does not say (blocks in use and metadata, before 6.8) is `-`, or null.

import {
  formatInUse,
  type NvmeAdmin,
  parseController,
  parseNamespace,
} from '../drivers/nvme/index.js';
import { siBytes } from './nvme-format.js';
import type { Root } from '../pci/index.js';

const SECTOR_BYTES = 512;
const CLASS_NVME = 0x0108;
/** nvme0n1, and nvme0c1n1: a path of several to nvme0n1. */
const NAMESPACE_NAME = /^(nvme\d+)(?:c\d+)?(n\d+)$/;

export interface NvmeListEntry {
  /** `/dev/nvme0n1`; the URI where penstock has the drive. */
  readonly node: string;
  /** `/dev/ng0n1`; '' where there is none. */
  readonly generic: string;
  readonly serial: string;
  readonly model: string;
  readonly firmware: string;
  readonly nsid: number;
  readonly blocks: number;
  readonly blockBytes: number;
  readonly metadataBytes: number | null;
  readonly usedBytes: number | null;
  readonly address: string;
  /** Kernel driver of the function. */
  readonly driver: string;
}

/** Namespaces of drives that the kernel's driver has. */
export function listKernelNamespaces(root: Root): NvmeListEntry[] {
  const seen = new Set<string>();
  return root.list('/sys/class/nvme').flatMap((controller) => {
    const folder = `/sys/class/nvme/${controller}`;
    const names = root.list(folder).flatMap((child) => {
      const match = NAMESPACE_NAME.exec(child);
      return match === null ? [] : [`${match[1]}${match[2]}`];
    });
    return names
      .filter((name) => !seen.has(name) && seen.add(name) !== undefined)
      .map((name) => kernelNamespace(root, folder, name))
      .sort((a, b) => a.nsid - b.nsid);
  });
}

function kernelNamespace(root: Root, controller: string, name: string): NvmeListEntry {
  const block = root.exists(`/sys/block/${name}`) ? `/sys/block/${name}` : `${controller}/${name}`;
  const blockBytes = Number(root.read(`${block}/queue/logical_block_size`) || SECTOR_BYTES);
  const generic = name.replace('nvme', 'ng');
  const used = root.read(`${block}/nuse`);
  const metadata = root.read(`${block}/metadata_bytes`);
  return {
    node: `/dev/${name}`,
    generic: root.exists(`/sys/class/nvme-generic/${generic}`) ? `/dev/${generic}` : '',
    serial: root.read(`${controller}/serial`),
    model: root.read(`${controller}/model`),
    firmware: root.read(`${controller}/firmware_rev`),
    nsid: Number(root.read(`${block}/nsid`) || '0'),
    blocks: Math.floor((Number(root.read(`${block}/size`)) * SECTOR_BYTES) / blockBytes),
    blockBytes,
    metadataBytes: metadata === '' ? null : Number(metadata),
    usedBytes: used === '' ? null : Number(used) * blockBytes,
    address: root.read(`${controller}/address`),
    driver: 'nvme',
  };
}

/** Functions of the NVMe class that the kernel's driver does not have, with what does. */
export function otherControllers(root: Root): { address: string; driver: string }[] {
  return root.list('/sys/bus/pci/devices').flatMap((address) => {
    const folder = `/sys/bus/pci/devices/${address}`;
    const driver = root.linkName(`${folder}/driver`);
    const isNvme = Number(root.read(`${folder}/class`)) >>> 8 === CLASS_NVME;
    return isNvme && driver !== 'nvme' ? [{ address, driver }] : [];
  });
}

/** Namespaces of an open controller. */
export async function listOpenNamespaces(
  admin: NvmeAdmin,
  driver: string,
): Promise<NvmeListEntry[]> {
  const { sn, mn, fr } = parseController(await admin.identifyController());
  const entries: NvmeListEntry[] = [];
  for (const nsid of await admin.activeNamespaces()) {
    const namespace = parseNamespace(await admin.identifyNamespace(nsid));
    const format = formatInUse(namespace);
    const blockBytes = format?.blockBytes ?? 0;
    entries.push({
      node: `nvme:${admin.address}/${nsid}`,
      generic: '',
      serial: sn,
      model: mn,
      firmware: fr,
      nsid,
      blocks: Number(namespace.nsze),
      blockBytes,
      metadataBytes: format?.metadataBytes ?? null,
      usedBytes: Number(namespace.nuse) * blockBytes,
      address: admin.address,
      driver,
    });
  }
  return entries;
}

/** nvme-cli's keys, and what holds the function. */
export function listJson(entries: readonly NvmeListEntry[]): { Devices: object[] } {
  return {
    Devices: entries.map((entry) => ({
      NameSpace: entry.nsid,
      DevicePath: entry.node,
      Firmware: entry.firmware,
      ModelNumber: entry.model,
      SerialNumber: entry.serial,
      UsedBytes: entry.usedBytes,
      MaximumLBA: entry.blocks,
      PhysicalSize: entry.blocks * entry.blockBytes,
      SectorSize: entry.blockBytes,
      Address: entry.address,
      Driver: entry.driver,
    })),
  };
}

const WIDTHS = [21, 21, 20, 40, 9, 26, 16, 8] as const;
const HEADING = ['Node', 'Generic', 'SN', 'Model', 'Namespace', 'Usage', 'Format', 'FW Rev'];

export function listText(entries: readonly NvmeListEntry[]): string {
  const rows = entries.map((entry) => [
    entry.node,
    entry.generic === '' ? '-' : entry.generic,
    entry.serial,
    entry.model,
    String(entry.nsid),
    `${siColumn(entry.usedBytes)} / ${siColumn(entry.blocks * entry.blockBytes)}`,
    formatColumn(entry.blockBytes, entry.metadataBytes),
    entry.firmware,
  ]);
  const dashes = WIDTHS.map((width) => '-'.repeat(width));
  const lines = [HEADING, dashes, ...rows].map((row) =>
    row.map((cell, column) => cell.padEnd(WIDTHS[column] ?? 0)).join(' '),
  );
  return `${lines.join('\n')}\n`;
}

/** `  1.07  GB`, ten columns. */
function siColumn(bytes: number | null): string {
  if (bytes === null) return '-'.padStart(10);
  const { number, suffix } = siBytes(BigInt(Math.round(bytes)));
  return `${number.padStart(6)} ${suffix.padStart(2)}B`;
}

/** `512   B +  0 B`, `  4 KiB +  8 B`. */
function formatColumn(blockBytes: number, metadataBytes: number | null): string {
  const binary = blockBytes >= 1024;
  const size = String(binary ? Math.round(blockBytes / 1024) : blockBytes).padStart(3);
  const metadata = (metadataBytes === null ? '-' : String(metadataBytes)).padStart(2);
  return `${size} ${binary ? 'Ki' : '  '}B + ${metadata} B`;
}
