// The processes of a soak of domains: a hub and its members, started, asked, stopped and killed.

import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { check, scratchFolder, within } from './harness.js';
import type { ChildReport, Ready } from './idc-words.js';

const CHILD = fileURLToPath(new URL('./idc-child.js', import.meta.url));
const LIMIT_MS = 30_000;

export const MEMBERS = ['producer', 'middle', 'consumer'] as const;
export type Member = (typeof MEMBERS)[number];
export type Role = Member | 'hub';

interface Living {
  readonly process: ChildProcess;
  readonly slot: number;
}

export class Family {
  private readonly hub = join(scratchFolder(), 'hub');
  private readonly living = new Map<Role, Living>();
  private lives = 0;

  async start(role: Role): Promise<void> {
    const life = ++this.lives;
    const child = fork(CHILD, [role, this.hub, String(life)], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      env: { ...process.env, PENSTOCK_QUIET: '1', PENSTOCK_POISON: '1' },
    });
    const first = this.next(child, role);
    const { slot } = (await within(LIMIT_MS, `the start of ${role}`, first)) as Ready;
    this.living.set(role, { process: child, slot });
  }

  /** The next message of a child, which must not end before. */
  private next(child: ChildProcess, role: Role): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const onExit = (code: number | null, signal: string | null): void => {
        reject(new Error(`${role} ended by itself: ${code ?? signal}`));
      };
      child.once('exit', onExit);
      child.once('message', (message) => {
        child.off('exit', onExit);
        resolve(message);
      });
    });
  }

  slotOf(role: Role): number {
    return this.living.get(role)!.slot;
  }

  async ask(role: Member, what: string, slot = 0): Promise<ChildReport> {
    const { process: child } = this.living.get(role)!;
    const answer = this.next(child, role);
    child.send({ what, slot });
    const report = (await within(LIMIT_MS, `${role}: ${what}`, answer)) as ChildReport;
    check(report.faults.length === 0, `${role}: ${report.faults.join('; ')}`);
    return report;
  }

  async kill(role: Role): Promise<void> {
    const { process: child } = this.living.get(role)!;
    const gone = once(child, 'exit');
    child.kill('SIGKILL');
    await within(LIMIT_MS, `the end of ${role}`, gone);
    this.living.delete(role);
  }

  signal(role: Role, signal: NodeJS.Signals): void {
    this.living.get(role)!.process.kill(signal);
  }

  async end(): Promise<void> {
    for (const role of [...this.living.keys()]) await this.kill(role);
  }
}
