// Devices of a guest as arguments of QEMU. Properties are QEMU's own (`-device NAME,help`).

import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export type Properties = Readonly<Record<string, string | number | boolean | undefined>>;

/** `-device driver,name=value,…`. */
export function device(driver: string, properties: Properties = {}): string[] {
  return ['-device', [driver, ...listOf(properties)].join(',')];
}

function listOf(properties: Properties): string[] {
  return Object.entries(properties).flatMap(([name, value]) => {
    if (value === undefined) return [];
    const text = typeof value === 'boolean' ? (value ? 'on' : 'off') : String(value);
    return [`${name}=${text.replaceAll(',', ',,')}`];
  });
}

const IMAGE_BYTES = 2 ** 26;

/** A fault that QEMU's block layer returns (its driver blkdebug). */
export interface DiskFault {
  iotype: 'read' | 'write' | 'write-zeroes' | 'discard' | 'flush';
  /** Sector of 512 bytes; every one when left out. */
  sector?: number;
  errno: number;
  /** For the first such access only. */
  once?: boolean;
}

export interface Disk {
  /** Size of an image, full of zeros, that is made for the guest and removed with it; 64 MiB. */
  bytes?: number;
  /** An image of the caller's instead. */
  file?: string;
  faults?: readonly DiskFault[];
  readOnly?: boolean;
  /** Name of a `throttle`, whose limits can be changed while the guest runs. */
  throttle?: string;
}

/** The images of disks by name; those that are to be made are made in `folder`. */
export function imageFiles(
  folder: string,
  disks: Readonly<Record<string, Disk>>,
): Record<string, string> {
  return Object.fromEntries(
    Object.entries(disks).map(([name, disk]) => {
      if (disk.file !== undefined) return [name, disk.file];
      const file = join(folder, `${name}.img`);
      writeFileSync(file, '');
      truncateSync(file, disk.bytes ?? IMAGE_BYTES);
      return [name, file];
    }),
  );
}

/** `-blockdev` of a raw image, with the disk's name as name of its node. */
export function blockdev(name: string, file: string, disk: Disk): string[] {
  const image = { driver: 'file', filename: file, discard: 'unmap' };
  const faults = disk.faults ?? [];
  const injected = faults.map(({ iotype, sector, errno, once }) => ({
    event: 'none',
    iotype,
    errno,
    once: once ?? false,
    ...(sector === undefined ? {} : { sector }),
  }));
  const below =
    faults.length === 0 ? image : { driver: 'blkdebug', image, 'inject-error': injected };
  const { throttle } = disk;
  const raw = { driver: 'raw', discard: 'unmap', file: below };
  const readOnly = disk.readOnly ?? false;
  // The throttle is on top: a controller's reset waits for what is in the node that it knows, and
  // only for that node is it let through.
  const node =
    throttle === undefined ? raw : { driver: 'throttle', 'throttle-group': throttle, file: raw };
  return ['-blockdev', JSON.stringify({ ...node, 'node-name': name, 'read-only': readOnly })];
}

/** Limits for the disks that name it; without one until `limits` of it is set (`qom-set`). */
export function throttle(id: string, limits: Readonly<Record<string, number>> = {}): string[] {
  return ['-object', JSON.stringify({ 'qom-type': 'throttle-group', id, limits })];
}

export interface Namespace {
  /** Name of a disk. */
  disk: string;
  nsid?: number;
  /** Bytes of a block: 512 (default) or 4096. */
  logicalBlock?: number;
  metadataBytes?: number;
  /** Type of protection information, 1 to 3. */
  protection?: number;
  more?: Properties;
}

export interface NvmeOptions {
  serial: string;
  /** Id of the device for `device_del`; default: nvme. */
  id?: string;
  /** Disks, as namespaces 1, 2, … or with facts of their own. */
  namespaces: readonly (string | Namespace)[];
  /** Largest transfer as a power of two of pages, as in Identify Controller. */
  mdts?: number;
  cmbMiB?: number;
  ioQueues?: number;
  msixVectors?: number;
  /** Name of a `rootPort`, for what is pulled. */
  bus?: string;
  more?: Properties;
}

export function nvme(options: NvmeOptions): string[] {
  const id = options.id ?? 'nvme';
  const controller = device('nvme', {
    id,
    serial: options.serial,
    bus: options.bus,
    mdts: options.mdts,
    cmb_size_mb: options.cmbMiB,
    max_ioqpairs: options.ioQueues,
    msix_qsize: options.msixVectors,
    ...options.more,
  });
  const namespaces = options.namespaces.flatMap((given, index) => {
    const namespace = typeof given === 'string' ? { disk: given } : given;
    return device('nvme-ns', {
      bus: id,
      drive: namespace.disk,
      nsid: namespace.nsid ?? index + 1,
      logical_block_size: namespace.logicalBlock,
      // QEMU refuses a physical block that is smaller than the logical one.
      physical_block_size: namespace.logicalBlock,
      ms: namespace.metadataBytes,
      pi: namespace.protection,
      ...namespace.more,
    });
  });
  return [...controller, ...namespaces];
}

/** A port that devices can be pulled from, and whose devices have a reset. */
export function rootPort(id: string, chassis: number): string[] {
  return device('pcie-root-port', { id, chassis, slot: chassis });
}

/** A network card on a hub of this guest's own; cards with the same `hub` see each other. */
export function e1000e(options: { id?: string; hub?: number; more?: Properties } = {}): string[] {
  return networkCard('e1000e', options.id ?? 'e1000e', options.hub ?? 0, options.more ?? {});
}

export function virtioNet(options: { id?: string; hub?: number; more?: Properties } = {}) {
  const behindIommu = { 'disable-legacy': 'on', iommu_platform: true };
  const more = { ...behindIommu, ...options.more };
  return networkCard('virtio-net-pci', options.id ?? 'net', options.hub ?? 0, more);
}

function networkCard(driver: string, id: string, hubid: number, more: Properties): string[] {
  const netdev = ['hubport', ...listOf({ id: `${id}-port`, hubid })].join(',');
  // No romfile: nobody boots from it, and it may not be installed.
  return [
    ...['-netdev', netdev],
    ...device(driver, { id, netdev: `${id}-port`, romfile: '', ...more }),
  ];
}

export interface IvshmemOptions {
  id: string;
  /** Number that the memory's descriptor has in QEMU: 3 for the first of `descriptors`. */
  descriptor: number;
  /** A power of two: it becomes a BAR. */
  bytes: number;
  /** The guest's stores go nowhere, whatever its mapping; for all but its own region. */
  readOnly: boolean;
  /** Its place on the bus, by which the guest knows whose it is. */
  addr: string;
}

/** Memory that the guest shares with others, as BAR 2 of a device. */
export function ivshmem({ id, descriptor, bytes, readOnly, addr }: IvshmemOptions): string[] {
  // QEMU opens the descriptor anew, for reading only where `readonly` is on.
  const backend = {
    'qom-type': 'memory-backend-file',
    id: `${id}-memory`,
    'mem-path': `/proc/self/fd/${descriptor}`,
    size: bytes,
    share: true,
    readonly: readOnly,
  };
  return [
    ...['-object', JSON.stringify(backend)],
    ...device('ivshmem-plain', { id, memdev: `${id}-memory`, addr }),
  ];
}

export function virtioBlock(options: { disk: string; id?: string; more?: Properties }): string[] {
  return device('virtio-blk-pci', {
    id: options.id ?? 'blk',
    drive: options.disk,
    'disable-legacy': 'on',
    iommu_platform: true,
    ...options.more,
  });
}
