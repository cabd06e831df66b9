// The ring against this kernel: every set of setup flags it may fall back to, and what the kernel
// promises of order, links, timeouts, cancelling and overflow.

import { closeSync, mkdtempSync, openSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { ADDRESS_BASE_HIGH, addressSpace, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { Cqe, Errno, Opcode, Setup, Sqe, SqeFlag } from '../../lib/uring/layout.js';
import { probeUring, Ring, type RingOptions } from '../../lib/uring/index.js';

const closers: (() => void)[] = [];

afterEach(() => {
  while (closers.length > 0) closers.pop()!();
});

function openRing(options: Partial<RingOptions> = {}): Ring {
  const ring = Ring.open({ entries: 8, ...options });
  closers.push(() => ring.close());
  return ring;
}

function memory(): Segment {
  const segment = addressSpace().create(1, { pageBytes: 4096 });
  closers.push(() => segment.close());
  return segment;
}

function temporaryFile(bytes: Uint8Array): number {
  const folder = mkdtempSync(join(tmpdir(), 'penstock-ring-'));
  writeFileSync(join(folder, 'f'), bytes);
  const fd = openSync(join(folder, 'f'), 'r+');
  closers.push(() => {
    closeSync(fd);
    rmSync(folder, { recursive: true });
  });
  return fd;
}

function eventfd(): number {
  const fd = native.eventfdCreate();
  closers.push(() => native.fileClose(fd));
  return fd;
}

interface Entry {
  opcode: number;
  flags?: number;
  fd?: number;
  offset?: number;
  address?: number;
  length?: number;
  opFlags?: number;
  data: number;
}

/** Puts an entry on the ring; false when it is full. */
function enter(ring: Ring, entry: Entry): boolean {
  const at = ring.next();
  if (at < 0) return false;
  ring.sqes.fill(0, at, at + ring.sqeWords);
  const address = entry.address ?? 0;
  ring.sqes[at + Sqe.opcode] = entry.opcode | (entry.flags ?? 0);
  ring.sqes[at + Sqe.fd] = entry.fd ?? 0;
  ring.sqes[at + Sqe.offLo] = (entry.offset ?? 0) >>> 0;
  ring.sqes[at + Sqe.addrLo] = address >>> 0;
  if (address !== 0) {
    ring.sqes[at + Sqe.addrHi] = Math.floor(address / 2 ** 32) + ADDRESS_BASE_HIGH;
  }
  ring.sqes[at + Sqe.len] = entry.length ?? 0;
  ring.sqes[at + Sqe.opFlags] = entry.opFlags ?? 0;
  ring.sqes[at + Sqe.userDataLo] = entry.data;
  return true;
}

/** The next `count` completions as [data, result] in the order they come. */
function reap(ring: Ring, count: number): [number, number][] {
  const all: [number, number][] = [];
  for (let turns = 0; all.length < count; turns++) {
    if (turns > 1000) throw new Error(`only ${JSON.stringify(all)} came`);
    const ready = ring.ready();
    for (let i = 0; i < ready; i++) {
      const at = ring.cqeAt(i);
      all.push([ring.rings[at + Cqe.userDataLo]!, ring.rings[at + Cqe.res]! | 0]);
    }
    ring.advance(ready);
    if (all.length < count) ring.submitAndWait(1, 10_000);
  }
  return all;
}

/** A timespec at the segment's start, for entries that take one. */
function timespec(segment: Segment, milliseconds: number): number {
  segment.u32.set([0, 0, milliseconds * 1e6, 0]);
  return segment.address;
}

const FALLBACKS: [string, Partial<RingOptions>][] = [
  ['the best', {}],
  ['without NO_SQARRAY', { avoid: Setup.NO_SQARRAY }],
  ['without DEFER_TASKRUN', { avoid: Setup.DEFER_TASKRUN }],
  ['without SINGLE_ISSUER', { avoid: Setup.SINGLE_ISSUER }],
  ['as before 6.0', { avoid: Setup.SINGLE_ISSUER | Setup.DEFER_TASKRUN | Setup.NO_SQARRAY }],
  ['as on 5.10', { avoid: ~(Setup.CLAMP | Setup.SQPOLL | Setup.SQE128 | Setup.CQE32) }],
  ['with SQPOLL', { sqpoll: true, sqThreadIdleMs: 5 }],
  ['with SQPOLL as on 5.10', { sqpoll: true, avoid: ~(Setup.CLAMP | Setup.SQPOLL) }],
  ['with 128-byte entries', { big: true }],
];

describe.each(FALLBACKS)('a ring, %s', (_name, options) => {
  it('uses nothing it was told to avoid', () => {
    const ring = openRing(options);
    expect(ring.setupFlags & (options.avoid ?? 0)).toBe(0);
    expect(ring.sqeWords).toBe(options.big === true ? 32 : 16);
    expect(ring.cqeWords).toBe(options.big === true ? 8 : 4);
    expect(ring.describe()).not.toBe('');
  });

  it('completes each no-op once, over many turns of its indices', () => {
    const ring = openRing(options);
    const seen: number[] = [];
    for (let data = 0; data < 500;) {
      let batch = 0;
      while (data < 500 && batch < 1 + (data % 8) && enter(ring, { opcode: Opcode.NOP, data })) {
        data++;
        batch++;
      }
      ring.submit();
      for (const [one, result] of reap(ring, batch)) {
        expect(result).toBe(0);
        seen.push(one);
      }
    }
    expect(seen.sort((a, b) => a - b)).toEqual(Array.from({ length: 500 }, (_, i) => i));
    expect(ring.ready()).toBe(0);
    expect(ring.pending()).toBe(0);
  });

  it('reads a file', () => {
    const ring = openRing(options);
    const segment = memory();
    const fd = temporaryFile(Uint8Array.from({ length: 8192 }, (_, i) => i % 251));
    const read = { opcode: Opcode.READ, fd, offset: 4096, length: 4096, data: 7 };
    enter(ring, { ...read, address: segment.address + 512 });
    ring.submit();
    expect(reap(ring, 1)).toEqual([[7, 4096]]);
    expect(segment.u8[511]).toBe(0);
    expect(segment.u8[512]).toBe(4096 % 251);
    expect(segment.u8[512 + 4095]).toBe(8191 % 251);
    expect(segment.u8[512 + 4096]).toBe(0);
    expect(ring.registerFiles([fd])).toBe(true);
    enter(ring, { ...read, flags: SqeFlag.FIXED_FILE, fd: 0, offset: 0, address: segment.address });
    ring.submit();
    expect(reap(ring, 1)).toEqual([[7, 4096]]);
    expect(segment.u8[1]).toBe(1);
  });

  it('wakes who waits on its eventfd when armed, and not when disarmed', () => {
    const ring = openRing(options);
    const fd = ring.eventFd();
    const source = eventfd();
    const signalled = (timeoutUs: number) => native.park(Int32Array.of(fd), timeoutUs);
    ring.arm();
    enter(ring, { opcode: Opcode.POLL_ADD, fd: source, opFlags: 1, data: 1 });
    ring.submit();
    expect(signalled(1000)).toBe(-1);
    native.eventfdSignal(source);
    expect(signalled(5_000_000)).toBe(0);
    expect(reap(ring, 1)).toEqual([[1, 1]]);
    ring.arm(); // an old signal goes
    expect(signalled(1000)).toBe(-1);
    ring.disarm();
    native.eventfdDrain(source);
    enter(ring, { opcode: Opcode.NOP, data: 2 });
    ring.submit();
    expect(reap(ring, 1)).toEqual([[2, 0]]);
    expect(signalled(1000)).toBe(-1);
  });
});

describe('a ring', () => {
  it('says when it is full, and goes on when the kernel has taken its entries', () => {
    const ring = openRing();
    for (let data = 0; data < ring.entries; data++) {
      expect(enter(ring, { opcode: Opcode.NOP, data })).toBe(true);
    }
    expect(ring.full()).toBe(true);
    expect(enter(ring, { opcode: Opcode.NOP, data: 99 })).toBe(false);
    expect(ring.submit()).toBe(ring.entries);
    expect(enter(ring, { opcode: Opcode.NOP, data: 100 })).toBe(true);
    ring.submit();
    const data = reap(ring, ring.entries + 1).map(([one]) => one);
    expect(data.sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 100]);
  });

  it('loses no completion when there are more than its queue holds', () => {
    const ring = openRing({ entries: 8, cqEntries: 8 });
    let submitted = 0;
    for (let turn = 0; turn < 8; turn++) {
      while (enter(ring, { opcode: Opcode.NOP, data: submitted })) submitted++;
      const left = ring.pending();
      if (ring.submit() < left) break; // a kernel that pushes back until some are taken
    }
    expect(submitted).toBeGreaterThan(ring.cqEntries);
    const seen = reap(ring, submitted - ring.pending()).map(([data]) => data);
    expect(new Set(seen).size).toBe(seen.length);
    expect(seen.length).toBeGreaterThan(ring.cqEntries);
    expect(ring.overflowed).toBe(0);
  });

  it('does linked operations in order, and cancels what follows a failure', () => {
    const ring = openRing();
    const segment = memory();
    const fd = temporaryFile(new Uint8Array(4096));
    segment.u8.fill(0x77, 0, 4096);
    const there = { fd, length: 4096 };
    const linked = SqeFlag.IO_LINK;
    enter(ring, {
      ...there,
      opcode: Opcode.WRITE,
      flags: linked | SqeFlag.ASYNC,
      address: segment.address,
      data: 1,
    });
    enter(ring, { opcode: Opcode.FSYNC, flags: linked, fd, data: 2 });
    enter(ring, { ...there, opcode: Opcode.READ, address: segment.address + 4096, data: 3 });
    ring.submit();
    expect(reap(ring, 3)).toEqual([
      [1, 4096],
      [2, 0],
      [3, 4096],
    ]);
    expect(segment.u8[8191]).toBe(0x77);
    const readPastBadFile = { opcode: Opcode.READ, fd: 100_000, flags: linked };
    enter(ring, { ...readPastBadFile, length: 512, address: segment.address, data: 4 });
    enter(ring, { opcode: Opcode.NOP, flags: linked, data: 5 });
    enter(ring, { opcode: Opcode.NOP, data: 6 });
    enter(ring, { opcode: Opcode.NOP, data: 7 });
    ring.submit();
    const results = new Map(reap(ring, 4));
    expect(results.get(4)).toBe(-9);
    expect([results.get(5), results.get(6)]).toEqual([-Errno.ECANCELED, -Errno.ECANCELED]);
    expect(results.get(7)).toBe(0);
  });

  it('ends a timeout, and an operation whose linked timeout comes first', () => {
    const ring = openRing();
    const segment = memory();
    const address = timespec(segment, 5);
    enter(ring, { opcode: Opcode.TIMEOUT, address, length: 1, data: 1 });
    ring.submit();
    expect(reap(ring, 1)).toEqual([[1, -Errno.ETIME]]);
    const fd = eventfd();
    enter(ring, { opcode: Opcode.POLL_ADD, flags: SqeFlag.IO_LINK, fd, opFlags: 1, data: 2 });
    enter(ring, { opcode: Opcode.LINK_TIMEOUT, address, length: 1, data: 3 });
    ring.submit();
    const results = new Map(reap(ring, 2));
    expect(results.get(2)).toBe(-Errno.ECANCELED);
    expect(results.get(3)).toBe(-Errno.ETIME);
  });

  it('cancels a pending operation by its data, and says when there is none', () => {
    const ring = openRing();
    const fd = eventfd();
    const segment = memory();
    enter(ring, { opcode: Opcode.POLL_ADD, fd, opFlags: 1, data: 42 });
    enter(ring, {
      opcode: Opcode.READ,
      fd: eventfd(),
      address: segment.address,
      length: 8,
      data: 43,
    });
    ring.submit();
    expect(ring.submitAndWait(1, 1000)).toBe(-Errno.ETIME);
    for (const target of [42, 43, 44]) {
      const at = ring.next();
      ring.sqes.fill(0, at, at + ring.sqeWords);
      ring.sqes[at] = Opcode.ASYNC_CANCEL;
      ring.sqes[at + Sqe.fd] = 0xffffffff;
      ring.sqes[at + Sqe.addrLo] = target;
      ring.sqes[at + Sqe.userDataLo] = 100 + target;
    }
    ring.submit();
    const results = new Map(reap(ring, 5));
    expect(results.get(42)).toBe(-Errno.ECANCELED);
    expect([-Errno.ECANCELED, -Errno.EINTR]).toContain(results.get(43));
    expect([results.get(142), results.get(144)]).toEqual([0, -2]);
  });

  it('waits no longer than it is told', () => {
    const ring = openRing();
    expect(ring.submitAndWait(1, 2000)).toBe(-Errno.ETIME);
    enter(ring, { opcode: Opcode.NOP, data: 1 });
    expect(ring.submitAndWait(1, -1)).toBe(1);
    expect(reap(ring, 1)).toEqual([[1, 0]]);
  });

  it('polls the device for completions, or is told that there is none to poll', () => {
    const ring = openRing({ iopoll: true });
    const segment = memory();
    const fd = temporaryFile(new Uint8Array(4096).fill(3));
    enter(ring, { opcode: Opcode.READ, fd, length: 4096, address: segment.address, data: 1 });
    ring.submit();
    const [[data, result] = [0, 0]] = reap(ring, 1);
    expect(data).toBe(1);
    // A buffered read cannot be polled: EOPNOTSUPP, or EINVAL on older kernels.
    expect([-95, -Errno.EINVAL]).toContain(result);
  });

  it('may be closed twice, with views alive and an operation pending', () => {
    const ring = openRing();
    const fd = eventfd();
    enter(ring, { opcode: Opcode.POLL_ADD, fd, opFlags: 1, data: 1 });
    ring.submit();
    const { sqes, rings } = ring;
    ring.close();
    ring.close();
    native.eventfdSignal(fd);
    sqes.fill(0xffffffff);
    rings.fill(1);
    expect(sqes[0]).toBe(0xffffffff);
    const other = openRing();
    enter(other, { opcode: Opcode.NOP, data: 9 });
    other.submit();
    expect(reap(other, 1)).toEqual([[9, 0]]);
  });

  it('is refused with its cause when what is asked for is impossible', () => {
    expect(() => Ring.open({ entries: 0 })).toThrow(RangeError);
    expect(() => Ring.open({ entries: 1e6 })).toThrow(RangeError);
  });
});

describe('probeUring', () => {
  it('lists what this kernel has, and leaves nothing open', () => {
    const before = readdirSync('/proc/self/fd').length;
    const probe = probeUring();
    expect(probe).toMatchObject({ available: true, reason: '', hint: '' });
    expect(probe.opcodes).toEqual(expect.arrayContaining([Opcode.NOP, Opcode.READ, Opcode.WRITE]));
    expect(readdirSync('/proc/self/fd').length).toBe(before);
  });
});
