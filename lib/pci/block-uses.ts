// Block devices of a PCI function, and what uses each: mounts, swap, kernel services, and what is
// stacked on it (device mapper, RAID), looked through up to what uses that. Taking a used device
// from the kernel would pull the ground from under whoever uses it.

import { type Holders, type Use, deviceNode } from './holders.js';
import { lastFunction } from './names.js';
import type { Root } from './root.js';

/** Stacks are a few levels deep; sysfs cannot form a cycle, a made-up tree can. */
const STACK_DEPTH_MAX = 16;

export interface BlockNode {
  readonly name: string;
  /** In sysfs. */
  readonly folder: string;
  /** Of a partition, its disk; of a disk, itself. */
  readonly disk: string;
}

/** Disks of a function and their partitions, each disk before its own. */
export function blockNodesOf(root: Root, address: string): BlockNode[] {
  const heads = multipathHeads(root, address);
  return root
    .list('/sys/block')
    .filter((name) => {
      const folder = `/sys/block/${name}`;
      // A path of a multipath namespace has no node; the namespace's head stands for it.
      if (root.read(`${folder}/hidden`) === '1') return false;
      return heads.has(name) || lastFunction(root.resolve(folder)) === address;
    })
    .flatMap((name) => [diskNode(name), ...partitionsOf(root, name)]);
}

function diskNode(name: string): BlockNode {
  return { name, folder: `/sys/block/${name}`, disk: name };
}

function partitionsOf(root: Root, disk: string): BlockNode[] {
  const folder = `/sys/block/${disk}`;
  return root
    .list(folder)
    .filter((child) => root.exists(`${folder}/${child}/partition`))
    .map((name) => ({ name, folder: `${folder}/${name}`, disk }));
}

/**
 * Namespaces that the function's NVMe controller shares with others: with multipath their block
 * device hangs on the subsystem, not on a function. They count for each of its controllers, since a
 * path that goes may be the only one that works.
 */
function multipathHeads(root: Root, address: string): Set<string> {
  const heads = new Set<string>();
  const top = '/sys/class/nvme-subsystem';
  for (const subsystem of root.list(top)) {
    const children = root.list(`${top}/${subsystem}`);
    const ours = children.some(
      (child) => lastFunction(root.resolve(`${top}/${subsystem}/${child}`)) === address,
    );
    if (!ours) continue;
    for (const child of children) if (root.exists(`/sys/block/${child}/dev`)) heads.add(child);
  }
  return heads;
}

/** What uses the block device itself; partitions are not looked at. */
export function blockUses(
  root: Root,
  holders: Holders,
  node: Pick<BlockNode, 'name' | 'folder'>,
  depth = 0,
): Use[] {
  const { name, folder } = node;
  const uses: Use[] = mountUses(root, holders, node);
  if (holders.swaps.has(name)) {
    uses.push({ words: 'swap', hint: `swapoff ${deviceNode(name)}`, weight: 'fixed' });
  }
  uses.push(...(holders.services.get(name) ?? []));
  for (const holder of root.list(`${folder}/holders`)) {
    uses.push(stackUse(root, holders, holder, depth));
  }
  return uses;
}

function mountUses(
  root: Root,
  holders: Holders,
  { name, folder }: Pick<BlockNode, 'name' | 'folder'>,
): Use[] {
  const byNumber = holders.mounts.get(root.read(`${folder}/dev`)) ?? [];
  const bySource = holders.mounts.get(deviceNode(name)) ?? [];
  const points = new Map([...byNumber, ...bySource].map((mount) => [mount.point, mount]));
  return [...points.values()].map(({ point, seenBy }) => {
    if (seenBy === null) {
      return { words: `mounted on ${point}`, hint: `umount ${point}`, weight: 'fixed' };
    }
    const words = `mounted on ${point} for process ${seenBy.pid} (${seenBy.command})`;
    return { words, hint: `nsenter -t ${seenBy.pid} -m umount ${point}`, weight: 'fixed' };
  });
}

/** A holder has the device open even when nothing uses the holder, so that it counts either way. */
function stackUse(root: Root, holders: Holders, holder: string, depth: number): Use {
  const mapped = root.read(`/sys/block/${holder}/dm/name`);
  const label = mapped === '' ? `part of ${holder}` : `part of ${holder} (${mapped})`;
  const above: string[] = [];
  const hints: string[] = [];
  if (depth < STACK_DEPTH_MAX) {
    const self = diskNode(holder);
    for (const node of [self, ...partitionsOf(root, holder)]) {
      for (const use of blockUses(root, holders, node, depth + 1)) {
        above.push(node === self ? use.words : `${node.name}: ${use.words}`);
        hints.push(use.hint);
      }
    }
  }
  hints.push(takeApart(root, holder, mapped));
  return { words: [label, ...above].join(', '), hint: hints.join('; '), weight: 'fixed' };
}

/** The command that takes a stacked device apart. */
function takeApart(root: Root, holder: string, mapped: string): string {
  if (root.exists(`/sys/block/${holder}/md`)) return `mdadm --stop /dev/${holder}`;
  const uuid = root.read(`/sys/block/${holder}/dm/uuid`);
  if (uuid.startsWith('LVM-')) {
    // Names of the group and the volume, a hyphen between them, hyphens of their own doubled.
    const group = /^((?:[^-]|--)+)-/.exec(mapped)?.[1]?.replaceAll('--', '-') ?? mapped;
    return `vgchange -an ${group}`;
  }
  if (uuid.startsWith('CRYPT-')) return `cryptsetup close ${mapped}`;
  if (uuid.startsWith('mpath-')) return `multipath -f ${mapped}`;
  return mapped === '' ? `stop what uses /dev/${holder}` : `dmsetup remove ${mapped}`;
}
