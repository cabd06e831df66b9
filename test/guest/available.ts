// Tests that boot a guest say so first, and skip by name where none can be booted.

import type { TestContext } from 'vitest';
import { skipLoudly } from '../support/environment.js';
import { guestImage, GuestUnavailable } from './image.js';

/** Skips the running test where no guest can run; `CI=true` fails it instead. */
export async function needGuest(context: Pick<TestContext, 'task' | 'skip'>): Promise<void> {
  try {
    await guestImage();
  } catch (error) {
    if (!(error instanceof GuestUnavailable)) throw error;
    skipLoudly(context, error.message);
  }
}
