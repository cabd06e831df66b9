// Block devices as sysfs shows them (Documentation/ABI/stable/sysfs-block): size, driver, model,
// what holds them, and the URI that opens them.

import { type Holders, type Root, blockUses, deviceNode, lastFunction } from '../pci/index.js';
import { formatUri } from '../uri.js';

/** Sysfs counts sizes in these whatever the device's block size is. */
const SECTOR_BYTES = 512;

export interface BlockEntry {
  readonly name: string;
  readonly kind: 'disk' | 'partition' | 'loop' | 'mapped' | 'raid' | 'memory';
  readonly uri: string;
  readonly size_bytes: number;
  readonly block_bytes: number;
  readonly model: string;
  readonly driver: string;
  /** Of the PCI function it hangs on; '' when on none. */
  readonly pci_address: string;
  readonly read_only: boolean;
  /** Of a loop device. */
  readonly backing_file: string;
  /**
   * What holds it, in words; none: free to use. A disk is also held by what holds its partitions.
   */
  readonly held_by: readonly string[];
}

/** Every block device with a size, partitions after their disk. */
export function listBlockDevices(root: Root, holders: Holders): BlockEntry[] {
  const entries: BlockEntry[] = [];
  for (const name of root.list('/sys/block')) {
    const folder = `/sys/block/${name}`;
    if (Number(root.read(`${folder}/size`)) === 0) continue;
    const disk = readEntry(root, holders, folder, name, null);
    const partitions = root
      .list(folder)
      .filter((child) => root.exists(`${folder}/${child}/partition`))
      .map((child) => readEntry(root, holders, `${folder}/${child}`, child, disk));
    const inherited = partitions.flatMap((partition) =>
      partition.held_by.map((holder) => `${partition.name}: ${holder}`),
    );
    entries.push({ ...disk, held_by: [...disk.held_by, ...inherited] }, ...partitions);
  }
  return entries;
}

function readEntry(
  root: Root,
  holders: Holders,
  folder: string,
  name: string,
  disk: BlockEntry | null,
): BlockEntry {
  const path = disk === null ? root.resolve(folder) : '';
  return {
    name,
    kind: disk === null ? kindOf(root, folder, name) : 'partition',
    uri: formatUri({
      scheme: 'file',
      transport: '',
      path: deviceNode(name),
      query: new Map(),
      volume: '',
    }),
    size_bytes: Number(root.read(`${folder}/size`)) * SECTOR_BYTES,
    block_bytes:
      disk?.block_bytes ??
      Number(root.read(`${folder}/queue/logical_block_size`) || String(SECTOR_BYTES)),
    model: disk?.model ?? modelOf(root, folder),
    driver: disk?.driver ?? driverOf(root, folder),
    pci_address: disk?.pci_address ?? lastFunction(path),
    read_only: root.read(`${folder}/ro`) === '1',
    backing_file: root.read(`${folder}/loop/backing_file`),
    held_by: blockUses(root, holders, { name, folder }).map((use) => use.words),
  };
}

function kindOf(root: Root, folder: string, name: string): BlockEntry['kind'] {
  if (root.exists(`${folder}/loop`)) return 'loop';
  if (root.exists(`${folder}/dm`)) return 'mapped';
  if (root.exists(`${folder}/md`)) return 'raid';
  if (/^(ram|zram|pmem)\d/.test(name)) return 'memory';
  return 'disk';
}

function modelOf(root: Root, folder: string): string {
  const mapped = root.read(`${folder}/dm/name`);
  if (mapped !== '') return mapped;
  const vendor = root.read(`${folder}/device/vendor`);
  const model = root.read(`${folder}/device/model`);
  // Of a virtio disk `vendor` is a number, and it has no model.
  return [vendor.startsWith('0x') ? '' : vendor, model].filter((part) => part !== '').join(' ');
}

/** The driver of the device, or of what it stands on (an NVMe namespace's controller). */
function driverOf(root: Root, folder: string): string {
  for (const path of [`${folder}/device/driver`, `${folder}/device/device/driver`]) {
    const name = root.linkName(path);
    if (name !== '') return name;
  }
  return '';
}
