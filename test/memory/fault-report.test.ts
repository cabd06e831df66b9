// A store through a peer's mapping: the storing process says what it did, and ends. What SIGSEGV
// is used for otherwise, V8's WebAssembly above all, goes on as before.

import { openSync, closeSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { Segment } from '../../lib/memory/index.js';
import { runChild } from '../fault/child.js';
import { expectInvalid, native } from '../native/support.js';
import { firstChanged, runPeer, sharedSegment } from './peer.js';

let segment: Segment;

beforeAll(() => {
  segment = sharedSegment();
});

afterAll(() => {
  segment.close();
});

/** The report of a store to byte `offset` of the segment. */
function report(offset: number, owner = 'domain 1'): string {
  const address = (segment.address + offset).toString(16);
  return (
    `penstock: store to Address 0x${address}, read-only memory of ${owner}: ` +
    'it belongs to another process. The value was not written; this process ends.\n'
  );
}

const DIES = { code: null, signal: 'SIGSEGV', stdout: '' };

describe('a store to a peer memory', () => {
  it.each([
    ['an element', 'peer.u8[4099] = 1;', 4099],
    ['a word', 'peer.u32[1] = 1;', 4],
    ['fill', 'peer.u8.fill(0, 4096);', 4096],
    ['set', 'peer.u8.set([1, 2, 3], 8);', 8],
    ['DataView', 'new DataView(peer.u8.buffer).setUint16(100, 1);', 100],
    ['Atomics', 'Atomics.add(peer.u32, 3, 1);', 12],
    ['Buffer', 'Buffer.from(peer.u8.buffer).write("text", 64);', 64],
    [
      'compiled code',
      `const store = (words, i, value) => { words[i] = value; };
       const own = new Uint32Array(64);
       for (let i = 0; i < 1e6; i++) store(own, i & 63, i);
       store(peer.u32, 5, 1);`,
      20,
    ],
  ])('by %s ends the process, which names address and owner', async (_name, body, offset) => {
    const ended = await runPeer(segment, `${body} console.log('went on');`);
    expect(ended).toEqual({ ...DIES, stderr: report(offset) });
    expect(firstChanged(segment.u32)).toBe(-1);
  });

  it('calls the owner by its name, without what a terminal obeys', async () => {
    const body = `
      lib.addressSpace().nameDomain(1, 'first');
      lib.addressSpace().nameDomain(1, 'disk-driver\\u001b[31m\\n');
      lib.addressSpace().nameDomain(2, 'storer');
      peer.u8[0] = 1;
    `;
    const { stderr, signal } = await runPeer(segment, body);
    expect(signal).toBe('SIGSEGV');
    expect(stderr).toBe(report(0, 'domain 1 (disk-driver?[31m?)'));
  });

  it('by a worker ends the process the same way', async () => {
    const body = `
      startWorker('lib.addressSpace().find(workerData).u8[70000] = 1;', claim.address);
      setTimeout(() => console.log('went on'), 20000);
    `;
    expect(await runPeer(segment, body)).toEqual({ ...DIES, stderr: report(70000) });
  });

  it('by a thread of the pool ends the process the same way', async () => {
    const body = `
      const { randomFill } = await import('node:crypto');
      randomFill(peer.u8, 128, 64, () => console.log('went on'));
    `;
    expect(await runPeer(segment, body)).toEqual({ ...DIES, stderr: report(128) });
  });

  it('by the kernel is an error of the call, and nothing else', async () => {
    const body = `
      const { openSync, readSync } = await import('node:fs');
      const fd = openSync('/dev/zero', 'r');
      try { readSync(fd, peer.u8, 0, 4096); } catch (error) { console.log(error.code); }
    `;
    expect(await runPeer(segment, body)).toMatchObject({ code: 0, stdout: 'EFAULT\n', stderr: '' });
  });

  it('is reported where nobody handled SIGSEGV before, too', async () => {
    const body = 'peer.u8[1] = 1; console.log("went on");';
    const nodeOptions = ['--disable-wasm-trap-handler'];
    const ended = await runPeer(segment, body, { nodeOptions });
    expect(ended).toEqual({ ...DIES, stderr: report(1) });
  });

  it('that was imported for reading says so', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'penstock-report-'));
    const path = join(folder, 'memory');
    writeFileSync(path, Buffer.alloc(4096, 7));
    const fd = openSync(path, 'r');
    try {
      const body = `
        const own = lib.addressSpace().import(4, { bytes: 4096, writable: false });
        own.u8[16] = 1;
      `;
      const ended = await runPeer(segment, body, { fds: [fd] });
      expect(ended).toEqual({
        ...DIES,
        stderr:
          'penstock: store to Address 0x2000000010, memory that this process imported for ' +
          'reading only. The value was not written; this process ends.\n',
      });
    } finally {
      closeSync(fd);
      rmSync(folder, { recursive: true });
    }
  });
});

