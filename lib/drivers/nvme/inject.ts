// Errors that a user has the driver make, for tests of their own: by operation, count, status,
// delay. They act before the device: it does not see a command whose status or loss is injected.

import { PenstockError } from '../../errors.js';
import { OPERATIONS } from '../../hpdi/index.js';

export interface InjectOptions {
  /** The operation (OPERATIONS); any when left out. */
  op?: keyof typeof OPERATIONS;
  /** Commands that it strikes (default 1); Infinity: until cleared. */
  count?: number;
  /** Commands of the operation that pass before (default 0). */
  skip?: number;
  /** Status field to complete with: SC | SCT << 8 | DNR << 14 …; 0: as the device does it. */
  status?: number;
  /** Time in ms before that, or before the device gets the command. */
  delayMs?: number;
  /** The command gets lost: it times out. */
  drop?: boolean;
}

export interface InjectedFault {
  readonly status: number;
  readonly delayMs: number;
  readonly drop: boolean;
}

interface Rule extends InjectedFault {
  op: number;
  left: number;
  skip: number;
}

/** The rules of one device; its queues in the environment that opened it ask for each command. */
export class Injector {
  private rules: Rule[] = [];
  /** Faults that struck. */
  struck = 0;

  get active(): boolean {
    return this.rules.length > 0;
  }

  add(options: InjectOptions): void {
    const { count = 1, skip = 0, status = 0, delayMs = 0, drop = false } = options;
    const sound = count > 0 && skip >= 0 && delayMs >= 0 && status >= 0 && status < 0x8000;
    if (!sound || (status === 0 && delayMs === 0 && !drop)) {
      throw new PenstockError('BAD_OPTION', 'an injected fault has a status, a delay or a loss', {
        hint: 'status: SC | SCT << 8 | DNR << 14 below 0x8000; count from 1 on; delayMs from 0 on',
        exitCode: 2,
      });
    }
    const op = options.op === undefined ? 0 : OPERATIONS[options.op];
    this.rules.push({ op, left: count, skip, status, delayMs, drop });
  }

  clear(): void {
    this.rules = [];
  }

  /** The fault that strikes a command of this operation, if one does. */
  take(op: number): InjectedFault | null {
    for (const rule of this.rules) {
      if (rule.op !== 0 && rule.op !== op) continue;
      if (rule.skip > 0) {
        rule.skip--;
        continue;
      }
      if (--rule.left <= 0) this.rules = this.rules.filter((other) => other !== rule);
      this.struck++;
      return rule;
    }
    return null;
  }
}
