// `penstock pool …`: makes a pool on a device, and says what one is.

import type { Command } from 'commander';
import { FORMAT_VERSION, Pool, type CreateOptions, type SpaceState } from '../dedup/index.js';
import { PenstockError } from '../errors.js';
import type { BlockDevice } from '../hpdi/index.js';
import { open } from '../open.js';
import { formatSize, parseSize } from '../units.js';
import { Exit, printJson, printNote, printText, table, wantsJson } from './output.js';
import { configureCheck, recoveryFacts, type RecoveryFacts } from './pool-check.js';
import { configureClean, configureGrow, configureTrim } from './pool-space.js';
import { closing, OPENS_POOL, throwIfInterrupted, withDevice, withPool } from './pool-session.js';
import { configureStats } from './pool-stats.js';
import { configureTop } from './pool-top.js';
import type { Finish } from './program.js';

/** What the format has (docs/format.md). */
const EXTENT_BYTES = 2 ** 20;

export interface CreateWords {
  readonly thn?: string;
  readonly llrrm?: string;
  readonly llrrmThreshold?: string;
  readonly llrrmPolicy?: string;
  readonly sampling?: string;
  readonly indexMemory?: string;
  readonly extent?: string;
  readonly dataChecksum?: boolean;
  readonly force?: boolean;
  readonly json?: boolean;
}

/** What `pool info` prints, as it stands in its JSON. */
export interface PoolFacts {
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
  readonly llrrm_policy: 'shared' | 'random';
  /** `degraded`: it has fast memory, and cannot use it; `why` says why not. */
  readonly llrrm: { readonly state: string; readonly uri: string; readonly why: string };
  readonly sampling: number;
  /** Memory for fingerprints that it is to have; 0: by the size. */
  readonly index_memory_bytes: number;
  readonly data_checksum: boolean;
  readonly epoch: number;
  readonly volumes: number;
  readonly durable: boolean;
  /** It was closed in order before this command. */
  readonly clean: boolean;
  /** What opening it had to do where it was not. */
  readonly recovery: RecoveryFacts | null;
}

export function configure(command: Command, finish: Finish): void {
  command
    .command('create')
    .description('make a pool on a device; what the device holds is lost')
    .argument('<uri>', 'the device: file:/pool.img?create=8GiB, nvme: … as anywhere')
    .option('--thn <blocks>', 'blocks of the shortest run that is deduplicated (8); 0: none')
    .option('--llrrm <uri>', 'fast memory for blocks with many references; what it holds is lost')
    .option('--llrrm-threshold <count>', 'references that make a block worth fast memory (4)')
    .option('--llrrm-policy <which>', 'of those: shared (all), or random (read in short runs)')
    .option('--index-memory <size>', 'memory for fingerprints, 1 MiB to 2 GiB; 0: by the size (0)')
    .option('--extent <size>', 'of the parts that a sequence never crosses: 1MiB, no other yet')
    .option('--sampling <count>', 'one fingerprint in so many is kept in memory (8)')
    .option('--data-checksum', 'copy what is written, and check blocks when they are read')
    .option('--force', 'make it also where there is a pool, or other data: it is lost')
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
    .addHelpText('after', OPENS_POOL)
    .action(async (uri: string, _: object, self: Command) => {
      const facts = await withPool(uri, async (pool) => factsOf(pool));
      if (wantsJson(self)) printJson('pool-info', facts);
      else printText(formatFacts(facts));
      finish(Exit.OK);
    });
  command
    .command('set')
    .description('change how a pool works; it must not be open')
    .argument('<uri>', 'the device of the pool')
    .option('--thn <blocks>', 'blocks of the shortest run that is deduplicated; 0: none')
    .option('--llrrm <uri>', 'fast memory, whose contents are lost; none: without')
    .option('--llrrm-threshold <count>', 'references that make a block worth fast memory')
    .option('--llrrm-policy <which>', 'of those: shared (all), or random (read in short runs)')
    .option(
      '--index-memory <size>',
      'memory for fingerprints from the next opening on; 0: by the size',
    )
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      const words = self.optsWithGlobals<CreateWords>();
      await set(uri, words);
      const facts = await withPool(uri, async (pool) => factsOf(pool));
      if (wantsJson(self)) printJson('pool-info', facts);
      else printText(formatFacts(facts));
      finish(Exit.OK);
    });
  configureStats(command.command('stats'), finish);
  configureCheck(command, finish);
  configureGrow(command.command('grow'), finish);
  configureTrim(command.command('trim'), finish);
  configureTop(command.command('top'), finish);
  configureClean(command.command('clean'), finish);
}

