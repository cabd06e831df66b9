// `penstock bind`: takes PCI functions from the kernel for processes to drive.

import type { Command } from 'commander';
import { PenstockError } from '../errors.js';
import {
  type Changed,
  type Machine,
  type Root,
  bindFunctions,
  hostMachine,
  resolveFunction,
  shellLine,
} from '../pci/index.js';
import { nearest } from '../units.js';
import { Exit, printJson, printNote, printText } from './output.js';
import type { Finish } from './program.js';

interface Options {
  readonly driver: string;
  readonly user?: string;
  readonly force?: boolean;
  readonly dryRun?: boolean;
  readonly json?: boolean;
}

export function configure(command: Command, finish: Finish): void {
  command
    .argument('<function...>', 'addresses (0000:01:00.0, 01:00.0) or names (nvme0, nvme0n1, eth0)')
    .option('--driver <name>', 'driver that is to have it', 'vfio-pci')
    .option('--user <name>', "user, by name or number, who may open the group's node")
    .option('--force', 'cut off who has it open or comes by it; never where data would be lost')
    .option('--dry-run', 'check everything, print what would be written, change nothing')
    .addHelpText('after', '\npenstock status shows what is there and what stands against it.')
    .action(async (functions: string[], options: Options) => {
      await bind(hostMachine(), functions, options);
      finish(Exit.OK);
    });
}

async function bind(machine: Machine, names: readonly string[], options: Options): Promise<void> {
  const { driver, user, force = false, dryRun = false, json = false } = options;
  if (user !== undefined && !driver.includes('vfio')) {
    throw new PenstockError('BAD_OPTION', `--user does not go with --driver ${driver}`, {
      hint: 'Only the nodes of VFIO groups can be given to a user; other drivers need root.',
      exitCode: Exit.USAGE,
    });
  }
  const uid = user === undefined ? {} : { uid: userId(machine.root, user) };
  const addresses = names.map((name) => resolveFunction(machine.root, name));
  const changes = await bindFunctions(machine, addresses, { driver, force, dryRun, ...uid });
  printChanges('bind', changes, { dryRun, json });
}

/** The number of a user. Errors: UNKNOWN_USER. */
export function userId(root: Root, user: string): number {
  if (/^\d+$/.test(user)) return Number(user);
  const lines = root.read('/etc/passwd').split('\n');
  const ids = new Map(lines.map((line) => [line.split(':')[0] ?? '', line.split(':')[2] ?? '']));
  const id = ids.get(user);
  if (id !== undefined && id !== '') return Number(id);
  throw new PenstockError('UNKNOWN_USER', `there is no user '${user}'`, {
    hint: `Did you mean ${nearest(user, ids.keys())}? A user of a directory service: by number.`,
    exitCode: Exit.USAGE,
  });
}

/** What `bind` and `unbind` did, or, with `dryRun`, the shell lines that would do it. */
export function printChanges(
  name: 'bind' | 'unbind',
  changes: readonly Changed[],
  { dryRun, json }: { readonly dryRun: boolean; readonly json: boolean },
): void {
  for (const step of dryRun ? [] : changes.flatMap(({ steps }) => steps)) {
    if (step.do === 'load') printNote(`loaded the kernel module ${step.module}`);
  }
  if (json) {
    const functions = changes.map(({ steps, ...change }) => ({
      ...change,
      shell: steps.map(shellLine),
    }));
    return printJson(name, { dry_run: dryRun, functions });
  }
  if (dryRun) {
    const lines = changes.flatMap(({ steps }) => steps.map(shellLine));
    if (lines.length > 0) printText(lines.join('\n'));
    else printNote('nothing to do');
    return;
  }
  for (const { address, from, to, node } of changes) {
    const at = node === '' ? '' : `, ${node}`;
    const [before, after] = [from, to].map((driver) => driver || 'no driver');
    const moved = before === after ? `stays with ${after}` : `${before} → ${after}`;
    printText(`${address}: ${moved}${at}`);
  }
}
