// A child process of a soak over domains, and what it reports. The soak ends what it started.

import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { check, within } from './harness.js';

const START_MS = 30_000;

export type Report = Record<string, unknown> & { kind: string };

export class IdcProcess {
  readonly child: ChildProcess;
  readonly label: string;
  /** The last report of each kind. */
  readonly reports = new Map<string, Report>();
  onReport: ((report: Report) => void) | null = null;
  private output = '';
  private waiting: (() => void)[] = [];

  constructor(label: string, script: URL, args: readonly string[], env: object = {}) {
    this.label = label;
    this.child = fork(script, args, {
      env: { ...process.env, PENSTOCK_QUIET: '1', ...env },
      execArgv: ['--expose-gc'],
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
    });
    this.child.stdout!.on('data', (text: Buffer) => (this.output += text.toString()));
    this.child.stderr!.on('data', (text: Buffer) => (this.output += text.toString()));
    this.child.on('message', (report: Report) => {
      this.reports.set(report.kind, report);
      this.onReport?.(report);
      this.wake();
    });
    this.child.on('exit', () => this.wake());
    this.child.on('error', () => {}); // a message to who has just died
    process.once('exit', () => this.child.kill('SIGKILL'));
    process.setMaxListeners(0);
  }

  get alive(): boolean {
    return this.child.exitCode === null && this.child.signalCode === null;
  }

  get pid(): number {
    return this.child.pid!;
  }

  /** What it wrote, for whoever explains its end. */
  get text(): string {
    return this.output.slice(-4000);
  }

  /** The next report of a kind that has not been taken yet; it is taken. */
  async take(kind: string, ms = START_MS): Promise<Report> {
    const report = await this.peek(kind, ms);
    this.reports.delete(kind);
    return report;
  }

  /** The last report of a kind, once there is one; it stays. */
  async peek(kind: string, ms = START_MS): Promise<Report> {
    const look = async (): Promise<Report> => {
      for (;;) {
        const report = this.reports.get(kind);
        if (report !== undefined) return report;
        check(this.alive, `${this.label} ended (${this.ending()}) before ${kind}\n${this.text}`);
        await new Promise<void>((resolve) => this.waiting.push(resolve));
      }
    };
    return within(ms, `${kind} of ${this.label}\n${this.text}`, look());
  }

  assertAlive(): void {
    check(this.alive, `${this.label} ended (${this.ending()})\n${this.text}`);
  }

  tell(message: object): void {
    if (this.alive) this.child.send(message, () => {});
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (!this.alive) return;
    const gone = once(this.child, 'exit');
    this.child.kill('SIGCONT');
    this.child.kill(signal);
    await within(START_MS, `the end of ${this.label}`, gone);
  }

  private ending(): string {
    return String(this.child.signalCode ?? this.child.exitCode);
  }

  private wake(): void {
    for (const done of this.waiting.splice(0)) done();
  }
}
