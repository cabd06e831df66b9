// Tests that boot a guest say so first, and skip by name where none can be booted.

import type { TestContext } from 'vitest';
import { skipLoudly } from '../support/environment.js';
import { checkPrograms, guestImage, GuestUnavailable } from './image.js';

type Context = Pick<TestContext, 'task' | 'skip'>;

/** Skips the running test where no guest can run; `CI=true` fails it instead. */
export async function needGuest(context: Context): Promise<void> {
  try {
    await guestImage();
  } catch (error) {
    skipUnavailable(context, error);
  }
}

/** The same for a test that needs QEMU alone (test/support/qtest.ts). */
export function needQemu(context: Context): void {
  try {
    checkPrograms();
  } catch (error) {
    skipUnavailable(context, error);
  }
}

/** For suites that are declared or not; at least one test beside them says so by needQemu. */
export function isQemuThere(): boolean {
  try {
    checkPrograms();
    return true;
  } catch {
    return false;
  }
}

function skipUnavailable(context: Context, error: unknown): never {
  if (error instanceof GuestUnavailable) skipLoudly(context, error.message);
  throw error;
}
