// Regions: own memory at an address that was agreed on, and another domain's that nothing seals.

import { closeSync, openSync, mkdtempSync, rmSync } from 'node:fs';
import { spawnSync } from 'node:child_process';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import {
  accessMap,
  addressSpace,
  GRANULE_BYTES,
  MemoryObject,
  type Segment,
} from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { childResult, runChild } from '../fault/child.js';

const SLOT = 2 ** 36;
const OWN = SLOT; // domain 1's
const PEER = 5 * SLOT;
const BYTES = 2 * GRANULE_BYTES;
let next = 100 * GRANULE_BYTES;
const cleanups: (() => void)[] = [];

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

/** Another place each time: the range of a closed segment is taken until its views are gone. */
function place(slot: number): number {
  next += 8 * GRANULE_BYTES;
  return slot + next;
}

function makeObject(bytes = BYTES): MemoryObject {
  const object = new MemoryObject(bytes, 4096);
  cleanups.push(() => object.close());
  return object;
}

function readOnly(object: MemoryObject): number {
  const fd = object.readOnly();
  cleanups.push(() => native.fileClose(fd));
  return fd;
}

function kept(segment: Segment): Segment {
  cleanups.push(() => segment.close());
  return segment;
}

function importAt(object: MemoryObject, address: number, bytes = object.bytes): Segment {
  return kept(addressSpace().import(object.fd, { bytes, address }));
}

function attachAt(fd: number, address: number, bytes = BYTES): Segment {
  return kept(addressSpace().attach(fd, { address, bytes }));
}

/** The code, the errno and the check that refused. */
function refusal(attempt: () => unknown): string {
  try {
    attempt();
  } catch (error) {
    const { code, hint, cause } = error as {
      code: string;
      hint: string;
      cause: { code: string; syscall: string };
    };
    expect(hint).not.toBe('');
    return `${code}: ${cause.code} ${cause.syscall}`;
  }
  return 'none';
}

describe('an own region', () => {
  it('lies at the address that was agreed on', () => {
    const object = makeObject();
    const address = place(OWN);
    const segment = importAt(object, address);
    expect(segment).toMatchObject({ address, bytes: BYTES, kind: 'imported', writable: true });
    segment.u32[5] = 0x12345678;
    const seen = Buffer.alloc(4);
    native.filePread(object.fd, 20, seen);
    expect(seen.readUInt32LE()).toBe(0x12345678);
    expect(accessMap()[address / GRANULE_BYTES]).toBe(3);
  });

  it('leaves the lowest free address to others', () => {
    const segment = importAt(makeObject(), place(OWN));
    const other = kept(addressSpace().create(1, { pageBytes: 4096 }));
    expect(other.address + other.bytes).toBeLessThanOrEqual(segment.address);
  });

  it('is refused where memory lies, and outside of its slot', () => {
    const object = makeObject();
    const taken = importAt(object, place(OWN)).address;
    const at = (address: number) => refusal(() => importAt(object, address));
    expect(at(taken)).toBe('ADDRESS_TAKEN: EEXIST segmentImport');
    expect(at(taken - GRANULE_BYTES)).toBe('ADDRESS_TAKEN: EEXIST segmentImport');
    expect(at(place(PEER))).toBe('IMPORT_FAILED: EINVAL segmentImport(slot)');
    expect(at(OWN + SLOT - GRANULE_BYTES)).toBe('IMPORT_FAILED: EINVAL segmentImport(slot)');
    expect(at(place(OWN) + 4096)).toBe('IMPORT_FAILED: EINVAL segmentImport(alignment)');
    const beyond = refusal(() => importAt(object, place(OWN), BYTES + GRANULE_BYTES));
    expect(beyond).toBe('IMPORT_FAILED: EOVERFLOW segmentImport');
    expect(() => importAt(object, 0)).toThrow(RangeError);
    expect(() => importAt(object, 2 ** 44)).toThrow(RangeError);
  });

  it('fixes the domain, as every allocation does', async () => {
    const code = await childResult(`
      const object = new lib.MemoryObject(${BYTES}, 4096);
      lib.addressSpace().join(7);
      const place = { bytes: ${BYTES}, address: 7 * ${SLOT} };
      const segment = lib.addressSpace().import(object.fd, place);
      try { lib.addressSpace().join(8); } catch (error) { console.log(JSON.stringify(error.code)); }
    `);
    expect(code).toBe('ADDRESS_SPACE_IN_USE');
  });
});

