// The result for people: fio's output block, line for line, so that eyes and scripts used to it
// keep working; what only Penstock knows follows as lines of its own.
//
// Lines that would need figures which are not measured (slat, ctx, faults, disk stats) are left out
// rather than printed as zeros.

import type { Comparison, Figures } from './compare.js';
import {
  formatNanoseconds,
  scaleBytes,
  scaleBytesDecimal,
  scaleCount,
  scaleLatency,
} from './numbers.js';
import { intervals } from './series.js';
import type { DirectionResult, HostFacts, JobResult } from './types.js';

/** fio's output for all jobs; `comparisons` add a block each. Ends with a newline. */
export function benchText(
  results: readonly JobResult[],
  host: HostFacts,
  comparisons: readonly Comparison[] = [],
): string {
  const lines = results.flatMap((result) => headerLines(result));
  const workers = results.reduce((sum, result) => sum + result.options.numjobs, 0);
  lines.push(`penstock-${host.penstock}`);
  lines.push(`Starting ${workers} ${workers === 1 ? 'thread' : 'threads'}`, '');
  results.forEach((result, index) => lines.push(...jobLines(result, index, host)));
  lines.push('', ...groupLines(results));
  for (const comparison of comparisons) lines.push('', ...comparisonLines(comparison));
  return lines.join('\n') + '\n';
}

function headerLines({ options }: JobResult): string[] {
  const bs = `${options.bs}B-${options.bs}B`;
  const head =
    `${options.name}: (g=0): rw=${options.rw}, bs=(R) ${bs}, (W) ${bs}, (T) ${bs}, ` +
    `ioengine=penstock, iodepth=${options.iodepth}`;
  return options.numjobs > 1 ? [head, '...'] : [head];
}

function jobLines(result: JobResult, index: number, host: HostFacts): string[] {
  const { options } = result;
  const errors = String(result.errors).padStart(2);
  const lines = [
    `${options.name}: (groupid=0, jobs=${options.numjobs}): err=${errors}: ` +
      `pid=${process.pid}: ${ctime(host.date)}`,
  ];
  if (index > 0) lines.unshift('');
  if (result.error !== null) lines.push(`  error: ${result.error.code}: ${result.error.message}`);
  if (result.error !== null && result.error.hint !== '') lines.push(`  hint: ${result.error.hint}`);
  if (result.interrupted) lines.push('  interrupted: the figures cover what was done until then');
  lines.push(...directionLines('read', result.read, result));
  lines.push(...directionLines('write', result.write, result));
  lines.push(...bucketLines([...result.read.buckets, ...result.write.buckets]));
  lines.push(
    `  cpu          : usr=${result.usrCpu.toFixed(2)}%, sys=${result.sysCpu.toFixed(2)}%, ` +
      `per I/O=${Math.round(result.cpuNsPerIo)}nsec`,
  );
  lines.push(...depthLines(result), ...penstockLines(result), ...verifyLines(result));
  return lines;
}

function directionLines(name: 'read' | 'write', part: DirectionResult, job: JobResult): string[] {
  if (part.ios === 0) return [];
  const total = `${scaleBytes(part.bytes)}/${Math.round(part.runtimeMs)}msec`;
  const rate = `${scaleBytes(part.bwBytes)}/s (${scaleBytesDecimal(part.bwBytes)}/s)(${total})`;
  const lines = [`  ${name}: IOPS=${scaleCount(part.iops)}, BW=${rate}`];
  lines.push(latencyLine(part), ...percentileLines(part));
  lines.push(...sampleLines(name, job));
  return lines;
}

function latencyLine({ clatNs }: DirectionResult): string {
  let { min, max, mean, stddev } = clatNs;
  let unit = 'nsec';
  // fio's thresholds: the larger unit is for runs whose smallest value still means something in it.
  if (min > 2_000_000 && max > 99_999_999 && stddev > 1_000_000) {
    [min, max, mean, stddev, unit] = [min / 1e6, max / 1e6, mean / 1e6, stddev / 1e6, 'msec'];
  } else if (min > 2000 && max > 99_999 && stddev > 1000) {
    [min, max, mean, stddev, unit] = [min / 1e3, max / 1e3, mean / 1e3, stddev / 1e3, 'usec'];
  }
  return (
    `    clat (${unit}): min=${scaleLatency(min)}, max=${scaleLatency(max)}, ` +
    `avg=${mean.toFixed(2).padStart(5)}, stdev=${stddev.toFixed(2).padStart(5)}`
  );
}

