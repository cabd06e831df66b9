// fio as the peer: its command line for a job of ours, one bounded run, its JSON in our terms.
//
// Fairness, and why each flag is there:
// 1. `--invalidate=0`: fio drops the file's page cache before a job otherwise, Penstock does not.
// 2. `--norandommap`: no bookkeeping of the blocks already touched, as here.
// 3. CPU time is that of the whole process tree (kernel workers of io_uring included), which fio's
//    own usr_cpu and sys_cpu leave out; the fixed cost of its start (150 ms, clock calibration for
//    the most part) is measured apart and taken off, since Penstock's start does not count either.
// 4. Latency is fio's `lat`, from submission to completion: a page-cache hit completes while it is
//    submitted, and `clat`, which begins after that, would be the time to look at the result.
// 5. `--thread`: the jobs die with the process, whatever ends it.

import { spawn } from 'node:child_process';
import { statSync } from 'node:fs';
import { PenstockError, errnoCode } from '../errors.js';
import { parseUri } from '../uri.js';
import type { DirectionResult, JobOptions, LatencySummary } from './types.js';

export interface FioOptionSet {
  readonly name: string;
  readonly args: readonly string[];
}

export interface FioRunOptions {
  /** Replaces the bound that follows from the job's runtime. */
  timeoutMs?: number;
  signal?: AbortSignal;
  /** Path of the program. */
  program?: string;
  /** CPU time of fio's start, see startupCpuMs. */
  startupCpuMs?: number;
}

/** One run of fio. `clatNs` and `buckets` hold its `lat`, which is what Penstock calls clat. */
export interface PeerResult {
  /** 'fio-3.33'. */
  version: string;
  jobname: string;
  optionSet: string;
  command: string[];
  read: DirectionResult;
  write: DirectionResult;
  /** fio's `clat`: without the submission, and without percentiles. */
  clatNs: { read: LatencySummary; write: LatencySummary };
  /** fio's own figures: percent of one CPU, kernel workers left out. */
  usrCpu: number;
  sysCpu: number;
  /** CPU time of the process tree without fio's start, over the counted operations. */
  cpuNsPerIo: number;
}

/** A run that only sets up may take this long. */
const START_TIMEOUT_MS = 60_000;
/** A run without a runtime of its own ends when its size is done; this bounds a hung one. */
const UNTIMED_TIMEOUT_MS = 30 * 60_000;
/** Between the request to stop and the kill. */
const GRACE_MS = 3_000;
const OUTPUT_CHARACTERS_MAX = 64 * 2 ** 20;

/** Option sets of fio's io_uring engine worth trying; which is fastest depends on the machine. */
export function fioOptionSets(job: JobOptions): FioOptionSet[] {
  const registered = ['--registerfiles=1', '--fixedbufs=1'];
  const depth = job.iodepth;
  const sets: FioOptionSet[] = [
    { name: 'plain', args: [] },
    { name: 'registered', args: registered },
    { name: 'sqpoll', args: [...registered, '--sqthread_poll=1'] },
  ];
  if (depth > 1) {
    const batch = Math.max(1, depth >> 1);
    const complete = ['--iodepth_batch_complete_min=1', `--iodepth_batch_complete_max=${depth}`];
    sets.push(
      { name: 'batch', args: [...registered, `--iodepth_batch_submit=${batch}`, ...complete] },
      { name: 'full-batch', args: [...registered, `--iodepth_batch_submit=${depth}`, ...complete] },
    );
  }
  return sets;
}

