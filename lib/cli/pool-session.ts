// What every command of `penstock pool` and `penstock volume` stands in: the device and its pool
// are open while it runs, and are closed in order however it ends.
//
// Invariant: results are printed after the close, which makes them durable. A command that cannot
// close its pool has failed, and has printed no result.

import { Pool, type OpenOptions } from '../dedup/index.js';
import { PenstockError } from '../errors.js';
import type { BlockDevice } from '../hpdi/index.js';
import { open } from '../open.js';
import { nestedUri, parseUri } from '../uri.js';
import { catchInterrupts } from './interrupts.js';
import { Exit, printNote } from './output.js';

/** Help of commands that only look, and yet become the owner of the pool (docs/pool.md). */
export const OPENS_POOL = `
This opens the pool. Where nothing locks its device (idc:, a drive that two hosts reach) that takes
it from whoever has it open, and what that one writes from then on is lost. \`penstock pool check\`
and \`penstock pool stats PATH\`, the socket of its dedup.stats, leave it to its owner.`;

/** Opens the device of a pool, runs, closes it. Throws BAD_OPTION for the URI of a volume. */
export async function withDevice<T>(
  uri: string,
  run: (device: BlockDevice, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  assertNoVolume(uri);
  const interrupts = catchInterrupts();
  try {
    const device = await open(uri);
    return await closing(device, () => run(device, interrupts.signal));
  } finally {
    interrupts.release();
  }
}

/** A volume could hold a pool, which no URI could name: what is meant is what it lies on. */
function assertNoVolume(text: string): void {
  const uri = parseUri(text);
  if (uri.scheme !== 'dedup') return;
  throw new PenstockError('BAD_OPTION', `'${text}' is a volume, not the device of a pool`, {
    hint: `give the device: ${nestedUri(uri).inner.text}`,
    exitCode: Exit.USAGE,
  });
}

/** Opens a device and its pool, runs, closes both. */
export function withPool<T>(
  uri: string,
  run: (pool: Pool, signal: AbortSignal) => Promise<T>,
  options: OpenOptions = { openLlrrm: open, cleanEveryMs: 0 },
): Promise<T> {
  return withDevice(uri, async (device, signal) => {
    throwIfInterrupted(signal);
    const pool = await Pool.open(device, options);
    if (pool.space !== 'ok') warnOfSpace(uri, pool);
    pool.onSpace(() => warnOfSpace(uri, pool));
    return closing(pool, () => {
      throwIfInterrupted(signal);
      return run(pool, signal);
    });
  });
}

function warnOfSpace(uri: string, pool: Pool): void {
  const used = Math.floor(pool.stats().used_percent);
  printNote(`space of the pool of ${uri} is ${pool.space}: ${used} % in use or promised`);
}

/** Runs, then closes; of two failures the first is the one that explains the other. */
export async function closing<T>(
  what: { close(): Promise<void> },
  run: () => Promise<T>,
): Promise<T> {
  let result: T;
  try {
    result = await run();
  } catch (error) {
    await what.close().catch(() => undefined);
    throw error;
  }
  await what.close();
  return result;
}

/**
 * Waits till the pool has nothing under way: what was deleted is free then. Throws INTERRUPTED,
 * with what has been `done` all the same.
 */
export async function settled(pool: Pool, signal: AbortSignal, done = ''): Promise<void> {
  await Promise.race([pool.settle(), aborted(signal)]);
  if (done === '') throwIfInterrupted(signal);
  if (!signal.aborted) return;
  throw new PenstockError('INTERRUPTED', `interrupted: ${done}, and not all of its space is free`, {
    hint: 'The rest comes free in the background when the pool is opened again.',
    exitCode: Exit.INTERRUPTED,
  });
}

/** Waits for `promise`, or throws INTERRUPTED as soon as `signal` says so. */
export async function orInterrupted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  await Promise.race([promise, aborted(signal)]);
  throwIfInterrupted(signal);
  return promise;
}

/** What hears `signal` itself, and is waited for: INTERRUPTED when the signal has ended it. */
export async function untilInterrupted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return promise.catch((error: unknown) => {
    if (error === signal.reason) throwIfInterrupted(signal);
    throw error;
  });
}

function aborted(signal: AbortSignal): Promise<void> {
  if (signal.aborted) return Promise.resolve();
  return new Promise((resolve) => {
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
}

export function throwIfInterrupted(signal: AbortSignal): void {
  if (signal.aborted) throw interrupted();
}

/** Of a command that ended early: thrown, or printed with what it did until then. */
export function interrupted(): PenstockError {
  return new PenstockError('INTERRUPTED', 'interrupted: the command did not finish', {
    hint: 'The pool is closed in order; run the command again.',
    exitCode: Exit.INTERRUPTED,
  });
}
