// fio as a peer: the option sets of its io_uring engine that are tried, and its result.
//
// All of them measure completion latency, as Penstock does: gtod_reduce would not be the same job.

import { PenstockError } from '../lib/errors.js';
import { runMetered, type TreeUsage } from './baseline.js';

export interface FioSet {
  name: string;
  args: readonly string[];
}

export interface FioRun {
  iops: number;
  ios: number;
  usage: TreeUsage;
}

const REGISTERED = ['--registerfiles', '--fixedbufs'] as const;

/** Submits and reaps up to `count` at a time; by default fio enters the kernel for each one. */
function batched(count: number): string[] {
  return [
    `--iodepth_batch_submit=${count}`,
    '--iodepth_batch_complete_min=1',
    `--iodepth_batch_complete_max=${count}`,
  ];
}

export function fioSets(depth: number): FioSet[] {
  const sets: FioSet[] = [
    { name: 'registered', args: REGISTERED },
    {
      name: 'registered, thread, cpu clock',
      args: [...REGISTERED, '--thread', '--clocksource=cpu'],
    },
    { name: 'registered, sqpoll', args: [...REGISTERED, '--sqthread_poll'] },
  ];
  for (const count of [16, 32]) {
    if (count > depth) continue;
    sets.push({
      name: `registered, thread, cpu clock, batch ${count}`,
      args: [...REGISTERED, '--thread', '--clocksource=cpu', ...batched(count)],
    });
  }
  return sets;
}

/** One run of random 4 KiB reads on a file that is as it should be already. */
export async function runFio(
  file: string,
  options: { depth: number; runtime: number; direct: boolean; set: FioSet },
): Promise<FioRun> {
  const { stdout, usage } = await runMetered('fio', [
    '--name=peer',
    `--filename=${file.replaceAll(':', '\\:')}`,
    '--rw=randread',
    '--bs=4k',
    '--ioengine=io_uring',
    `--iodepth=${options.depth}`,
    `--runtime=${options.runtime}`,
    '--time_based',
    '--norandommap',
    // fio would drop the file from the page cache before it starts.
    '--invalidate=0',
    `--direct=${options.direct ? 1 : 0}`,
    '--output-format=json',
    ...options.set.args,
  ]);
  const job = parse(stdout);
  return { iops: job.read.iops, ios: job.read.total_ios, usage };
}

interface FioJob {
  error: number;
  read: { iops: number; total_ios: number };
}

/** fio prints warnings before its JSON. */
function parse(stdout: string): FioJob {
  const begin = stdout.indexOf('{');
  const report = begin < 0 ? {} : (JSON.parse(stdout.slice(begin)) as { jobs?: FioJob[] });
  const job = report.jobs?.[0];
  if (job === undefined || job.error !== 0) {
    throw new PenstockError('BENCH_CHILD', `fio gave no result: ${stdout.slice(0, 200)}`);
  }
  return job;
}
