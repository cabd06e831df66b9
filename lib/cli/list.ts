// `penstock list`: the machine's block and PCI devices, what holds each, and the URI that opens it.
// Reads only.

import type { Command } from 'commander';
import { type Root, fileRoot, readHolders } from '../pci/index.js';
import { formatSize } from '../units.js';
import { type BlockEntry, listBlockDevices } from './list-block.js';
import { type PciEntry, listPciDevices } from './list-pci.js';
import { Exit, printJson, printText, table } from './output.js';
import type { Finish } from './program.js';

export interface DeviceList {
  readonly block: readonly BlockEntry[];
  readonly pci: readonly PciEntry[];
}

export function configure(command: Command, finish: Finish): void {
  command.action((options: { json?: boolean }) => {
    const devices = listDevices(fileRoot());
    if (options.json === true) printJson('list', devices);
    else printText(formatDevices(devices));
    finish(Exit.OK);
  });
}

export function listDevices(root: Root, holders = readHolders(root)): DeviceList {
  const block = listBlockDevices(root, holders);
  return { block, pci: listPciDevices(root, holders, block) };
}

export function formatDevices({ block, pci }: DeviceList): string {
  const blockRows = block.map((entry) => [
    entry.kind === 'partition' ? `  ${entry.uri}` : entry.uri,
    formatSize(entry.size_bytes),
    String(entry.block_bytes),
    entry.driver || entry.kind,
    entry.pci_address || '-',
    entry.held_by.join(', ') || (entry.read_only ? 'nothing (read-only)' : 'nothing'),
    entry.backing_file || entry.model,
  ]);
  const pciRows = pci.map((entry) => [
    entry.address,
    entry.kind,
    entry.driver || '-',
    entry.iommu_group || '-',
    entry.size_bytes > 0 ? formatSize(entry.size_bytes) : '-',
    entry.uri || '-',
    entry.held_by.join(', ') || 'nothing',
    entry.model,
  ]);
  const blockHeading = ['BLOCK DEVICE', 'SIZE', 'BLOCK', 'DRIVER', 'PCI', 'HELD BY', 'MODEL'];
  const pciHeading = ['PCI', 'KIND', 'DRIVER', 'GROUP', 'SIZE', 'URI', 'HELD BY', 'MODEL'];
  return [
    blockRows.length === 0 ? 'No block devices.\n' : table(blockHeading, blockRows),
    pciRows.length === 0 ? 'No PCI storage or network devices.\n' : table(pciHeading, pciRows),
  ].join('\n');
}
