// Processes and workers of the built package, for tests of what only they show: crashes, ends,
// garbage collection, other privileges.

import { spawn } from 'node:child_process';
import { dirname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const LIMIT_MS = 30_000;

/** The built module of a file in lib: `built('memory/index')`. */
export function built(module: string): string {
  return pathToFileURL(join(root, 'dist/lib', `${module}.js`)).href;
}

/** Names that a body of code finds: everything of these doors, and the addon. */
const DOORS = [
  'errors',
  'native',
  'open',
  'memory/index',
  'wire/index',
  'uring/index',
  'hpdi/index',
  'idc/index',
  'pci/index',
];

function prelude(): string {
  const loads = DOORS.map((door) => `await import(${JSON.stringify(built(door))})`);
  return `const lib = Object.assign({}, ${loads.join(', ')});`;
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface ChildOptions {
  /** Program and arguments put before node: `['setpriv', '--reuid=65534', …]`. */
  before?: readonly string[];
  nodeOptions?: readonly string[];
  env?: Readonly<Record<string, string>>;
  /** Descriptors the child inherits as 3, 4, … */
  fds?: readonly number[];
}

/** Code of a worker that runs `body`; it is CommonJS around an async function. */
function workerCode(body: string): string {
  return `
    const { parentPort, workerData } = require('node:worker_threads');
    (async () => { ${prelude()} ${body} })();
  `;
}

/**
 * Runs `body` (plain JavaScript, `await` allowed) in a Node process of its own. In scope: `lib`,
 * `startWorker(body, workerData)` and `nextMessage(worker)` as below.
 */
export function runChild(body: string, options: ChildOptions = {}): Promise<Ended> {
  const [before, after] = workerCode('BODY')
    .split('BODY')
    .map((part) => JSON.stringify(part));
  const code = `
    ${prelude()}
    const { Worker } = await import('node:worker_threads');
    const startWorker = (body, workerData) =>
      new Worker(${before} + body + ${after}, { eval: true, execArgv: [], workerData });
    const nextMessage = (worker) => new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    ${body}
  `;
  const node = [...(options.nodeOptions ?? []), '--input-type=module', '-e', code];
  return runProgram([...(options.before ?? []), process.execPath, ...node], options);
}

export function runProgram(command: readonly string[], options: ChildOptions = {}): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(command[0]!, command.slice(1), {
      stdio: ['ignore', 'pipe', 'pipe', ...(options.fds ?? [])],
      env: { ...process.env, PENSTOCK_QUIET: '1', ...options.env },
    });
    const timer = setTimeout(() => child.kill('SIGKILL'), LIMIT_MS);
    let stdout = '';
    let stderr = '';
    child.stdout!.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', reject);
    child.on('close', (status, signal) => {
      clearTimeout(timer);
      resolve({ code: status, signal, stdout, stderr });
    });
  });
}

/** What `body`, run in a child, printed as JSON; throws with its stderr when it fails. */
export async function childResult<T>(body: string, options: ChildOptions = {}): Promise<T> {
  const ended = await runChild(body, options);
  if (ended.code !== 0) {
    throw new Error(`the child ended with ${ended.code ?? ended.signal}: ${ended.stderr}`);
  }
  return JSON.parse(ended.stdout) as T;
}

/** A worker that runs `body` with `lib`, `parentPort` and `workerData` in scope. */
export function startWorker(body: string, workerData: unknown = null): Worker {
  return new Worker(workerCode(body), { eval: true, workerData });
}

/** The worker's next message; rejects when it fails or ends first. */
export function nextMessage<T>(worker: Worker): Promise<T> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number) => reject(new Error(`the worker ended with ${code}`));
    worker.once('error', reject);
    worker.once('exit', onExit);
    worker.once('message', (message: T) => {
      worker.off('error', reject);
      worker.off('exit', onExit);
      resolve(message);
    });
  });
}

/** A worker's one answer, after which it has ended. */
export async function workerResult<T>(body: string, workerData: unknown = null): Promise<T> {
  const worker = startWorker(body, workerData);
  const ended = new Promise((resolve) => worker.once('exit', resolve));
  const message = await nextMessage<T>(worker);
  await ended;
  return message;
}