describe("another domain's region", () => {
  it('is read at its address while its owner writes', () => {
    const object = makeObject();
    const address = place(PEER);
    const segment = attachAt(readOnly(object), address);
    expect(segment).toMatchObject({ address, bytes: BYTES, kind: 'admitted', writable: false });
    expect(accessMap()[address / GRANULE_BYTES]).toBe(1);
    native.filePwrite(object.fd, BYTES - 4, Uint8Array.of(1, 2, 3, 4));
    expect(segment.u32.at(-1)).toBe(0x04030201);
    expect(addressSpace().find(address + BYTES - 1)).toBe(segment);
    expect(() => segment.descriptor()).toThrow(
      expect.objectContaining({ code: 'SEGMENT_PRIVATE' }) as Error,
    );
  });

  it('may be mapped in part, never beyond its object', () => {
    const fd = readOnly(makeObject());
    expect(attachAt(fd, place(PEER), GRANULE_BYTES).bytes).toBe(GRANULE_BYTES);
    const beyond = refusal(() => attachAt(fd, place(PEER), BYTES + GRANULE_BYTES));
    expect(beyond).toBe('ADMISSION_REFUSED: EOVERFLOW segmentAttach(size)');
  });

  it('is not written by native calls either', () => {
    const { address } = attachAt(readOnly(makeObject()), place(PEER));
    const own = kept(addressSpace().create(1, { pageBytes: 4096 }));
    const words = (at: number) => [at >>> 0, Math.floor(at / 2 ** 32)];
    const to = Uint32Array.of(...words(address), ...words(own.address), 8, 0, 0, 0);
    const from = Uint32Array.of(...words(own.address), ...words(address), 8, 0, 0, 0);
    expect(native.copyList(to, 1)).toBe(0);
    expect(native.fillList(Uint32Array.of(...words(address), 8, 0xff), 1)).toBe(0);
    expect(native.copyList(from, 1)).toBe(1);
    expect(native.futexWait(address, 1, 0)).toBe(1);
    expect(native.futexWake(address, 1)).toBe(0);
  });

  it('kills who stores to it, and holds what it held', async () => {
    const object = makeObject();
    const body = (attempt: string) => `
      const claim = { address: ${PEER}, bytes: ${BYTES} };
      const segment = lib.addressSpace().attach(3, claim);
      ${attempt}
    `;
    const fd = readOnly(object);
    const stored = await runChild(body('segment.u8[0] = 1;'), { fds: [fd] });
    expect(stored).toMatchObject({ code: null, signal: 'SIGSEGV' });
    const copied = await runChild(body('segment.u8.set([1, 2, 3], 64);'), { fds: [fd] });
    expect(copied).toMatchObject({ code: null, signal: 'SIGSEGV' });
    const seen = Buffer.alloc(128);
    native.filePread(object.fd, 0, seen);
    expect(seen.every((byte) => byte === 0)).toBe(true);
  });

  it('is refused with a descriptor that could write', () => {
    const { fd } = makeObject();
    const refused = refusal(() => attachAt(fd, place(PEER)));
    expect(refused).toBe('ADMISSION_REFUSED: EPERM segmentAttach(access mode)');
  });

  it('is refused in its own slot, across slots, misaligned, and where memory lies', () => {
    const fd = readOnly(makeObject());
    const at = (address: number, bytes = BYTES) => refusal(() => attachAt(fd, address, bytes));
    const check = (name: string) => `ADMISSION_REFUSED: EINVAL segmentAttach(${name})`;
    expect(at(place(OWN))).toBe(check('own slot'));
    expect(at(PEER + SLOT - GRANULE_BYTES)).toBe(check('slot'));
    expect(at(place(PEER) + 4096)).toBe(check('alignment'));
    expect(at(place(PEER), GRANULE_BYTES + 4096)).toBe(check('alignment'));
    const { address } = attachAt(fd, place(PEER));
    expect(at(address + GRANULE_BYTES)).toBe('ADDRESS_TAKEN: EEXIST segmentAttach');
    expect(() => attachAt(fd, GRANULE_BYTES)).toThrow(RangeError); // slot 0 stays empty
  });

  it('is memory or a file', () => {
    for (const path of ['/dev/zero', tmpdir()]) {
      const fd = openSync(path, 'r');
      cleanups.push(() => closeSync(fd));
      const refused = refusal(() => attachAt(fd, place(PEER)));
      expect(refused).toBe('ADMISSION_REFUSED: EINVAL segmentAttach(object)');
    }
    expect(refusal(() => attachAt(1000, place(PEER)))).toBe(
      'ADMISSION_REFUSED: EBADF fcntl(F_DUPFD)',
    );
  });

  it('that its owner cuts short reads 0xff, and is lost', () => {
    const object = makeObject();
    const segment = attachAt(readOnly(object), place(PEER));
    expect([segment.u8[0], segment.lost]).toEqual([0, false]);
    native.fileTruncate(object.fd, 0);
    expect([segment.u8[GRANULE_BYTES], segment.lost]).toEqual([0xff, true]);
  });

  it('leaves no descriptor behind when it is refused', () => {
    const fd = readOnly(makeObject());
    const free = () => {
      const number = openSync('/dev/null', 'r');
      closeSync(number);
      return number;
    };
    const before = free();
    for (let i = 0; i < 20; i++) refusal(() => attachAt(fd, OWN + i * GRANULE_BYTES));
    expect(free()).toBe(before);
  });
});

