// `penstock idc …`: a hub in the foreground, and what its members say of themselves.

import type { Command } from 'commander';
import { PenstockError } from '../errors.js';
import { Hub } from '../idc/index.js';
import { catchInterrupts } from './interrupts.js';
import { configureLs } from './idc-ls.js';
import { configureTop } from './idc-top.js';
import { Exit, printJson } from './output.js';
import type { Finish } from './program.js';

const ID_MAX = 2 ** 32 - 2;

interface HubFlags {
  json?: boolean;
  mode?: string;
  allowUid?: string[];
  allowGid?: string[];
}

export function configure(command: Command, finish: Finish): void {
  command
    .command('hub')
    .description('run a hub until SIGINT or SIGTERM; members go on without it')
    .argument('<socket>', 'where it listens')
    .option('--mode <octal>', 'permissions of the socket (default: 0600)')
    .option('--allow-uid <uid...>', 'users who may join; all who can connect when left out')
    .option('--allow-gid <gid...>', 'groups who may join')
    .action(async (socket: string, _: object, self: Command) => {
      await runHub(socket, self.optsWithGlobals());
      finish(Exit.OK);
    });
  configureLs(command.command('ls'), finish);
  configureTop(command.command('top'), finish);
}

async function runHub(socket: string, flags: HubFlags): Promise<void> {
  const mode = parseMode(flags.mode ?? '0600');
  const uids = flags.allowUid?.map((text) => parseId('--allow-uid', text));
  const gids = flags.allowGid?.map((text) => parseId('--allow-gid', text));
  const allow = {
    ...(uids === undefined ? {} : { uids }),
    ...(gids === undefined ? {} : { gids }),
  };
  const interrupts = catchInterrupts();
  const ended = new Promise((resolve) => interrupts.signal.addEventListener('abort', resolve));
  try {
    using hub = Hub.listen(socket, { mode, allow, log });
    log(`listens at ${hub.path}`);
    if (flags.json === true) {
      const shown = mode.toString(8).padStart(4, '0');
      printJson('idc-hub', { socket: hub.path, pid: process.pid, mode: shown, allow });
    }
    await ended;
    log('ends; members go on, and come back to the next hub here');
  } finally {
    interrupts.release();
  }
}

function log(line: string): void {
  process.stderr.write(`${new Date().toISOString()} hub: ${line}\n`);
}

function parseMode(text: string): number {
  if (/^0?[0-7]{3}$/.test(text)) return parseInt(text, 8);
  throw bad(`--mode: ${text} is no mode`, 'Give three octal digits, like 0660.');
}

function parseId(flag: string, text: string): number {
  const id = /^\d+$/.test(text) ? Number(text) : Infinity;
  if (id <= ID_MAX) return id;
  throw bad(`${flag}: ${text} is no number of a user or group`, 'Give numbers: see id(1).');
}

function bad(message: string, hint: string): PenstockError {
  return new PenstockError('BAD_OPTION', message, { hint, exitCode: Exit.USAGE });
}
