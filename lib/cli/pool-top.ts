// `penstock pool top PATH`: what a pool that another process has open does now, once a second.

import type { Command } from 'commander';
import { setTimeout as sleep } from 'node:timers/promises';
import { readStats, type ServedStats } from '../dedup/index.js';
import { PenstockError } from '../errors.js';
import { formatSize, parseDuration } from '../units.js';
import { nestedUri, parseUri } from '../uri.js';
import { catchInterrupts } from './interrupts.js';
import { Exit, printText, table } from './output.js';
import type { Finish } from './program.js';

const INTERVAL_SECONDS_MIN = 0.1;
const INTERVAL_SECONDS_MAX = 3600;
const PAGE_BYTES = 4096;

/** What happened between two looks, and how it is after the second. */
export interface PoolSample {
  readonly seconds: number;
  readonly uri: string;
  readonly uuid: string;
  readonly pid: number;
  readonly open_ms: number;
  readonly volumes: number;
  readonly reads_per_s: number;
  readonly read_bytes_per_s: number;
  readonly writes_per_s: number;
  readonly written_bytes_per_s: number;
  /** Requests to the data device, of all kinds. */
  readonly device_reads_per_s: number;
  readonly device_writes_per_s: number;
  /** Reads of the data device for each MiB that was read now; 0: nothing was. */
  readonly device_reads_per_mib: number;
  /** Of short reads, where there is low-latency memory; null: there were none. */
  readonly llrrm_hit_rate: number | null;
  readonly index_hit_rate: number | null;
  readonly cache_hit_rate: number | null;
  /** Part of the blocks written now that took no room; null: none were. */
  readonly saved_rate: number | null;
  readonly dirty_pages: number;
  readonly cache_pages: number;
  readonly journal_fill: number;
  readonly checkpoints: number;
  readonly space: string;
  readonly used_percent: number;
  readonly saving_percent: number;
}

interface Flags {
  json?: boolean;
  once?: boolean;
  interval?: string;
}

export function configureTop(command: Command, finish: Finish): void {
  command
    .description('what a pool does that another process has open with dedup.stats, until SIGINT')
    .argument('<path>', "the socket that dedup.stats names, or the volume's URI with that key")
    .option('--once', 'one sample, then end')
    .option('--interval <duration>', 'time between samples (default: 1)')
    .option('--json', 'print JSON alone on stdout, a line for each sample')
    .action(async (path: string, _: object, self: Command) => {
      await runTop(pathOf(path), self.optsWithGlobals());
      finish(Exit.OK);
    });
}

async function runTop(path: string, flags: Flags): Promise<void> {
  const seconds = parseInterval(flags.interval ?? '1');
  const interrupts = catchInterrupts();
  const { signal } = interrupts;
  try {
    let before = await readStats(path);
    do {
      await sleep(seconds * 1000, undefined, { signal });
      const now = await readStats(path);
      print(path, sampleOf(before, now), flags);
      before = now;
    } while (flags.once !== true && !signal.aborted);
  } catch (error) {
    // Asked to end: that is how it ends.
    if (!signal.aborted) throw error;
  } finally {
    interrupts.release();
  }
}

/** Where statistics are: the path of a socket, or the one that a volume's URI says; or null. */
export function servedAt(text: string): string | null {
  if (!/^[a-z][a-z0-9+-]*:/.test(text)) return text;
  const uri = parseUri(text);
  return uri.scheme === 'dedup' ? (nestedUri(uri).own.get('stats') ?? null) : null;
}

/** As `servedAt`. Throws BAD_OPTION for a URI that does not say it, such as a device's. */
export function pathOf(text: string): string {
  const path = servedAt(text);
  if (path !== null) return path;
  throw new PenstockError('BAD_OPTION', `the URI '${text}' does not say where statistics are`, {
    hint:
      "give the socket that the pool's owner named by dedup.stats, or the URI with that key; " +
      '`penstock pool stats DEVICE` is for a pool that nobody has open',
    exitCode: Exit.USAGE,
  });
}

