// The path of a hub: who may listen there, and what a dead hub left.

import { createHash } from 'node:crypto';
import { lstatSync, realpathSync, unlinkSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';

/** One spelling for one place, whatever links lead to it: two hubs must not miss each other. */
export function wholePath(path: string): string {
  const whole = resolve(path);
  try {
    return join(realpathSync(dirname(whole)), basename(whole));
  } catch {
    return whole; // no such folder: said when the socket is made
  }
}

/** An abstract name that the kernel frees with its holder: one hub at a path at a time. */
export function takeLock(path: string): number {
  try {
    const name = createHash('sha256').update(path).digest('hex');
    return native.unixListen(`\0penstock-hub-${name}`, 0o600);
  } catch (cause) {
    if (errnoCode(cause) !== 'EADDRINUSE') throw cause;
    throw hubBusy(path, cause);
  }
}

/** Removes the socket that a dead hub left, and only such: another program may listen there. */
export function removeStale(path: string): void {
  let facts;
  try {
    facts = lstatSync(path);
  } catch {
    return; // nothing there
  }
  if (!facts.isSocket()) {
    throw new PenstockError('NOT_A_SOCKET', `${path} is there and no socket`, {
      hint: 'choose another path for the hub',
      exitCode: 3,
    });
  }
  if (isListenedOn(path)) throw hubBusy(path);
  unlinkSync(path);
}

export function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody has removed it.
  }
}

/** Another program may be there; a hub of another network namespace does not hold the lock. */
function isListenedOn(path: string): boolean {
  try {
    native.fileClose(native.unixConnect(path));
    return true;
  } catch (error) {
    const code = errnoCode(error);
    if (code === '') throw error;
    // A stream socket answers EPROTOTYPE where somebody listens, and a full queue EAGAIN.
    return code === 'EPROTOTYPE' || code === 'EAGAIN' || code === 'EACCES';
  }
}

function hubBusy(path: string, cause?: unknown): PenstockError {
  return new PenstockError('HUB_BUSY', `somebody listens at ${path} already`, {
    hint: 'use that hub, or choose another path',
    exitCode: 3,
    ...(cause === undefined ? {} : { cause }),
  });
}
