// The journal's order of acknowledgement, with a device that answers when the test says so.

import { Reach } from '../../lib/dedup/reach.js';
import { afterEach, describe, expect, it } from 'vitest';
import type { PoolIo } from '../../lib/dedup/durable/io.js';
import { Journal } from '../../lib/dedup/durable/journal.js';
import { StageClock } from '../../lib/dedup/stats/stage-clock.js';
import { Ticks } from '../../lib/dedup/stats/ticks.js';

const PLACE = { page: 100, pages: 64, seed: 1, epoch: 1 };
const journals: Journal[] = [];
afterEach(() => {
  for (const journal of journals.splice(0)) journal.close();
});

/** A journal whose next entry goes to a page of its ring, and the buffers of its writes. */
function journalAt(page: number): { journal: Journal; asked: number[]; pages: number[] } {
  const asked: number[] = [];
  const pages: number[] = [];
  const io = {
    reach: Reach.any,
    askWords: (
      ...[, pbn, , , , , , owner]: [number, number, number, number, number, number, number, number]
    ) => {
      asked.push(owner);
      pages.push(pbn - PLACE.page);
    },
  } as unknown as PoolIo;
  const journal = new Journal(io, 4, PLACE, 10, page, new StageClock(new Ticks()));
  journals.push(journal);
  return { journal, asked, pages };
}

/** An entry of so many words; its sequence, as a set in it has it. */
function entry(journal: Journal, words: number): number {
  expect(journal.room(words)).toBe(true);
  journal.added(words);
  const { seq } = journal;
  journal.commit();
  return seq;
}

describe('an entry', () => {
  it('is complete when all before it are', () => {
    const { journal, asked } = journalAt(0);
    const [first, second] = [entry(journal, 100), entry(journal, 100)];
    journal.answered(asked[1]!, 0);
    expect(journal.completed).toBeLessThan(first);
    journal.answered(asked[0]!, 0);
    expect(journal.completed).toBe(second);
  });

  it('after a wrap is complete when both are with the device, whatever else is', () => {
    const { journal, asked, pages } = journalAt(62);
    const first = entry(journal, 100);
    // Two pages where one is left: a wrap goes before it, and takes a sequence of its own.
    const second = entry(journal, 1500);
    expect(pages).toEqual([62, 63, 0]);
    journal.answered(asked[0]!, 0);
    expect(journal.completed).toBe(first);
    expect(journal.completed).toBeLessThan(second);
    journal.answered(asked[2]!, 0);
    expect(journal.completed).toBe(first);
    journal.answered(asked[1]!, 0);
    expect(journal.completed).toBe(journal.seq);
    expect(journal.completed).toBeGreaterThanOrEqual(second);
  });

  it('that holds nothing leaves no gap', () => {
    const { journal } = journalAt(0);
    const { seq } = journal;
    expect(journal.room(10)).toBe(true);
    journal.commit();
    expect(journal.seq).toBe(seq);
  });

  it('finds no room where a checkpoint still needs the ring', () => {
    const { journal, asked } = journalAt(0);
    while (journal.room(16_000)) {
      journal.added(16_000);
      journal.commit();
    }
    expect(asked.length).toBeGreaterThan(1);
    for (const owner of asked) journal.answered(owner, 0);
    expect(journal.room(100)).toBe(false);
    journal.reclaim(journal.written);
    expect(journal.room(100)).toBe(true);
  });

  it('that the device did not take ends it', () => {
    const { journal, asked } = journalAt(0);
    const seq = entry(journal, 100);
    journal.answered(asked[0]!, 7);
    expect(journal.broken).toBe(7);
    expect(journal.completed).toBeLessThan(seq);
    expect(journal.room(100)).toBe(false);
  });
});
