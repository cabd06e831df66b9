// The files of /proc, /sys and /dev as a small reader over an injectable root, so that what looks
// at the machine can be tested on made-up trees.
//
// Invariant: reading never throws. These trees change under the reader (devices go, processes end)
// and differ between kernels, so that what cannot be read counts as not there.

import { readFileSync, readdirSync, readlinkSync, realpathSync, existsSync } from 'node:fs';
import { basename, join } from 'node:path';

export interface Root {
  /** Trimmed contents; '' when the file cannot be read. */
  read(path: string): string;
  /** Sorted names in a folder; none when it cannot be read. */
  list(path: string): string[];
  exists(path: string): boolean;
  /**
   * Last part of a symbolic link's target: how sysfs names drivers and groups; '' when there is
   * none.
   */
  linkName(path: string): string;
  /** The path with links resolved, below the root; '' when it does not exist. */
  resolve(path: string): string;
}

/** The tree below `prefix`; the machine's own with ''. */
export function fileRoot(prefix = ''): Root {
  const base = prefix === '' ? '' : realpathSync(prefix);
  const at = (path: string): string => (base === '' ? path : join(base, path));
  return {
    read: (path) => attempt(() => readFileSync(at(path), 'utf8').trim(), ''),
    list: (path) => attempt(() => readdirSync(at(path)).sort(naturally), []),
    exists: (path) => existsSync(at(path)),
    linkName: (path) => attempt(() => basename(readlinkSync(at(path))), ''),
    resolve: (path) => attempt(() => realpathSync(at(path)).slice(base.length), ''),
  };
}

function attempt<T>(read: () => T, fallback: T): T {
  try {
    return read();
  } catch {
    return fallback;
  }
}

/** sda2 before sda10. */
function naturally(a: string, b: string): number {
  return a.localeCompare(b, 'en', { numeric: true });
}
