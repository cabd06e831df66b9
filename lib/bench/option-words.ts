// The words a job is described with: one table for the job file and for the command line's flags.
//
// Words, kinds and meanings are fio's (HOWTO, "Parameter types"). A word is parsed and checked in
// one place, setOption, whichever way it came in, so that `--bs 4k` and `bs=4k` cannot differ.

import { PenstockError } from '../errors.js';
import { parseDuration, parseSize } from '../units.js';
import type { JobOptions } from './types.js';

export type OptionKind = 'size' | 'int' | 'duration' | 'text' | 'flag' | 'choice';

export interface OptionWord {
  /** fio's word, as a job file has it. */
  readonly name: string;
  /** The command line's flag without its dashes. */
  readonly flag: string;
  readonly key: Exclude<keyof JobOptions, 'uri'>;
  readonly kind: OptionKind;
  readonly default: string | number | boolean;
  readonly help: string;
  readonly choices?: readonly string[];
  /** Other spellings that fio takes. */
  readonly aliases?: readonly string[];
  readonly min?: number;
  readonly max?: number;
}

const DIRECTIONS = ['read', 'write', 'randread', 'randwrite', 'rw', 'randrw'] as const;

/** Every word of a job, in the order that help prints them. */
export const OPTION_WORDS: readonly OptionWord[] = Object.freeze([
  {
    name: 'name',
    flag: 'name',
    key: 'name',
    kind: 'text',
    default: 'job',
    help: 'name of the job in the output',
  },
  {
    name: 'rw',
    flag: 'rw',
    key: 'rw',
    kind: 'choice',
    default: 'read',
    choices: DIRECTIONS,
    aliases: ['readwrite'],
    help: 'direction and order of the operations',
  },
  {
    name: 'rwmixread',
    flag: 'rwmixread',
    key: 'rwmixread',
    kind: 'int',
    default: 50,
    min: 0,
    max: 100,
    help: 'percent of reads in rw and randrw',
  },
  {
    name: 'bs',
    flag: 'bs',
    key: 'bs',
    kind: 'size',
    default: 4096,
    min: 1,
    max: 2 ** 30,
    aliases: ['blocksize'],
    help: 'bytes per operation',
  },
  {
    name: 'iodepth',
    flag: 'iodepth',
    key: 'iodepth',
    kind: 'int',
    default: 1,
    min: 1,
    max: 32768,
    help: 'operations in flight per worker',
  },
  {
    name: 'numjobs',
    flag: 'numjobs',
    key: 'numjobs',
    kind: 'int',
    default: 1,
    min: 1,
    max: 1024,
    help: 'workers, each with its own queue',
  },
  {
    name: 'size',
    flag: 'size',
    key: 'size',
    kind: 'size',
    default: 0,
    help: 'bytes of the device to use, from offset on (0: to its end)',
  },
  {
    name: 'offset',
    flag: 'offset',
    key: 'offset',
    kind: 'size',
    default: 0,
    help: 'first byte of the device to use',
  },
  {
    name: 'runtime',
    flag: 'runtime',
    key: 'runtime',
    kind: 'duration',
    default: 0,
    help: 'seconds to run (0: until io_size or size is done once)',
  },
  {
    name: 'ramp_time',
    flag: 'ramp-time',
    key: 'rampTime',
    kind: 'duration',
    default: 0,
    help: 'seconds to run before counting begins',
  },
  {
    name: 'rate_iops',
    flag: 'rate-iops',
    key: 'rateIops',
    kind: 'int',
    default: 0,
    min: 0,
    max: 1e9,
    help: 'operations a second and worker, open loop (0: as fast as it goes)',
  },
  {
    name: 'random_distribution',
    flag: 'random-distribution',
    key: 'randomDistribution',
    kind: 'text',
    default: 'random',
    help: 'random, zipf:THETA, pareto:H or normal:DEVIATION',
  },
  {
    name: 'randseed',
    flag: 'seed',
    key: 'seed',
    kind: 'int',
    default: 1,
    min: 0,
    max: 2 ** 32 - 1,
    aliases: ['seed'],
    help: 'seed of order and contents; the same seed gives the same run',
  },
  {
    name: 'verify',
    flag: 'verify',
    key: 'verify',
    kind: 'flag',
    default: false,
    help: 'write position, sequence and checksum into blocks, and check them',
  },
  {
    name: 'io_size',
    flag: 'io-size',
    key: 'ioSize',
    kind: 'size',
    default: 0,
    aliases: ['io_limit'],
    help: 'bytes to transfer in all by each worker (0: size)',
  },
  {
    name: 'dedupe_percentage',
    flag: 'dedupe-percentage',
    key: 'dedupePercentage',
    kind: 'int',
    default: 0,
    min: 0,
    max: 100,
    help: 'percent of written blocks that repeat earlier contents',
  },
] satisfies OptionWord[]);

/** A job with every word at its default and no URI. */
export function defaultJob(): JobOptions {
  const job: Record<string, string | number | boolean> = { uri: '' };
  for (const word of OPTION_WORDS) job[word.key] = word.default;
  return job as unknown as JobOptions;
}

