// What there is of a guest on the host, for tests that nothing of it stays.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { poll } from './tether.js';

const LIMIT_MS = 10_000;

/** Processes with a guest's folder on their command line: QEMU, what limits it, the reaper. */
export function processesOf(folder: string): number[] {
  const pids = readdirSync('/proc').filter((name) => /^\d+$/.test(name));
  return pids.map(Number).filter((pid) => commandLine(pid).includes(folder));
}

/** Waits until neither the folder nor a process of it is there. */
export async function nothingOf(folder: string): Promise<void> {
  const isGone = () => !existsSync(folder) && processesOf(folder).length === 0;
  const late = () =>
    new Error(
      `left: ${[folder].filter(existsSync).join()} ${processesOf(folder).map(commandLine).join()}`,
    );
  await poll(() => (isGone() ? true : undefined), LIMIT_MS, late);
}

/** Empty for a process that has ended and only waits for its parent. */
function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ');
  } catch {
    return ''; // it went meanwhile
  }
}
