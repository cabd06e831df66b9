// A segment of this process, and other processes that have it admitted: domains, as tests see them.
// And memory that other programs made, to be admitted here.

import { spawn, type ChildProcessByStdio } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import type { Readable, Writable } from 'node:stream';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import { runChild, type ChildOptions, type Ended } from '../fault/child.js';

/** What a peer is told of a segment. */
export interface Claim {
  address: number;
  bytes: number;
  pageBytes: number;
}

export function claimOf({ address, bytes, pageBytes }: Segment): Claim {
  return { address, bytes, pageBytes };
}

/** A shared segment whose words are all different. */
export function sharedSegment(options: { bytes?: number; pageBytes?: number } = {}): Segment {
  const { bytes = 1, pageBytes = 4096 } = options;
  const segment = addressSpace().create(bytes, { kind: 'shared', pageBytes });
  for (let i = 0; i < segment.u32.length; i++) segment.u32[i] = Math.imul(i + 1, 2654435761);
  return segment;
}

/** The first word that is not as sharedSegment made it; -1: none. */
export function firstChanged(words: Uint32Array): number {
  return words.findIndex((word, i) => word !== Math.imul(i + 1, 2654435761) >>> 0);
}

/**
 * Runs `body` in another process, domain 2, that has the segment admitted: as `peer`, its claim as
 * `claim`, its descriptor 3. No core is dumped.
 */
export async function runPeer(
  segment: Segment,
  body: string,
  options: ChildOptions = {},
): Promise<Ended> {
  const fd = segment.descriptor();
  try {
    const begin = `
      const claim = ${JSON.stringify(claimOf(segment))};
      lib.addressSpace().join(2);
      const peer = lib.addressSpace().admit(3, claim);
    `;
    const before = ['prlimit', '--core=0', ...(options.before ?? [])];
    return await runChild(begin + body, { ...options, before, fds: [fd, ...(options.fds ?? [])] });
  } finally {
    closeSync(fd);
  }
}

/** F_SEAL_SEAL, SHRINK, GROW and FUTURE_WRITE. */
export const ALL_SEALS = 1 + 2 + 4 + 16;

/** The environment without a sanitizer's library (.ci/asan.mjs), which makes every start slow. */
export const PLAIN_ENVIRONMENT = { ...process.env, LD_PRELOAD: undefined };

/** A program with nothing of ours in it; it talks over its stdin and stdout. */
export function startPython(script: string): ChildProcessByStdio<Writable, Readable, null> {
  return spawn('python3', ['-c', script], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: PLAIN_ENVIRONMENT,
  });
}

export interface ForeignOptions {
  bytes?: number;
  seals?: number;
  /** Bytes that are written, as `P`, and so have pages. */
  filled?: number;
  mode?: 'r' | 'r+' | number;
  hugepages?: boolean;
}

/** A memfd of a program that holds it until the cleanups: its read-only descriptor here. */
export async function foreignMemory(
  cleanups: (() => void)[],
  options: ForeignOptions,
): Promise<number> {
  const { bytes = GRANULE_BYTES, seals = ALL_SEALS, filled = bytes, mode = 'r' } = options;
  const script = `
import fcntl, os, sys
fd = os.memfd_create('peer', ${options.hugepages === true ? 2 + 4 : 2})
os.ftruncate(fd, ${bytes})
for at in range(0, ${filled}, 65536): os.pwrite(fd, b'P' * min(65536, ${filled} - at), at)
if ${seals}: fcntl.fcntl(fd, 1033, ${seals})
print(fd, flush=True)
sys.stdin.read()
`;
  const child = startPython(script);
  cleanups.push(() => child.stdin.end());
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const fd = openSync(`/proc/${child.pid}/fd/${line.toString().trim()}`, mode);
  cleanups.push(() => closeSync(fd));
  return fd;
}