/** The word of this name, flag or alias (`ramp_time`, `ramp-time`); null when there is none. */
export function findOption(name: string): OptionWord | null {
  const spelled = name.toLowerCase().replaceAll('-', '_');
  for (const word of OPTION_WORDS) {
    if (word.name === spelled || word.flag.replaceAll('-', '_') === spelled) return word;
    if (word.aliases?.includes(spelled) === true) return word;
  }
  return null;
}

/**
 * Parses `text` and stores it. `where` begins the message: '--bs', 'line 3: bs'. Throws BAD_OPTION
 * (usage, exit 2).
 */
export function setOption(job: JobOptions, word: OptionWord, text: string, where: string): void {
  const target = job as unknown as Record<string, string | number | boolean>;
  target[word.key] = parseValue(word, text.trim(), where);
}

function parseValue(word: OptionWord, text: string, where: string): string | number | boolean {
  switch (word.kind) {
    case 'choice': {
      const value = text === 'readwrite' ? 'rw' : text;
      const choices = word.choices ?? [];
      if (choices.includes(value)) return value;
      throw badOption(`${where}: '${text}' is not one of ${choices.join(', ')}`);
    }
    case 'flag':
      return parseFlag(text, where);
    case 'text':
      if (text === '') throw badOption(`${where}: a value is missing`);
      return word.key === 'randomDistribution' ? parseDistribution(text, where) : text;
    case 'size':
      return inRange(word, sizeOf(text, where), text, where);
    case 'duration':
      return inRange(word, typed(parseDuration, text, where), text, where);
    case 'int': {
      // fio's percentages may carry their sign.
      const digits = word.max === 100 ? text.replace(/%$/, '') : text;
      const value = /^\d+$/.test(digits) ? Number(digits) : scaledInteger(word, digits, where);
      return inRange(word, value, text, where);
    }
  }
}

/** fio takes `rate_iops=10k`; its suffixes are powers of 1024 there too, as kb_base is 1024. */
function scaledInteger(word: OptionWord, text: string, where: string): number {
  if (word.key === 'rateIops' && /^\d+k$/i.test(text)) return parseSize(text);
  throw badOption(`${where}: '${text}' is not a whole number`);
}

function sizeOf(text: string, where: string): number {
  if (text.endsWith('%')) {
    throw badOption(
      `${where}: '${text}' depends on the device's size, which is not known here`,
      'Give bytes, like 512m, or 0 for all of the device.',
    );
  }
  if (/[,:\-/]/.test(text)) {
    throw badOption(
      `${where}: '${text}' gives several sizes`,
      'Give one size for all operations; use one job for each size.',
    );
  }
  return typed(parseSize, text, where);
}

function typed(parse: (text: string) => number, text: string, where: string): number {
  try {
    return parse(text);
  } catch (cause) {
    if (!(cause instanceof PenstockError)) throw cause;
    throw new PenstockError('BAD_OPTION', `${where}: ${cause.message}`, {
      hint: cause.hint,
      cause,
      exitCode: 2,
    });
  }
}

function inRange(word: OptionWord, value: number, text: string, where: string): number {
  const min = word.min ?? 0;
  const max = word.max ?? Number.MAX_SAFE_INTEGER;
  if (value >= min && value <= max) return value;
  throw badOption(`${where}: ${text} is not between ${min} and ${max}`);
}

function parseFlag(text: string, where: string): boolean {
  if (text === '' || text === '1' || text === 'true' || text === 'yes') return true;
  if (text === '0' || text === 'false' || text === 'no') return false;
  throw badOption(`${where}: '${text}' is neither 1 nor 0`);
}

/** What fio takes when the parameter is left out. */
const DISTRIBUTION_DEFAULTS: Readonly<Record<string, number>> = { zipf: 1.1, pareto: 0.2 };

function parseDistribution(text: string, where: string): string {
  if (text === 'random') return text;
  const match = /^(zipf|pareto|normal)(?::(\d*\.?\d+))?$/.exec(text);
  const kind = match?.[1] ?? '';
  const parameter = match?.[2] === undefined ? DISTRIBUTION_DEFAULTS[kind] : Number(match[2]);
  if (match === null || parameter === undefined) {
    throw badOption(
      `${where}: '${text}' is not a distribution`,
      'Write random, zipf:1.1, pareto:0.2 or normal:20.',
    );
  }
  const bad =
    (kind === 'zipf' && (parameter <= 0 || parameter === 1)) ||
    (kind === 'pareto' && (parameter <= 0 || parameter >= 1)) ||
    (kind === 'normal' && (parameter <= 0 || parameter > 100));
  if (bad) {
    throw badOption(
      `${where}: '${text}' is out of range`,
      'zipf takes more than 0 but not 1, pareto between 0 and 1, normal more than 0 to 100.',
    );
  }
  return `${kind}:${parameter}`;
}

/** A usage error; the hint defaults to where the words are listed. */
export function badOption(message: string, hint = ''): PenstockError {
  return new PenstockError('BAD_OPTION', message, {
    hint: hint === '' ? 'penstock bench --help lists the options and their values.' : hint,
    exitCode: 2,
  });
}
