// Waiting until one of a pool's devices may have answered.

import type { PoolIo } from './durable/io.js';

const SLEEP_MS = 50;
/** How long a thread is blocked for low-latency memory before it looks at the data device. */
const FAST_PARK_US = 200;

/** Resolves when something may have been answered; at the next turn where nothing is under way. */
export async function breathe(io: PoolIo, fast: PoolIo | undefined): Promise<void> {
  if (fast !== undefined && fast.inFlight > 0) {
    await Promise.race([fast.sleep(SLEEP_MS), io.sleep(SLEEP_MS)]);
  } else if (io.inFlight > 0) await io.sleep(SLEEP_MS);
  else await new Promise((resolve) => setImmediate(resolve));
}

/** Blocks the thread until something may have been answered, at most `timeoutUs`. */
export function park(io: PoolIo, fast: PoolIo | undefined, timeoutUs: number): void {
  if (fast !== undefined && fast.inFlight > 0) fast.park(Math.min(timeoutUs, FAST_PARK_US));
  // Where nothing is under way the next round goes on.
  else if (io.inFlight > 0) io.park(timeoutUs);
}
