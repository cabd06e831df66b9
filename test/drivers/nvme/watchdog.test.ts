// The watchdog's sense of time: which commands it calls overdue, and which it does not.

import { expect, it } from 'vitest';
import { PairTable, PairWord, Slot } from '../../../lib/drivers/nvme/pairs.js';
import { Watchdog } from '../../../lib/drivers/nvme/watchdog.js';
import { Liveness } from '../../../lib/memory/index.js';

/** Looks within a command's time. */
const LOOKS = 4;

it('gives a command that a reset cut off all of its time again', () => {
  const owner = new Liveness();
  const table = PairTable.create({ pairs: 1, entries: 4 }, 'private');
  const { header, slots } = table.views(table.claim(owner.index, owner.serial));
  header[PairWord.depth] = 1;
  slots[Slot.op] = 1;
  slots[Slot.serial] = 7;
  const watchdog = new Watchdog(table, 1000);
  /** Looks until the command is overdue. */
  const patience = (): number => {
    for (let looks = 1; looks < 100; looks++) {
      if (watchdog.look().expired.length > 0) return looks;
    }
    return Infinity;
  };
  for (let look = 0; look < LOOKS; look++) expect(watchdog.look().expired).toEqual([]);
  header[PairWord.generation]! += 1; // what a reset does; the slot keeps its operation
  expect(patience()).toBe(LOOKS);
  expect(patience()).toBe(1);
  owner.close();
  table.segment.close();
});
