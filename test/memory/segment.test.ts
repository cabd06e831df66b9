import { execFileSync } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import {
  accessMap,
  AddressSpace,
  addressSpace,
  freeHugepageBytes,
  GRANULE_BYTES,
  SEGMENT_BYTES_MAX,
  type Segment,
} from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { childResult } from '../fault/child.js';

const opened: Segment[] = [];

afterEach(() => {
  while (opened.length > 0) opened.pop()!.close();
});

function make(...args: Parameters<AddressSpace['create']>): Segment {
  const segment = addressSpace().create(...args);
  opened.push(segment);
  return segment;
}

/** What a process that was handed the descriptor can do with it, tried by another program. */
function tryDescriptor(fd: number, bytes: number): Record<string, string> {
  const script = `
import ctypes, errno, fcntl, json, mmap, os
fd, size = 3, ${bytes}
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def name(failed): return errno.errorcode[ctypes.get_errno()] if failed else 'ok'
def attempt(call):
    try:
        call()
        return 'ok'
    except OSError as error:
        return errno.errorcode[error.errno]
MAP_FAILED = ctypes.c_void_p(-1).value
result = {}
result['map writable'] = name(libc.mmap(None, size, 3, 1, fd, 0) == MAP_FAILED)
read = libc.mmap(None, size, 1, 1, fd, 0)
result['map readable'] = name(read == MAP_FAILED)
result['first byte'] = str(ctypes.string_at(read, 1)[0])
result['mprotect'] = name(libc.mprotect(read, size, 3) != 0)
result['write'] = attempt(lambda: os.write(fd, b'x'))
result['grow'] = attempt(lambda: os.ftruncate(fd, size + 4096))
def reopen():
    again = os.open('/proc/self/fd/3', os.O_RDWR)
    try:
        os.pwrite(again, b'x', 0)
    finally:
        os.close(again)
result['reopen and write'] = attempt(reopen)
def remap():
    again = os.open('/proc/self/fd/3', os.O_RDWR)
    mmap.mmap(again, size, mmap.MAP_SHARED, 3)
result['reopen and map'] = attempt(remap)
def resize(bytes):
    again = os.open('/proc/self/fd/3', os.O_RDWR)
    try:
        os.ftruncate(again, bytes)
    finally:
        os.close(again)
result['reopen and grow'] = attempt(lambda: resize(size + 4096))
result['reopen and shrink'] = attempt(lambda: resize(4096))
result['unseal'] = attempt(lambda: fcntl.fcntl(fd, 1033, 0))
print(json.dumps(result))
`;
  const output = execFileSync('python3', ['-c', script], {
    stdio: ['ignore', 'pipe', 'inherit', fd],
    encoding: 'utf8',
  });
  return JSON.parse(output) as Record<string, string>;
}

describe('a segment', () => {
  it.each(['private', 'shared', 'device'] as const)('of kind %s is writable memory', (kind) => {
    const segment = make(3 * 2 ** 20, { kind, pageBytes: 4096 });
    expect(segment).toMatchObject({ kind, writable: true, bytes: 2 * GRANULE_BYTES, lost: false });
    expect(segment.address % GRANULE_BYTES).toBe(0);
    expect(Math.floor(segment.address / 2 ** 36)).toBe(addressSpace().domain);
    segment.u32[segment.u32.length - 1] = 0x12345678;
    expect(segment.u8[segment.bytes - 1]).toBe(0x12);
    expect(addressSpace().find(segment.address + segment.bytes - 1)).toBe(segment);
  });

  it('takes 2 MiB hugepages where they are free, and else says what to do', () => {
    const wants = { pageBytes: GRANULE_BYTES };
    if (freeHugepageBytes() >= GRANULE_BYTES) {
      expect(make(1, wants).pageBytes).toBe(GRANULE_BYTES);
    } else {
      // As many as there can be: a few may be had beyond the pool (nr_overcommit_hugepages).
      expect(() => make(SEGMENT_BYTES_MAX, wants)).toThrow(
        expect.objectContaining({
          code: 'OUT_OF_HUGEPAGES',
          exitCode: 3,
          hint: expect.stringContaining('nr_hugepages'),
        }) as Error,
      );
    }
    expect(make(1).u8[0]).toBe(0); // automatic choice works either way
  });

  it('leaves nothing behind when it cannot be made', () => {
    const before = { fds: fdCount(), ids: native.segmentIds().length };
    expect(() => make(2 ** 30, { pageBytes: 2 ** 30 })).toThrow(/could not be had/);
    expect(() => make(0)).toThrow(RangeError);
    expect(() => make(2 ** 31 + 1)).toThrow(RangeError);
    expect(() => make(NaN)).toThrow(RangeError);
    expect({ fds: fdCount(), ids: native.segmentIds().length }).toEqual(before);
  });

  it('keeps the access map true from creation to close', () => {
    const segment = make(GRANULE_BYTES, { pageBytes: 4096 });
    const granule = segment.address / GRANULE_BYTES;
    expect(accessMap()[granule]).toBe(3);
    segment.close();
    expect(accessMap()[granule]).toBe(0);
    expect(segment.closed).toBe(true);
    expect(addressSpace().find(segment.address)).toBeUndefined();
    expect(accessMap()[0]).toBe(0);
  });

  it('of a private kind is not given out', () => {
    expect(() => make(1, { pageBytes: 4096 }).descriptor()).toThrow(
      expect.objectContaining({ code: 'SEGMENT_PRIVATE' }) as Error,
    );
  });
});

