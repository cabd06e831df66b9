// Random 4 KiB reads of one file by io_uring: the command line's bench, the C loop, and fio with
// each of its option sets, in turn, round after round. Medians decide. CPU time is that of each
// program's whole process tree from start to end, over the operations it reports.
//
// A run that spent more than a tenth of its time runnable but not running counts as noisy:
// something else had the CPU. Noisy runs are left out of a median as long as three calm runs are
// left.

import { statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PenstockError } from '../lib/errors.js';
import { buildBaselines, packageRoot, runMetered, type TreeUsage } from './baseline.js';
import { fioSets, runFio } from './fio-sets.js';
import {
  atLeast,
  atMost,
  finish,
  median,
  progress,
  progressEnd,
  type Bar,
  type BenchOptions,
  type Cell,
} from './report.js';
import { readThrough, scratchFolder, writeRandomFile } from './scratch.js';

const DEPTHS = [1, 32, 128] as const;
const FILE_BYTES = 2 ** 30;
const NOISY_SHARE = 0.1;
const CALM_RUNS_MIN = 3;
const TMPFS_MAGIC = 0x01021994;

export interface Comparison {
  schema: string;
  direct: boolean;
  /** Lowest ratio of IOPS to the best of fio's option sets; and to the C loop, when it is a bar. */
  ratioToFioMin: number;
  ratioToCMin: number | null;
}

interface Run {
  iops: number;
  cpuNsPerIo: number;
  runDelayShare: number;
}

interface Contender {
  name: string;
  run: () => Promise<Run>;
  runs: Run[];
}

interface Outcome {
  name: string;
  iops: number;
  cpuNsPerIo: number;
  noisyRuns: number;
}

function toRun(iops: number, ios: number, usage: TreeUsage): Run {
  return {
    iops,
    cpuNsPerIo: (usage.user_ns + usage.sys_ns) / ios,
    runDelayShare: usage.run_delay_ns / usage.wall_ns,
  };
}

async function runPenstock(uri: string, depth: number, runtime: number): Promise<Run> {
  const { stdout, usage } = await runMetered(process.execPath, [
    join(packageRoot(), 'dist', 'lib', 'cli', 'main.js'),
    ...['bench', uri, '--rw', 'randread', '--bs', '4k'],
    ...['--iodepth', String(depth), '--runtime', String(runtime), '--json'],
  ]);
  const report = JSON.parse(stdout) as { jobs: { read: { iops: number; total_ios: number } }[] };
  const read = report.jobs[0]!.read;
  return toRun(read.iops, read.total_ios, usage);
}

async function runC(file: string, depth: number, runtime: number, direct: boolean): Promise<Run> {
  const program = join(await buildBaselines(), 'uring-read');
  const { stdout, usage } = await runMetered(program, [
    ...[file, '--depth', String(depth), '--runtime', String(runtime), '--fixed'],
    ...(direct ? ['--direct'] : []),
  ]);
  const result = JSON.parse(stdout) as { iops: number; ios: number };
  return toRun(result.iops, result.ios, usage);
}

function outcome({ name, runs }: Contender): Outcome {
  const calm = runs.filter((run) => run.runDelayShare <= NOISY_SHARE);
  const used = calm.length >= CALM_RUNS_MIN ? calm : runs;
  return {
    name,
    iops: median(used.map((run) => run.iops)),
    cpuNsPerIo: median(used.map((run) => run.cpuNsPerIo)),
    noisyRuns: runs.length - calm.length,
  };
}

function contenders(file: string, depth: number, options: BenchOptions, direct: boolean) {
  const { runtime } = options;
  const uri = `file:${file}${direct ? '?direct=1' : ''}`;
  const list: Contender[] = [
    { name: 'penstock', run: () => runPenstock(uri, depth, runtime), runs: [] },
    { name: 'C', run: () => runC(file, depth, runtime, direct), runs: [] },
  ];
  for (const set of fioSets(depth)) {
    const run = async (): Promise<Run> => {
      const { iops, ios, usage } = await runFio(file, { depth, runtime, direct, set });
      return toRun(iops, ios, usage);
    };
    list.push({ name: `fio ${set.name}`, run, runs: [] });
  }
  return list;
}

function folderOnDisk(folder: string): string {
  const parent = folder || tmpdir();
  if (statfsSync(parent).type !== TMPFS_MAGIC) return parent;
  throw new PenstockError(
    'BENCH_FOLDER',
    `${parent} is a tmpfs, whose reads go to kernel workers`,
    {
      hint: 'Name a folder on a disk with --folder.',
      exitCode: 3,
    },
  );
}

/** Bars of one depth: best of fio in IOPS, thriftiest of fio in CPU time. */
function barsOf(comparison: Comparison, depth: number, outcomes: readonly Outcome[]): Bar[] {
  const ours = outcomes[0]!;
  const c = outcomes[1]!;
  const fio = outcomes.slice(2);
  const best = fio.reduce((a, b) => (b.iops > a.iops ? b : a));
  const thriftiest = Math.min(...fio.map((peer) => peer.cpuNsPerIo));
  const bars = [
    atLeast(
      `depth ${depth}: IOPS to ${best.name}`,
      ours.iops / best.iops,
      comparison.ratioToFioMin,
    ),
    atMost(`depth ${depth}: CPU time per I/O to fio's lowest`, ours.cpuNsPerIo / thriftiest, 1),
  ];
  if (comparison.ratioToCMin !== null) {
    bars.push(atLeast(`depth ${depth}: IOPS to C`, ours.iops / c.iops, comparison.ratioToCMin));
  }
  return bars;
}

export async function compareOnFile(comparison: Comparison, options: BenchOptions): Promise<void> {
  await buildBaselines();
  const file = join(scratchFolder(folderOnDisk(options.folder)), 'data');
  progress('writing the file');
  writeRandomFile(file, FILE_BYTES);
  const rows: Record<string, Cell>[] = [];
  const bars: Bar[] = [];
  const rounds: unknown[] = [];
  for (const depth of DEPTHS) {
    const list = contenders(file, depth, options, comparison.direct);
    for (let round = 0; round < options.rounds; round++) {
      // The kernel takes page cache back in its own time: each round begins with all of it there.
      if (!comparison.direct) readThrough(file);
      for (const contender of list) {
        progress(`depth ${depth}, round ${round + 1} of ${options.rounds}: ${contender.name}`);
        contender.runs.push(await contender.run());
      }
    }
    const outcomes = list.map(outcome);
    for (const { name, iops, cpuNsPerIo, noisyRuns } of outcomes) {
      rows.push({
        loop: name,
        depth,
        IOPS: iops,
        'CPU ns/IO': cpuNsPerIo,
        'penstock / this': outcomes[0]!.iops / iops,
        'noisy runs': noisyRuns,
      });
    }
    bars.push(...barsOf(comparison, depth, outcomes));
    rounds.push({ depth, runs: list.map(({ name, runs }) => ({ name, runs })) });
  }
  progressEnd();
  finish({ schema: comparison.schema, rows, bars, rounds }, options);
}
