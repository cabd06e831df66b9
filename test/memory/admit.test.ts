// What a peer's memory must be before it is mapped: judged on descriptors made by another program.

import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { built } from '../fault/child.js';

const PEER = 3 * 2 ** 36; // domain 3's slot
let next = PEER;
const cleanups: (() => void)[] = [];

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

const SEALS = { shrink: 2, grow: 4, seal: 1, futureWrite: 16 };
const ALL_SEALS = 2 + 4 + 1 + 16;

/** A memfd of a program that holds it until the test's end: its read-only descriptor here. */
async function foreign(options: {
  bytes?: number;
  seals?: number;
  filled?: number;
  mode?: 'r' | 'r+';
}): Promise<number> {
  const { bytes = GRANULE_BYTES, seals = ALL_SEALS, filled = bytes, mode = 'r' } = options;
  const script = `
import fcntl, os, sys
fd = os.memfd_create('peer', 2)
os.ftruncate(fd, ${bytes})
for at in range(0, ${filled}, 65536): os.pwrite(fd, b'P' * min(65536, ${filled} - at), at)
if ${seals}: fcntl.fcntl(fd, 1033, ${seals})
print(fd, flush=True)
sys.stdin.read()
`;
  const child = spawn('python3', ['-c', script], { stdio: ['pipe', 'pipe', 'inherit'] });
  cleanups.push(() => child.stdin.end());
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  const fd = openSync(`/proc/${child.pid}/fd/${line.toString().trim()}`, mode);
  cleanups.push(() => closeSync(fd));
  return fd;
}

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

/** The errno and the check that refused. */
function refusal(fd: number, claim: Parameters<typeof admit>[1] = {}): string {
  try {
    admit(fd, claim);
  } catch (error) {
    const { code, cause } = error as { code: string; cause: { code: string; syscall: string } };
    expect(code).toBe('ADMISSION_REFUSED');
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

  it('refuses a writable descriptor', async () => {
    const fd = await foreign({ mode: 'r+' });
    expect(refusal(fd)).toBe('EPERM segmentAdmit(access mode)');
  });

  it('refuses another size than claimed, in both directions', async () => {
    const fd = await foreign({ bytes: 2 * GRANULE_BYTES });
    expect(refusal(fd)).toBe('EINVAL segmentAdmit(size)');
    expect(refusal(fd, { bytes: 4 * GRANULE_BYTES })).toBe('EINVAL segmentAdmit(size)');
  });

  it('refuses memory with holes', async () => {
    const fd = await foreign({ filled: GRANULE_BYTES - 65536 });
    expect(refusal(fd)).toBe('EINVAL segmentAdmit(holes)');
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

  it('refuses an address that is taken', async () => {
    const first = admit(await foreign({}));
    expect(refusal(await foreign({}), { address: first.address })).toBe('EEXIST segmentAdmit');
    expect(first.u8[0]).toBe(80);
  });

  it('leaves no descriptor behind when it refuses', async () => {
    const fd = await foreign({ seals: 0 });
    const before = openSync('/dev/null', 'r');
    closeSync(before);
    for (let i = 0; i < 20; i++) refusal(fd);
    const after = openSync('/dev/null', 'r');
    closeSync(after);
    expect(after).toBe(before);
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
