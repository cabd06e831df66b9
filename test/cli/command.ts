// Runs the built command as a user does: a child process, its two streams, its exit code.

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
export const MAIN = join(root, 'dist/lib/cli/main.js');

export interface Ended {
  readonly stdout: string;
  readonly stderr: string;
  readonly exitCode: number | null;
}

export interface CommandOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly signals?: readonly { readonly afterMs: number; readonly signal: NodeJS.Signals }[];
  /** SIGINT follows as soon as this is true: what the command does can be seen from outside. */
  readonly interruptWhen?: () => boolean;
}

/** `penstock …args`. */
export function penstock(args: readonly string[], options: CommandOptions = {}): Promise<Ended> {
  if (!existsSync(MAIN))
    throw new Error('dist is not built: npm test builds it, npm run build too');
  return command(process.execPath, [MAIN, ...args], options);
}

export function command(
  program: string,
  args: readonly string[],
  { env = {}, signals = [], interruptWhen }: CommandOptions = {},
): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, PENSTOCK_DEBUG: '', ...env },
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    const timers = signals.map(({ afterMs, signal }) =>
      setTimeout(() => child.kill(signal), afterMs),
    );
    const watch = setInterval(() => {
      if (interruptWhen?.() !== true) return;
      clearInterval(watch);
      child.kill('SIGINT');
    }, 5);
    child.on('error', reject);
    child.on('close', (exitCode) => {
      for (const timer of timers) clearTimeout(timer);
      clearInterval(watch);
      resolve({ stdout, stderr, exitCode });
    });
  });
}