/** Of a pool that was opened anew meanwhile: since it was opened. */
export function sampleOf(before: ServedStats, now: ServedStats): PoolSample {
  const isSame = before.pid === now.pid && before.open_ms < now.open_ms;
  const seconds = Math.max(1, now.open_ms - (isSame ? before.open_ms : 0)) / 1000;
  const since = (of: (stats: ServedStats) => number): number => {
    return of(now) - (isSame ? of(before) : 0);
  };
  const rate = (of: (stats: ServedStats) => number): number => Math.round(since(of) / seconds);
  const part = (some: number, rest: number): number | null => {
    return some + rest === 0 ? null : some / (some + rest);
  };
  const blocksRead = since(({ reads }) => reads.blocks);
  const deviceReads = since(({ reads }) => reads.device_reads);
  const saved = since(({ savings }) => savings.zero + savings.run + savings.short);
  return {
    seconds,
    uri: now.uri,
    uuid: now.uuid,
    pid: now.pid,
    open_ms: now.open_ms,
    volumes: now.volumes,
    reads_per_s: rate(({ reads }) => reads.requests),
    read_bytes_per_s: rate(({ reads, block_size: size }) => reads.blocks * size),
    writes_per_s: rate(({ writes }) => writes.requests),
    written_bytes_per_s: rate(({ writes, block_size: size }) => writes.blocks * size),
    device_reads_per_s: rate(({ device }) => device.reads),
    device_writes_per_s: rate(({ device }) => device.writes),
    device_reads_per_mib:
      blocksRead === 0 ? 0 : (deviceReads * 2 ** 20) / (blocksRead * now.block_size),
    llrrm_hit_rate: part(
      since(({ llrrm }) => llrrm?.reads ?? 0),
      since(({ llrrm }) => llrrm?.misses ?? 0),
    ),
    index_hit_rate: part(
      since(({ index }) => index.hits),
      since(({ index }) => index.missed),
    ),
    cache_hit_rate: part(
      since(({ cache }) => cache.hits),
      since(({ cache }) => cache.misses),
    ),
    saved_rate: part(
      saved,
      since(({ written }) => written.fresh),
    ),
    dirty_pages: now.cache.dirty,
    cache_pages: now.cache.frames,
    journal_fill: now.journal.fill,
    checkpoints: since(({ checkpoints }) => checkpoints.done),
    space: now.space,
    used_percent: now.used_percent,
    saving_percent: now.saving_percent,
  };
}

function print(path: string, sample: PoolSample, { json, once }: Flags): void {
  if (json === true) {
    const line = { schema: 'penstock.pool-top/1', socket: path, ...sample };
    process.stdout.write(`${JSON.stringify(line)}\n`);
    return;
  }
  const home = process.stdout.isTTY && once !== true ? '\x1b[H\x1b[2J' : '';
  printText(`${home}${formatSample(sample)}`);
}

export function formatSample(sample: PoolSample): string {
  const { dirty_pages: dirty, cache_pages: frames } = sample;
  const row = (name: string, perSecond: number, bytes: number): string[] => {
    return [name, String(perSecond), (bytes / 1e6).toFixed(1)];
  };
  const percent = (rate: number | null): string => {
    return rate === null ? '-' : `${(100 * rate).toFixed(1)} %`;
  };
  const open = (sample.open_ms / 1000).toFixed(0);
  const traffic = table(
    ['POOL', 'PER SECOND', 'MB/S'],
    [
      row('reads', sample.reads_per_s, sample.read_bytes_per_s),
      row('writes', sample.writes_per_s, sample.written_bytes_per_s),
      ['device reads', String(sample.device_reads_per_s), ''],
      ['device writes', String(sample.device_writes_per_s), ''],
    ],
  );
  const lines = [
    `device reads   ${sample.device_reads_per_mib.toFixed(1)} for each MiB read`,
    `hits           llrrm ${percent(sample.llrrm_hit_rate)}, ` +
      `index ${percent(sample.index_hit_rate)}, map ${percent(sample.cache_hit_rate)}`,
    `saved          ${percent(sample.saved_rate)} of what was written`,
    `dirty pages    ${formatSize(dirty * PAGE_BYTES)} (${percent(dirty / frames)})`,
    `journal        ${percent(sample.journal_fill)}, checkpoints ${sample.checkpoints}`,
    `space          ${sample.space}: ${sample.used_percent.toFixed(1)} %, ` +
      `saving ${sample.saving_percent.toFixed(1)} %`,
  ];
  const title = `${sample.uri}, process ${sample.pid}, open for ${open} s`;
  return `${title}\n${traffic}\n${lines.join('\n')}\n`;
}

function parseInterval(text: string): number {
  const seconds = parseDuration(text);
  if (seconds >= INTERVAL_SECONDS_MIN && seconds <= INTERVAL_SECONDS_MAX) return seconds;
  throw new PenstockError(
    'BAD_OPTION',
    `--interval: ${text} is not between ${INTERVAL_SECONDS_MIN} s and an hour`,
    { hint: 'Give it like 500ms or 2.', exitCode: Exit.USAGE },
  );
}
