// The table of a served device's queues, as threads claim and leave its rows.

import { afterEach, describe, expect, it } from 'vitest';
import { QueueTable, Row, RowState } from '../../lib/idc/device-table.js';
import { Liveness } from '../../lib/memory/index.js';

const open: Liveness[] = [];

afterEach(() => {
  for (const liveness of open.splice(0)) liveness.close();
});

function liveness(): Liveness {
  const made = new Liveness();
  open.push(made);
  return made;
}

function ready(rows: number): QueueTable {
  const table = QueueTable.create(rows);
  for (let row = 0; row < rows; row++) table.publish(row, RowState.ready, null);
  return table;
}

describe('a row', () => {
  it("names its owner by the claim's own word, whoever had it before", () => {
    const table = ready(1);
    const [first, second] = [liveness(), liveness()];
    expect(table.isOwned(0)).toBe(false);
    expect(table.claim(first.index, first.serial)).toBe(0);
    const word = table.get(0, Row.claim);
    expect(table.isOwned(0)).toBe(true);
    expect(table.claim(second.index, second.serial)).toBe(-1);
    table.giveBack(0, false);
    // What a claim does at first, before anything else of it can be seen.
    table.set(0, Row.claim, word);
    expect(table.isOwned(0)).toBe(true);
    expect(table.isClaimedBy(first.index, first.serial)).toBe(true);
    expect(table.isClaimedBy(second.index, second.serial)).toBe(false);
    first.close();
    expect(table.isOwned(0)).toBe(false);
    // Another who has the word next is another owner.
    const third = liveness();
    expect(third.index).toBe(first.index);
    expect(table.isOwned(0)).toBe(false);
    expect(table.isClaimedBy(third.index, third.serial)).toBe(false);
    // Who has died still has the row, until the home takes it back.
    expect(table.isClaimedBy(first.index, first.serial)).toBe(true);
  });

  it('that is given back broken has no owner and can be claimed by nobody', () => {
    const table = ready(1);
    const { index, serial } = liveness();
    table.claim(index, serial);
    table.giveBack(0, true);
    expect(table.isOwned(0)).toBe(false);
    expect(table.claim(index, serial)).toBe(-1);
  });
});
