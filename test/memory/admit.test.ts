// What a peer's memory must be before it is mapped: judged on descriptors made by another program.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { accessMap, addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { built } from '../fault/child.js';
import { openFds } from '../native/support.js';
import { ALL_SEALS, foreignMemory, type ForeignOptions } from './peer.js';

const PEER = 3 * 2 ** 36; // domain 3's slot
let next = PEER;
const cleanups: (() => void)[] = [];

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

const SEALS = { shrink: 2, grow: 4, seal: 1, futureWrite: 16 };

const foreign = (options: ForeignOptions) => foreignMemory(cleanups, options);

function admit(
  fd: number,
  claim: Partial<{ address: number; bytes: number; pageBytes: number }> = {},
) {
  // Another place each time: the range of a closed segment stays taken until its views are gone.
  next += 4 * GRANULE_BYTES;
  const segment = addressSpace().admit(fd, {
    address: next,
    bytes: GRANULE_BYTES,
    pageBytes: 4096,
    ...claim,
  });
  cleanups.push(() => segment.close());
  return segment;
}

/** The errno and the check that refused, which left no trace. */
function refusal(fd: number, claim: Parameters<typeof admit>[1] = {}): string {
  const traces = () => ({
    fds: openFds(),
    segments: addressSpace().list(),
    access: accessMap()[Math.floor((claim.address ?? next) / GRANULE_BYTES)],
  });
  const before = traces();
  try {
    admit(fd, claim);
  } catch (error) {
    const { code, cause } = error as { code: string; cause: { code: string; syscall: string } };
    expect(code).toBe('ADMISSION_REFUSED');
    expect(traces()).toEqual(before);
    return `${cause.code} ${cause.syscall}`;
  }
  return 'admitted';
}

