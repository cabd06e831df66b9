// Tests that need something this machine may lack skip here, and only here, so that a skip is seen.

import type { TestContext } from 'vitest';

/**
 * Skips the running test and says why; with CI=true it fails in its place, because a machine of CI
 * has everything the tests need.
 */
export function skipLoudly(context: Pick<TestContext, 'task' | 'skip'>, reason: string): never {
  const line = `SKIPPED ${context.task.name}: ${reason}`;
  if (process.env['CI'] === 'true') throw new Error(`${line} (not allowed with CI=true)`);
  process.stderr.write(`${line}\n`);
  return context.skip(reason);
}
