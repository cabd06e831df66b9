// What every benchmark program here shares: its options, medians, the table and JSON it prints.

import { parseArgs } from 'node:util';
import { PenstockError } from '../lib/errors.js';

export interface BenchOptions {
  json: boolean;
  /** Ends with exit code 1 when a bar is missed. */
  check: boolean;
  rounds: number;
  /** Seconds of each run. */
  runtime: number;
  /** Folder for temporary files; '' is the system's. */
  folder: string;
}

/** A measured figure beside the one it must reach. */
export interface Bar {
  name: string;
  value: number;
  bar: number;
  /** Whether the value may not be over the bar, or not under it. */
  direction: 'at least' | 'at most';
  meets: boolean;
}

export type Cell = string | number;

/** What a program hands to `finish`. */
export interface BenchReport {
  schema: string;
  rows: Record<string, Cell>[];
  bars: Bar[];
  /** Every round's raw values, in JSON only. */
  rounds: unknown;
}

export function parseOptions(defaults: { rounds: number; runtime: number }): BenchOptions {
  const { values } = parseArgs({
    options: {
      json: { type: 'boolean', default: false },
      check: { type: 'boolean', default: false },
      rounds: { type: 'string', default: String(defaults.rounds) },
      runtime: { type: 'string', default: String(defaults.runtime) },
      folder: { type: 'string', default: '' },
    },
  });
  const rounds = Number(values.rounds);
  const runtime = Number(values.runtime);
  if (!Number.isInteger(rounds) || rounds < 1) throw badOption('--rounds is a count from 1 on');
  if (!(runtime > 0)) throw badOption('--runtime is a number of seconds');
  return { json: values.json, check: values.check, rounds, runtime, folder: values.folder };
}

function badOption(message: string): PenstockError {
  return new PenstockError('BAD_OPTION', message, { exitCode: 2 });
}

export function median(values: readonly number[]): number {
  if (values.length === 0) return NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

export function atLeast(name: string, value: number, bar: number): Bar {
  return { name, value, bar, direction: 'at least', meets: value >= bar };
}

export function atMost(name: string, value: number, bar: number): Bar {
  return { name, value, bar, direction: 'at most', meets: value <= bar };
}

/** Four significant digits; large figures with their unit prefix. */
export function short(value: number): string {
  if (!Number.isFinite(value)) return '-';
  for (const [unit, size] of [
    ['G', 1e9],
    ['M', 1e6],
    ['k', 1e4],
  ] as const) {
    if (Math.abs(value) >= size)
      return `${(value / (unit === 'k' ? 1e3 : size)).toPrecision(4)}${unit}`;
  }
  return Number.isInteger(value) ? String(value) : value.toPrecision(4);
}

/** Columns of the first row, right-aligned figures. */
export function table(rows: readonly Record<string, Cell>[]): string {
  const first = rows[0];
  if (first === undefined) return '';
  const names = Object.keys(first);
  const text = rows.map((row) =>
    names.map((name) => {
      const cell = row[name] ?? '';
      return typeof cell === 'number' ? short(cell) : cell;
    }),
  );
  const widths = names.map((name, at) => Math.max(name.length, ...text.map((r) => r[at]!.length)));
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, at) => (at === 0 ? cell.padEnd(widths[at]!) : cell.padStart(widths[at]!)))
      .join('  ');
  return [names, ...text].map(line).join('\n');
}

/** Prints the report and sets the exit code. Progress belongs on stderr. */
export function finish(
  report: BenchReport,
  options: Pick<BenchOptions, 'json' | 'check'> & Partial<BenchOptions>,
): void {
  if (options.json) {
    console.log(JSON.stringify(report, null, 2));
  } else {
    console.log(table(report.rows));
    if (report.bars.length > 0) console.log('');
    for (const bar of report.bars) {
      const verdict = bar.meets ? 'met' : 'MISSED';
      const { name, value, direction } = bar;
      console.log(
        `${verdict.padEnd(6)}  ${name}: ${short(value)} (${direction} ${short(bar.bar)})`,
      );
    }
  }
  if (options.check && report.bars.some((bar) => !bar.meets)) process.exitCode = 1;
}

/** Runs a program's main; a PenstockError becomes one line and its exit code. */
export async function program(main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    if (!(error instanceof PenstockError)) throw error;
    console.error(`penstock: ${error.message}`);
    if (error.hint !== '') console.error(`  hint: ${error.hint}`);
    process.exitCode = error.exitCode;
  }
}

export function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

export function progressEnd(): void {
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
}
