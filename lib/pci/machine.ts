// What setting a machine up needs of it beyond reading: every change that binding makes goes
// through here, one method each, so that tests can put a made-up kernel behind it and let each
// change fail.
//
// Invariant: a write is one write(2) of the whole text, as sysfs takes it; a file is saved whole
// and on its medium, or not at all.

import { spawnSync } from 'node:child_process';
import { accessSync, chownSync, closeSync, constants, fsyncSync, mkdirSync } from 'node:fs';
import { openSync, renameSync, rmSync, statSync, writeSync } from 'node:fs';
import { networkInterfaces } from 'node:os';
import { dirname, join } from 'node:path';
import { PenstockError, errnoCode } from '../errors.js';
import { type Root, fileRoot } from './root.js';

export interface Machine {
  readonly root: Root;
  /** Throws the system call's error (EBUSY, ENODEV, …): what the kernel said to it. */
  write(path: string, text: string): void;
  /** Errors: MODULE_MISSING. */
  loadModule(name: string): void;
  /** Whether `loadModule` can be expected to work. */
  canLoadModule(name: string): boolean;
  canWrite(path: string): boolean;
  chown(path: string, uid: number): void;
  /** User that owns the path; -1 when there is none. */
  ownerOf(path: string): number;
  /**
   * Opens the path and closes it again; '' when that worked, else errno's name. `exclusively` is
   * O_EXCL without O_CREAT: EBUSY for a block device that somebody has claimed.
   */
  tryOpen(path: string, how: 'exclusively' | 'for writing'): string;
  /** Addresses of the network interfaces that are up, by name. */
  networkAddresses(): ReadonlyMap<string, readonly string[]>;
  /** Writes the file under another name, on its medium, and renames it; makes its folder (0700). */
  save(path: string, text: string): void;
  remove(path: string): void;
  now(): Date;
  sleep(ms: number): Promise<void>;
}

/** This machine; with a prefix, the tree below it (whose files take what is written to them). */
export function hostMachine(prefix = ''): Machine {
  const at = (path: string): string => (prefix === '' ? path : join(prefix, path));
  return {
    root: fileRoot(prefix),
    write: (path, text) => writeOnce(at(path), text),
    loadModule,
    canLoadModule: (name) => modprobe('--dry-run', '--quiet', name).status === 0,
    canWrite: (path) => succeeds(() => accessSync(at(path), constants.W_OK)),
    chown: (path, uid) => chownSync(at(path), uid, statSync(at(path)).gid),
    ownerOf: (path) => statSync(at(path), { throwIfNoEntry: false })?.uid ?? -1,
    tryOpen: (path, how) => tryOpen(at(path), how),
    networkAddresses,
    save: (path, text) => saveWhole(at(path), text),
    remove: (path) => rmSync(at(path), { force: true }),
    now: () => new Date(),
    sleep: (ms) => new Promise((resolve) => setTimeout(resolve, ms)),
  };
}

function writeOnce(path: string, text: string): void {
  // Without O_CREAT and O_TRUNC: what is not there is not made.
  const fd = openSync(path, constants.O_WRONLY);
  try {
    writeSync(fd, text);
  } finally {
    closeSync(fd);
  }
}

function saveWhole(path: string, text: string): void {
  const folder = dirname(path);
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const beside = `${path}.new`;
  const fd = openSync(beside, 'w', 0o600);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  renameSync(beside, path);
  const folderFd = openSync(folder, constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(folderFd);
  } finally {
    closeSync(folderFd);
  }
}

function tryOpen(path: string, how: 'exclusively' | 'for writing'): string {
  const flags = how === 'exclusively' ? constants.O_RDONLY | constants.O_EXCL : constants.O_RDWR;
  try {
    closeSync(openSync(path, flags));
    return '';
  } catch (error) {
    return errnoCode(error);
  }
}

function loadModule(name: string): void {
  const { status, stderr, error } = modprobe(name);
  if (status === 0) return;
  throw new PenstockError('MODULE_MISSING', `the kernel module ${name} cannot be loaded`, {
    hint: `modprobe ${name} says: ${(error?.message ?? stderr.trim()) || 'nothing'}`,
    exitCode: 3,
    cause: error,
  });
}

/** With the folders that hold it for root, which a user's PATH need not have. */
function modprobe(...words: string[]) {
  const path = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`;
  return spawnSync('modprobe', words, {
    encoding: 'utf8',
    env: { ...process.env, PATH: path },
    timeout: 60_000,
  });
}

function networkAddresses(): Map<string, readonly string[]> {
  const found = Object.entries(networkInterfaces());
  return new Map(found.map(([name, list = []]) => [name, list.map((entry) => entry.address)]));
}

function succeeds(attempt: () => void): boolean {
  try {
    attempt();
    return true;
  } catch {
    return false;
  }
}
