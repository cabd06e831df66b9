// What a repair would do, does, and did, as it is told (`penstock.pool-repair/1`).

import type { CheckReport } from './check-report.js';
import type { RecoveryReport } from '../durable/recovery.js';

export interface RepairReport {
  readonly schema: 'penstock.pool-repair/1';
  /** Whether the device was changed. */
  readonly done: boolean;
  /** What is to be done, and what is left as it is: a sentence each, the first 200. */
  readonly plan: readonly string[];
  readonly planTotal: number;
  readonly left: readonly string[];
  readonly leftTotal: number;
  /** Something can be read again only as zeros, or not at all: `dropLost` is what decides. */
  readonly loses: boolean;
  /** Pages that were written, or would be. */
  readonly pages: number;
  /** Entries of the journal after the checkpoint that was repaired. */
  readonly journalEntries: number;
  /** What applying them took; null: there was nothing, or the pool does not open yet. */
  readonly recovery: RecoveryReport | null;
  /** What the check finds afterwards; null when nothing was done. */
  readonly check: CheckReport | null;
}

const LINES_MAX = 200;

class Lines {
  readonly list: string[] = [];
  total = 0;

  add(text: string): void {
    this.total++;
    if (this.list.length < LINES_MAX) this.list.push(text);
  }
}

export class RepairPlan {
  /** Maps or pages of the catalogue that cannot be used. */
  losses = 0;
  private readonly doing = new Lines();
  private readonly leaving = new Lines();

  do(text: string): void {
    this.doing.add(text);
  }

  leave(text: string): void {
    this.leaving.add(text);
  }

  get isEmpty(): boolean {
    return this.doing.total === 0;
  }

  isSameAs(other: RepairPlan): boolean {
    const isAsLong =
      this.doing.total === other.doing.total && this.leaving.total === other.leaving.total;
    return isAsLong && this.lines === other.lines;
  }

  get told(): Pick<RepairReport, 'plan' | 'planTotal' | 'left' | 'leftTotal' | 'loses'> {
    const { doing, leaving } = this;
    return {
      plan: [...doing.list],
      planTotal: doing.total,
      left: [...leaving.list],
      leftTotal: leaving.total,
      loses: this.losses > 0,
    };
  }

  private get lines(): string {
    return [...this.doing.list, ...this.leaving.list].join('\n');
  }
}