/** fio's layout: as many entries as fit into 80 columns, all values as wide as the largest. */
function percentileLines({ clatNs }: DirectionResult): string[] {
  const entries = Object.entries(clatNs.percentile)
    .map(([key, ns]): [number, number] => [Number(key), ns])
    .sort((a, b) => a[0] - b[0]);
  if (entries.length === 0) return [];
  const smallest = entries[0]?.[1] ?? 0;
  const largest = entries[entries.length - 1]?.[1] ?? 0;
  let [divisor, unit] = [1, 'nsec'];
  if (smallest > 2_000_000 && largest > 99_999_999) [divisor, unit] = [1e6, 'msec'];
  else if (smallest > 2000 && largest > 99_999) [divisor, unit] = [1e3, 'usec'];
  const width = Math.max(5, String(Math.round(largest / divisor)).length);
  const perLine = Math.floor((80 - 7) / (12 + width));
  const lines = [`    clat percentiles (${unit}):`];
  for (let first = 0; first < entries.length; first += perLine) {
    const cells = entries.slice(first, first + perLine).map(([percent, ns]) => {
      const value = String(Math.round(ns / divisor)).padStart(width);
      return ` ${percent.toFixed(2).padStart(5)}th=[${value}]`;
    });
    const last = first + perLine >= entries.length;
    lines.push(`     |${cells.join(',')}${last ? '' : ','}`);
  }
  return lines;
}

function sampleLines(name: 'read' | 'write', job: JobResult): string[] {
  const parts = intervals(job.series);
  const rates = parts.map((part) => (name === 'read' ? part.readIops : part.writeIops));
  const bandwidths = parts.map((part) => (name === 'read' ? part.readBwBytes : part.writeBwBytes));
  if (rates.length === 0) return [];
  return [
    `   bw (  KiB/s): ${spread(bandwidths.map((bytes) => bytes / 1024))}, samples=${rates.length}`,
    `   iops        : ${spread(rates)}, samples=${rates.length}`,
  ];
}

function spread(values: readonly number[]): string {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const deviation = values.length < 2 ? 0 : Math.sqrt(squares / (values.length - 1));
  const min = values.reduce((a, b) => Math.min(a, b), Infinity);
  const max = values.reduce((a, b) => Math.max(a, b), 0);
  return (
    `min=${String(Math.round(min)).padStart(5)}, max=${String(Math.round(max)).padStart(5)}, ` +
    `avg=${mean.toFixed(2).padStart(5)}, stdev=${deviation.toFixed(2).padStart(5)}`
  );
}

const BUCKET_STEPS = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];
const BUCKET_UNITS: readonly [string, number, readonly number[]][] = [
  ['nsec', 1, BUCKET_STEPS],
  ['usec', 1e3, BUCKET_STEPS],
  ['msec', 1e6, [...BUCKET_STEPS, 2000]],
];

/** Share of the operations below each of fio's steps, `lat (usec)   : 2=0.36%, …`. */
function bucketLines(buckets: readonly [number, number][]): string[] {
  const total = buckets.reduce((sum, [, count]) => sum + count, 0);
  const lines: string[] = [];
  let floorNs = 0;
  const share = (low: number, high: number): number => {
    const inside = buckets.filter(([ns]) => ns > low && ns <= high);
    return (100 * inside.reduce((sum, [, count]) => sum + count, 0)) / total;
  };
  for (const [unit, scale, steps] of BUCKET_UNITS) {
    const cells: string[] = [];
    for (const step of steps) {
      const percent = share(floorNs, step * scale);
      floorNs = step * scale;
      if (percent > 0) cells.push(`${step}=${Math.max(percent, 0.01).toFixed(2)}%`);
    }
    const beyond = unit === 'msec' ? share(floorNs, Infinity) : 0;
    if (beyond > 0) cells.push(`>=2000=${Math.max(beyond, 0.01).toFixed(2)}%`);
    for (let first = 0; first < cells.length; first += 5) {
      lines.push(`  clat (${unit})  : ${cells.slice(first, first + 5).join(', ')}`);
    }
  }
  return lines;
}

const DEPTHS = [1, 2, 4, 8, 16, 32, 64];

function depthLines({ options, read, write }: JobResult): string[] {
  const lines: string[] = [];
  // A closed loop keeps its depth from the first batch on; an open loop's depth is not recorded.
  if (options.rateIops === 0) {
    const bucket = DEPTHS.findLastIndex((depth) => depth <= options.iodepth);
    const cells = DEPTHS.map((depth, index) => {
      const name = depth === 64 ? '>=64' : String(depth);
      return `${name}=${index === bucket ? '100.0' : '0.0'}%`;
    });
    lines.push(`  IO depths    : ${cells.join(', ')}`);
  }
  lines.push(
    `     issued rwts: total=${read.ios},${write.ios},0,0 short=0,0,0,0 dropped=0,0,0,0`,
    `     latency   : target=0, window=0, percentile=100.00%, depth=${options.iodepth}`,
  );
  return lines;
}

