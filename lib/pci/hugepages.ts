// Hugepages as the kernel keeps them: a pool per page size, of the whole machine and of each NUMA
// node (Documentation/admin-guide/mm/hugetlbpage.rst).

import { PenstockError, errnoCode } from '../errors.js';
import { formatSize } from '../units.js';
import type { Machine } from './machine.js';
import type { Root } from './root.js';

const WHOLE = '/sys/kernel/mm/hugepages';
const NODES = '/sys/devices/system/node';
const COMPACT = '/proc/sys/vm/compact_memory';

export interface HugepagePool {
  readonly pageBytes: number;
  /** Null: of the whole machine. */
  readonly node: number | null;
  readonly reserved: number;
  readonly free: number;
  /** Still used, and given back to the kernel by whoever frees them. */
  readonly surplus: number;
}

export interface Reservation {
  /** What is written, as [path, text]. */
  readonly writes: readonly (readonly [string, string])[];
  readonly before: number;
  /** Pages that are there now. */
  readonly reserved: number;
}

/** Pools by page size, each machine-wide one before its nodes'. */
export function readHugepages(root: Root): HugepagePool[] {
  const sizes = root
    .list(WHOLE)
    .map((name) => Number(/^hugepages-(\d+)kB$/.exec(name)?.[1] ?? '0') * 1024)
    .filter((bytes) => bytes > 0)
    .sort((a, b) => a - b);
  const nodes = root.list(NODES).flatMap((name) => {
    const number = /^node(\d+)$/.exec(name)?.[1];
    return number === undefined ? [] : [Number(number)];
  });
  return sizes.flatMap((bytes) => [null, ...nodes].map((node) => readPool(root, bytes, node)));
}

function readPool(root: Root, pageBytes: number, node: number | null): HugepagePool {
  const folder = poolFolder(pageBytes, node);
  const count = (name: string): number => Number(root.read(`${folder}/${name}`) || '0');
  const [reserved, free] = [count('nr_hugepages'), count('free_hugepages')];
  return { pageBytes, node, reserved, free, surplus: count('surplus_hugepages') };
}

function poolFolder(pageBytes: number, node: number | null): string {
  const folder = node === null ? WHOLE : `${NODES}/node${node}/hugepages`;
  return `${folder}/hugepages-${pageBytes / 1024}kB`;
}

/**
 * Makes a pool hold `count` pages. Errors: BAD_OPTION (no such pool), PERMISSION_DENIED,
 * OUT_OF_HUGEPAGES (fewer came; those stay).
 */
export function reserveHugepages(
  machine: Machine,
  { pageBytes, count, node }: { pageBytes: number; count: number; node: number | null },
  dryRun: boolean,
): Reservation {
  const { root } = machine;
  const path = `${poolFolder(pageBytes, node)}/nr_hugepages`;
  if (!root.exists(path)) throw noSuchPool(root, pageBytes, node);
  const before = readPool(root, pageBytes, node).reserved;
  const writes = [[path, String(count)]] as const;
  if (dryRun) return { writes, before, reserved: before };
  writeCount(machine, path, count);
  let reserved = readPool(root, pageBytes, node).reserved;
  if (reserved < count && machine.canWrite(COMPACT)) {
    // Free memory may be there, in pieces: once moved together more pages come.
    machine.write(COMPACT, '1');
    writeCount(machine, path, count);
    reserved = readPool(root, pageBytes, node).reserved;
  }
  if (reserved >= count) return { writes, before, reserved };
  const size = formatSize(pageBytes);
  const words = `hugepagesz=${size.replace(/ (.)iB/, '$1')} hugepages=${count}`;
  throw new PenstockError(
    'OUT_OF_HUGEPAGES',
    `${reserved} of ${count} pages of ${size} came (there were ${before})`,
    {
      hint:
        'They stay reserved. Memory is used or in pieces: reserve soon after boot, or at boot ' +
        `with ${words} on the kernel's command line.`,
      exitCode: 3,
    },
  );
}

function writeCount(machine: Machine, path: string, count: number): void {
  try {
    machine.write(path, String(count));
  } catch (cause) {
    const errno = errnoCode(cause);
    if (errno !== 'EACCES' && errno !== 'EPERM' && errno !== 'EROFS') throw cause;
    throw new PenstockError('PERMISSION_DENIED', `${path} may not be written`, {
      hint: 'Run it as root, on the machine itself where this is a container.',
      exitCode: 3,
      cause,
    });
  }
}

function noSuchPool(root: Root, pageBytes: number, node: number | null): PenstockError {
  const pools = readHugepages(root);
  const sizes = [...new Set(pools.map((pool) => formatSize(pool.pageBytes)))].join(', ');
  const nodes = [...new Set(pools.flatMap((pool) => pool.node ?? []))].join(', ');
  const where = node === null ? 'here' : `on node ${node}`;
  const text = `there are no hugepages of ${formatSize(pageBytes)} ${where}`;
  return new PenstockError('BAD_OPTION', text, {
    hint:
      sizes === ''
        ? 'This kernel has none (CONFIG_HUGETLBFS).'
        : `Sizes: ${sizes}; nodes: ${nodes === '' ? 'none' : nodes}.`,
    exitCode: 2,
  });
}
