// Device regions on files: what vanishes or closes reads 0xff, for as long as anybody looks.

import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import {
  ended,
  expectErrno,
  expectInvalid,
  native,
  nextMessage,
  openFds,
  startWorker,
} from './support.js';

const LOST = 16;
let folder: string;
let count = 0;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-region-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

function makeFile(bytes: number): { path: string; fd: number } {
  const path = join(folder, `file-${count++}`);
  writeFileSync(path, Buffer.alloc(bytes, 0x5a));
  return { path, fd: native.fileOpen(path, 2, 0) };
}

function isLost(region: number): boolean {
  return new Uint32Array(native.statusWords())[LOST + (region % 4096)] !== 0;
}

/** A file's worth of a region with a view over it. */
function mapFile(bytes: number, writable = true) {
  const { path, fd } = makeFile(bytes);
  const region = native.regionMap(fd, 0, bytes, writable);
  native.fileClose(fd); // the mapping keeps what it maps
  return { path, region, view: new Uint8Array(native.regionBuffer(region)) };
}

describe('a region', () => {
  test('is a window to the file, from an offset on', () => {
    const { fd } = makeFile(3 * 4096);
    const region = native.regionMap(fd, 4096, 8192, true);
    const view = new Uint8Array(native.regionBuffer(region));
    expect([view.length, view[0], view[8191]]).toEqual([8192, 0x5a, 0x5a]);
    view[4] = 7;
    const read = new Uint8Array(8);
    expect(native.filePread(fd, 4096, read)).toBe(8);
    expect(read[4]).toBe(7);
    expect(native.filePwrite(fd, 4100, new Uint8Array([9]))).toBe(1);
    expect(view[4]).toBe(9);
    native.regionClose(region);
    native.fileClose(fd);
  });

  test('that vanishes reads 0xff and is lost', () => {
    const { path, region, view } = mapFile(4 * 4096);
    truncateSync(path, 4096);
    expect(isLost(region)).toBe(false);
    expect([view[0], view[4096]]).toEqual([0x5a, 0xff]);
    expect(isLost(region)).toBe(true);
    view[4096] = 1;
    native.regionClose(region);
  });

  test.each([8192, 2 ** 21, 5 * 2 ** 20 + 4096])('of %i bytes reads 0xff once closed', (bytes) => {
    const before = openFds();
    const { region, view } = mapFile(bytes);
    native.regionClose(region);
    expect(isLost(region)).toBe(true);
    expect(view.findIndex((byte) => byte !== 0xff)).toBe(-1);
    view.fill(0x33);
    expect(view[bytes - 1]).toBe(0x33);
    expect(openFds()).toEqual(before);
    expectErrno(() => native.regionBuffer(region), 'EBADF');
    expectErrno(() => native.regionClose(region), 'EBADF');
  });

  test('for reading is not written', () => {
    const { path, region, view } = mapFile(8192, false);
    truncateSync(path, 0);
    expect(view[4096]).toBe(0xff);
    native.regionClose(region);
    expect(view[0]).toBe(0xff);
  });

  test('is neither a segment nor an address', () => {
    const { region } = mapFile(4096);
    expectErrno(() => native.segmentInfo(region), 'EBADF');
    expectErrno(() => native.segmentBuffer(region), 'EBADF');
    expect(native.segmentIds()).not.toContain(region);
    native.regionClose(region);
    const segment = native.segmentCreate(2 ** 21, 4096, 0);
    expectErrno(() => native.regionBuffer(segment), 'EBADF');
    expectErrno(() => native.regionClose(segment), 'EBADF');
    native.segmentClose(segment);
  });
});

describe('environments', () => {
  test('a worker makes a view of its own, and may not close the region', async () => {
    const { region, view } = mapFile(4096);
    const worker = startWorker(
      `
      const view = new Uint8Array(native.regionBuffer(workerData));
      view[1] = 1;
      let code = '';
      try { native.regionClose(workerData); } catch (error) { code = error.code; }
      parentPort.once('message', () => parentPort.postMessage(view[0]));
      parentPort.postMessage(code);
    `,
      region,
    );
    expect(await nextMessage(worker)).toBe('EPERM');
    expect(view[1]).toBe(1);
    native.regionClose(region);
    const answer = nextMessage(worker);
    worker.postMessage('look');
    expect(await answer).toBe(0xff);
    await ended(worker);
  });

  test('the end of a worker closes its regions under the views of others', async () => {
    const { path } = makeFile(4096);
    const worker = startWorker(
      `
      const fd = native.fileOpen(workerData, 2, 0);
      parentPort.on('message', () => process.exit());
      parentPort.postMessage(native.regionMap(fd, 0, 4096, true));
    `,
      path,
    );
    const region = await nextMessage<number>(worker);
    const view = new Uint8Array(native.regionBuffer(region));
    expect(view[0]).toBe(0x5a);
    worker.postMessage('end');
    await ended(worker);
    expect(view[0]).toBe(0xff);
    expect(isLost(region)).toBe(true);
  });
});

test('arguments are checked', () => {
  const { fd } = makeFile(8192);
  expectErrno(() => native.regionMap(4000, 0, 4096, true), 'EBADF');
  expectErrno(() => native.filePread(4000, 0, new Uint8Array(4)), 'EBADF');
  expectErrno(() => native.filePwrite(4000, 0, new Uint8Array(4)), 'EBADF');
  expectInvalid(() => native.regionMap(fd, 100, 4096, true));
  expectInvalid(() => native.regionMap(fd, 0, 100, true));
  expectInvalid(() => native.regionMap(fd, 0, 0, true));
  expectInvalid(() => native.regionMap(fd, -4096, 4096, true));
  expectInvalid(() => native.regionMap(fd, 0, 4096, 1 as unknown as boolean));
  expectInvalid(() => native.filePread(fd, -1, new Uint8Array(4)));
  expectInvalid(() => native.filePread(fd, 0, [] as unknown as Uint8Array));
  native.fileClose(fd);
});
