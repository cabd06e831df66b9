// `penstock bench URI…`: a workload in fio's words on one device or several. Results go to stdout
// as fio prints them, or as JSON; the status line and every remark to stderr.

import { readFileSync } from 'node:fs';
import { type Command, Option } from 'commander';
import * as bench from '../bench/index.js';
import { PenstockError, errnoCode } from '../errors.js';
import { type Flags, type JobFile, addWordOptions, planJobs } from './bench-plan.js';
import { configureIdc } from './bench-idc.js';
import { type BenchOutcome, failureOf, runPlan } from './bench-run.js';
import { catchInterrupts } from './interrupts.js';
import { Exit, asPenstockError, printFailure, printJson, printNote, printText } from './output.js';
import type { Finish } from './program.js';

const ROUNDS_DEFAULT = 5;

export function configure(command: Command, finish: Finish): void {
  command
    .argument('[uri...]', 'devices: file:/path, ram:1GiB, null:1GiB …')
    .option('--job <file>', "jobs from a file in fio's format; flags given here win over it")
    .option('--depths <list>', 'depth sweep: run at each of these depths, like 1,32,128')
    .option('--report <file>', 'write a self-contained HTML page with charts')
    .addOption(new Option('--vs <peer>', 'run the same job with a peer in turn').choices(['fio']))
    .option('--rounds <int>', `rounds of --vs (default: ${ROUNDS_DEFAULT})`);
  addWordOptions(command, bench);
  // What stands after `idc` belongs to it: some of its options have names of this command's.
  configureIdc(command.enablePositionalOptions().command('idc'), finish);
  command
    .addHelpText('after', '\nSizes take k, m, g, t (powers of 1024); durations ms, s, m, h.')
    .action(async (uris: string[], flags: Flags) => {
      finish(await runBench(uris, flags));
    });
}

async function runBench(uris: readonly string[], flags: Flags): Promise<number> {
  const json = flags['json'] === true;
  const plan = planJobs(bench, uris, flags, readJobFile(flags['job']));
  for (const warning of plan.warnings) printNote(warning);
  const report = typeof flags['report'] === 'string' ? flags['report'] : null;
  if (report !== null) bench.checkReportPath(report);
  const rounds = parseRounds(flags['rounds']);
  const interrupt = catchInterrupts();
  let outcome: BenchOutcome;
  try {
    outcome = await runPlan(bench, plan, {
      signal: interrupt.signal,
      peer: flags['vs'] === 'fio' ? 'fio' : null,
      rounds,
      progress: (jobs) => new bench.StatusLine(jobs),
    });
  } finally {
    interrupt.release();
  }
  if (outcome.results.length === 0) {
    throw new PenstockError('INTERRUPTED', 'interrupted before there were results', {
      exitCode: Exit.INTERRUPTED,
    });
  }
  return printOutcome(outcome, json, report);
}

/** Prints results even when they amount to a failure: partial figures are figures. */
function printOutcome(outcome: BenchOutcome, json: boolean, report: string | null): number {
  const { results, comparisons } = outcome;
  const host = bench.readHost();
  const unwritten = report === null ? null : writeReport(report, outcome, host);
  const failure = failureOf(outcome) ?? unwritten;
  if (json) {
    const error = failure === null ? {} : { error: failure.toJSON() };
    printJson('bench', { ...bench.benchJson(results, host, comparisons), ...error });
  } else {
    printText(bench.benchText(results, host, comparisons));
  }
  return failure === null ? Exit.OK : printFailure(failure, false);
}

/** A report that cannot be written must not cost the results: its error is given back. */
function writeReport(
  path: string,
  { results, comparisons }: BenchOutcome,
  host: bench.HostFacts,
): PenstockError | null {
  const commandLine = ['penstock', ...process.argv.slice(2)].map(shellWord).join(' ');
  try {
    bench.writeReport(path, { results, host, comparisons, commandLine });
  } catch (error) {
    return asPenstockError(error);
  }
  printNote(`report written to ${path}`);
  return null;
}

/** The word as a shell takes it back: `?` and `&` of a URI would mean something to it. */
function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function readJobFile(path: string | boolean | undefined): JobFile | null {
  if (typeof path !== 'string') return null;
  try {
    return { path, text: readFileSync(path, 'utf8') };
  } catch (cause) {
    throw new PenstockError('BAD_OPTION', `--job: ${path} cannot be read (${errnoCode(cause)})`, {
      hint: 'Give the path of a job file.',
      cause,
      exitCode: Exit.USAGE,
    });
  }
}

function parseRounds(text: string | boolean | undefined): number {
  if (typeof text !== 'string') return ROUNDS_DEFAULT;
  const rounds = /^\d+$/.test(text) ? Number(text) : 0;
  if (rounds >= 1 && rounds <= 1000) return rounds;
  throw new PenstockError('BAD_OPTION', `--rounds: ${text} is not between 1 and 1000`, {
    hint: 'Give a whole number, like 5.',
    exitCode: Exit.USAGE,
  });
}
