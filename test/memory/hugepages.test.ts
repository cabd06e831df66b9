// Shared memory on hugepages: sealed and admitted as ordinary pages are.

import { closeSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, describe, expect, it, type TestContext } from 'vitest';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import { allowHugepages } from '../support/hugepages.js';
import {
  claimOf,
  firstChanged,
  foreignMemory,
  runPeer,
  sharedSegment,
  type Claim,
} from './peer.js';
import { RootPeer, successes } from './root-peer.js';

const GIBIBYTE = 2 ** 30;

const cleanups: (() => void)[] = [];
let rootPeer: RootPeer;

beforeAll(() => {
  rootPeer = new RootPeer();
});

afterAll(() => rootPeer.close());

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

/** A shared segment on hugepages, for one test, which may use `spare` pages more. */
function make(context: TestContext, bytes = GRANULE_BYTES, spare = 0): Segment {
  cleanups.push(allowHugepages(context, bytes / GRANULE_BYTES + spare));
  const segment = sharedSegment({ bytes, pageBytes: GRANULE_BYTES });
  cleanups.push(() => segment.close());
  return segment;
}

describe('a shared segment on hugepages', () => {
  it('is written by no way through any descriptor of it, by root', (context) => {
    const segment = make(context, GRANULE_BYTES, 1); // one for the private copy
    const attempts = rootPeer.run(segment);
    expect(successes(attempts)).toEqual([]);
    expect(attempts).toMatchObject({
      read: 'OK',
      'private copy': 'OK',
      'given mmap': 'EACCES',
      'given mprotect': 'EACCES',
      'reopened open': 'OK',
      'reopened mmap': 'EPERM',
      'reopened PUNCH_HOLE': 'EPERM',
      'reopened grow': 'EPERM',
      'reopened shrink': 'EPERM',
      'reopened F_SEAL_GROW': 'EPERM',
      'stolen mmap': 'EPERM',
      "owner's file mmap": 'EPERM',
    });
    expect(firstChanged(segment.u32)).toBe(-1);
  });

  it('is admitted by a peer, and read; a store to it is reported', async (context) => {
    const segment = make(context, 2 * GRANULE_BYTES);
    const at = segment.u32.length - 1;
    const ended = await runPeer(segment, `console.log(peer.u32[${at}]); peer.u32[${at}] = 1;`);
    expect(ended).toMatchObject({ signal: 'SIGSEGV', stdout: `${segment.u32[at]}\n` });
    const address = (segment.address + 4 * at).toString(16);
    expect(ended.stderr).toMatch(`penstock: store to Address 0x${address}, read-only memory of `);
    expect(firstChanged(segment.u32)).toBe(-1);
  });

  it('is refused as ordinary pages, and without its pages', async (context) => {
    const segment = make(context);
    const fd = segment.descriptor();
    cleanups.push(() => closeSync(fd));
    // Whose pages were to be a SIGBUS of its readers.
    const empty = await foreignMemory(cleanups, { filled: 0, hugepages: true });
    const claim = { ...claimOf(segment), address: 5 * 2 ** 36 };
    expect(refusal(fd, { ...claim, pageBytes: 4096 })).toBe('segmentAdmit(page size)');
    expect(refusal(empty, claim)).toBe('segmentAdmit(holes)');
    expect(refusal(fd, claim)).toBe('admitted');
  });
});

describe('a segment of hugepages', () => {
  // What processes share the page tables of: see docs/page-tables.md.
  it('begins at a whole GiB when it is as large; others fill the gap before it', (context) => {
    const space = addressSpace();
    const create = (bytes: number, pageBytes: number): Segment => {
      const segment = space.create(bytes, { kind: 'shared', pageBytes });
      cleanups.push(() => segment.close());
      return segment;
    };
    cleanups.push(allowHugepages(context, GIBIBYTE / GRANULE_BYTES));
    const first = create(1, 4096);
    const large = create(GIBIBYTE, GRANULE_BYTES);
    expect(large.address % GIBIBYTE).toBe(0);
    expect(large.address).toBeGreaterThan(first.address);
    const next = create(1, 4096);
    expect(next.address).toBeLessThan(large.address);
  });
});

/** The check that refused. */
function refusal(fd: number, claim: Claim): string {
  try {
    const segment = addressSpace().admit(fd, claim);
    cleanups.push(() => segment.close());
    return 'admitted';
  } catch (error) {
    return (error as { cause: { syscall: string } }).cause.syscall;
  }
}
