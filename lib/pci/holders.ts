// What the machine as a whole holds: mounts in every mount namespace, swap, what kernel services
// stand on block devices, routes. Read once, then asked about single devices (block-uses.ts,
// network-uses.ts). From /proc and /sys only.

import { type Process, commandOf, openDevices, processIds } from './processes.js';
import type { Root } from './root.js';

/**
 * One reason why a device is not free. `fixed`: data would be lost, nothing lifts it; `forceable`:
 * somebody would be cut off, who is asked for it explicitly; `harmless`: worth showing, no more.
 */
export interface Use {
  readonly words: string;
  /** How to end it: a command or one sentence; '' where there is none. */
  readonly hint: string;
  readonly weight: 'fixed' | 'forceable' | 'harmless';
}

export interface Holders {
  /** `major:minor`, and the source where it is a path → mounts. */
  readonly mounts: ReadonlyMap<string, readonly Mount[]>;
  /** Kernel names (`vda2`) of block devices that are swap. */
  readonly swaps: ReadonlySet<string>;
  /** Kernel name of a block device → what of the kernel stands on it without being its holder. */
  readonly services: ReadonlyMap<string, readonly Use[]>;
  /** Interface → routes that go out by it, the default route first. */
  readonly routes: ReadonlyMap<string, readonly string[]>;
  /** Path below /dev → processes that have it open; looked up when first asked for. */
  readonly opened: (path: string) => readonly Process[];
}

export interface Mount {
  readonly point: string;
  /** A process that sees it, where this one does not. */
  readonly seenBy: Process | null;
}

export function readHolders(root: Root): Holders {
  let devices: ReadonlyMap<string, readonly Process[]> | null = null;
  return {
    mounts: readMounts(root),
    swaps: readSwaps(root),
    services: readServices(root),
    routes: readRoutes(root),
    opened: (path) => (devices ??= openDevices(root)).get(path) ?? [],
  };
}

/** `cciss!c0d0` in sysfs is /dev/cciss/c0d0. */
export function deviceNode(name: string): string {
  return `/dev/${name.replaceAll('!', '/')}`;
}

