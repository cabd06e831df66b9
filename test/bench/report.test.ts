import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Script } from 'node:vm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { summarise } from '../../lib/bench/compare.js';
import type { PeerResult } from '../../lib/bench/fio.js';
import { readHost } from '../../lib/bench/host.js';
import { checkReportPath, reportPage, writeReport } from '../../lib/bench/report.js';
import type { ReportInput } from '../../lib/bench/report.js';
import type { Chart } from '../../lib/bench/report-page.js';
import type { JobResult } from '../../lib/bench/types.js';
import { HOST, busy, idle, jobResult } from '../support/job-results.js';

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-report-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

function input(results: JobResult[], more: Partial<ReportInput> = {}): ReportInput {
  return { results, host: HOST, commandLine: 'penstock bench file:/x --rw read', ...more };
}

function html(of: ReportInput): string {
  const path = join(folder, 'page.html');
  writeReport(path, of);
  return readFileSync(path, 'utf8');
}

function chart(of: ReportInput, id: string): Chart {
  const found = reportPage(of).charts.find((candidate) => candidate.id === id);
  if (found === undefined) throw new Error(`no chart ${id}`);
  return found;
}

const SWEEP = [1, 32, 128].map((iodepth) =>
  jobResult({ name: 'sweep', rw: 'randread', iodepth }, busy(1000 * iodepth, 100 * iodepth)),
);

describe('charts', () => {
  test('throughput: rates of each interval, a line for each direction', () => {
    const both = chart(
      input([jobResult({ name: 'm' }, busy(1000, 9), busy(500, 9))]),
      'throughput',
    );
    expect(both.x).toEqual([0.25, 0.5, 0.75, 1]);
    expect(both.series.map(({ label, values }) => [label, values])).toEqual([
      ['m, read', [1000, 1000, 1000, 1000]],
      ['m, write', [500, 500, 500, 500]],
    ]);
    expect(both.table?.rows[0]).toEqual(['m', '0.25', '1000', '500', '6000KiB/s']);
  });

  test('throughput: runs of different sample times share one axis', () => {
    const late = jobResult({ name: 'b' }, busy(10, 9));
    late.series = late.series.map((sample) => ({ ...sample, timeMs: sample.timeMs + 100 }));
    const { x, series } = chart(input([jobResult({ name: 'a' }, busy(10, 9)), late]), 'throughput');
    expect(x).toEqual([0.25, 0.35, 0.5, 0.6, 0.75, 0.85, 1, 1.1]);
    expect(series[0]?.values.filter((value) => value === null)).toHaveLength(4);
  });

  test('distribution: shares add up to all operations', () => {
    const { x, series, table } = chart(input([jobResult({}, busy(1000, 100))]), 'distribution');
    const sum = series[0]!.values.reduce<number>((total, value) => total + (value ?? 0), 0);
    expect(sum).toBeCloseTo(100, 9);
    expect(x.length).toBe(series[0]?.values.length);
    expect(table?.rows).toHaveLength(3);
  });

  test('percentiles: every one the result has, and nines as the axis', () => {
    const { x, series, table } = chart(input([jobResult({}, busy(1000, 100))]), 'percentiles');
    expect(x[x.length - 1]).toBeCloseTo(4, 6);
    expect(series[0]?.values[6]).toBe(600);
    expect(table?.rows.map(([name]) => name)).toContain('99.99 %');
    expect(table?.rows.map(([name]) => name)).toContain('max');
  });

  test('a depth sweep is drawn when runs differ in depth alone', () => {
    const depth = chart(input(SWEEP), 'depth-iops');
    expect(depth.x).toEqual([1, 32, 128]);
    expect(depth.series.map(({ values }) => values)).toEqual([[1000, 32_000, 128_000]]);
    const latency = chart(input(SWEEP), 'depth-latency');
    expect(latency.series.map(({ label }) => label)).toEqual([
      'randread 4096B, p50',
      'randread 4096B, p99',
    ]);
    const others = [jobResult({ iodepth: 1 }, busy(1, 1)), jobResult({ iodepth: 1 }, busy(1, 1))];
    const ids = reportPage(input(others)).charts.map(({ id }) => id);
    expect(ids).not.toContain('depth-iops');
  });

  test('labels tell runs of the same name apart', () => {
    const same = [...SWEEP, jobResult({ name: 'sweep', iodepth: 1 }, busy(1, 1))];
    expect(reportPage(input(same)).runs.map(({ label }) => label)).toEqual([
      'sweep, depth 1',
      'sweep, depth 32',
      'sweep, depth 128',
      'sweep, depth 1 (2)',
    ]);
  });

  test("a peer's line has its run's colour and another dash", () => {
    const [first] = SWEEP;
    const peer: PeerResult = {
      version: 'fio-3.33',
      jobname: 'sweep',
      optionSet: 'plain',
      command: [],
      read: busy(500, 300),
      write: idle(),
      clatNs: { read: idle().clatNs, write: idle().clatNs },
      usrCpu: 0,
      sysCpu: 0,
      cpuNsPerIo: 1,
    };
    const comparison = summarise(first!.options, [first!], [peer]);
    const of = input([first!], { comparisons: [comparison] });
    const { series } = chart(of, 'percentiles');
    expect(series.map(({ label, color, dash }) => [label, color, dash])).toEqual([
      ['sweep', 0, 0],
      ['fio: sweep', 0, 1],
    ]);
    expect(html(of)).toContain('Against fio-3.33');
  });
});