async function create(uri: string, words: CreateWords): Promise<void> {
  const options = createOptions(words, 'create');
  const facts = await withDevice(uri, async (device, signal) => {
    throwIfInterrupted(signal);
    await withLlrrm(words.llrrm, (llrrm) => Pool.create(device, { ...options, llrrm }));
    // Opened as its users will: what is printed is what the device holds.
    const pool = await Pool.open(device, { openLlrrm: open });
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

async function set(uri: string, words: CreateWords): Promise<void> {
  const { thn, llrrmThreshold, llrrmPolicy, indexBytes } = createOptions(words, 'set');
  const options = {
    ...(thn === undefined ? {} : { thn }),
    ...(llrrmThreshold === undefined ? {} : { llrrmThreshold }),
    ...(llrrmPolicy === undefined ? {} : { llrrmPolicy }),
    ...(indexBytes === undefined ? {} : { indexBytes }),
  };
  const { llrrm: wanted } = words;
  if (wanted === undefined) return withPool(uri, (pool) => pool.configure(options));
  // The one that it has may be the one that is wanted: the pool must not hold it meanwhile.
  const without = { llrrm: null };
  if (wanted === 'none') {
    return withPool(uri, (pool) => pool.configure({ ...options, ...without }), without);
  }
  const setTo = (pool: Pool): Promise<void> =>
    withLlrrm(wanted, (llrrm) => pool.configure({ ...options, llrrm }));
  await withPool(uri, setTo, without);
}

/** Runs with the device of a URI, if there is one, and closes it. */
async function withLlrrm(
  uri: string | undefined,
  run: (llrrm: BlockDevice | null) => Promise<void>,
): Promise<void> {
  if (uri === undefined) return run(null);
  const device = await open(uri);
  await closing(device, () => run(device));
}

export function createOptions(words: CreateWords, command: 'create' | 'set'): CreateOptions {
  const { thn, llrrmThreshold, llrrmPolicy, sampling, force = false } = words;
  const options: CreateOptions = { force, dataChecksum: words.dataChecksum === true };
  // What is no policy is for the pool to say.
  if (llrrmPolicy !== undefined) options.llrrmPolicy = llrrmPolicy as 'shared' | 'random';
  // As is a number that is out of range.
  const count = (flag: string, text: string): number => {
    if (/^\d+$/.test(text)) return Number(text);
    throw badOption(`${flag} ${text} is no number`, command);
  };
  if (thn !== undefined) options.thn = count('--thn', thn);
  if (llrrmThreshold !== undefined) {
    options.llrrmThreshold = count('--llrrm-threshold', llrrmThreshold);
  }
  if (sampling !== undefined) options.sampling = count('--sampling', sampling);
  if (words.indexMemory !== undefined) options.indexBytes = parseSize(words.indexMemory);
  if (words.extent !== undefined && parseSize(words.extent) !== EXTENT_BYTES) {
    throw badOption(`extents of ${words.extent} cannot be: this format has 1 MiB`, command);
  }
  return options;
}

function badOption(message: string, command: 'create' | 'set'): PenstockError {
  return new PenstockError('BAD_OPTION', message, {
    hint: `See penstock pool ${command} --help.`,
    exitCode: Exit.USAGE,
  });
}

export function factsOf(pool: Pool): PoolFacts {
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
    llrrm_policy: info.llrrmPolicy === 0 ? 'shared' : 'random',
    llrrm: pool.llrrm,
    sampling: info.sampling,
    index_memory_bytes: info.indexPages * stats.block_size,
    data_checksum: info.dataChecksum,
    epoch: info.epoch,
    volumes: stats.volumes,
    durable: device.info.durable,
    clean: recovery === null,
    recovery: recovery === null ? null : recoveryFacts(recovery),
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
  const { state: fast, uri: fastUri, why } = facts.llrrm;
  const llrrm = [fast, fastUri, why].filter((text) => text !== '').join(': ');
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
      ['llrrm', llrrm],
      ['llrrm blocks', `${facts.llrrm_threshold} references, ${facts.llrrm_policy}`],
      ['sampling', `1 fingerprint in ${facts.sampling}`],
      [
        'index memory',
        facts.index_memory_bytes === 0 ? 'by the size' : formatSize(facts.index_memory_bytes),
      ],
      ['checksums', facts.data_checksum ? 'metadata and data' : 'metadata'],
      ['epoch', String(facts.epoch)],
      ['volumes', String(facts.volumes)],
      ['durable', facts.durable ? 'yes' : 'no'],
      ['state', state],
    ],
  );
}