/** The kernel name of a path below /dev, by way of links (/dev/mapper/vg-root → dm-0). */
function kernelName(root: Root, path: string): string {
  return (root.resolve(path) || path).replace(/^\/dev\//, '').replaceAll('/', '!');
}

/** Of this process's mount namespace, of process 1's, and of every other that a process is in. */
function readMounts(root: Root): Map<string, Mount[]> {
  const mounts = new Map<string, Mount[]>();
  addMounts(root, mounts, 'self');
  const seen = new Set([root.linkName('/proc/self/ns/mnt')]);
  for (const pid of processIds(root)) {
    const namespace = root.linkName(`/proc/${pid}/ns/mnt`);
    // Process 1 counts also where its namespace cannot be told.
    if (seen.has(namespace) && pid !== 1) continue;
    seen.add(namespace);
    addMounts(root, mounts, pid);
  }
  return mounts;
}

function addMounts(root: Root, mounts: Map<string, Mount[]>, pid: number | 'self'): void {
  const seenBy = pid === 'self' ? null : { pid, command: commandOf(root, pid) };
  const add = (key: string, point: string): void => {
    const known = mounts.get(key) ?? [];
    if (!known.some((mount) => mount.point === point)) known.push({ point, seenBy });
    mounts.set(key, known);
  };
  for (const line of root.read(`/proc/${pid}/mountinfo`).split('\n')) {
    const [left = '', right = ''] = line.split(' - ');
    const [, , number, , point] = left.split(' ');
    const source = right.split(' ')[1];
    if (number === undefined || point === undefined || source === undefined) continue;
    add(number, unescapeOctal(point));
    // btrfs mounts under numbers of its own, so that only the source names the device.
    if (source.startsWith('/dev/')) add(unescapeOctal(source), unescapeOctal(point));
  }
}

function readSwaps(root: Root): Set<string> {
  const swaps = new Set<string>();
  for (const line of root.read('/proc/swaps').split('\n').slice(1)) {
    const [path = '', type] = line.split(/\s+/);
    if (type === 'partition') swaps.add(kernelName(root, unescapeOctal(path)));
  }
  return swaps;
}

/** Loop devices, further devices of a btrfs, and targets that export a block device. */
function readServices(root: Root): Map<string, Use[]> {
  const services = new Map<string, Use[]>();
  const add = (path: string, words: string, hint: string): void => {
    if (!path.startsWith('/dev/')) return;
    const name = kernelName(root, path);
    services.set(name, [...(services.get(name) ?? []), { words, hint, weight: 'fixed' }]);
  };
  for (const loop of root.list('/sys/block').filter((name) => name.startsWith('loop'))) {
    const path = root.read(`/sys/block/${loop}/loop/backing_file`);
    add(path, `under ${loop}`, `losetup -d /dev/${loop}`);
  }
  for (const id of root.list('/sys/fs/btrfs')) {
    for (const name of root.list(`/sys/fs/btrfs/${id}/devices`)) {
      add(deviceNode(name), `part of the mounted btrfs ${id}`, 'Unmount that file system.');
    }
  }
  const nvmet = '/sys/kernel/config/nvmet/subsystems';
  for (const subsystem of root.list(nvmet)) {
    for (const nsid of root.list(`${nvmet}/${subsystem}/namespaces`)) {
      const namespace = `${nvmet}/${subsystem}/namespaces/${nsid}`;
      if (root.read(`${namespace}/enable`) !== '1') continue;
      const words = `exported by nvmet as ${subsystem}, namespace ${nsid}`;
      add(root.read(`${namespace}/device_path`), words, `echo 0 > ${namespace}/enable`);
    }
  }
  const target = '/sys/kernel/config/target/core';
  for (const hba of root.list(target)) {
    for (const store of root.list(`${target}/${hba}`)) {
      const path = root.read(`${target}/${hba}/${store}/udev_path`);
      add(path, `exported by LIO as ${store}`, 'Remove that backstore with targetcli.');
    }
  }
  return services;
}

/** Bits of a route's flags in ipv6_route (linux/ipv6_route.h, linux/route.h). */
const RTF_REJECT = 0x0200;
const RTF_ANYCAST = 0x0010_0000;
const RTF_LOCAL = 0x8000_0000;

function readRoutes(root: Root): Map<string, string[]> {
  const routes = new Map<string, string[]>();
  const add = (name: string, network: string, isDefault: boolean): void => {
    const known = routes.get(name) ?? [];
    const words = isDefault ? 'default route' : `route to ${network}`;
    if (known.includes(words)) return;
    routes.set(name, isDefault ? [words, ...known] : [...known, words]);
  };
  for (const line of root.read('/proc/net/route').split('\n').slice(1)) {
    const [name = '', destination = '', , , , , , mask = ''] = line.trim().split(/\s+/);
    if (!/^[0-9a-f]{8}$/i.test(destination)) continue;
    // Words in the byte order of this machine: the first byte comes last.
    const bytes = destination.match(/../g)?.reverse() ?? [];
    const network = bytes.map((byte) => Number.parseInt(byte, 16)).join('.');
    const prefix = [...Number.parseInt(mask, 16).toString(2)].filter((bit) => bit === '1').length;
    add(name, `${network}/${prefix}`, prefix === 0);
  }
  for (const line of root.read('/proc/net/ipv6_route').split('\n')) {
    const fields = line.trim().split(/\s+/);
    const [network = '', prefix = ''] = fields;
    const name = fields[9] ?? 'lo';
    const flags = Number.parseInt(fields[8] ?? '0', 16);
    // Every interface that is up has routes for its link (fe80::/10) and for multicast (ff00::/8);
    // what only says "refused" or "mine" goes out by none.
    if (name === 'lo' || /^(fe[89ab]|ff)/.test(network)) continue;
    if (((flags & (RTF_REJECT | RTF_ANYCAST)) | (flags & RTF_LOCAL)) !== 0) continue;
    const length = Number.parseInt(prefix, 16);
    add(name, `${ipv6Text(network)}/${length}`, length === 0);
  }
  return routes;
}

function ipv6Text(digits: string): string {
  const groups = (digits.match(/.{4}/g) ?? []).map((group) => group.replace(/^0{1,3}/, ''));
  return groups.join(':').replace(/(^|:)0(:0)+(:|$)/, '::');
}

/** /proc writes blanks in paths as \040. */
function unescapeOctal(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
