// Hugepages for a test on a machine that has reserved none. They are allowed beyond the pool
// (nr_overcommit_hugepages), so that they exist only while they are used: the pool's free pages,
// by which an allocation chooses its page size, stay as they are for tests that run beside.

import { readFileSync, writeFileSync } from 'node:fs';
import type { TestContext } from 'vitest';
import { skipLoudly } from './environment.js';

const OVERCOMMIT = '/proc/sys/vm/nr_overcommit_hugepages';
const HUGEPAGE_BYTES = 2 ** 21;
/** Left to everything else. */
const SPARE_BYTES = 2 ** 30;

/**
 * Lets `count` more hugepages of 2 MiB be used; gives what takes that back. One test file at a time
 * may do so: the setting is the machine's.
 */
export function allowHugepages(
  context: Pick<TestContext, 'task' | 'skip'>,
  count: number,
): () => void {
  if (process.getuid!() !== 0) skipLoudly(context, 'allowing hugepages needs root');
  const available = /^MemAvailable: *(\d+) kB$/m.exec(readFileSync('/proc/meminfo', 'utf8'));
  if (Number(available?.[1]) * 1024 < count * HUGEPAGE_BYTES + SPARE_BYTES) {
    skipLoudly(context, `${count} hugepages do not fit in memory`);
  }
  let before: string;
  try {
    before = readFileSync(OVERCOMMIT, 'utf8');
    writeFileSync(OVERCOMMIT, String(Number(before) + count));
  } catch (error) {
    return skipLoudly(context, `no hugepages: ${(error as Error).message}`);
  }
  return () => writeFileSync(OVERCOMMIT, before);
}
