// Runs root-peer.c on a segment: what a process can do that was given nothing but a descriptor.

import { spawnSync } from 'node:child_process';
import { chmodSync, closeSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Segment } from '../../lib/memory/index.js';
import { PLAIN_ENVIRONMENT } from './peer.js';

/** By way (`reopened mmap`): the errno that it failed with, or OK. */
export type Attempts = Record<string, string>;

export class RootPeer {
  private readonly folder = mkdtempSync(join(tmpdir(), 'penstock-root-peer-'));
  private readonly program = join(this.folder, 'root-peer');

  constructor() {
    const source = join(dirname(fileURLToPath(import.meta.url)), 'root-peer.c');
    const flags = ['-O1', '-Wall', '-Wextra', '-Werror'];
    const built = spawnSync('cc', [...flags, '-o', this.program, source], { encoding: 'utf8' });
    if (built.status !== 0) throw new Error(`no root-peer: ${built.stderr ?? built.error}`);
    chmodSync(this.folder, 0o755); // for other users
  }

  /** `before`: a program and arguments that run it with other privileges. */
  run(segment: Segment, before: readonly string[] = []): Attempts {
    const fd = segment.descriptor();
    try {
      const command = [...before, this.program, '3', String(segment.bytes), String(process.pid)];
      const { stdout, stderr, status, signal } = spawnSync(command[0]!, command.slice(1), {
        stdio: ['ignore', 'pipe', 'pipe', fd],
        encoding: 'utf8',
        timeout: 30_000,
        env: PLAIN_ENVIRONMENT,
      });
      if (status !== 0) throw new Error(`root-peer ended with ${status ?? signal}: ${stderr}`);
      return JSON.parse(stdout) as Attempts;
    } finally {
      closeSync(fd);
    }
  }

  close(): void {
    rmSync(this.folder, { recursive: true });
  }
}

/** Ways that worked, but for opening and reading, which all may. */
export function successes(attempts: Attempts): string[] {
  const harmless = /^(read|private copy)$| open$/;
  return Object.keys(attempts).filter((way) => attempts[way] === 'OK' && !harmless.test(way));
}