function penstockLines({ options, read, write, penstock }: JobResult): string[] {
  const ios = read.ios + write.ios;
  const batch = penstock.doorbells === 0 ? 0 : ios / penstock.doorbells;
  const device = Object.entries(penstock.device).map(([key, value]) => `${key}=${value}`);
  return [
    `  penstock     : uri=${options.uri}, seed=${penstock.seed}`,
    `     device    : ${device.join(', ')}`,
    `     queue     : polls=${penstock.polls}, doorbells=${penstock.doorbells}, ` +
      `ios/doorbell=${batch.toFixed(2)}`,
    `     memory    : gc=${penstock.gcCount} (${penstock.gcMs.toFixed(1)}msec), ` +
      `allocated=${scaleBytes(penstock.allocatedBytes)}`,
  ];
}

function verifyLines({ verify }: JobResult): string[] {
  if (verify === null) return [];
  const { checkedBlocks, failureCount, failures } = verify;
  const lines = [`  verify       : checked=${checkedBlocks} blocks, damaged=${failureCount}`];
  for (const { kind, block, offset, detail } of failures) {
    lines.push(`     ${kind.padEnd(9)} : block ${block} at byte ${offset}: ${detail}`);
  }
  const unlisted = failureCount - failures.length;
  if (unlisted > 0) lines.push(`     and ${unlisted} more`);
  return lines;
}

function groupLines(results: readonly JobResult[]): string[] {
  const lines = ['Run status group 0 (all jobs):'];
  for (const name of ['read', 'write'] as const) {
    const parts = results.map((result) => result[name]).filter((part) => part.ios > 0);
    if (parts.length === 0) continue;
    const runtimes = parts.map((part) => Math.round(part.runtimeMs));
    const rates = parts.map((part) => part.bwBytes);
    const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
    const longestMs = Math.max(...runtimes, 1);
    const [low, high] = [Math.min(...rates), Math.max(...rates)];
    const total = (bytes * 1000) / longestMs;
    const label = name.toUpperCase().padStart(7);
    lines.push(
      `${label}: bw=${scaleBytes(total)}/s (${scaleBytesDecimal(total)}/s), ` +
        `${scaleBytes(low)}/s-${scaleBytes(high)}/s ` +
        `(${scaleBytesDecimal(low)}/s-${scaleBytesDecimal(high)}/s), ` +
        `io=${scaleBytes(bytes)} (${scaleBytesDecimal(bytes)}), ` +
        `run=${Math.min(...runtimes)}-${longestMs}msec`,
    );
  }
  return lines;
}

const FIGURES: readonly [string, keyof Figures, (value: number) => string][] = [
  ['IOPS', 'iops', scaleCount],
  ['BW', 'bwBytes', (bytes) => `${scaleBytes(bytes)}/s`],
  ['latency p50', 'latencyP50Ns', formatNanoseconds],
  ['latency p99', 'latencyP99Ns', formatNanoseconds],
  ['CPU per I/O', 'cpuNsPerIo', formatNanoseconds],
];

function comparisonLines(comparison: Comparison): string[] {
  const { job, version, optionSet, rounds, penstock, fio, ratio } = comparison;
  const count = `${rounds.length} ${rounds.length === 1 ? 'round' : 'rounds'}`;
  const lines = [
    `${job.name} against ${version} (io_uring, ${optionSet}), medians of ${count} in turn:`,
    `  ${''.padEnd(13)}${'penstock'.padStart(12)}${'fio'.padStart(12)}${'ratio'.padStart(9)}`,
  ];
  for (const [label, key, format] of FIGURES) {
    const quotient = Number.isFinite(ratio[key]) ? ratio[key].toFixed(3) : '-';
    lines.push(
      `  ${label.padEnd(13)}${format(penstock[key]).padStart(12)}` +
        `${format(fio[key]).padStart(12)}${quotient.padStart(9)}`,
    );
  }
  const pairs = rounds.map((round) => (round.penstock.iops / round.fio.iops).toFixed(3));
  return [...lines, `  IOPS ratio by round: ${pairs.join(' ')}`];
}

/** fio prints the date as ctime(3) does: 'Fri Jan  2 03:04:05 2026', local time. */
function ctime(date: string): string {
  const at = new Date(date);
  if (Number.isNaN(at.getTime())) return date;
  const [weekday, month] = at.toString().split(' ');
  const clock = at.toTimeString().slice(0, 8);
  return `${weekday} ${month} ${String(at.getDate()).padStart(2)} ${clock} ${at.getFullYear()}`;
}
