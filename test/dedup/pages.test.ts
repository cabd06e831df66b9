// The cache of metadata pages, held against a map of its own.

import { Reach } from '../../lib/dedup/reach.js';
import { expect, it } from 'vitest';
import type { PoolIo } from '../../lib/dedup/durable/io.js';
import { Magic } from '../../lib/dedup/format/layout.js';
import { Miss, PageCache } from '../../lib/dedup/durable/pages.js';
import { Random } from '../soak/harness.js';

const IO = { ask: () => undefined, reach: Reach.any } as unknown as PoolIo;

it('has a page once, wherever it moves, and finds it', () => {
  const cache = new PageCache(IO, 1, 64, 7);
  const random = new Random(3);
  /** The frame of each page. */
  const model = new Map<number, number>();
  for (let step = 0; step < 20_000; step++) {
    const pbn = 1 + random.below(200);
    const known = [...model.keys()];
    const choice = random.below(3);
    if (choice === 0 && model.size < 60) {
      const frame = cache.make(pbn, Magic.node, 0, 1);
      expect(frame).toBeGreaterThanOrEqual(0);
      model.set(pbn, frame);
    } else if (choice === 1 && known.length > 0) {
      // To a page that may be here, of something that was freed.
      const from = random.pick(known);
      const frame = model.get(from)!;
      if (from === pbn) continue;
      cache.move(frame, pbn);
      model.delete(from);
      model.set(pbn, frame);
    } else if (known.length > 0) {
      const gone = random.pick(known);
      cache.drop(model.get(gone)!);
      model.delete(gone);
    }
    expect(cache.frames - cache.freeFrames).toBe(model.size);
    for (const [page, frame] of model) {
      if (cache.frameOf(page) !== frame) expect(`page ${page}`).toBe(`in frame ${frame}`);
    }
    if (!model.has(pbn)) expect(cache.frameOf(pbn)).toBe(-1);
  }
  cache.close();
});

it('gives up pages that are not needed, and no others', () => {
  const cache = new PageCache(IO, 1, 8, 7);
  for (let pbn = 1; pbn <= 8; pbn++) cache.make(pbn, Magic.node, 0, 1);
  // All are dirty.
  expect(cache.make(9, Magic.node, 0, 1)).toBe(Miss.wait);
  cache.dirty.fill(0);
  cache.dirtyCount = 0;
  cache.pins[cache.frameOf(1)] = 1;
  cache.staged[cache.frameOf(2)] = 1;
  for (let pbn = 10; pbn < 30; pbn++) {
    const frame = cache.make(pbn, Magic.node, 0, 1);
    expect(frame).toBeGreaterThanOrEqual(0);
    cache.dirty[frame] = 0;
    cache.dirtyCount = 0;
  }
  expect(cache.frameOf(1)).toBeGreaterThanOrEqual(0);
  expect(cache.frameOf(2)).toBeGreaterThanOrEqual(0);
  cache.close();
});

it('takes a page that comes into a frame for one that nobody has changed', () => {
  const cache = new PageCache(IO, 1, 8, 7);
  const frame = cache.make(5, Magic.summary, 0, 3);
  expect(cache.generations[frame]).toBe(3);
  cache.drop(frame);
  // Into the same frame, from the device.
  expect(cache.get(6, Magic.node, 0)).toBe(Miss.wait);
  expect(cache.frameOf(6)).toBe(frame);
  expect(cache.generations[frame]).toBeLessThan(1);
  cache.close();
});
