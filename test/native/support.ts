// What the addon's tests share: the addon, workers that load it too, segments and open descriptors.

import { spawn } from 'node:child_process';
import type { ChildProcessByStdio } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { createRequire } from 'node:module';
import type { Readable, Writable } from 'node:stream';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { expect } from 'vitest';
import { native } from '../../lib/native.js';

export { native };

const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');
const addonPath =
  process.env['PENSTOCK_ADDON'] ??
  (createRequire(import.meta.url)('node-gyp-build') as { path(root: string): string }).path(root);

/** A worker that runs `body` (plain JavaScript) with `native`, `parentPort` and `workerData`. */
export function startWorker(body: string, workerData: unknown = null): Worker {
  const prelude = `
    const { parentPort, workerData } = require('node:worker_threads');
    const native = require(${JSON.stringify(addonPath)});
  `;
  return new Worker(prelude + body, { eval: true, workerData });
}

/** A Node process that runs `body` (plain JavaScript) with `native`; `argument` is argv[1]. */
export function startProcess(
  body: string,
  argument = '',
): ChildProcessByStdio<Writable, Readable, null> {
  const code = `const native = require(${JSON.stringify(addonPath)}); ${body}`;
  return spawn(process.execPath, ['-e', code, '--', argument], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
}

/** The worker's next message; rejects when it fails or ends first. */
export function nextMessage<T>(worker: Worker): Promise<T> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number) => reject(new Error(`the worker ended with ${code}`));
    worker.once('error', reject);
    worker.once('exit', onExit);
    worker.once('message', (message: T) => {
      worker.off('error', reject);
      worker.off('exit', onExit);
      resolve(message);
    });
  });
}

/** How the worker ended; an uncaught error in it rejects. */
export function ended(worker: Worker): Promise<number> {
  return new Promise((resolve, reject) => {
    worker.once('error', reject);
    worker.once('exit', resolve);
  });
}

/** The open descriptors of this process, what lists them left out. */
export function openFds(): Set<string> {
  const listed = readdirSync('/proc/self/fd');
  return new Set(listed.filter((fd) => fdIsOpen(Number(fd))));
}

/** Expects those to be open, as soon as another thread has closed what it is about to. */
export async function untilFds(wanted: Set<string>): Promise<void> {
  const same = () => [...openFds()].sort().join() === [...wanted].sort().join();
  for (let i = 0; i < 200 && !same(); i++) await new Promise((resolve) => setTimeout(resolve, 5));
  expect(openFds()).toEqual(wanted);
}

function fdIsOpen(fd: number): boolean {
  try {
    native.fileStat(fd);
    return true;
  } catch (error) {
    expect(error).toMatchObject({ code: 'EBADF' });
    return false;
  }
}

export interface TestSegment {
  readonly id: number;
  readonly address: number;
  readonly bytes: number;
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
}

/** A private segment of ordinary pages, written through views. */
export function makeSegment(bytes = 2 ** 21): TestSegment {
  const id = native.segmentCreate(bytes, 4096, 0);
  const buffer = native.segmentBuffer(id);
  const { address } = native.segmentInfo(id);
  return { id, address, bytes, u8: new Uint8Array(buffer), u32: new Uint32Array(buffer) };
}

export function lo(address: number): number {
  return address % 2 ** 32;
}

export function hi(address: number): number {
  return Math.floor(address / 2 ** 32);
}

/** Bytes that look random and are the same for the same seed (xorshift32). */
export function fillRandom(view: Uint8Array, seed: number): void {
  let x = seed | 1;
  for (let i = 0; i < view.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    view[i] = x;
  }
}

/** Expects a TypeError or RangeError with code ERR_INVALID_ARG. */
export function expectInvalid(call: () => unknown): void {
  expect(call).toThrow(expect.objectContaining({ code: 'ERR_INVALID_ARG' }) as Error);
}

/** Expects the errno of a failed system call. */
export function expectErrno(call: () => unknown, code: string): void {
  expect(call).toThrow(expect.objectContaining({ code, syscall: expect.any(String) }) as Error);
}
