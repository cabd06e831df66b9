// `penstock hugepages`: shows the pools of hugepages, and makes one hold as many as asked for.

import type { Command } from 'commander';
import { PenstockError } from '../errors.js';
import {
  type HugepagePool,
  type Machine,
  hostMachine,
  readHugepages,
  reserveHugepages,
} from '../pci/index.js';
import { formatSize, parseSize } from '../units.js';
import { Exit, printJson, printText, table } from './output.js';
import type { Finish } from './program.js';

interface Options {
  readonly size: string;
  readonly numa?: string;
  readonly dryRun?: boolean;
  readonly json?: boolean;
}

export function configure(command: Command, finish: Finish): void {
  command
    .argument('[amount]', 'pages that are to be reserved (512), or their size together (1GiB)')
    .option('--size <size>', 'of a page: 2MiB or 1GiB', '2MiB')
    .option('--numa <node>', 'the pool of one NUMA node, in place of the whole machine')
    .option('--dry-run', 'print what would be written, change nothing')
    .action((amount: string | undefined, options: Options) => {
      hugepages(hostMachine(), amount, options);
      finish(Exit.OK);
    });
}

function hugepages(machine: Machine, amount: string | undefined, options: Options): void {
  const { numa, dryRun = false, json = false } = options;
  const node = numa === undefined ? null : nodeNumber(numa);
  if (amount === undefined) return printPools(readHugepages(machine.root), node, json);
  const pageBytes = parseSize(options.size);
  const count = pageCount(amount, pageBytes);
  const done = reserveHugepages(machine, { pageBytes, count, node }, dryRun);
  const shell = done.writes.map(([path, text]) => `echo ${text} > ${path}`);
  if (json) {
    const { before, reserved } = done;
    const body = { dry_run: dryRun, page_bytes: pageBytes, numa_node: node, asked: count };
    return printJson('hugepages', { ...body, before, reserved, shell });
  }
  if (dryRun) return printText(shell.join('\n'));
  const where = node === null ? '' : ` on node ${node}`;
  const more =
    done.reserved > count ? `; ${done.reserved - count} of them until they are freed` : '';
  printText(`${done.reserved} pages of ${formatSize(pageBytes)}${where} reserved${more}`);
}

/** Pages in what was asked for: a bare number is pages, a size is theirs together. */
export function pageCount(amount: string, pageBytes: number): number {
  if (/^\d+$/.test(amount)) return Number(amount);
  const count = parseSize(amount) / pageBytes;
  if (Number.isInteger(count)) return count;
  throw new PenstockError('BAD_SIZE', `${amount} is no whole number of pages`, {
    hint: `Pages are of ${formatSize(pageBytes)} (--size); a bare number counts pages.`,
    exitCode: Exit.USAGE,
  });
}

function nodeNumber(text: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  throw new PenstockError('BAD_OPTION', `'${text}' is no NUMA node`, {
    hint: 'Nodes are numbers: penstock hugepages shows them.',
    exitCode: Exit.USAGE,
  });
}

function printPools(pools: readonly HugepagePool[], node: number | null, json: boolean): void {
  const shown = pools.filter((pool) => node === null || pool.node === node);
  if (json) return printJson('hugepages', { pools: shown.map(poolJson) });
  const rows = shown.map((pool) => [
    formatSize(pool.pageBytes),
    pool.node === null ? 'all' : String(pool.node),
    String(pool.reserved),
    String(pool.free),
    formatSize(pool.free * pool.pageBytes),
  ]);
  if (rows.length === 0) printText('No hugepages.');
  else printText(table(['PAGE', 'NODE', 'RESERVED', 'FREE', 'FREE BYTES'], rows));
}

export function poolJson({ pageBytes, node, ...counts }: HugepagePool) {
  return { page_bytes: pageBytes, numa_node: node, ...counts };
}
