// What a twin does wrong on purpose. Rules say what happens to which commands; the rest are
// settings of the controller. Nothing here is random: a test, or a seeded fuzzer, decides.

import { Cdw0, Cqe, CqeStatus, Sqe } from '../../../lib/drivers/nvme/commands.js';
import { Code, CRD_SHIFT } from './wire.js';

/** Which commands; what is left out matches all. */
export interface FaultMatch {
  /** Submission queue; 0 is admin. */
  qid?: number;
  opcode?: number;
  cid?: number;
  nsid?: number;
  /** Anything else, from the 16 words of the entry. */
  test?: (sqe: Uint32Array) => boolean;
  /** Matching commands that are let through first. */
  skip?: number;
  /** How many commands it hits (default 1). */
  count?: number;
}

export type FaultAction =
  /** Ends with this status; `execute` does the work all the same. */
  | { readonly kind: 'status'; readonly status: number; readonly execute: boolean }
  /** Never completes, unless it is aborted or its queue goes. */
  | { readonly kind: 'drop' }
  /** Is executed, and completes, so many steps later. */
  | { readonly kind: 'delay'; readonly steps: number }
  | { readonly kind: 'twice' }
  /** Changes the completion entry before it is posted. */
  | { readonly kind: 'cqe'; readonly mutate: (cqe: Uint32Array) => void };

interface Rule {
  readonly match: FaultMatch;
  readonly action: FaultAction;
  skip: number;
  left: number;
}

/** A status field from its parts (Base 2.0, 3.3.3.2). */
export function statusOf(parts: {
  sct?: number;
  sc: number;
  dnr?: boolean;
  more?: boolean;
  crd?: number;
}): number {
  return (
    ((parts.sct ?? 0) << 8) |
    parts.sc |
    ((parts.crd ?? 0) << CRD_SHIFT) |
    (parts.more === true ? Code.MORE : 0) |
    (parts.dnr === true ? Code.DNR : 0)
  );
}

export class Faults {
  /** CSTS.RDY never comes to 1; never comes to 0. */
  neverReady = false;
  neverIdle = false;
  /** Steps until CSTS.RDY follows CC.EN. */
  readySteps = 0;
  /** The shutdown never comes to its end, or after so many steps. */
  neverShutDown = false;
  shutdownSteps = 0;
  /** What Set Features, number of queues, gives as its result, in place of what was asked for. */
  queuesGranted: number | null = null;
  /** Change a page before it goes out. */
  identify: ((cns: number, nsid: number, page: Uint8Array) => void) | null = null;
  log: ((lid: number, page: Uint8Array) => void) | null = null;
  /** Changes every completion entry. */
  completion: ((cqe: Uint32Array, qid: number) => void) | null = null;
  /** Abort says that it did not abort. */
  abortFails = false;
  /** Interrupts are lost. */
  mute = false;
  private rules: Rule[] = [];

  /** Whether commands must be matched against rules. */
  get isArmed(): boolean {
    return this.rules.length > 0;
  }

  status(
    match: FaultMatch,
    status: Parameters<typeof statusOf>[0],
    options: { execute?: boolean } = {},
  ): void {
    const execute = options.execute ?? false;
    this.add(match, { kind: 'status', status: statusOf(status), execute });
  }

  drop(match: FaultMatch): void {
    this.add(match, { kind: 'drop' });
  }

  delay(match: FaultMatch, steps: number): void {
    this.add(match, { kind: 'delay', steps });
  }

  twice(match: FaultMatch): void {
    this.add(match, { kind: 'twice' });
  }

  cqe(match: FaultMatch, mutate: (cqe: Uint32Array) => void): void {
    this.add(match, { kind: 'cqe', mutate });
  }

  wrongCid(match: FaultMatch, cid: number): void {
    this.cqe(match, (cqe) => {
      cqe[Cqe.status] = (cqe[Cqe.status]! & ~0xffff) | cid;
    });
  }

  wrongSqid(match: FaultMatch, sqid: number): void {
    this.cqe(match, (cqe) => {
      cqe[Cqe.sqHead] = (cqe[Cqe.sqHead]! & 0xffff) | (sqid << 16);
    });
  }

  wrongSqhd(match: FaultMatch, sqhd: number): void {
    this.cqe(match, (cqe) => {
      cqe[Cqe.sqHead] = (cqe[Cqe.sqHead]! & ~0xffff) | sqhd;
    });
  }

  /** The entry has the phase of the round before: a driver that looks sees nothing there. */
  stalePhase(match: FaultMatch): void {
    this.cqe(match, (cqe) => {
      cqe[Cqe.status] = cqe[Cqe.status]! ^ CqeStatus.PHASE;
    });
  }

  add(match: FaultMatch, action: FaultAction): void {
    this.rules.push({ match, action, skip: match.skip ?? 0, left: match.count ?? 1 });
  }

  clear(): void {
    Object.assign(this, new Faults());
  }

  /** What is to happen to the command, or null; counts the rule. */
  take(qid: number, sqe: Uint32Array): FaultAction | null {
    for (const rule of this.rules) {
      if (!matches(rule.match, qid, sqe)) continue;
      if (rule.skip > 0) {
        rule.skip--;
        continue;
      }
      rule.left--;
      if (rule.left <= 0) this.rules = this.rules.filter((each) => each !== rule);
      return rule.action;
    }
    return null;
  }
}

function matches(match: FaultMatch, qid: number, sqe: Uint32Array): boolean {
  const word = sqe[Sqe.cdw0]!;
  if (match.qid !== undefined && match.qid !== qid) return false;
  if (match.opcode !== undefined && match.opcode !== (word & 0xff)) return false;
  if (match.cid !== undefined && match.cid !== word >>> Cdw0.CID_SHIFT) return false;
  if (match.nsid !== undefined && match.nsid !== sqe[Sqe.nsid]) return false;
  return match.test === undefined || match.test(sqe);
}