/** Arguments of the fio run that does what `job` does. Throws PEER_UNSUPPORTED where fio cannot. */
export function fioArguments(job: JobOptions, set: FioOptionSet): string[] {
  const { path, direct } = peerFile(job);
  const args = [
    `--name=${job.name}`,
    `--filename=${path.replaceAll(':', '\\:')}`,
    '--ioengine=io_uring',
    `--rw=${job.rw}`,
    `--bs=${job.bs}`,
    `--iodepth=${job.iodepth}`,
    `--numjobs=${job.numjobs}`,
    '--group_reporting=1',
    '--thread',
    '--invalidate=0',
    '--allow_file_create=0',
    '--norandommap=1',
    '--lat_percentiles=1',
    '--clat_percentiles=0',
    `--randseed=${job.seed}`,
    `--direct=${direct ? 1 : 0}`,
  ];
  if (job.rw === 'rw' || job.rw === 'randrw') args.push(`--rwmixread=${job.rwmixread}`);
  if (job.rw.startsWith('rand') && job.randomDistribution !== 'random') {
    args.push(`--random_distribution=${job.randomDistribution}`);
  }
  if (job.size > 0) args.push(`--size=${job.size}`);
  if (job.offset > 0) args.push(`--offset=${job.offset}`);
  if (job.ioSize > 0) args.push(`--io_size=${job.ioSize}`);
  if (job.runtime > 0) args.push(`--runtime=${Math.round(job.runtime * 1000)}ms`);
  if (job.runtime > 0 && job.ioSize === 0) args.push('--time_based=1');
  if (job.rampTime > 0) args.push(`--ramp_time=${Math.round(job.rampTime * 1000)}ms`);
  if (job.rateIops > 0) args.push(`--rate_iops=${job.rateIops}`);
  if (job.dedupePercentage > 0) args.push(`--dedupe_percentage=${job.dedupePercentage}`);
  return [...args, ...set.args, '--output-format=json+', '--eta=never'];
}

/** The file that both are to use. fio would enlarge one that is too small: refused here. */
function peerFile(job: JobOptions): { path: string; direct: boolean } {
  const uri = parseUri(job.uri);
  const keys = [...uri.query.keys()];
  if (uri.scheme !== 'file' || uri.transport !== '' || keys.some((key) => key.includes('.'))) {
    throw unsupported(`fio cannot open ${job.uri}`, 'Compare on a file: URI without wrappers.');
  }
  if (job.verify) {
    throw unsupported('fio cannot check what Penstock writes', 'Compare without verify.');
  }
  return { path: uri.path, direct: isOn(uri.query.get('direct')) };
}

function isOn(value: string | undefined): boolean {
  return value !== undefined && value !== '0' && value !== 'false';
}

function checkFile(job: JobOptions): void {
  const { path } = peerFile(job);
  let bytes: number;
  try {
    const stat = statSync(path);
    if (!stat.isFile()) return;
    bytes = stat.size;
  } catch (cause) {
    throw new PenstockError('PEER_FAILED', `${path} cannot be read for the comparison`, { cause });
  }
  if (bytes >= job.offset + job.size && bytes > 0) return;
  throw unsupported(
    `${path} has ${bytes} bytes and the job uses ${job.offset + job.size}`,
    'Make the file larger or give a smaller size: fio would enlarge it.',
  );
}

function unsupported(message: string, hint: string): PenstockError {
  return new PenstockError('PEER_UNSUPPORTED', message, { hint, exitCode: 2 });
}

/** Runs fio once. Throws PEER_MISSING, PEER_FAILED, PEER_TIMEOUT, PEER_UNSUPPORTED or ABORTED. */
export async function runFio(
  job: JobOptions,
  set: FioOptionSet,
  options: FioRunOptions = {},
): Promise<PeerResult> {
  const args = fioArguments(job, set);
  checkFile(job);
  const bound =
    job.runtime > 0 ? (job.runtime + job.rampTime) * 1500 + START_TIMEOUT_MS : UNTIMED_TIMEOUT_MS;
  const { stdout, cpuMs } = await execute(args, { timeoutMs: bound, ...options });
  const parsed = parseFioOutput(stdout);
  const counted = job.runtime > 0 ? job.runtime / (job.runtime + job.rampTime) : 1;
  const ios = parsed.read.ios + parsed.write.ios;
  const workMs = Math.max(0, cpuMs - (options.startupCpuMs ?? 0)) * counted;
  return {
    ...parsed,
    optionSet: set.name,
    command: [options.program ?? 'fio', ...args],
    cpuNsPerIo: ios === 0 ? 0 : (workMs * 1e6) / ios,
  };
}

