// Processes by what they have open, from /proc/PID/fd. Of other users' processes only root sees
// that.

import type { Root } from './root.js';

const COMMAND_CHARACTERS_MAX = 60;

export interface Process {
  readonly pid: number;
  readonly command: string;
}

export function processIds(root: Root): number[] {
  return root
    .list('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);
}

/** Its command line, shortened; its name where it has none (a kernel thread, a zombie). */
export function commandOf(root: Root, pid: number): string {
  const line = root.read(`/proc/${pid}/cmdline`).replaceAll('\0', ' ').trim();
  if (line.length > COMMAND_CHARACTERS_MAX) return `${line.slice(0, COMMAND_CHARACTERS_MAX)}…`;
  return line || root.read(`/proc/${pid}/comm`) || 'unknown';
}

/**
 * Which processes have which paths below /dev open. A process that ends meanwhile counts as gone.
 */
export function openDevices(root: Root): Map<string, Process[]> {
  const found = new Map<string, Process[]>();
  for (const pid of processIds(root)) {
    const open = new Set<string>();
    for (const fd of root.list(`/proc/${pid}/fd`)) {
      const link = `/proc/${pid}/fd/${fd}`;
      // Sockets, pipes and the like (`socket:[12]`) are no paths: resolving costs more than this.
      if (root.linkName(link).includes(':[')) continue;
      const path = root.resolve(link);
      if (path.startsWith('/dev/')) open.add(path);
    }
    for (const path of open) {
      found.set(path, [...(found.get(path) ?? []), { pid, command: commandOf(root, pid) }]);
    }
  }
  return found;
}

/** `process 123 (fio --rw=read)`. */
export function processWords({ pid, command }: Process): string {
  return `process ${pid} (${command})`;
}
