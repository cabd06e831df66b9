// The report's depth sweep: how throughput and latency move with the queue depth, for runs that
// differ in nothing else.

import { formatNanoseconds, scaleBytes, scaleCount } from './numbers.js';
import type { Chart, Line, Run } from './report-page.js';

interface Sweep {
  label: string;
  /** As in Line: a sweep and its peer's share a colour. */
  color: number;
  dash: number;
  byDepth: Map<number, Run>;
}

/** Two charts, throughput and latency; none when no two runs differ in depth alone. */
export function depthCharts(runs: readonly Run[]): Chart[] {
  const sweeps = sweepsOf(runs);
  if (sweeps.length === 0) return [];
  const depths = [...new Set(sweeps.flatMap((sweep) => [...sweep.byDepth.keys()]))];
  depths.sort((a, b) => a - b);
  const rows = sweeps.flatMap((sweep) =>
    depths.flatMap((depth) => {
      const run = sweep.byDepth.get(depth);
      if (run === undefined) return [];
      const bandwidth = `${scaleBytes(run.read.bwBytes + run.write.bwBytes)}/s`;
      const latencies = ['50.000000', '99.000000', '99.900000'].map((key) =>
        formatNanoseconds(percentile(run, key) ?? 0),
      );
      return [[sweep.label, String(depth), scaleCount(iops(run)), bandwidth, ...latencies]];
    }),
  );
  const common = { xKind: 'depth', style: 'points', x: depths, wide: false } as const;
  const line = (
    { byDepth, label, color, dash }: Sweep,
    value: (run: Run) => number | null,
    suffix = '',
    moreDash = 0,
  ): Line => ({
    label: label + suffix,
    color,
    dash: dash + moreDash,
    values: depths.map((depth) => {
      const run = byDepth.get(depth);
      return run === undefined ? null : value(run);
    }),
  });
  return [
    {
      ...common,
      id: 'depth-iops',
      title: 'Throughput by depth',
      description: 'Operations a second at each queue depth.',
      yKind: 'count',
      yLabel: 'IOPS',
      series: sweeps.map((sweep) => line(sweep, iops)),
      table: { head: ['run', 'depth', 'IOPS', 'bandwidth', 'p50', 'p99', 'p99.9'], rows },
    },
    {
      ...common,
      id: 'depth-latency',
      title: 'Latency by depth',
      description: 'Median and 99th percentile of the completion latency at each queue depth.',
      yKind: 'nanoseconds',
      yLabel: 'completion latency',
      series: sweeps.flatMap((sweep) => [
        line(sweep, (run) => percentile(run, '50.000000'), ', p50'),
        line(sweep, (run) => percentile(run, '99.000000'), ', p99', 2),
      ]),
      table: null,
    },
  ];
}

function sweepsOf(runs: readonly Run[]): Sweep[] {
  const byKey = new Map<string, Sweep>();
  const colors = new Map<string, number>();
  for (const run of runs) {
    const { uri, rw, bs, numjobs } = run.options;
    const workload = JSON.stringify([uri, rw, bs, numjobs]);
    const color = colors.get(workload) ?? colors.size;
    colors.set(workload, color);
    const key = `${run.peer ? 'fio' : ''} ${workload}`;
    const label = `${run.peer ? 'fio: ' : ''}${rw} ${scaleBytes(bs)}`;
    const dash = run.peer ? 1 : 0;
    const sweep = byKey.get(key) ?? { label, color, dash, byDepth: new Map<number, Run>() };
    sweep.byDepth.set(run.options.iodepth, run);
    byKey.set(key, sweep);
  }
  return [...byKey.values()].filter((sweep) => sweep.byDepth.size > 1);
}

function iops(run: Run): number {
  return run.read.iops + run.write.iops;
}

/** Of the direction that did more; at least 1, for the logarithmic axis. */
function percentile(run: Run, key: string): number | null {
  const part = run.read.ios >= run.write.ios ? run.read : run.write;
  const ns = part.clatNs.percentile[key];
  return ns === undefined ? null : Math.max(1, ns);
}
