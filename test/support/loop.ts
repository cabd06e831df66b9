// A loop block device on a file of the test's own, where the machine lets us make one.

import { execFileSync } from 'node:child_process';
import { rmSync, truncateSync, writeFileSync } from 'node:fs';

export interface Loop {
  /** Such as /dev/loop7. */
  path: string;
  detach(): void;
}

/** Why no loop device can be made here, or '' when one can. */
export function loopObstacle(): string {
  if (process.getuid?.() !== 0) return 'not root';
  try {
    execFileSync('losetup', ['--find'], { stdio: 'pipe' });
    return '';
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}

/** Makes `file` (sparse) and a loop device of `bytes` bytes on it; detach removes both. */
export function attachLoop(file: string, bytes: number): Loop {
  writeFileSync(file, '');
  truncateSync(file, bytes);
  const path = execFileSync('losetup', ['--find', '--show', file], { encoding: 'utf8' }).trim();
  return {
    path,
    detach() {
      execFileSync('losetup', ['--detach', path]);
      rmSync(file);
    },
  };
}
