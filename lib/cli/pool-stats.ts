// `penstock pool stats`: what a pool holds and saves; of one that another process has open also
// what it has done so far.

import type { Command } from 'commander';
import { readStats, type Pool, type PoolStats } from '../dedup/index.js';
import { formatSize } from '../units.js';
import { Exit, printJson, printText, table, wantsJson } from './output.js';
import { OPENS_POOL, orInterrupted, withPool } from './pool-session.js';
import { servedAt } from './pool-top.js';
import type { Finish } from './program.js';

/** Also what only a walk through all maps tells: null for a pool that another process has open. */
type Stats = PoolStats & { readonly read_extents: number | null };
type Latencies = PoolStats['reads']['latency'];

export function configureStats(command: Command, finish: Finish): void {
  command
    .description('what the pool of a device holds, and what it saves')
    .argument('<uri>', 'the device of the pool; or, for one that is open, the path of dedup.stats')
    .option('--json', 'print JSON alone on stdout')
    .addHelpText('after', OPENS_POOL)
    .action(async (uri: string, _: object, self: Command) => {
      const path = servedAt(uri);
      const stats =
        path === null
          ? await withPool(uri, statsOf)
          : { ...(await readStats(path)), read_extents: null };
      if (wantsJson(self)) printJson('pool-stats', stats);
      else printText(formatStats(stats));
      finish(Exit.OK);
    });
}

async function statsOf(pool: Pool, signal: AbortSignal): Promise<Stats> {
  const { extents } = await orInterrupted(pool.readExtents(), signal);
  return { ...pool.stats(), read_extents: extents };
}

export function formatStats(stats: Stats): string {
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
  const { llrrm, read_extents: extents } = stats;
  const rest = [
    `saving        ${stats.saving_percent.toFixed(1)} %`,
    `volumes       ${stats.volumes}`,
    `space         ${stats.space}`,
    ...(extents === null ? [] : [`read extents  ${extents}`]),
    ...(llrrm === null ? [] : [`llrrm         ${llrrm.used} blocks of ${llrrm.slots}`]),
    ...(stats.llrrm_why === '' ? [] : [`llrrm         degraded: ${stats.llrrm_why}`]),
  ];
  if (extents === null) rest.push('', ...formatSince(stats));
  return `${space}\n${rest.join('\n')}\n`;
}

/** What it has done since it was opened. */
function formatSince(stats: Stats): string[] {
  const { reads, writes, savings, written, index, llrrm, stages, block_size: block } = stats;
  const { checksums } = stats;
  const traffic = (requests: number, blocks: number): string => {
    return `${requests} requests, ${formatSize(blocks * block)}`;
  };
  const runs = written.run_lengths.map((count, i) => `${2 ** i}: ${count}`).join(', ');
  const times = Object.entries(stages).map(([name, ms]) => {
    return `${name.replace('_ms', '').replace('_', '-')} ${ms.toFixed(0)} ms`;
  });
  return [
    `open for      ${(stats.open_ms / 1000).toFixed(0)} s`,
    `reads         ${traffic(reads.requests, reads.blocks)}, ` +
      `${reads.device_reads_per_mib.toFixed(1)} reads of the device for each MiB`,
    `writes        ${traffic(writes.requests, writes.blocks)}`,
    `stored        ${formatSize(written.fresh * block)}`,
    `saved         ${formatSize(savings.zero * block)} of zeros, ` +
      `${formatSize(savings.run * block)} in runs, ` +
      `${formatSize(savings.short * block)} in short runs, ` +
      `${formatSize(savings.copied * block)} in snapshots and clones`,
    `runs from     ${runs}`,
    `index         ${index.entries} fingerprints, 1 in ${index.rate}`,
    `looked up     ${index.hits} found, ${index.missed} not, ${index.stale} stale`,
    ...(llrrm === null
      ? []
      : [
          `llrrm hits    ${(100 * llrrm.hit_rate).toFixed(1)} %, ` +
            `${reads.device_reads_saved} reads of the device spared`,
        ]),
    ...(checksums === null
      ? []
      : [`checksums     ${checksums.blocks} blocks checked, ${checksums.damaged} damaged`]),
    ...formatLatencies(reads.latency),
    `stages        ${times.join(', ')}`,
  ];
}

function formatLatencies({ device, llrrm }: Latencies): string[] {
  return Object.entries({ device, llrrm }).flatMap(([tier, latency]) => {
    if (latency === null || latency.count === 0) return [];
    const { p50_us: middle, p99_us: high, max_us: most } = latency;
    return [`${tier.padEnd(6)} reads  ${middle} us, 99 % within ${high} us, at most ${most} us`];
  });
}