/** CPU milliseconds that fio takes to start and end with this job without running it. */
export async function startupCpuMs(
  job: JobOptions,
  set: FioOptionSet,
  options: FioRunOptions = {},
): Promise<number> {
  checkFile(job);
  const args = [...fioArguments(job, set), '--create_only=1'];
  return (await execute(args, { timeoutMs: START_TIMEOUT_MS, ...options })).cpuMs;
}

/**
 * Runs fio under a shell that prints the CPU time of its children: the tree's, since fio waits for
 * all of its own, and no other child of this process gets mixed in.
 */
const TIMED = '"$@" 3>&-; code=$?; times >&3; exit $code';

function execute(
  args: readonly string[],
  options: FioRunOptions & { timeoutMs: number },
): Promise<{ stdout: string; cpuMs: number }> {
  const { signal, timeoutMs, program = 'fio' } = options;
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) {
      reject(aborted());
      return;
    }
    const child = spawn('/bin/sh', ['-c', TIMED, 'sh', program, ...args], {
      detached: true,
      env: { ...process.env, LC_ALL: 'C' },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    });
    const texts = ['', '', ''];
    [child.stdout, child.stderr, child.stdio[3]].forEach((stream, index) => {
      stream?.on('data', (chunk: Buffer) => {
        if ((texts[index] ?? '').length < OUTPUT_CHARACTERS_MAX) texts[index] += chunk.toString();
      });
    });
    let ended: PenstockError | null = null;
    let killTimer: NodeJS.Timeout | undefined;
    const end = (reason: PenstockError): void => {
      ended ??= reason;
      signalGroup(child.pid, 'SIGTERM');
      killTimer ??= setTimeout(() => signalGroup(child.pid, 'SIGKILL'), GRACE_MS);
    };
    const timer = setTimeout(() => end(timedOut(timeoutMs)), timeoutMs);
    const onAbort = (): void => end(aborted());
    signal?.addEventListener('abort', onAbort, { once: true });
    const settle = (): void => {
      clearTimeout(timer);
      clearTimeout(killTimer);
      signal?.removeEventListener('abort', onAbort);
    };
    child.once('error', (cause) => {
      settle();
      reject(new PenstockError('PEER_FAILED', 'a shell could not be started for fio', { cause }));
    });
    child.once('close', (code) => {
      settle();
      const [stdout = '', stderr = '', times = ''] = texts;
      if (ended !== null) reject(ended);
      else if (code === 127 || code === 126) reject(missing(program));
      else if (code !== 0) reject(failed(stdout, stderr, code));
      else resolve({ stdout, cpuMs: childrenMs(times) });
    });
  });
}

function signalGroup(pid: number | undefined, signal: NodeJS.Signals): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, signal);
  } catch (error) {
    // It ended by itself in the meantime.
    if (errnoCode(error) !== 'ESRCH') throw error;
  }
}

/** Second line of the shell's `times`: the children's user and system time, '0m1.2s 0m0.04s'. */
function childrenMs(times: string): number {
  const line = times.trim().split('\n')[1] ?? '';
  let ms = 0;
  for (const [, minutes, seconds] of line.matchAll(/(\d+)m([\d.]+)s/g)) {
    ms += Number(minutes) * 60_000 + Number(seconds) * 1000;
  }
  return ms;
}

function missing(program: string): PenstockError {
  return new PenstockError('PEER_MISSING', `${program} is not installed`, {
    hint: 'apt-get install fio',
    exitCode: 3,
  });
}

