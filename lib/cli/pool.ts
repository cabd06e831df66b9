// `penstock pool …`: makes a pool on a device, and says what one is and what it saves.

import type { Command } from 'commander';
import {
  checkPool,
  FORMAT_VERSION,
  Pool,
  type CheckReport,
  type CreateOptions,
  type PoolStats,
  type SpaceState,
} from '../dedup/index.js';
import { PenstockError } from '../errors.js';
import { formatSize } from '../units.js';
import { Exit, printJson, printNote, printText, table } from './output.js';
import { configureGrow, configureTrim } from './pool-space.js';
import { closing, throwIfInterrupted, withDevice, withPool } from './pool-session.js';
import type { Finish } from './program.js';

interface CreateWords {
  readonly thn?: string;
  readonly llrrmThreshold?: string;
  readonly sampling?: string;
  readonly force?: boolean;
  readonly json?: boolean;
}

/** What `pool info` prints, as it stands in its JSON. */
interface PoolFacts {
  readonly device: string;
  readonly uuid: string;
  readonly format_version: number;
  readonly size_bytes: number;
  readonly block_bytes: number;
  readonly usable_blocks: number;
  readonly free_blocks: number;
  readonly space: SpaceState;
  readonly used_percent: number;
  readonly journal_bytes: number;
  readonly thn: number;
  readonly llrrm_threshold: number;
  readonly sampling: number;
  readonly epoch: number;
  readonly volumes: number;
  readonly durable: boolean;
  /** It was closed in order before this command. */
  readonly clean: boolean;
  /** What opening it had to do where it was not. */
  readonly recovery: {
    readonly entries: number;
    readonly records: number;
    readonly blocks_lost: number;
    readonly duration_ms: number;
  } | null;
}

export function configure(command: Command, finish: Finish): void {
  command
    .command('create')
    .description('make a pool on a device; what the device holds is lost')
    .argument('<uri>', 'the device: file:/pool.img?create=8GiB, nvme: … as anywhere')
    .option('--thn <blocks>', 'blocks of the shortest run that is deduplicated (8); 0: none')
    .option('--llrrm-threshold <count>', 'references that make a block worth fast memory (4)')
    .option('--sampling <count>', 'one fingerprint in so many is kept in memory (8)')
    .option('--force', 'make it where there is a pool already, which is lost')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      await create(uri, self.optsWithGlobals());
      finish(Exit.OK);
    });
  command
    .command('info')
    .description('what the pool of a device is, and whether it was closed in order')
    .argument('<uri>', 'the device of the pool')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      const facts = await withPool(uri, async (pool) => factsOf(pool));
      if (wantsJson(self)) printJson('pool-info', facts);
      else printText(formatFacts(facts));
      finish(Exit.OK);
    });
  command
    .command('stats')
    .description('what the pool of a device holds, and what it saves')
    .argument('<uri>', 'the device of the pool')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      const stats = await withPool(uri, async (pool) => pool.stats());
      if (wantsJson(self)) printJson('pool-stats', stats);
      else printText(formatStats(stats));
      finish(Exit.OK);
    });
  command
    .command('check')
    .description('prove that maps, counts and free space of a pool agree; changes nothing')
    .argument('<uri>', 'the device of the pool, which nobody writes to meanwhile')
    .option('--data', 'read all blocks, and compare them with their fingerprints')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, words: { data?: boolean }, self: Command) => {
      const data = words.data === true;
      const report = await withDevice(uri, (device) => checkPool(device, { data }));
      if (wantsJson(self)) printJson('pool-check', report);
      else printText(formatReport(report));
      finish(report.clean ? Exit.OK : Exit.FAILED);
    });
  configureGrow(command.command('grow'), finish);
  configureTrim(command.command('trim'), finish);
}

function formatReport(report: CheckReport): string {
  const { findings, findingsTotal, pages, blocks, volumes, journalEntries } = report;
  const lines = findings.map(
    ({ kind, where, message }) => `${kind}: ${where.page} (page ${where.pbn}): ${message}`,
  );
  if (findingsTotal > findings.length) lines.push(`… and ${findingsTotal - findings.length} more`);
  if (journalEntries > 0) {
    lines.push(`${journalEntries} entries of the journal follow the state that was checked`);
  }
  const result = findingsTotal === 0 ? 'clean' : `${findingsTotal} findings`;
  lines.push(`${result}: ${pages} pages of metadata, ${blocks} blocks, ${volumes} volumes`);
  return lines.join('\n');
}