describe('admission', () => {
  it('maps proper memory of a peer, read-only, at the claimed address', async () => {
    const segment = admit(await foreign({}));
    expect(segment).toMatchObject({ address: next, kind: 'admitted', writable: false });
    expect([...segment.u8.subarray(-3)]).toEqual([80, 80, 80]);
    // Native code does not write there either.
    const own = addressSpace().create(1, { pageBytes: 4096 });
    cleanups.push(() => own.close());
    const entry = Uint32Array.of(
      next >>> 0,
      Math.floor(next / 2 ** 32),
      own.address >>> 0,
      own.address / 2 ** 32,
      8,
      0,
      0,
      0,
    );
    expect(native.copyList(entry, 1)).toBe(0);
  });

  it.each(Object.entries(SEALS))('refuses memory without the seal %s', async (_name, seal) => {
    const without = ALL_SEALS - seal;
    expect(refusal(await foreign({ seals: without }))).toBe('EPERM segmentAdmit(seals)');
  });

  it('refuses memory that was never sealed', async () => {
    expect(refusal(await foreign({ seals: 0 }))).toBe('EPERM segmentAdmit(seals)');
  });

  it.each([
    ['and reading', 'r+'],
    ['only', constants.O_WRONLY],
  ] as const)('refuses a descriptor opened for writing %s', async (_name, mode) => {
    const fd = await foreign({ mode });
    expect(refusal(fd)).toBe('EPERM segmentAdmit(access mode)');
  });

  it('refuses another size than claimed, in both directions', async () => {
    const fd = await foreign({ bytes: 2 * GRANULE_BYTES });
    expect(refusal(fd)).toBe('EINVAL segmentAdmit(size)');
    expect(refusal(fd, { bytes: 4 * GRANULE_BYTES })).toBe('EINVAL segmentAdmit(size)');
  });

  it.each([0, 65536, GRANULE_BYTES - 65536])(
    'refuses memory that has pages for %i of its bytes only',
    async (filled) => {
      expect(refusal(await foreign({ filled }))).toBe('EINVAL segmentAdmit(holes)');
    },
  );

  it('refuses what is no memory of another process', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'penstock-admit-'));
    writeFileSync(join(folder, 'file'), Buffer.alloc(GRANULE_BYTES, 1));
    const device = addressSpace().create(1, { kind: 'device', pageBytes: 4096 });
    const fds = [
      openSync(join(folder, 'file'), 'r'),
      openSync(folder, 'r'),
      openSync('/dev/zero', 'r'),
      openSync('/dev/null', 'r'),
      ...native.unixPair(),
      native.eventfdCreate(),
      native.pidfdOpen(process.pid),
      device.descriptor(), // nothing seals it, and a peer could write it
    ];
    try {
      for (const fd of fds) expect(refusal(fd)).toBe('EPERM segmentAdmit(seals)');
    } finally {
      for (const fd of fds) closeSync(fd);
      device.close();
      rmSync(folder, { recursive: true });
    }
    expect(refusal(fds[0]!)).toBe('EBADF fcntl(F_DUPFD)'); // closed now
    expect(refusal(2 ** 31 - 1)).toBe('EBADF fcntl(F_DUPFD)');
  });

  it('refuses a path to memory that was not opened', async () => {
    const O_PATH = 0x200000;
    expect(refusal(await foreign({ mode: O_PATH }))).toBe('EPERM segmentAdmit(seals)');
  });

  it('refuses a misaligned address or size', async () => {
    const fd = await foreign({});
    expect(refusal(fd, { address: PEER + 4096 })).toBe('EINVAL segmentAdmit(alignment)');
    expect(refusal(fd, { address: PEER, bytes: GRANULE_BYTES + 4096 })).toBe(
      'EINVAL segmentAdmit(alignment)',
    );
  });

  it('refuses another page size than claimed', async () => {
    const fd = await foreign({});
    expect(refusal(fd, { pageBytes: GRANULE_BYTES })).toBe('EINVAL segmentAdmit(page size)');
  });

  it('refuses its own slot, and memory that leaves its slot', async () => {
    expect(refusal(await foreign({}), { address: 2 ** 36 })).toBe('EINVAL segmentAdmit(own slot)');
    const fd = await foreign({ bytes: 2 * GRANULE_BYTES });
    const address = PEER + 2 ** 36 - GRANULE_BYTES;
    expect(refusal(fd, { address, bytes: 2 * GRANULE_BYTES })).toBe('EINVAL segmentAdmit(slot)');
  });

  it('refuses an address that is taken, wholly or in part', async () => {
    const bytes = 2 * GRANULE_BYTES;
    const fd = await foreign({ bytes });
    const first = admit(fd, { bytes });
    for (const offset of [-GRANULE_BYTES, 0, GRANULE_BYTES]) {
      expect(refusal(fd, { address: first.address + offset, bytes })).toBe('EEXIST segmentAdmit');
    }
    for (const offset of [-bytes, bytes]) {
      expect(admit(fd, { address: first.address + offset, bytes }).u8[bytes - 1]).toBe(80);
    }
    expect(first.u8[0]).toBe(80);
  });

  it('takes nothing for a claim that no segment could have', async () => {
    const fd = await foreign({});
    const before = openFds();
    for (const wrong of [
      { address: 0 },
      { address: 2 ** 36 - GRANULE_BYTES },
      { address: 2 ** 44 },
      { address: PEER + 0.5 },
      { address: NaN },
      { bytes: 0 },
      { bytes: -GRANULE_BYTES },
      { bytes: 2 ** 31 + GRANULE_BYTES },
      { pageBytes: 0 },
      { pageBytes: 2 ** 31 },
    ]) {
      expect(() => admit(fd, wrong)).toThrow(RangeError);
    }
    expect(openFds()).toEqual(before);
  });

  it('gives a byte the same address in two processes', async () => {
    const body = `
      const { addressSpace } = await import(${JSON.stringify(built('memory/index'))});
      addressSpace().join(2);
      const segment = addressSpace().create(1, { kind: 'shared', pageBytes: 4096 });
      for (let i = 0; i < segment.u32.length; i++) segment.u32[i] = Math.imul(i, 2654435761);
      console.log(JSON.stringify({ address: segment.address, bytes: segment.bytes,
        fd: segment.descriptor() }));
      process.stdin.on('data', () => { segment.u32[3] = 4242; console.log('changed'); });
      process.stdin.on('end', () => process.exit(0));
    `;
    const child = spawn(process.execPath, ['--input-type=module', '-e', body], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, PENSTOCK_QUIET: '1' },
    });
    cleanups.push(() => child.stdin.end());
    const [line] = (await once(child.stdout, 'data')) as [Buffer];
    const told = JSON.parse(line.toString()) as { address: number; bytes: number; fd: number };
    // As SCM_RIGHTS would: the same open file, read-only.
    const fd = openSync(`/proc/${child.pid}/fd/${told.fd}`, 'r');
    cleanups.push(() => closeSync(fd));
    const segment: Segment = admit(fd, { address: told.address, bytes: told.bytes });
    expect(Math.floor(told.address / 2 ** 36)).toBe(2);
    const wrong = segment.u32.findIndex((word, i) => word !== Math.imul(i, 2654435761) >>> 0);
    expect(wrong).toBe(-1);
    child.stdin.write('x');
    await once(child.stdout, 'data');
    expect(segment.u32[3]).toBe(4242);
  });

  it('never stores through the mapping: the storing process alone dies', () => {
    const script = `
import os, fcntl, subprocess, sys
fd = os.memfd_create('peer', 2)
os.ftruncate(fd, ${GRANULE_BYTES})
os.pwrite(fd, b'P' * ${GRANULE_BYTES}, 0)
fcntl.fcntl(fd, 1033, ${ALL_SEALS})
ro = os.open('/proc/self/fd/%d' % fd, os.O_RDONLY)
body = '''
const { addressSpace } = await import(${JSON.stringify(built('memory/index'))});
const claim = { address: ${PEER}, bytes: ${GRANULE_BYTES}, pageBytes: 4096 };
const segment = addressSpace().admit(%d, claim);
segment.u8[0] = 1;
''' % ro
child = subprocess.run([sys.argv[1], '--input-type=module', '-e', body], pass_fds=[ro],
  stderr=subprocess.DEVNULL)
print(child.returncode, os.pread(fd, 1, 0).decode())
`;
    const output = execFileSync('python3', ['-c', script, process.execPath], { encoding: 'utf8' });
    expect(output.trim()).toBe('-11 P');
  });
});