describe('page', () => {
  const hostile = '</script><script>alert(1)</script><img src=x onerror="a">\'&';

  test('needs nothing from outside', () => {
    const page = html(input(SWEEP));
    expect(page).not.toMatch(/<(link|img|iframe|script[^>]+src)/i);
    expect(page).not.toMatch(/@import|url\(/);
    expect(page).toContain("default-src 'none'");
    expect(page).toContain('MIT License');
  });

  test('escapes what it is given', () => {
    const result = jobResult({ name: hostile, uri: `file:${hostile}` }, busy(10, 10));
    result.error = { code: 'X', message: hostile, hint: hostile };
    result.penstock.device = { [hostile]: hostile };
    result.verify = {
      checkedBlocks: 1,
      failureCount: 3,
      failures: [{ kind: 'torn', block: 1, offset: 4096, detail: hostile }],
    };
    const host = { ...HOST, cpu: hostile };
    const page = html(input([result], { host, commandLine: hostile }));
    expect(page).not.toContain('alert(1)</script>');
    expect(page).not.toContain('<img');
    // The data and the two programs, and none of the four that were smuggled in.
    expect(page.match(/<script/g)).toHaveLength(3);
    expect(page).toContain('3 DAMAGED');
  });

  test('its data and programs parse', () => {
    const page = html(input([jobResult({ name: hostile }, busy(10, 10))]));
    const scripts = [...page.matchAll(/<script[^>]*>([\s\S]*?)<\/script>/g)].map(
      ([, text]) => text!,
    );
    const charts = JSON.parse(scripts[0]!) as Chart[];
    expect(charts[0]?.series[0]?.label).toBe(hostile);
    for (const text of scripts.slice(1)) expect(() => new Script(text)).not.toThrow();
    for (const { id } of charts) expect(page).toContain(`id="plot-${id}"`);
  });

  test('holds options, machine and command line', () => {
    const page = html(input(SWEEP));
    for (const text of ['Example CPU', 'ramp_time', 'penstock bench file:/x --rw read', '6.1.0']) {
      expect(page).toContain(text);
    }
  });

  test('a run without operations still makes a page', () => {
    const nothing = jobResult({}, idle());
    nothing.series = [];
    nothing.interrupted = true;
    expect(reportPage(input([nothing])).charts).toEqual([]);
    expect(html(input([nothing]))).toContain('Interrupted');
  });
});

describe('writing', () => {
  const unwritable = expect.objectContaining({ code: 'REPORT_UNWRITABLE' });

  test('replaces an earlier report and leaves nothing else', () => {
    const inner = join(folder, 'replace');
    mkdirSync(inner);
    const path = join(inner, 'r.html');
    writeFileSync(path, 'old');
    checkReportPath(path);
    writeReport(path, input(SWEEP));
    expect(readdirSync(inner)).toEqual(['r.html']);
    expect(readFileSync(path, 'utf8')).toMatch(/^<!doctype html>/);
  });

  test('a full disk is told as such', () => {
    // A device that is always full; the link is written through, as it is no plain file.
    const path = join(folder, 'full.html');
    symlinkSync('/dev/full', path);
    expect(() => writeReport(path, input(SWEEP))).toThrow(
      expect.objectContaining({
        code: 'REPORT_UNWRITABLE',
        message: expect.stringContaining('ENOSPC'),
        hint: expect.stringContaining('full'),
      }),
    );
  });

  test('a folder that is not there is told before and after the run', () => {
    const path = join(folder, 'nowhere', 'r.html');
    expect(() => checkReportPath(path)).toThrow(unwritable);
    expect(() => writeReport(path, input(SWEEP))).toThrow(unwritable);
    expect(() => checkReportPath(folder)).toThrow(/is a directory/);
    expect(existsSync(path)).toBe(false);
  });

  test('an earlier report outlives a failed write', () => {
    const inner = join(folder, 'busy');
    mkdirSync(join(inner, 'r.html'), { recursive: true });
    expect(() => writeReport(join(inner, 'r.html'), input(SWEEP))).toThrow(unwritable);
    expect(readdirSync(inner)).toEqual(['r.html']);
  });
});

describe('readHost', () => {
  test('reads the machine', () => {
    const root = join(folder, 'root');
    mkdirSync(join(root, 'proc/sys/kernel'), { recursive: true });
    writeFileSync(join(root, 'proc/sys/kernel/osrelease'), '6.1.0-test\n');
    writeFileSync(join(root, 'proc/cpuinfo'), 'processor\t: 0\nmodel name\t: Example CPU\n');
    writeFileSync(
      join(root, 'proc/meminfo'),
      'MemTotal:        8000000 kB\nHugePages_Total:     8\nHugePages_Free:      3\n' +
        'Hugepagesize:       2048 kB\n',
    );
    const version = JSON.parse(readFileSync('package.json', 'utf8')).version as string;
    expect(readHost(root, new Date(0))).toMatchObject({
      kernel: '6.1.0-test',
      cpu: 'Example CPU',
      memoryBytes: 8_000_000 * 1024,
      hugepages: '3 of 8 free, 2048 KiB each',
      node: process.version,
      penstock: version,
      date: '1970-01-01T00:00:00.000Z',
    });
  });

  test('works where /proc is hidden', () => {
    const facts = readHost(join(folder, 'empty'));
    expect(facts).toMatchObject({ cpu: 'unknown', memoryBytes: 0, hugepages: 'none' });
    expect(facts.kernel).not.toBe('');
  });
});
