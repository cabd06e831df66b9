// Builds the C baselines (bench/baseline/) when needed and runs them; runs any command under
// baseline/run.c, which accounts for the whole process tree.

import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PenstockError } from '../lib/errors.js';
import { adoptChild, scratchFolder } from './scratch.js';

export type BaselineName = 'uring-nop' | 'uring-read' | 'null-loop' | 'memory-loop' | 'idc-loop';

/** What baseline/run.c reports of a finished command and its descendants. */
export interface TreeUsage {
  user_ns: number;
  sys_ns: number;
  wall_ns: number;
  run_delay_ns: number;
  exit_code: number;
  signal: number;
}

export interface MeteredRun {
  stdout: string;
  usage: TreeUsage;
}

interface Finished {
  status: number;
  stdout: string;
  stderr: string;
}

const OUTPUT_BYTES_MAX = 16 << 20;

/** The folder that holds binding.gyp. */
export function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'binding.gyp'))) {
    const parent = dirname(folder);
    if (parent === folder) throw new Error('the package root (binding.gyp) was not found');
    folder = parent;
  }
  return folder;
}

let built: Promise<string> | null = null;
let usageFolder: string | null = null;

/** Brings build/baseline/ up to date with make; resolves with its path. */
export function buildBaselines(): Promise<string> {
  built ??= build();
  return built;
}

async function build(): Promise<string> {
  const root = packageRoot();
  const out = join(root, 'build', 'baseline');
  const { status, stderr } = await finish('make', [
    ...['-s', '-j1', '-C', join(root, 'bench', 'baseline')],
    `OUT=${out}`,
  ]);
  if (status === 0) return out;
  const isUringMissing = /liburing\.h: No such file|-luring/.test(stderr);
  throw new PenstockError(
    'BASELINE_BUILD',
    isUringMissing
      ? 'the C baselines need the headers of liburing'
      : `the C baselines could not be built: ${stderr.trim().split('\n').slice(-3).join(' | ')}`,
    {
      hint: isUringMissing
        ? 'Install them: apt-get install liburing-dev.'
        : 'They need make and gcc: apt-get install build-essential liburing-dev.',
      exitCode: 3,
    },
  );
}

/** Runs a baseline and gives the JSON it printed. */
export async function runBaseline<T>(name: BaselineName, args: readonly string[]): Promise<T> {
  const out = await buildBaselines();
  const { status, stdout, stderr } = await finish(join(out, name), args);
  if (status !== 0) throw failed(name, status, stderr);
  return JSON.parse(stdout) as T;
}

/** Runs a command to its end, one at a time; its output and what its process tree used. */
export async function runMetered(command: string, args: readonly string[]): Promise<MeteredRun> {
  const out = await buildBaselines();
  usageFolder ??= scratchFolder();
  const report = join(usageFolder, 'usage.json');
  const run = await finish(join(out, 'run'), [report, command, ...args]);
  if (run.status !== 0) throw failed(command, run.status, run.stderr || run.stdout);
  return {
    stdout: run.stdout,
    usage: JSON.parse(readFileSync(report, 'utf8')) as TreeUsage,
  };
}

function failed(command: string, status: number, text: string): PenstockError {
  const lines = text.trim().split('\n').slice(-3).join(' | ');
  return new PenstockError('BENCH_CHILD', `${command} ended with ${status}: ${lines}`);
}

function finish(command: string, args: readonly string[]): Promise<Finished> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    adoptChild(child);
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      if (stdout.length < OUTPUT_BYTES_MAX) stdout += text;
    });
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      if (stderr.length < OUTPUT_BYTES_MAX) stderr += text;
    });
    child.once('error', (cause: NodeJS.ErrnoException) => {
      const isMissing = cause.code === 'ENOENT';
      reject(
        new PenstockError('PEER_MISSING', `${command} could not be started: ${cause.message}`, {
          cause,
          hint: isMissing ? `Install ${command}.` : '',
          exitCode: 3,
        }),
      );
    });
    child.once('close', (code, signal) => {
      resolve({ status: code ?? (signal === null ? 1 : 128), stdout, stderr });
    });
  });
}
