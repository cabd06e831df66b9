// `--report FILE.html`: what the page shows, as charts and tables, and the writing of the file.
//
// Invariants:
// 1. Every chart carries its figures as a table too, for those who cannot see it or want to copy.
// 2. The file appears whole or not at all: it is written beside its place and renamed into it.

import { createRequire } from 'node:module';
import {
  accessSync,
  constants,
  lstatSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { PenstockError, errnoCode } from '../errors.js';
import type { Comparison } from './compare.js';
import { depthCharts } from './report-depth.js';
import type { Chart, Line, ReportPage, Run } from './report-page.js';
import { reportHtml } from './report-page.js';
import { formatNanoseconds, scaleBytes, scaleCount } from './numbers.js';
import { intervals } from './series.js';
import type { DirectionResult, HostFacts, JobResult, Sample } from './types.js';

export interface ReportInput {
  results: readonly JobResult[];
  host: HostFacts;
  /** The command line that made the results, to repeat them. */
  commandLine: string;
  comparisons?: readonly Comparison[];
}

/** Bins per factor of ten of the latency distribution: fine enough to tell two modes apart. */
const BINS_PER_DECADE = 20;
const TIME_ROWS_MAX = 30;

/**
 * Fails before a long run rather than after it when the report cannot be written where it is to go.
 * Throws REPORT_UNWRITABLE.
 */
export function checkReportPath(path: string): void {
  try {
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat?.isDirectory() === true) {
      throw new PenstockError('REPORT_UNWRITABLE', `${path} is a directory`, {
        hint: 'Give a file name, like report.html.',
        exitCode: 2,
      });
    }
    // A plain file is replaced, which its folder must allow; anything else is written through.
    accessSync(stat === undefined || stat.isFile() ? dirname(path) : path, constants.W_OK);
  } catch (error) {
    throw unwritable(path, error);
  }
}

/** Writes the report. Throws REPORT_UNWRITABLE when it cannot, a full disk included. */
export function writeReport(path: string, input: ReportInput): void {
  const html = reportHtml(reportPage(input), chartLibrary());
  // A device, pipe or link, like /dev/stdout, is written through: a rename would replace it.
  const direct = lstatSync(path, { throwIfNoEntry: false })?.isFile() === false;
  const target = direct ? path : `${path}.${process.pid}.part`;
  try {
    writeFileSync(target, html);
    if (!direct) renameSync(target, path);
  } catch (error) {
    if (!direct) rmSync(target, { force: true });
    throw unwritable(path, error);
  }
}

const HINTS: Readonly<Record<string, string>> = {
  ENOSPC: 'The disk is full: free some space or write the report elsewhere.',
  EDQUOT: 'The quota is used up: free some space or write the report elsewhere.',
  ENOENT: 'The folder does not exist: create it first.',
  EACCES: 'There is no permission to write there.',
  EROFS: 'The file system is read-only.',
};

function unwritable(path: string, error: unknown): PenstockError {
  if (error instanceof PenstockError) return error;
  const code = errnoCode(error);
  return new PenstockError(
    'REPORT_UNWRITABLE',
    `the report cannot be written to ${path} (${code === '' ? String(error) : code})`,
    { hint: HINTS[code] ?? 'Write the report elsewhere.', cause: error },
  );
}

/** uPlot as the package ships it, with its licence: the page must work without a network. */
function chartLibrary(): { script: string; style: string; license: string } {
  const require = createRequire(import.meta.url);
  const folder = dirname(require.resolve('uplot/package.json'));
  const read = (name: string): string => readFileSync(join(folder, name), 'utf8');
  return {
    script: read('dist/uPlot.iife.min.js'),
    style: read('dist/uPlot.min.css'),
    license: read('LICENSE'),
  };
}

/** All that the page shows. */
export function reportPage(input: ReportInput): ReportPage {
  const { results, host, commandLine, comparisons = [] } = input;
  const runs = labelled(results, comparisons);
  const charts = [throughputChart(runs), distributionChart(runs), percentileChart(runs)];
  charts.push(...depthCharts(runs));
  return {
    host,
    commandLine,
    results: [...results],
    comparisons: [...comparisons],
    runs,
    charts: charts.filter((chart): chart is Chart => chart !== null),
  };
}