describe('an object', () => {
  /** Whether another program maps the descriptor's object writable. */
  function mapsWritable(fd: number): string {
    const script = `
import mmap, os
try:
    again = os.open('/proc/self/fd/3', os.O_RDWR)
    mmap.mmap(again, ${BYTES}, mmap.MAP_SHARED, 3)[0] = 7
    print('yes')
except OSError as error:
    print(error.strerror)
`;
    const done = spawnSync('python3', ['-c', script], {
      stdio: ['ignore', 'pipe', 'inherit', fd],
      encoding: 'utf8',
    });
    return done.stdout.trim();
  }

  it("is anybody's until it is sealed; then who has it mapped goes on, and nobody comes", () => {
    const object = makeObject();
    const fd = readOnly(object);
    expect(mapsWritable(fd)).toBe('yes');
    const writer = importAt(object, place(OWN)); // as QEMU does
    const refused = refusal(() =>
      addressSpace().admit(fd, { address: place(PEER), bytes: BYTES, pageBytes: 4096 }),
    );
    expect(refused).toBe('ADMISSION_REFUSED: EPERM segmentAdmit(seals)');
    object.seal();
    expect(mapsWritable(fd)).toBe('Operation not permitted');
    const claim = { address: place(PEER), bytes: BYTES, pageBytes: 4096 };
    const reader = kept(addressSpace().admit(fd, claim));
    writer.u8[0] = 99;
    expect(reader.u8[0]).toBe(99);
    expect(refusal(() => importAt(object, place(OWN)))).toBe('IMPORT_FAILED: EPERM mmap');
  });

  it('has a size in whole granules', () => {
    expect(() => new MemoryObject(GRANULE_BYTES + 4096)).toThrow(RangeError);
    expect(() => new MemoryObject(0)).toThrow(RangeError);
    expect(() => new MemoryObject(2 ** 31 + GRANULE_BYTES)).toThrow(RangeError);
    expect(() => new MemoryObject(2 ** 30, 2 ** 30)).toThrow(
      expect.objectContaining({ code: 'OUT_OF_HUGEPAGES' }) as Error,
    );
  });

  it('is sealed by its maker only', () => {
    const folder = mkdtempSync(join(tmpdir(), 'penstock-object-'));
    const fd = openSync(join(folder, 'file'), 'w+');
    cleanups.push(() => closeSync(fd));
    rmSync(folder, { recursive: true });
    expect(() => native.objectSeal(fd)).toThrow(
      expect.objectContaining({ code: 'EBADF' }) as Error,
    );
  });
});