/** i32 load(i32 address) and store(i32 address), both 4 bytes, over one page of memory. */
const MODULE = [
  ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
  ...[1, 10, 2, 0x60, 1, 0x7f, 1, 0x7f, 0x60, 1, 0x7f, 0], // types: (i32) → i32, (i32) → ()
  ...[3, 3, 2, 0, 1],
  ...[5, 3, 1, 0, 1], // one page
  ...[7, 16, 2, 4, 0x6c, 0x6f, 0x61, 0x64, 0, 0, 5, 0x73, 0x74, 0x6f, 0x72, 0x65, 0, 1],
  ...[10, 19, 2, 7, 0, 0x20, 0, 0x28, 2, 0, 0x0b, 9, 0, 0x20, 0, 0x20, 0, 0x36, 2, 0, 0x0b],
];

/** Counts the traps of wild accesses, before and after V8 has compiled the functions anew. */
const TRAPS = `
  const bytes = Uint8Array.from(${JSON.stringify(MODULE)});
  const { exports } = new WebAssembly.Instance(new WebAssembly.Module(bytes));
  let traps = 0;
  const trap = (call) => {
    try { call(); } catch (error) {
      if (!(error instanceof WebAssembly.RuntimeError)) throw error;
      traps++;
    }
  };
  for (let round = 0; round < 3; round++) {
    for (const at of [65533, 65536, 1 << 30, -1, -(2 ** 31)]) {
      trap(() => exports.load(at));
      trap(() => exports.store(at));
    }
    for (let i = 0; i < 200000; i++) { exports.store((i * 4) & 0xfff); exports.load(i & 0xfff); }
  }
`;

describe('SIGSEGV otherwise', () => {
  it('is a RuntimeError of WebAssembly, as ever', async () => {
    const body = `${TRAPS} console.log(traps);`;
    expect(await runPeer(segment, body)).toEqual({
      code: 0,
      signal: null,
      stdout: '30\n',
      stderr: '',
    });
  });

  it('is that in a worker too', async () => {
    const body = `
      const worker = startWorker(${JSON.stringify(`${TRAPS} parentPort.postMessage(traps);`)});
      console.log(await nextMessage(worker));
    `;
    expect(await runPeer(segment, body)).toMatchObject({ code: 0, stdout: '30\n', stderr: '' });
  });

  it('ends the process without a word of ours when another process sends it', async () => {
    const ended = await runPeer(segment, `process.kill(process.pid, 'SIGSEGV');`);
    expect(ended).toEqual({ ...DIES, stderr: '' });
  });

  it('ends the process without a word of ours when the address is none of ours', async () => {
    const body = `
      lib.addressSpace().create(1, { pageBytes: 4096 });
      const { openSync } = await import('node:fs');
      const fd = lib.native.fileOpen('/proc/self/exe', 0, 0);
      const region = lib.native.regionMap(fd, 0, 4096, false);
      new Uint8Array(lib.native.regionBuffer(region))[0] = 1;
    `;
    const ended = await runChild(body, { before: ['prlimit', '--core=0'] });
    expect(ended).toEqual({ ...DIES, stderr: '' });
  });
});

describe('the name of a domain', () => {
  it('is a text of up to 64 bytes, of a domain from 1 to 255', () => {
    native.memoryDomainName(255, 'x'.repeat(64));
    native.memoryDomainName(255, '');
    expectInvalid(() => native.memoryDomainName(255, 'x'.repeat(65)));
    expectInvalid(() => native.memoryDomainName(0, 'none'));
    expectInvalid(() => native.memoryDomainName(256, 'none'));
    expectInvalid(() => native.memoryDomainName(1, 7 as never));
  });
});
