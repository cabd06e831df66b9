// `penstock driver serve`: a process that owns a device and serves it to the other members of a
// hub. It runs until it is asked to end; what was taken is completed then.

import type { Command } from 'commander';
import { PenstockError } from '../errors.js';
import { DeviceServer, joinDomain, type DeviceServerOptions } from '../idc/index.js';
import { open } from '../open.js';
import { parseSize } from '../units.js';
import { catchInterrupts } from './interrupts.js';
import { Exit, printJson, printText } from './output.js';
import type { Finish } from './program.js';

interface Options {
  readonly name: string;
  readonly hub: string;
  readonly depth?: string;
  readonly queues?: string;
  readonly limitIops?: string;
  readonly limitBw?: string;
  readonly thirdParties?: boolean;
}

export function configure(command: Command, finish: Finish): void {
  command
    .command('serve')
    .description('serve a device to the other members of a hub, until SIGINT or SIGTERM')
    .argument('<uri>', 'the device: file:, ram:, nvme: … as anywhere')
    .requiredOption('--name <name>', 'name in the hub: others open idc:SOCKET/NAME')
    .requiredOption('--hub <socket>', 'the hub to join')
    .option('--depth <count>', 'operations that the device has at a time (1024)')
    .option('--queues <count>', 'queues that each client may have (64)')
    .option('--limit-iops <count>', 'operations a second that each client may do')
    .option('--limit-bw <size>', 'bytes a second that each client may move')
    .option(
      '--third-parties',
      'clients may write from memory of others that share with this domain',
    )
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      await serve(uri, self.optsWithGlobals());
      finish(Exit.OK);
    });
}

async function serve(uri: string, options: Options & { json?: boolean }): Promise<void> {
  const { name, hub, json = false } = options;
  const serverOptions = readOptions(options);
  const interrupts = catchInterrupts();
  const ended = new Promise((resolve) => interrupts.signal.addEventListener('abort', resolve));
  // A hub that goes, and comes not back, is no reason to end.
  const stay = setInterval(() => undefined, 2 ** 30);
  try {
    // Before the device is opened: a process joins before its first allocation.
    using domain = await joinDomain(hub, { name, keepAlive: true });
    await using device = await open(uri);
    await using server = new DeviceServer(domain, device, serverOptions);
    const { slot } = domain;
    const served = `idc:${hub}/${name}`;
    if (json) printJson('driver-serve', { uri, served, slot, pid: process.pid });
    else printText(`${uri} is served as ${served}`);
    await ended;
    await server.close();
  } finally {
    clearInterval(stay);
    interrupts.release();
  }
}

function readOptions(options: Options): DeviceServerOptions {
  const { depth, queues, limitIops, limitBw, thirdParties = false } = options;
  return {
    thirdParties,
    ...(depth === undefined ? {} : { depth: count('--depth', depth, 32768) }),
    ...(queues === undefined ? {} : { queues: count('--queues', queues, 1000) }),
    ...(limitIops === undefined ? {} : { limitIops: count('--limit-iops', limitIops, 1e12) }),
    ...(limitBw === undefined ? {} : { limitBytes: positive('--limit-bw', limitBw) }),
  };
}

function count(flag: string, text: string, most: number): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= 1 && value <= most) return value;
  throw badOption(`${flag} ${text} is no number from 1 to ${most}`);
}

function positive(flag: string, text: string): number {
  const bytes = parseSize(text);
  if (bytes >= 1) return bytes;
  throw badOption(`${flag} ${text} allows nothing`);
}

function badOption(message: string): PenstockError {
  return new PenstockError('BAD_OPTION', message, {
    hint: 'See penstock driver serve --help.',
    exitCode: Exit.USAGE,
  });
}
