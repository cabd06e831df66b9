// Temporary files and child processes of a benchmark, and what else it changed: all is as it was
// when it ends, also by a signal.

import type { ChildProcess } from 'node:child_process';
import { closeSync, fsyncSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { randomFillSync } from 'node:crypto';

const CHUNK_BYTES = 1 << 20;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

const folders = new Set<string>();
const children = new Set<ChildProcess>();
const undos = new Set<() => void>();
let isInstalled = false;

function cleanUp(): void {
  for (const child of children) child.kill('SIGTERM');
  children.clear();
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
  folders.clear();
  for (const undo of undos) undo();
  undos.clear();
}

function install(): void {
  if (isInstalled) return;
  isInstalled = true;
  process.once('exit', cleanUp);
  for (const signal of SIGNALS) {
    process.once(signal, () => {
      cleanUp();
      process.exit(signal === 'SIGINT' ? 130 : 143);
    });
  }
}

/** Ends the child when this process ends first. */
export function adoptChild(child: ChildProcess): void {
  install();
  children.add(child);
  child.once('close', () => children.delete(child));
}

/** Calls it at the end, once. */
export function atEnd(undo: () => void): void {
  install();
  undos.add(undo);
}

/** A new folder below `parent` (the system's temporary folder by default), removed at exit. */
export function scratchFolder(parent: string = tmpdir()): string {
  install();
  const folder = mkdtempSync(join(parent, 'penstock-bench-'));
  folders.add(folder);
  return folder;
}

/** Writes a file of random bytes: no file system compresses it or leaves holes. */
export function writeRandomFile(path: string, bytes: number): void {
  const chunk = randomFillSync(Buffer.allocUnsafe(CHUNK_BYTES));
  const fd = openSync(path, 'wx');
  try {
    for (let at = 0; at < bytes; at += CHUNK_BYTES) {
      chunk.writeDoubleLE(at, 0);
      const wanted = Math.min(CHUNK_BYTES, bytes - at);
      for (let done = 0; done < wanted;) done += writeSync(fd, chunk, done, wanted - done);
    }
    // Blocks get their places on the disk, and no write-back runs beside the measurement.
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** Reads a whole file once, so that the page cache holds it. */
export function readThrough(path: string): void {
  const chunk = Buffer.allocUnsafe(CHUNK_BYTES);
  const fd = openSync(path, 'r');
  try {
    while (readSync(fd, chunk, 0, CHUNK_BYTES, null) > 0) continue;
  } finally {
    closeSync(fd);
  }
}
