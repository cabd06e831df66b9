// Folders and processes that do not outlive the process that made them, however it ends.
//
// A folder has a reaper: a shell that reads a pipe of this process and removes the folder when the
// pipe ends. A process is started by setpriv, so that the kernel kills it when the thread that
// started it ends, and below a timeout of its own, which also ends it when this process is busy or
// waits for it. Neither inherits a descriptor of this process that it is not given: nobody who
// waits for the end of this process's output waits for them.

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/** Waits for the end of the pipe, and a little longer for what writes to the folder to be gone. */
const REAPER = 'cat >/dev/null; sleep 0.5; rm -rf -- "$0"';
const TERM_LIMIT_MS = 2_000;

export class TemporaryFolder {
  readonly path = mkdtempSync(join(tmpdir(), 'penstock-guest-'));
  private readonly reaper: ChildProcess;

  constructor() {
    // A session of its own: a signal for everybody on the terminal is not for the reaper.
    this.reaper = spawn('/bin/sh', ['-c', REAPER, this.path], {
      stdio: ['pipe', 'ignore', 'ignore'],
      detached: true,
    });
    this.reaper.unref();
    // The pipe keeps no event loop alive; it ends with the process.
    (this.reaper.stdin as unknown as { unref(): void }).unref();
  }

  file(name: string): string {
    return join(this.path, name);
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
    this.reaper.kill('SIGKILL');
    this.reaper.stdin?.destroy();
  }
}

/** A process with its output in a file; it is ended after `limitMs`. */
export class TetheredProcess {
  /** Resolves once it has ended, with its exit code or signal. */
  readonly ended: Promise<number | NodeJS.Signals>;
  hasEnded = false;
  private readonly child: ChildProcess;
  private readonly log: string;

  /** `descriptors` of this process are 3, 4, … there. */
  constructor(
    file: string,
    args: readonly string[],
    log: string,
    limitMs: number,
    descriptors: readonly number[] = [],
  ) {
    this.log = log;
    const out = openSync(log, 'a');
    const tether = ['/usr/bin/setpriv', '--pdeathsig', 'KILL'];
    // In the foreground: what ends this process's group is to end these, too.
    const limit = ['timeout', '--foreground', '--kill-after=2', String(limitMs / 1000)];
    const [command, ...rest] = [...tether, ...limit, ...tether, file, ...args];
    try {
      this.child = spawn(command!, rest, { stdio: ['ignore', out, out, ...descriptors] });
    } finally {
      closeSync(out);
    }
    if (this.child.pid === undefined) {
      this.child.on('error', () => undefined);
      throw new Error(`${file} cannot be started: there is no setpriv (package util-linux)`);
    }
    this.ended = once(this.child, 'exit').then(([code, signal]) => {
      this.hasEnded = true;
      return (code ?? signal) as number | NodeJS.Signals;
    });
  }

  /** What it has printed so far. */
  output(): string {
    return readFileSync(this.log, 'utf8');
  }

  /** Ends it, by force if it does not go. */
  async stop(): Promise<void> {
    if (this.hasEnded) return;
    this.child.kill('SIGTERM');
    const force = setTimeout(() => this.child.kill('SIGKILL'), TERM_LIMIT_MS);
    await this.ended;
    clearTimeout(force);
  }
}

/** Calls `attempt` until it gives something; throws what `late` says after `limitMs`. */
export async function poll<T>(
  attempt: () => Promise<T | undefined> | T | undefined,
  limitMs: number,
  late: () => Error,
): Promise<T> {
  const deadline = Date.now() + limitMs;
  for (;;) {
    const result = await attempt();
    if (result !== undefined) return result;
    if (Date.now() > deadline) throw late();
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
