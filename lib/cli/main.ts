#!/usr/bin/env node
// Entry of the `penstock` command: parses arguments, runs one command, prints its failure, sets the
// exit code. It never calls process.exit, so that a command that leaves something open is noticed.

import { CommanderError } from 'commander';
import { PenstockError } from '../errors.js';
import { Exit, printFailure, printWarning } from './output.js';
import { buildProgram } from './program.js';

async function main(argv: readonly string[]): Promise<number> {
  const words = argv.map(fioSpelling);
  const json = asksForJson(words.slice(0, endOfOptions(words)));
  let exitCode: number = Exit.OK;
  try {
    const program = await buildProgram(words, (code) => {
      exitCode = code;
    });
    await program.parseAsync(words, { from: 'user' });
    return exitCode;
  } catch (thrown) {
    if (thrown instanceof CommanderError) {
      // Help and version that were asked for are no failure; help in place of a command is.
      if (thrown.exitCode === 0) return Exit.OK;
      if (thrown.code === 'commander.help' && !json) return Exit.USAGE;
    }
    return printFailure(thrown, json);
  }
}

/** fio's `--ramp_time` is the same flag as `--ramp-time`. */
function fioSpelling(word: string): string {
  const flag = /^--[a-z]+(?:_[a-z]+)+(?==|$)/.exec(word)?.[0];
  return flag === undefined ? word : flag.replaceAll('_', '-') + word.slice(flag.length);
}

/** `--json`, or nvme-cli's `-o json`. */
function asksForJson(words: readonly string[]): boolean {
  const format = words.findIndex((word) => word === '-o' || word === '--output-format');
  const formatIsJson = format >= 0 && words[format + 1] === 'json';
  return formatIsJson || words.includes('--json') || words.includes('--output-format=json');
}

function endOfOptions(words: readonly string[]): number {
  const at = words.indexOf('--');
  return at < 0 ? words.length : at;
}

// A reader that has seen enough (`penstock list | head`) closes the pipe: no failure of ours.
// Output
// that went nowhere for another reason (a full disk) is one, whenever it is noticed.
let outputLost = false;
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE' || outputLost) return;
  outputLost = true;
  const exitCode = printFailure(
    new PenstockError('OUTPUT_LOST', `the output could not be written (${error.code ?? ''})`, {
      hint: 'Free space where it is written to, or write it elsewhere.',
      cause: error,
    }),
    false,
  );
  process.exitCode = Number(process.exitCode ?? 0) || exitCode;
});
process.stderr.on('error', () => {
  process.exitCode = Number(process.exitCode ?? 0) || Exit.FAILED; // nobody is left to be told
});

// Node prints warnings of its own accord, with words about itself; this prints them as remarks.
process.removeAllListeners('warning');
process.on('warning', printWarning);

const exitCode = await main(process.argv.slice(2));
process.exitCode = exitCode === 0 ? (process.exitCode ?? Exit.OK) : exitCode;
