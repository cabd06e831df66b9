// A file truncated under its mapping: SIGBUS is survived where the stack mapped it, nowhere else.

import { mkdtempSync, openSync, closeSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { nextMessage, runChild, startWorker } from '../fault/child.js';

let folder: string;
const cleanups: (() => void)[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-lost-'));
});

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
  rmSync(folder, { recursive: true });
});

function importFile(bytes: number, options: { writable?: boolean; offset?: number } = {}) {
  const path = join(folder, `memory-${cleanups.length}`);
  const offset = options.offset ?? 0;
  writeFileSync(path, Buffer.alloc(offset + bytes, 0x5a));
  const fd = openSync(path, options.writable === false ? 'r' : 'r+');
  const segment = addressSpace().import(fd, { bytes, ...options });
  closeSync(fd);
  cleanups.push(() => segment.close());
  return { path, segment };
}

function list(to: Segment, from: Segment, bytes: number): Uint32Array {
  const hi = Math.floor(to.address / 2 ** 32);
  return Uint32Array.of(to.address >>> 0, hi, from.address >>> 0, hi, bytes, 0, 0, 0);
}

describe('imported memory', () => {
  it.each([4096, 5 * 4096, GRANULE_BYTES, GRANULE_BYTES + 4096])(
    'of %i bytes shows the file and fills its last granule with pages of its own',
    (bytes) => {
      const { segment } = importFile(bytes, { offset: 8192 });
      expect(segment).toMatchObject({ kind: 'imported', backedBytes: bytes, lost: false });
      expect(segment.bytes % GRANULE_BYTES).toBe(0);
      expect(segment.u8[0]).toBe(0x5a);
      expect(segment.u8[bytes - 1]).toBe(0x5a);
      if (bytes < segment.bytes) expect(segment.u8[bytes]).toBe(0);
    },
  );

  it('that is imported for reading is never written by native code', () => {
    const { segment } = importFile(8192, { writable: false });
    const own = addressSpace().create(1, { pageBytes: 4096 });
    cleanups.push(() => own.close());
    expect(segment.writable).toBe(false);
    expect(native.copyList(list(segment, own, 64), 1)).toBe(0);
    expect(native.copyList(list(own, segment, 64), 1)).toBe(1);
    expect(own.u8[63]).toBe(0x5a);
  });

  it('must be as long as it is said to be, and page aligned', () => {
    const path = join(folder, 'short');
    writeFileSync(path, Buffer.alloc(8192));
    const fd = openSync(path, 'r+');
    const readable = openSync(path, 'r');
    cleanups.push(() => [fd, readable].forEach((one) => closeSync(one)));
    const space = addressSpace();
    expect(() => space.import(fd, { bytes: 12288 })).toThrow(/could not be mapped/);
    expect(() => space.import(fd, { offset: 4096, bytes: 8192 })).toThrow(
      expect.objectContaining({
        code: 'IMPORT_FAILED',
        hint: expect.stringMatching(/shorter/),
      }) as Error,
    );
    expect(() => space.import(readable, { bytes: 8192 })).toThrow(
      expect.objectContaining({ code: 'IMPORT_FAILED' }) as Error,
    );
    expect(() => space.import(fd, { bytes: 5000 })).toThrow(RangeError);
    expect(() => space.import(fd, { offset: 100, bytes: 4096 })).toThrow(RangeError);
  });
});

describe('memory lost under its mapping', () => {
  it('reads as 0xff, is reported, and leaves other segments alone', () => {
    const { path, segment } = importFile(4 * 4096);
    const other = importFile(4096).segment;
    truncateSync(path, 4096);
    expect(segment.lost).toBe(false); // nobody has touched it
    expect(segment.u8[2 * 4096]).toBe(0xff);
    expect(segment.lost).toBe(true);
    expect(segment.u32[(3 * 4096) / 4 + 5]).toBe(0xffffffff);
    expect(segment.u8[100]).toBe(0x5a); // the page that is left
    segment.u8[2 * 4096] = 1; // stores go on too
    expect(segment.u8[2 * 4096]).toBe(1);
    expect(other.lost).toBe(false);
    expect(other.u8[4095]).toBe(0x5a);
  });

  it('read-only memory included', () => {
    const { path, segment } = importFile(2 * 4096, { writable: false });
    truncateSync(path, 0);
    expect(segment.u8[4096]).toBe(0xff);
    expect(segment.lost).toBe(true);
  });

  it('does not stop a copy by native code', () => {
    const { path, segment } = importFile(4 * 4096);
    const own = addressSpace().create(1, { pageBytes: 4096 });
    cleanups.push(() => own.close());
    truncateSync(path, 4096);
    expect(native.copyList(list(own, segment, 4 * 4096), 1)).toBe(1);
    expect([own.u8[0], own.u8[4096], own.u8[4 * 4096 - 1]]).toEqual([0x5a, 0xff, 0xff]);
    expect(segment.lost).toBe(true);
  });

  it('does not stop a worker that reads it', async () => {
    const { path, segment } = importFile(64 * 4096);
    const control = new Int32Array(new SharedArrayBuffer(8));
    const worker = startWorker(
      `
      const control = new Int32Array(workerData.control);
      const { u8 } = lib.addressSpace().find(workerData.address);
      const seen = new Set();
      parentPort.postMessage('ready');
      for (let rounds = 0; rounds < 1e6 && !seen.has(0xff); rounds++) {
        for (let i = 0; i < 64 * 4096; i += 4096) seen.add(u8[i]);
      }
      parentPort.postMessage([...seen]);
    `,
      { control: control.buffer, address: segment.address },
    );
    await nextMessage(worker);
    const answer = nextMessage<number[]>(worker);
    truncateSync(path, 0);
    expect(await answer).toContain(0xff);
    await worker.terminate();
    expect(segment.lost).toBe(true);
  });

  it('starts anew in a later segment of the same slot', () => {
    const { path, segment } = importFile(4096);
    truncateSync(path, 0);
    expect(segment.u8[0]).toBe(0xff);
    segment.close();
    expect(segment.lost).toBe(false);
    const next = importFile(4096).segment;
    expect(next.lost).toBe(false);
    expect(next.u8[0]).toBe(0x5a);
  });
});

describe('a SIGBUS that is none of ours', () => {
  it('ends the process as it would have', async () => {
    const ended = await runChild(`
      lib.addressSpace().create(1, { pageBytes: 4096 });
      process.kill(process.pid, 'SIGBUS');
      setTimeout(() => console.log('survived'), 1000);
    `);
    expect(ended).toMatchObject({ signal: 'SIGBUS', stdout: '' });
  });
});
