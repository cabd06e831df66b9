// Memory of one process that others have mapped: nothing that they do with what they were given
// reaches it, and what becomes of one of them is nobody else's concern.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { addressSpace } from '../../lib/memory/index.js';
import { built, runChild } from '../fault/child.js';
import { skipLoudly } from '../support/environment.js';
import { claimOf, firstChanged, runPeer, sharedSegment, type Claim } from './peer.js';
import { RootPeer, successes } from './root-peer.js';

const cleanups: (() => void)[] = [];
let rootPeer: RootPeer;

beforeAll(() => {
  rootPeer = new RootPeer();
});

afterAll(() => rootPeer.close());

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

function make(kind: 'shared' | 'device') {
  const segment =
    kind === 'shared' ? sharedSegment() : addressSpace().create(1, { kind, pageBytes: 4096 });
  cleanups.push(() => segment.close());
  return segment;
}

/** A Node process that runs `body` (a module) and answers each line of its input with one. */
async function startMember(body: string, fds: readonly number[] = []) {
  const code = `
    const { addressSpace } = await import(${JSON.stringify(built('memory/index'))});
    const space = addressSpace();
    const { createInterface } = await import('node:readline');
    ${body}
    for await (const line of createInterface({ input: process.stdin })) {
      console.log(JSON.stringify(answer(JSON.parse(line))));
    }
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', code], {
    stdio: ['pipe', 'pipe', 'inherit', ...fds],
    env: { ...process.env, PENSTOCK_QUIET: '1' },
  });
  cleanups.push(() => child.kill('SIGKILL'));
  return {
    child,
    ask: async <T>(question: unknown): Promise<T> => {
      child.stdin!.write(`${JSON.stringify(question)}\n`);
      const [line] = (await once(child.stdout!, 'data')) as [Buffer];
      return JSON.parse(line.toString()) as T;
    },
  };
}

/** Answers an index with the word there, as an admitted segment shows it. */
function reader(claim: Claim, domain: number): string {
  return `
    space.join(${domain});
    const { u32 } = space.admit(3, ${JSON.stringify(claim)});
    const answer = (index) => u32[index];
  `;
}

describe('a process that stores through a peer mapping', () => {
  it('dies alone: owner and other peers go on with the memory as it was', async () => {
    const segment = make('shared');
    const fd = segment.descriptor();
    const member = await startMember(reader(claimOf(segment), 3), [fd]);
    closeSync(fd);
    const first = segment.u32[9]!;
    expect(await member.ask(9)).toBe(first);
    const ended = await runPeer(segment, 'peer.u32[9] = 1;');
    expect(ended.signal).toBe('SIGSEGV');
    expect(ended.stderr).toMatch(/^penstock: store to Address 0x1[0-9a-f]{9}, .* of domain 1: /);
    expect(firstChanged(segment.u32)).toBe(-1);
    segment.u32[9] = 77;
    expect(await member.ask(9)).toBe(77);
    expect(await member.ask(10)).toBe(segment.u32[10]);
  });
});

describe('an owner that is killed', () => {
  it('leaves its memory readable to those who have it', async () => {
    const owner = await startMember(`
      space.join(4);
      const segment = space.create(1, { kind: 'shared', pageBytes: 4096 });
      segment.u32.fill(4711);
      const { address, bytes, pageBytes } = segment;
      const claim = { address, bytes, pageBytes, fd: segment.descriptor() };
      const answer = () => claim;
    `);
    const claim = await owner.ask<Claim & { fd: number }>(0);
    const fd = openSync(`/proc/${owner.child.pid}/fd/${claim.fd}`, 'r');
    const segment = addressSpace().admit(fd, claim);
    cleanups.push(() => segment.close());
    closeSync(fd);
    owner.child.kill('SIGKILL');
    await once(owner.child, 'exit');
    expect(segment.u32.findIndex((word) => word !== 4711)).toBe(-1);
  });
});

describe('a shared segment', () => {
  it('is written by no way through any descriptor of it, by root', (context) => {
    if (process.getuid!() !== 0) skipLoudly(context, 'a root peer needs root');
    const segment = make('shared');
    const attempts = rootPeer.run(segment);
    expect(successes(attempts)).toEqual([]);
    // What it had: a mapping to read, and every descriptor it tried to come by.
    expect(attempts).toMatchObject({
      read: 'OK',
      'private copy': 'OK',
      'reopened open': 'OK',
      'stolen open': 'OK',
      "owner's file open": 'OK',
    });
    // And what stopped it: the mode of the descriptor, and for the others the seals.
    expect(attempts).toMatchObject({
      'given mmap': 'EACCES',
      'given mprotect': 'EACCES',
      'given pwrite': 'EBADF',
      'given F_SEAL_GROW': 'EPERM',
      'reopened mmap': 'EPERM',
      'reopened mprotect': 'EACCES',
      'reopened pwrite': 'EPERM',
      'reopened PUNCH_HOLE': 'EPERM',
      'reopened grow': 'EPERM',
      'reopened shrink': 'EPERM',
      'reopened F_SEAL_GROW': 'EPERM',
      'stolen mmap': 'EPERM',
      "owner's file pwrite": 'EPERM',
      'mapping /proc/self/mem': 'EIO',
    });
    expect(firstChanged(segment.u32)).toBe(-1);
    segment.u32[0] = 5; // the owner goes on writing
    expect(segment.u32[0]).toBe(5);
  });

  it('is written by no way, by a user without privileges', (context) => {
    if (process.getuid!() !== 0) skipLoudly(context, 'becoming another user needs root');
    const segment = make('shared');
    const before = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
    const attempts = rootPeer.run(segment, before);
    expect(successes(attempts)).toEqual([]);
    expect(attempts).toMatchObject({
      read: 'OK',
      'reopened open': 'OK',
      'stolen open': 'EACCES',
    });
    expect(firstChanged(segment.u32)).toBe(-1);
  });

  it('loses no page to its owner either', async () => {
    // A hole would be a page that peers find changed to zeros: punching is sealed for all.
    const body = `
      const segment = lib.addressSpace().create(1, { kind: 'shared', pageBytes: 4096 });
      segment.u32.fill(1);
      const fs = await import('node:fs');
      const { spawnSync } = await import('node:child_process');
      const own = fs.readdirSync('/proc/self/fd').filter((fd) => {
        try { return fs.readlinkSync('/proc/self/fd/' + fd).startsWith('/memfd:penstock'); }
        catch { return false; }
      });
      const results = own.map((fd) => spawnSync('fallocate',
        ['--punch-hole', '--length', '4096', '/proc/' + process.pid + '/fd/' + fd]).status);
      console.log(JSON.stringify([results, segment.u32[0]]));
    `;
    const ended = await runChild(body);
    expect(ended.stderr).toBe('');
    expect(JSON.parse(ended.stdout)).toEqual([[1, 1], 1]);
  });
});

describe('the ways that are tried', () => {
  it('all write where nothing is sealed', (context) => {
    if (process.getuid!() !== 0) skipLoudly(context, 'a root peer needs root');
    const attempts = rootPeer.run(make('device'));
    // Stores by the kernel into a mapping for reading always fail; memfds have no such ranges.
    const never = /^mapping |_RANGE$/;
    const failed = Object.keys(attempts).filter((way) => attempts[way] !== 'OK');
    expect(failed.filter((way) => !never.test(way))).toEqual([]);
  });
});
