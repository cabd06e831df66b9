// What the command line prints and how it ends (CONTRACTS, "--json" and "Exit codes").
//
// Invariants: with --json stdout carries one JSON value with a `schema` field and nothing else;
// every other word goes to stderr. Every failure has a code, a message and an exit code that is not
// 0.

import { CommanderError, type Command } from 'commander';
import { PenstockError, errnoCode } from '../errors.js';
import { jsonText } from './json-text.js';

export const enum Exit {
  OK = 0,
  FAILED = 1,
  USAGE = 2,
  NOT_READY = 3,
  MISMATCH = 4,
  INTERRUPTED = 130,
}

/** Whether a command, or one above it, was given `--json`. */
export function wantsJson(command: Command): boolean {
  return command.optsWithGlobals<{ json?: boolean }>().json === true;
}

/** Prints `{"schema": "penstock.NAME/1", …body}` to stdout. */
export function printJson(name: string, body: object): void {
  process.stdout.write(`${jsonText({ schema: `penstock.${name}/1`, ...body })}\n`);
}

export function printText(text: string): void {
  process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
}

/** A remark for people, always on stderr. */
export function printNote(text: string): void {
  process.stderr.write(`penstock: ${text}\n`);
}

/** A warning of the process (`process.emitWarning`); its detail says what to do. */
export function printWarning(warning: Error & { detail?: string }): void {
  printNote(warning.name === 'Warning' ? warning.message : `${warning.name}: ${warning.message}`);
  if (warning.detail !== undefined) process.stderr.write(`  hint: ${warning.detail}\n`);
}

/** Prints a failure as people or programs read it, and returns the exit code that goes with it. */
export function printFailure(thrown: unknown, json: boolean): number {
  const error = asPenstockError(thrown);
  if (json) printJson('error', { error: error.toJSON() });
  printNote(error.message);
  if (error.hint !== '') process.stderr.write(`  hint: ${error.hint}\n`);
  if (process.env['PENSTOCK_DEBUG'] === '1') {
    const stack = thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown);
    process.stderr.write(`${stack}\n`);
    if (error.cause instanceof Error && error.cause !== thrown) {
      process.stderr.write(`caused by: ${error.cause.stack ?? error.cause.message}\n`);
    }
  }
  return error.exitCode;
}

/**
 * Prints what a command did, and why that is not all of it, if it is not: partial results are
 * results. Returns the exit code.
 */
export function printOutcome(
  json: boolean,
  name: string,
  body: object,
  text: string,
  failure: PenstockError | null,
): number {
  if (json) printJson(name, failure === null ? body : { ...body, error: failure.toJSON() });
  else printText(text);
  return failure === null ? Exit.OK : printFailure(failure, false);
}

/**
 * Any thrown value as an operating error: system calls keep their errno name, the rest is INTERNAL.
 */
export function asPenstockError(thrown: unknown): PenstockError {
  if (thrown instanceof PenstockError) return thrown;
  if (thrown instanceof CommanderError) {
    const [message = '', suggestion] = thrown.message.replace(/^error: /, '').split('\n');
    return new PenstockError('USAGE', message, {
      hint:
        suggestion?.replace(/^\((.*)\)$/, '$1') ??
        'See penstock --help, or penstock COMMAND --help.',
      exitCode: Exit.USAGE,
    });
  }
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  const inner = thrown instanceof Error ? thrown.cause : undefined;
  const cause = inner === undefined ? {} : { cause: inner };
  const errno = errnoCode(thrown);
  if (errno !== '') {
    const denied = errno === 'EACCES' || errno === 'EPERM';
    const hint = denied ? 'Run as root, or give this user access.' : '';
    const exitCode = denied ? Exit.NOT_READY : Exit.FAILED;
    return new PenstockError(errno, message, { ...cause, hint, exitCode });
  }
  return new PenstockError('INTERNAL', message, {
    ...cause,
    hint: 'This was not expected: run again with PENSTOCK_DEBUG=1 for the stack.',
  });
}

/** Columns of text under a heading, each as wide as it needs; the last is not padded. */
export function table(heading: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [heading, ...rows];
  const widths = heading.map((_, column) =>
    Math.max(...all.map((row) => (row[column] ?? '').length)),
  );
  const lines = all.map((row) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0)))
      .join('  ')
      .trimEnd(),
  );
  return `${lines.join('\n')}\n`;
}
