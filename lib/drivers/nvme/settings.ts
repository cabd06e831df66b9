// Keys of an nvme: URI.

import { PenstockError } from '../../errors.js';
import { parseDuration } from '../../units.js';
import { parseSwitch } from '../options.js';

/** When a queue learns of completions. */
export type Completion = 'adaptive' | 'polled' | 'interrupt';

export interface NvmeSettings {
  /** Queue pairs to make, for all queues of all threads. */
  readonly queues: number;
  /** Entries of each ring; a power of two. */
  readonly entries: number;
  readonly completion: Completion | 'default';
  /** Shadow doorbells where the controller has them. */
  readonly shadow: boolean;
  /** Submission rings in the controller's memory buffer where it has one. */
  readonly cmb: boolean;
  /** SGLs for buffers of more than two pages where the controller has them. */
  readonly sgl: boolean;
  /** Time an I/O command may take. */
  readonly timeoutMs: number;
  readonly adminTimeoutMs: number;
  /** Times a command is tried again when its status allows it, or a reset cut it off. */
  readonly retries: number;
  readonly readonly: boolean;
}

export const NVME_KEYS: Readonly<Record<string, string>> = {
  queues: 'queue pairs to make, one per open queue in any thread (16)',
  entries: 'entries of each ring, a power of two; bounds operations in flight (1024)',
  completion: 'adaptive (poll while busy, sleep when idle), polled, or interrupt',
  shadow: '0: no shadow doorbells (default: where the controller has them; 0 over vfio-user)',
  cmb: '1: submission rings in the controller memory buffer',
  sgl: '0: PRP lists only (default: SGLs for more than two pages where there are any)',
  timeout: 'DURATION: abort a command after it, then reset the controller (30s)',
  adminTimeout: 'DURATION: reset the controller when an admin command takes longer (60s)',
  retries: 'times a failed command is tried again when its status allows it (4)',
  readonly: '1: refuse writes',
};

function integer(
  query: ReadonlyMap<string, string>,
  key: string,
  fallback: number,
  min: number,
  max: number,
): number {
  const given = query.get(key);
  if (given === undefined) return fallback;
  const value = Number(given);
  if (Number.isInteger(value) && value >= min && value <= max) return value;
  throw new PenstockError('BAD_OPTION', `${key}=${given} is no number from ${min} to ${max}`, {
    hint: `write ${key}=${fallback}`,
    exitCode: 2,
  });
}

function duration(query: ReadonlyMap<string, string>, key: string, fallbackMs: number): number {
  const given = query.get(key);
  if (given === undefined) return fallbackMs;
  const ms = parseDuration(given) * 1000;
  if (ms >= 10) return ms;
  throw new PenstockError('BAD_OPTION', `${key}=${given} is less than 10 ms`, {
    hint: `write ${key}=30s`,
    exitCode: 2,
  });
}

function completion(text: string | undefined): NvmeSettings['completion'] {
  if (text === undefined) return 'default';
  if (text === 'adaptive' || text === 'polled' || text === 'interrupt') return text;
  throw new PenstockError('BAD_OPTION', `completion=${text} is unknown`, {
    hint: 'completion=adaptive, completion=polled or completion=interrupt',
    exitCode: 2,
  });
}

/** `shadow` is the transport's default. */
export function parseSettings(query: ReadonlyMap<string, string>, shadow: boolean): NvmeSettings {
  const entries = integer(query, 'entries', 1024, 2, 65536);
  if (!Number.isInteger(Math.log2(entries))) {
    throw new PenstockError('BAD_OPTION', `entries=${entries} is no power of two`, {
      hint: 'entries=1024',
      exitCode: 2,
    });
  }
  const on = (key: string, fallback: boolean): boolean =>
    query.has(key) ? parseSwitch(key, query.get(key)) : fallback;
  return {
    queues: integer(query, 'queues', 16, 1, 1024),
    entries,
    completion: completion(query.get('completion')),
    shadow: on('shadow', shadow),
    cmb: on('cmb', false),
    sgl: on('sgl', true),
    timeoutMs: duration(query, 'timeout', 30_000),
    adminTimeoutMs: duration(query, 'adminTimeout', 60_000),
    retries: integer(query, 'retries', 4, 0, 1000),
    readonly: on('readonly', false),
  };
}
