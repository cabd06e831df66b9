// The command tree. A command's module (options and action) is loaded only when that command was
// asked for, so that `penstock --help` and completion in a shell start fast and need no addon.

import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Command } from 'commander';

/**
 * What each command's file exports as `configure`: declares options and arguments, sets the action.
 */
export interface CommandModule {
  configure(command: Command, finish: Finish): void | Promise<void>;
}

/** Takes the command's exit code. */
export type Finish = (exitCode: number) => void;

interface CommandEntry {
  readonly name: string;
  readonly summary: string;
  readonly load: () => Promise<CommandModule>;
}

export const COMMANDS: readonly CommandEntry[] = [
  {
    name: 'doctor',
    summary: 'Look at this machine and say what is missing and how to fix it',
    load: () => import('./doctor.js'),
  },
  {
    name: 'list',
    summary: 'List block and PCI devices, what holds them and the URI that opens them',
    load: () => import('./list.js'),
  },
  {
    name: 'status',
    summary: 'Show which PCI devices can be bound, what stands against it, and what is bound',
    load: () => import('./status.js'),
  },
  {
    name: 'bind',
    summary: 'Take PCI devices from the kernel and give them to vfio-pci',
    load: () => import('./bind.js'),
  },
  {
    name: 'unbind',
    summary: 'Give PCI devices back to the drivers they came from, and repair what is half-way',
    load: () => import('./unbind.js'),
  },
  {
    name: 'hugepages',
    summary: 'Show or reserve hugepages',
    load: () => import('./hugepages.js'),
  },
  {
    name: 'bench',
    summary: "Run a workload, described in fio's words, on devices",
    load: () => import('./bench.js'),
  },
  {
    name: 'nvme',
    summary: 'Ask NVMe controllers: list, id-ctrl, id-ns, smart-log, error-log, show-regs, reset',
    load: () => import('./nvme.js'),
  },
  {
    name: 'pool',
    summary: 'Make a pool that stores equal blocks once, and show what it holds and saves',
    load: () => import('./pool.js'),
  },
  {
    name: 'volume',
    summary: 'Volumes of a pool: create, list, resize, copy, import an image, export one',
    load: () => import('./volume.js'),
  },
  {
    name: 'driver',
    summary: 'Serve a device to other processes: it is opened there as idc:SOCKET/NAME',
    load: () => import('./driver.js'),
  },
  {
    name: 'idc',
    summary: 'Run a hub that domains join, list its members, watch their channels and loans',
    load: () => import('./idc.js'),
  },
  {
    name: 'completion',
    summary: 'Print a completion script for bash, zsh or fish',
    load: () => import('./completion.js'),
  },
];

/**
 * The program with the options of the commands whose names stand in `wanted` ('all': every one).
 * Nothing is printed or exited by commander itself on a usage error: it throws CommanderError.
 */
export async function buildProgram(
  wanted: readonly string[] | 'all',
  finish: Finish,
): Promise<Command> {
  const program = new Command('penstock')
    .description('A bare-metal userspace I/O stack: devices, queues, benchmarks')
    .version(packageVersion())
    .showSuggestionAfterError(true)
    // So that a command can have it, too (bench): what stands after its subcommand is that one's.
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({ outputError: () => undefined });
  for (const entry of COMMANDS) {
    const command = program
      .command(entry.name)
      .description(entry.summary)
      .enablePositionalOptions(false);
    if (wanted !== 'all' && !wanted.includes(entry.name)) continue;
    command.option('--json', 'print JSON alone on stdout');
    await (await entry.load()).configure(command, finish);
  }
  return program;
}

export function packageVersion(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, 'package.json'))) folder = dirname(folder);
  const text = readFileSync(join(folder, 'package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
