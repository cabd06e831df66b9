// `penstock bench idc`: what a channel between two processes costs on this machine.

import type { Command } from 'commander';
import * as bench from '../bench/index.js';
import { PenstockError } from '../errors.js';
import { parseDuration, parseSize } from '../units.js';
import { catchInterrupts } from './interrupts.js';
import { Exit, printJson, printText } from './output.js';
import type { Finish } from './program.js';

const PAYLOAD_BYTES_MAX = 2 ** 28;
const ROUNDS_MAX = 1000;
const RUNTIME_MAX = 60;

interface Flags {
  json?: boolean;
  quick?: boolean;
  runtime?: string;
  rounds?: string;
  payloads?: string;
}

export function configureIdc(command: Command, finish: Finish): void {
  const { runtime, rounds } = bench.IDC_DEFAULTS;
  command
    .description('messages between two processes: round trips, records a second, wakes, idle')
    .option('--json', 'print JSON alone on stdout')
    .option('--runtime <duration>', `of each measurement in a round (default: ${runtime})`)
    .option('--rounds <int>', `rounds (default: ${rounds})`)
    .option('--payloads <list>', 'bytes per message, like 64,4k,1M (default: 64 to 4 MiB)')
    .option('--quick', 'one short round')
    .action(async (flags: Flags, self: Command) => {
      const misplaced = Object.keys(self.parent?.opts() ?? {});
      if (misplaced.length > 0) {
        throw bad(`--${misplaced[0]} stands before idc`, 'Options of bench idc stand after it.');
      }
      finish(await runBenchIdc(flags));
    });
}

async function runBenchIdc(flags: Flags): Promise<number> {
  const options = parseFlags(flags);
  const interrupt = catchInterrupts();
  const line = new bench.StatusLine([]);
  try {
    const result = await bench.runIdc({
      ...options,
      signal: interrupt.signal,
      onPhase: (what) => line.note(`idc: ${what}`),
    });
    const host = bench.readHost();
    line.clear();
    if (flags.json === true) printJson('bench-idc', bench.idcJson(result, host));
    else printText(bench.idcText(result, host));
    return Exit.OK;
  } finally {
    line.clear();
    interrupt.release();
  }
}

function parseFlags(flags: Flags): bench.IdcOptions {
  const { runtime, rounds, payloads } = flags;
  const defaults = flags.quick === true ? bench.IDC_QUICK : bench.IDC_DEFAULTS;
  return {
    ...defaults,
    ...(runtime === undefined ? {} : { runtime: parseRuntime(runtime) }),
    ...(rounds === undefined ? {} : { rounds: parseRounds(rounds) }),
    ...(payloads === undefined ? {} : { payloads: payloads.split(',').map(parsePayload) }),
  };
}

function parseRuntime(text: string): number {
  const seconds = parseDuration(text);
  if (seconds > 0 && seconds <= RUNTIME_MAX) return seconds;
  throw bad(`--runtime: ${text} is not between 0 and ${RUNTIME_MAX} s`, 'Give it like 200ms.');
}

function parseRounds(text: string): number {
  const rounds = /^\d+$/.test(text) ? Number(text) : 0;
  if (rounds >= 1 && rounds <= ROUNDS_MAX) return rounds;
  throw bad(`--rounds: ${text} is not between 1 and ${ROUNDS_MAX}`, 'Give a whole number, like 3.');
}

function parsePayload(text: string): number {
  const bytes = parseSize(text.trim());
  if (bytes >= 4 && bytes <= PAYLOAD_BYTES_MAX && bytes % 4 === 0) return bytes;
  throw bad(
    `--payloads: ${text} is no multiple of 4 from 4 bytes to 256 MiB`,
    'Give a list like 64,4k,1M.',
  );
}

function bad(message: string, hint: string): PenstockError {
  return new PenstockError('BAD_OPTION', message, { hint, exitCode: Exit.USAGE });
}
