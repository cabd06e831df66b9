// Facts about the machine that a result is worth nothing without.

import { readFileSync } from 'node:fs';
import { availableParallelism, release } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { HostFacts } from './types.js';

/** Gathers the facts; `root` stands for `/` and is given in tests. Never throws. */
export function readHost(root = '/', now = new Date()): HostFacts {
  const memory = readText(join(root, 'proc/meminfo'));
  return {
    kernel: readText(join(root, 'proc/sys/kernel/osrelease')).trim() || release(),
    cpu: /^model name\s*:\s*(.+)$/m.exec(readText(join(root, 'proc/cpuinfo')))?.[1] ?? 'unknown',
    cpus: availableParallelism(),
    memoryBytes: kibibytes(memory, 'MemTotal') * 1024,
    node: process.version,
    penstock: packageVersion(),
    hugepages: hugepages(memory),
    date: now.toISOString(),
  };
}

/** 'none', or '512 of 1024 free, 2048 KiB each'. */
function hugepages(memory: string): string {
  const total = count(memory, 'HugePages_Total');
  if (total === 0) return 'none';
  const free = count(memory, 'HugePages_Free');
  return `${free} of ${total} free, ${kibibytes(memory, 'Hugepagesize')} KiB each`;
}

function kibibytes(memory: string, key: string): number {
  return Number(new RegExp(`^${key}:\\s*(\\d+) kB$`, 'm').exec(memory)?.[1] ?? 0);
}

function count(memory: string, key: string): number {
  return Number(new RegExp(`^${key}:\\s*(\\d+)$`, 'm').exec(memory)?.[1] ?? 0);
}

/** '' where the file cannot be read: a container may hide parts of /proc. */
function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

/** The version of the package this file belongs to, from source as well as from dist/. */
function packageVersion(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    const text = readText(join(folder, 'package.json'));
    if (text !== '') {
      const { name, version } = JSON.parse(text) as { name?: unknown; version?: unknown };
      if (name === 'penstock' && typeof version === 'string') return version;
    }
    const parent = dirname(folder);
    if (parent === folder) return 'unknown';
    folder = parent;
  }
}
