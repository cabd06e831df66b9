// From arguments to jobs: what `penstock bench` is to run, in which order.
//
// Invariants: a word means the same as a flag and in a job file (lib/bench's table decides); flags
// that were given win over the job file; steps run one after the other, the jobs of a step
// together.

import type { Command } from 'commander';
import { Option } from 'commander';
import { PenstockError } from '../errors.js';
import type { JobOptions, OptionWord } from '../bench/index.js';
import { Exit } from './output.js';

/** The part of lib/bench that turns words into jobs. */
export type Words = Pick<
  typeof import('../bench/index.js'),
  'OPTION_WORDS' | 'defaultJob' | 'findOption' | 'parseJobFile' | 'setOption'
>;

/** What commander makes of the flags: `--ramp-time 3` is `rampTime: '3'`. */
export type Flags = Readonly<Record<string, string | boolean | undefined>>;

export interface JobFile {
  readonly path: string;
  readonly text: string;
}

export interface BenchPlan {
  readonly steps: readonly (readonly JobOptions[])[];
  /** For people. */
  readonly warnings: readonly string[];
}

/** A flag for every word of the table; other spellings that fio takes work too, unlisted. */
export function addWordOptions(command: Command, words: Words): void {
  for (const word of words.OPTION_WORDS) {
    for (const spelling of spellings(word)) {
      const value = word.kind === 'flag' ? '' : ` <${word.kind === 'choice' ? 'word' : word.kind}>`;
      const option = new Option(`--${spelling}${value}`, help(word));
      if (spelling !== word.flag) option.hideHelp();
      // For completion only: the table parses the value, so that its errors are the job file's.
      if (word.choices !== undefined) option.argChoices = [...word.choices];
      command.addOption(option);
    }
  }
}

export function planJobs(
  words: Words,
  uris: readonly string[],
  flags: Flags,
  jobFile: JobFile | null,
): BenchPlan {
  const given = givenWords(words, flags);
  const { jobs, warnings } =
    jobFile === null
      ? { jobs: jobsOf(words, uris), warnings: [] }
      : jobsOfFile(words, uris, jobFile);
  for (const job of jobs) {
    for (const { word, text, flag } of given) words.setOption(job, word, text, flag);
  }
  return { steps: sweep(words, jobs, flags['depths']), warnings };
}

function jobsOf(words: Words, uris: readonly string[]): JobOptions[] {
  if (uris.length === 0) {
    throw new PenstockError('USAGE', 'bench wants a URI, or a job file with --job', {
      hint: 'For example: penstock bench ram:256MiB --rw randread --runtime 3',
      exitCode: Exit.USAGE,
    });
  }
  return uris.map((uri, index) => {
    const job = { ...words.defaultJob(), uri };
    return uris.length === 1 ? job : { ...job, name: `${job.name}${index + 1}` };
  });
}

function jobsOfFile(
  words: Words,
  uris: readonly string[],
  { path, text }: JobFile,
): { jobs: JobOptions[]; warnings: string[] } {
  const [uri, second] = uris;
  if (second !== undefined) {
    throw new PenstockError('USAGE', 'with --job there is at most one URI, for jobs without one', {
      hint: 'Give each section of the job file its own: uri=…',
      exitCode: Exit.USAGE,
    });
  }
  return words.parseJobFile(text, uri === undefined ? { file: path } : { file: path, uri });
}

/** The words that stand on the command line, under whichever spelling. */
function givenWords(
  words: Words,
  flags: Flags,
): { word: OptionWord; text: string; flag: string }[] {
  const given: { word: OptionWord; text: string; flag: string }[] = [];
  for (const word of words.OPTION_WORDS) {
    for (const spelling of spellings(word)) {
      const value = flags[attributeOf(spelling)];
      if (value === undefined || value === false) continue;
      given.push({ word, text: value === true ? '1' : value, flag: `--${spelling}` });
    }
  }
  return given;
}

/** A depth sweep runs all jobs at each depth, one depth after the other. */
function sweep(
  words: Words,
  jobs: JobOptions[],
  depths: string | boolean | undefined,
): JobOptions[][] {
  if (typeof depths !== 'string') return [jobs];
  const word = words.findOption('iodepth');
  if (word === null) throw new RangeError('the table of words has no iodepth');
  return depths.split(',').map((text) =>
    jobs.map((job) => {
      const copy = { ...job, name: `${job.name}-qd${text.trim()}` };
      words.setOption(copy, word, text, '--depths');
      return copy;
    }),
  );
}

/** The flag first, then fio's word and aliases; main turns `_` in a flag into `-`. */
function spellings(word: OptionWord): string[] {
  const all = [word.flag, word.name, ...(word.aliases ?? [])];
  return [...new Set(all.map((spelling) => spelling.replaceAll('_', '-')))];
}

/** Commander's name for the value of `--ramp-time`. */
function attributeOf(flag: string): string {
  return flag.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

function help(word: OptionWord): string {
  const plain = word.kind === 'flag' || word.default === '';
  return plain ? word.help : `${word.help} (default: ${word.default})`;
}
