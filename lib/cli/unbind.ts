// `penstock unbind`: gives PCI functions back to the drivers they came from, and repairs what a
// crash left half-way.

import type { Command } from 'commander';
import { PenstockError } from '../errors.js';
import {
  type Machine,
  hostMachine,
  longAddress,
  recordedAddresses,
  resolveFunction,
  unbindFunctions,
} from '../pci/index.js';
import { printChanges } from './bind.js';
import { Exit, printNote } from './output.js';
import type { Finish } from './program.js';

interface Options {
  readonly all?: boolean;
  readonly dryRun?: boolean;
  readonly json?: boolean;
}

export function configure(command: Command, finish: Finish): void {
  command
    .argument('[function...]', 'addresses (0000:01:00.0, 01:00.0)')
    .option('--all', 'every function that penstock has bound, or was about to')
    .option('--dry-run', 'check everything, print what would be written, change nothing')
    .action(async (functions: string[], options: Options) => {
      await unbind(hostMachine(), functions, options);
      finish(Exit.OK);
    });
}

async function unbind(machine: Machine, names: readonly string[], options: Options) {
  const { all = false, dryRun = false, json = false } = options;
  if (all === names.length > 0) {
    throw new PenstockError('USAGE', 'either functions or --all, one of both', {
      hint: 'penstock status shows what is bound.',
      exitCode: Exit.USAGE,
    });
  }
  const recorded = recordedAddresses(machine.root);
  const addresses = all
    ? recorded
    : names.map((name) => {
        // A device that went has a record still, and nothing else.
        const address = longAddress(name);
        return recorded.includes(address) ? address : resolveFunction(machine.root, name);
      });
  if (addresses.length === 0) printNote('nothing is bound by penstock');
  printChanges('unbind', await unbindFunctions(machine, addresses, { dryRun }), { dryRun, json });
}
