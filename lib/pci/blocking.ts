// Calls that may block for a minute in the kernel (native/blocking.cc), as promises, and a bound on
// waiting for them.

import { native } from '../native.js';

export const enum BlockingKind {
  reset = 0,
  close = 1,
}

/**
 * Starts it and gives 0 or an errno when it is over. It goes on whoever waits, and alone it does
 * not keep the process alive.
 */
export function blockingCall(kind: BlockingKind, fd: number): Promise<number> {
  const event = native.blockingStart(kind, fd);
  return new Promise((resolve) => {
    const watch = native.watchOpen(event, () => {
      native.watchClose(watch);
      const result = native.blockingResult(event);
      native.fileClose(event);
      resolve(result);
    });
    native.watchSet(watch, true, false);
  });
}

/** What it resolves to, or null after `limitMs`; the process stays alive for as long. */
export async function within<T>(promise: Promise<T>, limitMs: number): Promise<T | null> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<null>((resolve) => {
    timer = setTimeout(resolve, limitMs, null);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
