// The keys of the fault wrapper, read once when the device is opened.
//
// Probabilities are kept as 0 to 2^32, the range of a draw, so that a decision is one comparison.

import { PenstockError } from '../../errors.js';
import { checkKeys } from '../../uri.js';
import { parseSize } from '../../units.js';
import { OPERATIONS, STATUS } from '../../hpdi/index.js';

/** Keys of `fault.*` with one line of help each. */
export const FAULT_KEYS: Readonly<Record<string, string>> = Object.freeze({
  seed: 'seed of every random decision (default 1)',
  errors: 'probability that an operation fails without being done, 0 to 1',
  errorAt: 'number of the operation that fails, from 1 on, of those of `errorOps`',
  errorFrom: 'number of the operation from which on all fail, of those of `errorOps`',
  errorOps: 'operations that may fail so, and that are counted, comma separated (default: all)',
  errorStatus: 'status of those failures, such as MEDIA_ERROR (the default)',
  delayUs: 'microseconds from submission before which a delayed operation does not complete',
  delayProbability: 'probability that an operation is delayed (default 1)',
  dropWrites: 'probability that a write is acknowledged and not done',
  reorder: 'probability that an operation trades places, at issue and at completion',
  torn: 'probability that only a prefix of a write is done, whole blocks',
  tornAck: '1: torn writes are acknowledged; 0 (the default): they fail with DEVICE_ERROR',
  cache: 'bytes of a volatile write cache; what it holds unflushed is lost at a cut',
  gone: 'operations after which the device is gone',
  stuck: 'probability that an operation does not complete until drain, close or cut',
  stuckMs: 'milliseconds after which a stuck operation completes with TIMED_OUT (0: never)',
});

export interface FaultOptions {
  readonly seed: number;
  readonly errors: number;
  /** The first operation that fails, of those that are counted, and the last. */
  readonly errorFirst: number;
  readonly errorLast: number;
  /** Bit (1 << Op) per operation that may fail, and is counted for that. */
  readonly errorOps: number;
  readonly errorStatus: number;
  readonly delayUs: number;
  readonly delayChance: number;
  readonly dropWrites: number;
  readonly reorder: number;
  readonly torn: number;
  readonly tornAck: boolean;
  readonly cacheBytes: number;
  /** Infinity: never. */
  readonly goneAfter: number;
  readonly stuck: number;
  readonly stuckMs: number;
}

export function parseFaultOptions(options: ReadonlyMap<string, string>): FaultOptions {
  checkKeys({ scheme: 'fault', query: options }, Object.keys(FAULT_KEYS), 'fault.');
  const torn = options.get('tornAck') ?? '0';
  if (torn !== '0' && torn !== '1') throw bad('tornAck', torn, '0 or 1');
  const at = number(options, 'errorAt', Infinity, 1, Number.MAX_SAFE_INTEGER);
  const from = number(options, 'errorFrom', Infinity, 1, Number.MAX_SAFE_INTEGER);
  return Object.freeze({
    seed: number(options, 'seed', 1, 0, 0xffff_ffff),
    errors: probability(options, 'errors', 0),
    errorFirst: Math.min(at, from),
    errorLast: from === Infinity ? at : Infinity,
    errorOps: operations(options.get('errorOps')),
    errorStatus: status(options.get('errorStatus') ?? 'MEDIA_ERROR'),
    delayUs: number(options, 'delayUs', 0, 0, 60_000_000),
    delayChance: options.has('delayUs') ? probability(options, 'delayProbability', 1) : 0,
    dropWrites: probability(options, 'dropWrites', 0),
    reorder: probability(options, 'reorder', 0),
    torn: probability(options, 'torn', 0),
    tornAck: torn === '1',
    cacheBytes: bytes(options.get('cache')),
    goneAfter: number(options, 'gone', Infinity, 0, Number.MAX_SAFE_INTEGER),
    stuck: probability(options, 'stuck', 0),
    stuckMs: number(options, 'stuckMs', 0, 0, 3_600_000),
  });
}

function number(
  options: ReadonlyMap<string, string>,
  key: string,
  fallback: number,
  min: number,
  max: number,
): number {
  const text = options.get(key);
  if (text === undefined) return fallback;
  const value = /^\d+$/.test(text) ? Number(text) : NaN;
  if (!(value >= min && value <= max)) throw bad(key, text, `an integer from ${min} to ${max}`);
  return value;
}

function probability(options: ReadonlyMap<string, string>, key: string, fallback: number): number {
  const text = options.get(key);
  const value = text === undefined ? fallback : text.trim() === '' ? NaN : Number(text);
  if (!(value >= 0 && value <= 1)) throw bad(key, text ?? '', 'a probability from 0 to 1');
  return value * 2 ** 32;
}

function bytes(text: string | undefined): number {
  if (text === undefined) return 0;
  const value = parseSize(text);
  if (!(value > 0 && value <= 2 ** 30)) throw bad('cache', text, 'a size up to 1G, such as 16M');
  return value;
}

function operations(text: string | undefined): number {
  if (text === undefined) return 0xffff_ffff | 0;
  const known: Readonly<Record<string, number>> = OPERATIONS;
  let mask = 0;
  for (const word of text.split(',')) {
    const name = word
      .trim()
      .replace(/([a-z])([A-Z])/g, '$1_$2')
      .replace('-', '_')
      .toUpperCase();
    const op = known[name];
    if (op === undefined) {
      throw bad('errorOps', text, `a list of ${Object.keys(known).join(', ').toLowerCase()}`);
    }
    mask |= 1 << op;
  }
  return mask;
}

function status(name: string): number {
  const known: Readonly<Record<string, number>> = STATUS;
  const value = known[name.toUpperCase()];
  if (value === undefined || value === 0) {
    throw bad('errorStatus', name, `one of ${Object.keys(known).slice(1).join(', ')}`);
  }
  return value;
}

function bad(key: string, text: string, expected: string): PenstockError {
  return new PenstockError('BAD_URI', `fault.${key}=${text}: expected ${expected}`, {
    hint: 'Keys of the fault wrapper are listed in the documentation of URIs.',
    exitCode: 2,
  });
}