async function create(uri: string, words: CreateWords): Promise<void> {
  const options = createOptions(words);
  const facts = await withDevice(uri, async (device, signal) => {
    throwIfInterrupted(signal);
    await Pool.create(device, options);
    // Opened as its users will: what is printed is what the device holds.
    const pool = await Pool.open(device);
    return closing(pool, async () => factsOf(pool));
  });
  if (!facts.durable) printNote(`${uri} is not durable: the pool is gone when this command ends`);
  if (words.json === true) return printJson('pool-create', facts);
  const usable = formatSize(facts.usable_blocks * facts.block_bytes);
  printText(
    `pool ${facts.uuid} made on ${uri}: ${formatSize(facts.size_bytes)}, ` +
      `${facts.usable_blocks} usable blocks (${usable})`,
  );
}

function createOptions(words: CreateWords): CreateOptions {
  const { thn, llrrmThreshold, sampling, force = false } = words;
  const options: CreateOptions = { force };
  if (thn !== undefined) options.thn = count('--thn', thn);
  if (llrrmThreshold !== undefined) {
    options.llrrmThreshold = count('--llrrm-threshold', llrrmThreshold);
  }
  if (sampling !== undefined) options.sampling = count('--sampling', sampling);
  return options;
}

/** A number; what is out of range is for the pool to say. */
function count(flag: string, text: string): number {
  if (/^\d+$/.test(text)) return Number(text);
  throw badOption(`${flag} ${text} is no number`);
}

function badOption(message: string): PenstockError {
  return new PenstockError('BAD_OPTION', message, {
    hint: 'See penstock pool create --help.',
    exitCode: Exit.USAGE,
  });
}

function factsOf(pool: Pool): PoolFacts {
  const { info, recovery, device } = pool;
  const stats = pool.stats();
  return {
    device: device.uri,
    uuid: pool.uuid,
    format_version: FORMAT_VERSION,
    size_bytes: stats.physical_blocks * stats.block_size,
    block_bytes: stats.block_size,
    usable_blocks: stats.physical_blocks - stats.overhead_blocks_used,
    free_blocks: stats.free_blocks,
    space: stats.space,
    used_percent: stats.used_percent,
    journal_bytes: info.journalPages * stats.block_size,
    thn: info.thn,
    llrrm_threshold: info.llrrmThreshold,
    sampling: info.sampling,
    epoch: info.epoch,
    volumes: stats.volumes,
    durable: device.info.durable,
    clean: recovery === null,
    recovery:
      recovery === null
        ? null
        : {
            entries: recovery.entries,
            records: recovery.records,
            blocks_lost: recovery.blocksLost,
            duration_ms: recovery.ms,
          },
  };
}

export function formatFacts(facts: PoolFacts): string {
  const { recovery, block_bytes: block } = facts;
  const state =
    recovery === null
      ? 'closed in order'
      : `recovered in ${recovery.duration_ms.toFixed(0)} ms: ` +
        `${recovery.entries} journal entries, ${recovery.records} records, ` +
        `${recovery.blocks_lost} blocks lost`;
  const sizeOf = (blocks: number): string => `${blocks} blocks (${formatSize(blocks * block)})`;
  return table(
    ['POOL', facts.device],
    [
      ['uuid', facts.uuid],
      ['format', String(facts.format_version)],
      ['size', formatSize(facts.size_bytes)],
      ['usable', sizeOf(facts.usable_blocks)],
      ['free', sizeOf(facts.free_blocks)],
      ['space', `${facts.space}: ${facts.used_percent.toFixed(1)} % in use or promised`],
      ['journal', formatSize(facts.journal_bytes)],
      ['thn', facts.thn === 0 ? '0 (nothing is deduplicated)' : `${facts.thn} blocks`],
      ['sampling', `1 fingerprint in ${facts.sampling}`],
      ['epoch', String(facts.epoch)],
      ['volumes', String(facts.volumes)],
      ['durable', facts.durable ? 'yes' : 'no'],
      ['state', state],
    ],
  );
}

export function formatStats(stats: PoolStats): string {
  const row = (name: string, blocks: number): string[] => [
    name,
    formatSize(blocks * stats.block_size),
    String(blocks),
  ];
  const usable = stats.physical_blocks - stats.overhead_blocks_used;
  const space = table(
    ['SPACE', 'SIZE', 'BLOCKS'],
    [
      row('device', stats.physical_blocks),
      row('overhead', stats.overhead_blocks_used),
      row('usable', usable),
      row('in use', stats.data_blocks_used),
      row('free', stats.free_blocks),
      row('promised', stats.reserved_blocks),
      row('mapped by volumes', stats.logical_blocks_used),
    ],
  );
  const rest = [`saving   ${stats.saving_percent.toFixed(1)} %`, `volumes  ${stats.volumes}`];
  rest.push(`space    ${stats.space}`);
  return `${space}\n${rest.join('\n')}\n`;
}

function wantsJson(command: Command): boolean {
  return command.optsWithGlobals<{ json?: boolean }>().json === true;
}
