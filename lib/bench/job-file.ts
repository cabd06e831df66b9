// fio's job file (HOWTO, "Job file format"): an ini file whose sections are jobs.
//
// Invariants:
// 1. [global] sections hold defaults for the sections below them, as in fio.
// 2. No word is passed over in silence: it sets something, or it is refused with its line, or, when
//    it only tunes fio itself, it is named in a warning.

import { resolve } from 'node:path';
import { PenstockError } from '../errors.js';
import { nearest } from '../units.js';
import { formatUri, parseUri } from '../uri.js';
import { OPTION_WORDS, badOption, defaultJob, findOption, setOption } from './option-words.js';
import type { JobOptions } from './types.js';

export interface ParsedJobFile {
  jobs: JobOptions[];
  /** One line each, for people. */
  warnings: string[];
}

export interface JobFileContext {
  /** The URI of sections that name none. */
  uri?: string;
  /** Begins the messages: the file's name. */
  file?: string;
}

/** Words that tune fio and mean nothing here. */
const IGNORED_WORDS: ReadonlyMap<string, string> = new Map([
  ['ioengine', 'the URI chooses the driver'],
  ['group_reporting', 'the workers of a job are always reported together'],
  ['thread', 'workers are threads'],
  ['invalidate', 'the page cache is left as it is'],
  ['norandommap', 'random offsets may always repeat'],
  ['randrepeat', 'a run repeats for the same seed'],
  ['registerfiles', 'files are registered where the kernel can'],
  ['fixedbufs', 'buffers are registered where the kernel can'],
  ['gtod_reduce', 'a batch takes two clock reads'],
  ['disable_slat', 'submission latency is not kept'],
  ['disable_lat', 'completion latency is kept'],
  ['disable_clat', 'completion latency is kept'],
  ['description', 'it changes nothing'],
  ['kb_base', 'sizes are powers of 1024'],
  ['unit_base', 'rates are bytes'],
]);

/** Words that would change the meaning of the run: refused rather than passed over. */
const REFUSED_WORDS: ReadonlyMap<string, string> = new Map([
  ['stonewall', 'Jobs of one file run at the same time; put later jobs into a file of their own.'],
  ['wait_for', 'Jobs of one file run at the same time; put later jobs into a file of their own.'],
  ['wait_for_previous', 'Jobs of one file run at the same time; put later jobs into a new file.'],
  ['bsrange', 'Give one size with bs; use one job for each size.'],
  ['bssplit', 'Give one size with bs; use one job for each size.'],
  ['rate', 'Give operations a second with rate_iops.'],
  ['fsync', 'Flush is not part of a workload.'],
  ['fdatasync', 'Flush is not part of a workload.'],
  ['trim_percentage', 'Discard is not part of a workload.'],
  ['loops', 'Give the bytes in all with io_size, or a runtime.'],
  ['nrfiles', 'A job uses one device; use one job for each file.'],
  ['include', 'Put the words into this file.'],
]);

/** Characters of a line that an error shows. */
const QUOTED_MAX = 60;

const FILE_WORDS = ['filename', 'uri', 'directory', 'direct', 'time_based', 'rwmixwrite'];

/** What a section says beyond the words of JobOptions. */
interface Section {
  job: JobOptions;
  line: number;
  filename: string;
  directory: string;
  direct: boolean;
  timeBased: boolean;
}

/**
 * The jobs of a job file. Throws BAD_OPTION (usage, exit 2) with the line and, for a word that is
 * not known, the nearest one that is.
 */
export function parseJobFile(text: string, context: JobFileContext = {}): ParsedJobFile {
  const prefix = context.file === undefined ? '' : `${context.file}: `;
  const warnings = new Set<string>();
  const sections: Section[] = [];
  let defaults = emptySection();
  let current: Section | null = null;
  let global = false;

  const close = (): void => {
    if (current === null) return;
    if (global) defaults = current;
    else sections.push(current);
  };
  let line = 0;
  for (const raw of text.split('\n')) {
    line++;
    const content = raw.trim();
    if (content === '' || content.startsWith('#') || content.startsWith(';')) continue;
    const where = `${prefix}line ${line}`;
    if (content.startsWith('[')) {
      close();
      const name = /^\[\s*([^\]]*?)\s*\]$/.exec(content)?.[1] ?? '';
      if (name === '') {
        throw badOption(`${where}: ${quote(content)} is not a section`, 'Write [name].');
      }
      global = name.toLowerCase() === 'global';
      current = { ...defaults, job: { ...defaults.job }, line };
      if (!global) current.job.name = name;
      continue;
    }
    if (current === null) {
      const what = `${quote(content)} stands before the first section`;
      throw badOption(`${where}: ${what}`, 'Write [global].');
    }
    const equals = content.indexOf('=');
    const word = (equals < 0 ? content : content.slice(0, equals)).trim();
    const value = equals < 0 ? null : content.slice(equals + 1).trim();
    setWord(current, word.toLowerCase(), value, where, warnings);
  }
  close();
  if (sections.length === 0) {
    throw badOption(`${prefix}the job file has no job`, 'A job is a section: [name].');
  }
  const jobs = sections.map((section) => finish(section, context, prefix, warnings));
  return { jobs, warnings: [...warnings] };
}

