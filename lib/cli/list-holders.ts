// What holds a block device or a NIC: mounts, swap, device mapper and RAID on top, default routes.
// Read from /proc and /sys; taking a held device from the kernel would pull the ground from under
// whoever holds it.

import type { Root } from './root.js';

export interface Holders {
  /** `major:minor` → mount points. */
  readonly mounts: ReadonlyMap<string, readonly string[]>;
  /** Kernel names (`vda2`) of block devices that are swap. */
  readonly swaps: ReadonlySet<string>;
  /** Interfaces that a default route (IPv4 or IPv6) goes out by. */
  readonly defaultRoutes: ReadonlySet<string>;
}

export function readHolders(root: Root): Holders {
  return { mounts: readMounts(root), swaps: readSwaps(root), defaultRoutes: readRoutes(root) };
}

/** What holds the block device in sysfs folder `folder`, partitions not looked at. */
export function blockHolders(root: Root, holders: Holders, folder: string, name: string): string[] {
  const held: string[] = [];
  const number = root.read(`${folder}/dev`);
  const points = new Set([
    ...(holders.mounts.get(number) ?? []),
    // btrfs mounts under numbers of its own, so that only the source names the device.
    ...(holders.mounts.get(deviceNode(name)) ?? []),
  ]);
  for (const point of points) held.push(`mounted on ${point}`);
  if (holders.swaps.has(name)) held.push('swap');
  for (const holder of root.list(`${folder}/holders`)) {
    const mapped = root.read(`/sys/block/${holder}/dm/name`);
    held.push(mapped === '' ? `part of ${holder}` : `part of ${holder} (${mapped})`);
  }
  return held;
}

/** What holds a network interface: a default route over it or over what is stacked on it. */
export function interfaceHolders(root: Root, holders: Holders, name: string): string[] {
  const held: string[] = [];
  const seen = new Set<string>();
  const queue = [name];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    if (seen.has(next)) continue;
    seen.add(next);
    const by = next === name ? '' : ` by ${next}`;
    if (holders.defaultRoutes.has(next)) held.push(`default route${by} (${name})`);
    for (const entry of root.list(`/sys/class/net/${next}`)) {
      if (entry.startsWith('upper_')) queue.push(entry.slice('upper_'.length));
    }
  }
  if (held.length === 0 && root.read(`/sys/class/net/${name}/operstate`) === 'up') {
    held.push(`${name} is up`);
  }
  return held;
}

/** `cciss!c0d0` in sysfs is /dev/cciss/c0d0. */
export function deviceNode(name: string): string {
  return `/dev/${name.replaceAll('!', '/')}`;
}

function readMounts(root: Root): Map<string, string[]> {
  const mounts = new Map<string, string[]>();
  const add = (key: string, point: string): void => {
    const points = mounts.get(key) ?? [];
    if (!points.includes(point)) points.push(point);
    mounts.set(key, points);
  };
  for (const line of root.read('/proc/self/mountinfo').split('\n')) {
    const [left = '', right = ''] = line.split(' - ');
    const [, , number, , point] = left.split(' ');
    const source = right.split(' ')[1];
    if (number === undefined || point === undefined || source === undefined) continue;
    add(number, unescapeOctal(point));
    if (source.startsWith('/dev/')) add(unescapeOctal(source), unescapeOctal(point));
  }
  return mounts;
}

function readSwaps(root: Root): Set<string> {
  const swaps = new Set<string>();
  for (const line of root.read('/proc/swaps').split('\n').slice(1)) {
    const [path = '', type] = line.split(/\s+/);
    if (type !== 'partition') continue;
    // A mapper name is a link to its node, /dev/dm-0.
    const node = root.resolve(path) || path;
    swaps.add(node.replace(/^\/dev\//, '').replaceAll('/', '!'));
  }
  return swaps;
}

function readRoutes(root: Root): Set<string> {
  const interfaces = new Set<string>();
  for (const line of root.read('/proc/net/route').split('\n').slice(1)) {
    const [name = '', destination, , , , , , mask] = line.split(/\s+/);
    if (destination === '00000000' && mask === '00000000') interfaces.add(name);
  }
  for (const line of root.read('/proc/net/ipv6_route').split('\n')) {
    const fields = line.trim().split(/\s+/);
    const name = fields[9] ?? 'lo';
    if (/^0{32}$/.test(fields[0] ?? '') && fields[1] === '00' && name !== 'lo')
      interfaces.add(name);
  }
  return interfaces;
}

/** /proc writes blanks in paths as \040. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