/** One run per result and peer, under a label that no other has. */
function labelled(results: readonly JobResult[], comparisons: readonly Comparison[]): Run[] {
  const names = results.map((result) => result.options.name);
  const repeated = new Set(names.filter((name, index) => names.indexOf(name) !== index));
  const taken = new Map<string, number>();
  const runs: Run[] = [];
  for (const result of results) {
    const { name, iodepth } = result.options;
    let label = repeated.has(name) ? `${name}, depth ${iodepth}` : name;
    const times = (taken.get(label) ?? 0) + 1;
    taken.set(label, times);
    if (times > 1) label = `${label} (${times})`;
    const { read, write, series, options } = result;
    const index = results.indexOf(result);
    runs.push({ label, options, read, write, series, peer: false, index });
    const comparison = comparisons.find((candidate) => candidate.result === result);
    if (comparison === undefined) continue;
    const { peer } = comparison;
    const peerRun = { read: peer.read, write: peer.write, series: [], peer: true, index };
    runs.push({ label: `fio: ${label}`, options, ...peerRun });
  }
  return runs;
}

interface Part {
  label: string;
  direction: 'read' | 'write';
  result: DirectionResult;
  run: Run;
  color: number;
  /** Solid for the main line, dashed for the peer's, dotted for writes beside reads. */
  dash: number;
}

/** The directions of each run that did anything, labelled. */
function partsOf(runs: readonly Run[]): Part[] {
  const colors = new Map<string, number>();
  const colorOf = (key: string): number => {
    const color = colors.get(key) ?? colors.size;
    colors.set(key, color);
    return color;
  };
  return runs.flatMap((run) => {
    const both = run.read.ios > 0 && run.write.ios > 0;
    const directions = (['read', 'write'] as const).filter((name) => run[name].ios > 0);
    return directions.map((direction) => ({
      label: both ? `${run.label}, ${direction}` : run.label,
      direction,
      result: run[direction],
      run,
      color: colorOf(`${run.index} ${direction}`),
      dash: (run.peer ? 1 : 0) + (both && direction === 'write' ? 2 : 0),
    }));
  });
}

function line(part: Part, values: (number | null)[]): Line {
  return { label: part.label, color: part.color, dash: part.dash, values };
}

function throughputChart(runs: readonly Run[]): Chart | null {
  const shown = partsOf(runs).map((part) => {
    const key = part.direction === 'read' ? 'readIops' : 'writeIops';
    const all = intervals(part.run.series);
    return { part, points: new Map(all.map((each) => [each.timeMs / 1000, each[key]])) };
  });
  const lines = shown.filter(({ points }) => points.size > 0);
  if (lines.length === 0) return null;
  const x = [...new Set(lines.flatMap(({ points }) => [...points.keys()]))].sort((a, b) => a - b);
  const rows = runs.flatMap((run) =>
    intervals(thinned(run.series)).map((each) => [
      run.label,
      (each.timeMs / 1000).toFixed(2),
      scaleCount(each.readIops),
      scaleCount(each.writeIops),
      `${scaleBytes(each.readBwBytes + each.writeBwBytes)}/s`,
    ]),
  );
  return {
    id: 'throughput',
    title: 'Throughput over time',
    description: 'Operations a second in each interval of the run.',
    xKind: 'seconds',
    yKind: 'count',
    yLabel: 'IOPS',
    style: 'line',
    x,
    series: lines.map(({ part, points }) =>
      line(
        part,
        x.map((time) => points.get(time) ?? null),
      ),
    ),
    table: { head: ['run', 'until, s', 'read IOPS', 'write IOPS', 'bandwidth'], rows },
    wide: false,
  };
}