function aborted(): PenstockError {
  return new PenstockError('ABORTED', 'the comparison was interrupted', { exitCode: 130 });
}

function timedOut(timeoutMs: number): PenstockError {
  return new PenstockError('PEER_TIMEOUT', `fio did not end within ${timeoutMs} ms`, {
    hint: 'Give the job a shorter runtime, or less to do.',
  });
}

function failed(stdout: string, stderr: string, code: number | null): PenstockError {
  const lines = `${stderr}\n${stdout}`.split('\n').map((line) => line.trim());
  const said =
    lines.find((line) => /^fio: |error/i.test(line)) ?? lines.find((l) => l !== '') ?? '';
  return new PenstockError('PEER_FAILED', `fio ended with code ${code}: ${said}`, {
    hint: 'Run the same job with fio by hand; it needs the io_uring engine.',
  });
}

type Json = Record<string, unknown>;

/** fio's JSON, whatever stands before it; the jobs of a group arrive merged. Throws PEER_FAILED. */
export function parseFioOutput(
  text: string,
): Omit<PeerResult, 'optionSet' | 'command' | 'cpuNsPerIo'> {
  // Warnings go to stdout too, ahead of the object.
  const start = /^\{/m.exec(text)?.index ?? -1;
  const end = text.lastIndexOf('}');
  let root: Json;
  try {
    root = JSON.parse(text.slice(Math.max(0, start), end + 1)) as Json;
  } catch (cause) {
    throw new PenstockError('PEER_FAILED', 'fio printed no JSON', { cause });
  }
  const jobs = Array.isArray(root['jobs']) ? (root['jobs'] as Json[]) : [];
  const [job] = jobs;
  if (job === undefined || jobs.length !== 1) {
    throw new PenstockError('PEER_FAILED', `fio printed ${jobs.length} jobs instead of one`);
  }
  const error = numberOf(job, 'error');
  if (error !== 0) {
    throw new PenstockError('PEER_FAILED', `fio's job failed with errno ${error}`);
  }
  return {
    version: String(root['fio version'] ?? 'fio'),
    jobname: String(job['jobname'] ?? ''),
    read: direction(job['read']),
    write: direction(job['write']),
    clatNs: { read: clatOf(job['read']), write: clatOf(job['write']) },
    usrCpu: numberOf(job, 'usr_cpu'),
    sysCpu: numberOf(job, 'sys_cpu'),
  };
}

function numberOf(object: Json, key: string): number {
  const value = object[key];
  return typeof value === 'number' ? value : 0;
}

function objectOf(value: unknown): Json {
  return typeof value === 'object' && value !== null ? (value as Json) : {};
}

function direction(value: unknown): DirectionResult {
  const part = objectOf(value);
  const lat = objectOf(part['lat_ns']);
  const bins = Object.entries(objectOf(lat['bins']));
  const buckets = bins.map(([ns, count]): [number, number] => [Number(ns), Number(count)]);
  return {
    ios: numberOf(part, 'total_ios'),
    bytes: numberOf(part, 'io_bytes'),
    runtimeMs: numberOf(part, 'runtime'),
    iops: numberOf(part, 'iops'),
    bwBytes: numberOf(part, 'bw_bytes'),
    clatNs: latency(lat),
    buckets: buckets.filter(([, count]) => count > 0).sort((a, b) => a[0] - b[0]),
  };
}

function clatOf(part: unknown): LatencySummary {
  return latency(objectOf(objectOf(part)['clat_ns']));
}

function latency(summary: Json): LatencySummary {
  const percentile: Record<string, number> = {};
  for (const [key, ns] of Object.entries(objectOf(summary['percentile']))) {
    percentile[key] = Number(ns);
  }
  return {
    min: numberOf(summary, 'min'),
    max: numberOf(summary, 'max'),
    mean: numberOf(summary, 'mean'),
    stddev: numberOf(summary, 'stddev'),
    percentile,
  };
}
