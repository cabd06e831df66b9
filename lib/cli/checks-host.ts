// Doctor's checks of the host: kernel, Node, addon, io_uring, CPU, control groups, temporary space.

import type { Root } from '../pci/index.js';
import { formatSize } from '../units.js';
import { type Check, type Facts, fail, ok, warn } from './check.js';

const GIB = 2 ** 30;

/** io_uring as this stack uses it begins with Linux 5.10; 6.1 brings deferred task work. */
export function checkKernel(root: Root): Check {
  const release = root.read('/proc/sys/kernel/osrelease');
  if (release === '') {
    return warn('kernel', '/proc is not readable', 'Mount proc: mount -t proc proc /proc.');
  }
  if (before(release, [5, 10])) {
    return fail('kernel', `Linux ${release}`, 'Linux 5.10 or later is needed; 6.1 is better.');
  }
  if (before(release, [6, 1])) {
    return warn(
      'kernel',
      `Linux ${release}`,
      'From Linux 6.1 on io_uring costs less per operation.',
    );
  }
  return ok('kernel', `Linux ${release}`);
}

export function checkNode(facts: Facts): Check {
  if (before(facts.nodeVersion, [20, 17])) {
    return fail('node', `Node ${facts.nodeVersion}`, 'Install Node 20.17 or later.');
  }
  return ok('node', `Node ${facts.nodeVersion}`);
}

export function checkAddon(facts: Facts): Check {
  if (facts.addonError === '') return ok('addon', 'the native addon loads');
  return fail(
    'addon',
    facts.addonError,
    'Build it with `npm run build` in the package (needs g++, make and python3).',
  );
}

export function checkUring(root: Root, facts: Facts): Check {
  const sysctl = root.read('/proc/sys/kernel/io_uring_disabled');
  if (facts.uring.available) return ok('io_uring', facts.uring.detail);
  if (sysctl === '2') {
    return fail(
      'io_uring',
      'forbidden to everyone (kernel.io_uring_disabled = 2)',
      'sysctl -w kernel.io_uring_disabled=0',
    );
  }
  if (sysctl === '1') {
    const group = root.read('/proc/sys/kernel/io_uring_group');
    return fail(
      'io_uring',
      `for root and group ${group === '' ? '-1' : group} only (kernel.io_uring_disabled = 1)`,
      'Run as root, join that group, or sysctl -w kernel.io_uring_disabled=0.',
    );
  }
  if (facts.addonError !== '') {
    return warn('io_uring', 'not tried: the addon does not load', 'Fix the addon first.');
  }
  return fail(
    'io_uring',
    facts.uring.reason,
    facts.uring.hint || 'Linux 5.10 or later with CONFIG_IO_URING is needed.',
  );
}

export function checkCpu(root: Root): Check {
  const info = root.read('/proc/cpuinfo');
  const count = info.match(/^processor\s*:/gm)?.length ?? 0;
  const model = /^model name\s*:\s*(.+)$/m.exec(info)?.[1] ?? 'unknown model';
  const flags = (/^flags\s*:\s*(.+)$/m.exec(info)?.[1] ?? '').split(/\s+/);
  const detail = `${count} × ${model}`;
  const missing = ['constant_tsc', 'nonstop_tsc'].filter((flag) => !flags.includes(flag));
  if (missing.length > 0) {
    return warn(
      'cpu',
      `${detail}, without ${missing.join(' and ')}`,
      'Latencies measured by the time stamp counter may be off; give a virtual machine the ' +
        "host's CPU flags (QEMU: -cpu host,+invtsc).",
    );
  }
  if (count === 1) {
    return warn('cpu', detail, 'A polling process wants a CPU of its own: give this machine two.');
  }
  const governor = root.read('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor');
  if (governor !== '' && governor !== 'performance') {
    return warn(
      'cpu',
      `${detail}, governor ${governor}`,
      'For steady figures: cpupower frequency-set -g performance.',
    );
  }
  return ok('cpu', governor === '' ? detail : `${detail}, governor ${governor}`);
}

/** Memory and CPU limits of the control groups this process is in, version 1 and 2. */
export function checkCgroup(root: Root): Check {
  const groups = root.read('/proc/self/cgroup');
  const limits: string[] = [];
  const fixes: string[] = [];
  const memoryBytes = lowestLimit(root, groups, 'memory', memoryLimitBytes);
  if (memoryBytes < Infinity) {
    limits.push(`memory ${formatSize(memoryBytes)}`);
    if (memoryBytes < GIB) fixes.push('Raise the memory limit to 1 GiB or more.');
  }
  const cpus = lowestLimit(root, groups, 'cpu', cpuLimit);
  if (cpus < Infinity) {
    limits.push(`${Number(cpus.toFixed(2))} CPUs`);
    fixes.push('A CPU quota stops a polling process in mid-poll: use a cpuset in its place.');
  }
  if (fixes.length > 0) return warn('cgroup', `limited to ${limits.join(', ')}`, fixes.join(' '));
  return ok('cgroup', limits.length === 0 ? 'no limits' : `limited to ${limits.join(', ')}`);
}

export function checkTmp(facts: Facts): Check {
  const detail = `${formatSize(facts.tmpFreeBytes)} free in ${facts.tmpFolder}`;
  if (facts.tmpFreeBytes >= 2 * GIB) return ok('tmp', detail);
  return warn('tmp', detail, 'The demo and the tests want 2 GiB: free some, or set TMPDIR.');
}

/** The lowest limit on the way from the process's group to the root of its hierarchy. */
function lowestLimit(
  root: Root,
  groups: string,
  controller: string,
  limitOf: (root: Root, folder: string) => number,
): number {
  let lowest = Infinity;
  for (const line of groups.split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined) continue;
    const unified = controllers === '';
    if (!unified && !controllers.split(',').includes(controller)) continue;
    for (const mount of unified ? ['', '/unified'] : [`/${controllers}`, `/${controller}`]) {
      let folder = path;
      for (;;) {
        lowest = Math.min(lowest, limitOf(root, `/sys/fs/cgroup${mount}${folder}`));
        if (folder === '' || folder === '/') break;
        folder = folder.slice(0, folder.lastIndexOf('/'));
      }
    }
  }
  return lowest;
}

function memoryLimitBytes(root: Root, folder: string): number {
  const text = root.read(`${folder}/memory.max`) || root.read(`${folder}/memory.limit_in_bytes`);
  const bytes = /^\d+$/.test(text) ? Number(text) : Infinity;
  // Version 1 writes "no limit" as the largest page-aligned 63-bit number.
  return bytes >= 2 ** 62 ? Infinity : bytes;
}

function cpuLimit(root: Root, folder: string): number {
  const [quota, period] = root.read(`${folder}/cpu.max`).split(' ');
  if (period !== undefined) return quota === 'max' ? Infinity : Number(quota) / Number(period);
  const quotaUs = Number(root.read(`${folder}/cpu.cfs_quota_us`) || -1);
  const periodUs = Number(root.read(`${folder}/cpu.cfs_period_us`) || 100_000);
  return quotaUs > 0 ? quotaUs / periodUs : Infinity;
}

function before(version: string, floor: readonly [number, number]): boolean {
  const [major = 0, minor = 0] = version.replace(/^v/, '').split(/[.-]/).map(Number);
  return major < floor[0] || (major === floor[0] && minor < floor[1]);
}