function thinned(series: readonly Sample[]): Sample[] {
  const stride = Math.ceil(series.length / TIME_ROWS_MAX);
  return series.filter((_, index) => (series.length - 1 - index) % stride === 0);
}

/** Buckets grow with the latency; bins of equal width on the log axis make heights comparable. */
function distributionChart(runs: readonly Run[]): Chart | null {
  const shown = partsOf(runs).filter(({ result }) => result.buckets.length > 0);
  if (shown.length === 0) return null;
  const binOf = (ns: number): number => Math.floor(Math.log10(Math.max(1, ns)) * BINS_PER_DECADE);
  const histograms = shown.map(({ result }) => {
    const bins = new Map<number, number>();
    for (const [ns, count] of result.buckets)
      bins.set(binOf(ns), (bins.get(binOf(ns)) ?? 0) + count);
    return bins;
  });
  const used = histograms.flatMap((bins) => [...bins.keys()]);
  const first = used.reduce((a, b) => Math.min(a, b), Infinity) - 1;
  const last = used.reduce((a, b) => Math.max(a, b), 0) + 1;
  const bins = Array.from({ length: last - first + 1 }, (_, index) => first + index);
  const share = (index: number, bin: number): number => {
    const total = shown[index]?.result.ios ?? 0;
    return total === 0 ? 0 : (100 * (histograms[index]?.get(bin) ?? 0)) / total;
  };
  const nsOf = (bin: number): number => 10 ** (bin / BINS_PER_DECADE);
  const rows = bins
    .filter((bin) => histograms.some((histogram) => histogram.has(bin)))
    .map((bin) => [
      `${formatNanoseconds(nsOf(bin))} – ${formatNanoseconds(nsOf(bin + 1))}`,
      ...shown.map((_, index) => `${share(index, bin).toFixed(3)} %`),
    ]);
  return {
    id: 'distribution',
    title: 'Latency distribution',
    description: 'Share of the operations by completion latency, logarithmic axis.',
    xKind: 'nanoseconds',
    yKind: 'percent',
    yLabel: '% of operations',
    style: 'steps',
    x: bins.map(nsOf),
    series: shown.map((part, index) =>
      line(
        part,
        bins.map((bin) => share(index, bin)),
      ),
    ),
    table: { head: ['latency', ...shown.map(({ label }) => label)], rows },
    wide: false,
  };
}

/** Percentiles over the number of nines, so that the tail gets as much room as the middle. */
function percentileChart(runs: readonly Run[]): Chart | null {
  const shown = partsOf(runs).filter(
    ({ result }) => Object.keys(result.clatNs.percentile).length > 0,
  );
  if (shown.length === 0) return null;
  const keys = [...new Set(shown.flatMap(({ result }) => Object.keys(result.clatNs.percentile)))];
  keys.sort((a, b) => Number(a) - Number(b));
  const value = ({ result }: Part, key: string): number | null =>
    result.clatNs.percentile[key] ?? null;
  const text = (ns: number | null): string => (ns === null ? '–' : formatNanoseconds(ns));
  const rows = keys.map((key) => [
    `${Number(key)} %`,
    ...shown.map((part) => text(value(part, key))),
  ]);
  rows.unshift(['min', ...shown.map(({ result }) => text(result.clatNs.min))]);
  rows.push(['max', ...shown.map(({ result }) => text(result.clatNs.max))]);
  rows.push(['mean', ...shown.map(({ result }) => text(result.clatNs.mean))]);
  return {
    id: 'percentiles',
    title: 'Latency percentiles',
    description: 'Completion latency that a share of the operations stays below.',
    xKind: 'nines',
    yKind: 'nanoseconds',
    yLabel: 'completion latency',
    style: 'points',
    x: keys.map((key) => -Math.log10(1 - Number(key) / 100)),
    series: shown.map((part) =>
      line(
        part,
        // A logarithmic axis has no place for 0.
        keys.map((key) => Math.max(1, value(part, key) ?? 1)),
      ),
    ),
    table: { head: ['percentile', ...shown.map(({ label }) => label)], rows },
    wide: true,
  };
}
