// A segment of this process, and other processes that have it admitted: domains, as tests see them.

import { closeSync } from 'node:fs';
import { addressSpace, type Segment } from '../../lib/memory/index.js';
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