describe('a descriptor that is handed out', () => {
  it('of a shared segment cannot be written by any way, root included', () => {
    const segment = make(GRANULE_BYTES, { kind: 'shared', pageBytes: 4096 });
    segment.u8[0] = 77;
    const fd = segment.descriptor();
    const result = tryDescriptor(fd, segment.bytes);
    native.fileClose(fd);
    expect(result).toMatchObject({ 'map readable': 'ok', 'first byte': '77' });
    for (const way of ['map writable', 'mprotect', 'write', 'grow', 'unseal']) {
      expect([way, result[way]]).not.toEqual([way, 'ok']);
    }
    for (const way of ['write', 'map', 'grow', 'shrink']) {
      expect([way, result[`reopen and ${way}`]]).toEqual([way, 'EPERM']);
    }
    segment.u8[0] = 78; // the owner goes on writing
    expect(segment.u8[0]).toBe(78);
    expect(segment.lost).toBe(false);
  });

  it('of a device segment is writable and of the same memory', () => {
    const segment = make(GRANULE_BYTES, { kind: 'device', pageBytes: 4096 });
    const fd = segment.descriptor();
    expect(tryDescriptor(fd, segment.bytes)).toMatchObject({ 'map writable': 'ok', write: 'ok' });
    native.fileClose(fd);
    expect(segment.u8[0]).toBe('x'.charCodeAt(0));
  });
});

describe('joining', () => {
  it('puts a process into its own slot, and comes before the first allocation', async () => {
    const result = await childResult<{ slot: number; code: string; hint: string }>(`
      const space = lib.addressSpace();
      space.join(7);
      const segment = space.create(1, { pageBytes: 4096 });
      try { space.join(8); } catch (error) {
        console.log(JSON.stringify({
          slot: Math.floor(segment.address / 2 ** 36), code: error.code, hint: error.hint,
        }));
      }
    `);
    expect(result).toMatchObject({ slot: 7, code: 'ADDRESS_SPACE_IN_USE' });
    expect(result.hint).toMatch(/join/);
  });
});

describe('running out', () => {
  it('of memory is a typed error, and the process goes on', async () => {
    const result = await childResult<{ code: string; hint: string; after: number }>(
      `
      const space = lib.addressSpace();
      const first = space.create(1, { pageBytes: 4096 });
      // The reservation is there: what is left is memory of this process's own.
      const { execFileSync } = await import('node:child_process');
      execFileSync('prlimit', ['--pid', String(process.pid), '--nofile=30:30']);
      let failure;
      const made = [];
      try { for (;;) made.push(space.create(1, { pageBytes: 4096 })); }
      catch (error) { failure = error; }
      made.pop().close();
      const again = space.create(1, { pageBytes: 4096 });
      again.u8[5] = 5;
      console.log(JSON.stringify({ code: failure.code, hint: failure.hint, after: again.u8[5] }));
    `,
    );
    expect(result).toMatchObject({ code: 'OUT_OF_MEMORY', after: 5 });
    expect(result.hint).not.toBe('');
  });
});

function fdCount(): number {
  const fd = openSync('/dev/null', 'r');
  closeSync(fd);
  return readFileSync('/proc/self/maps', 'utf8').split('memfd:penstock').length * 1000 + fd;
}