/** A line for people, whatever is in the file: one that is no text may hold anything. */
function quote(content: string): string {
  const plain = content.slice(0, QUOTED_MAX).replace(/[^\x20-\x7e]/g, '?');
  return `'${plain}${content.length > QUOTED_MAX ? '…' : ''}'`;
}

function emptySection(): Section {
  const section = { job: defaultJob(), line: 0, filename: '', directory: '' };
  return { ...section, direct: false, timeBased: false };
}

function setWord(
  section: Section,
  word: string,
  value: string | null,
  where: string,
  warnings: Set<string>,
): void {
  const option = findOption(word);
  if (option !== null) {
    if (value === null && option.kind !== 'flag') {
      throw badOption(`${where}: ${word} has no value`, `Write ${word}=VALUE.`);
    }
    setOption(section.job, option, plainValue(word, value ?? '', warnings), `${where}: ${word}`);
    return;
  }
  const reason = IGNORED_WORDS.get(word);
  if (reason !== undefined) {
    warnings.add(`${where}: ${word} is passed over: ${reason}`);
    return;
  }
  const refusal = REFUSED_WORDS.get(word);
  if (refusal !== undefined) throw badOption(`${where}: ${word} is not supported`, refusal);
  setFileWord(section, word, value, where);
}

/** The words about where and how long, which JobOptions holds in another form. */
function setFileWord(section: Section, word: string, value: string | null, where: string): void {
  const on = value === null || /^(1|true|yes)$/i.test(value);
  const mixread = findOption('rwmixread');
  switch (word) {
    case 'filename':
      section.filename = nonEmpty(word, value, where);
      section.job.uri = '';
      return;
    case 'uri':
      section.job.uri = nonEmpty(word, value, where);
      section.filename = '';
      return;
    case 'directory':
      section.directory = nonEmpty(word, value, where);
      return;
    case 'direct':
      section.direct = on;
      return;
    case 'time_based':
      section.timeBased = on;
      return;
    case 'rwmixwrite':
      if (mixread !== null) setOption(section.job, mixread, value ?? '', `${where}: ${word}`);
      section.job.rwmixread = 100 - section.job.rwmixread;
      return;
    default:
      throw unknownWord(word, where);
  }
}

function unknownWord(word: string, where: string): PenstockError {
  const known = [...OPTION_WORDS.map((option) => option.name), ...FILE_WORDS];
  known.push(...IGNORED_WORDS.keys());
  const near = nearest(word, known);
  return badOption(
    `${where}: unknown word ${quote(word)}; the nearest known is '${near}'`,
    `Words of a job: ${[...OPTION_WORDS.map((option) => option.name), ...FILE_WORDS].join(', ')}.`,
  );
}

function nonEmpty(word: string, value: string | null, where: string): string {
  if (value === null || value === '') throw badOption(`${where}: ${word} has no value`);
  return value;
}

/** fio's verify names a checksum; here there is one form of it, on or off. */
function plainValue(word: string, value: string, warnings: Set<string>): string {
  if (word !== 'verify' || /^(|0|1|true|false|yes|no)$/.test(value)) return value;
  if (value === 'none') return '0';
  warnings.add(`verify=${value}: blocks carry Penstock's own position, sequence and CRC-32C`);
  return '1';
}

function finish(
  section: Section,
  context: JobFileContext,
  prefix: string,
  warnings: Set<string>,
): JobOptions {
  const { job } = section;
  const where = `${prefix}line ${section.line}: [${job.name}]`;
  if (section.filename !== '') {
    // A colon separates files in fio and is part of no path there unless escaped.
    const path = section.filename.replaceAll('\\:', '\0');
    if (path.includes(':')) {
      throw badOption(`${where}: filename names several files`, 'Use one job for each file.');
    }
    job.uri = fileUri(resolve(section.directory, path.replaceAll('\0', ':')));
  } else if (job.uri === '') {
    job.uri = context.uri ?? '';
  }
  if (job.uri === '') {
    throw badOption(`${where} has no filename and no uri`, 'Write filename=/path or uri=ram:1GiB.');
  }
  if (section.direct) job.uri = withDirect(job.uri, where, warnings);
  if (section.timeBased && job.runtime === 0) {
    throw badOption(`${where}: time_based needs a runtime`, 'Write runtime=30s.');
  }
  if (job.runtime > 0 && !section.timeBased && job.ioSize === 0) {
    warnings.add(`${where}: runtime without io_size runs for all of its time, as with time_based`);
  }
  return job;
}

function fileUri(path: string): string {
  return formatUri({ scheme: 'file', transport: '', path, query: new Map(), volume: '' });
}

function withDirect(text: string, where: string, warnings: Set<string>): string {
  const uri = parseUri(text);
  if (uri.scheme !== 'file') {
    warnings.add(`${where}: direct is passed over: ${uri.scheme}: has no page cache`);
    return text;
  }
  return formatUri({ ...uri, query: new Map([...uri.query, ['direct', '1']]) });
}
