// A pool and the oracle agree, block for block: which blocks are stored, and what the others refer
// to. Unsampled, THN 1 to 64, on random sets with much, little and shifted repetition.

import { describe, expect, it } from 'vitest';
import { Pool } from '../../lib/dedup/index.js';
import { Magic, Node } from '../../lib/dedup/format/layout.js';
import { open } from '../../lib/open.js';
import { Random } from '../soak/harness.js';
import { fillBlock } from '../soak/dedup-model.js';
import { Oracle } from './oracle.js';

const BLOCKS = 6000;
const SETS = 90;

/** The block that each logical block of a volume is kept in; 0: none. */
function mapOf(pool: Pool, name: string): number[] {
  const { catalogue, trees } = pool.engine.parts;
  const volume = catalogue.get(name);
  return Array.from({ length: BLOCKS }, (_, lbn) => {
    const frame = trees.leaf(volume, Math.floor(lbn / Node.entries), Magic.node);
    return frame < 0 ? 0 : trees.entry(frame, lbn % Node.entries);
  });
}

/** Random sets: new contents, and parts of earlier sets, shifted, cut and interrupted. */
function* setsOf(random: Random): Generator<{ first: number; set: number[] }> {
  let content = 1;
  const earlier: number[][] = [];
  for (let at = 0, i = 0; i < SETS && at < BLOCKS - 256; i++) {
    const length = random.pick([1, 3, 8, 20, 64, 128, 256]);
    const set: number[] = [];
    while (set.length < length) {
      const part = random.between(1, 80);
      if (earlier.length > 0 && random.chance(0.6)) {
        const from = random.pick(earlier);
        const start = random.below(from.length);
        set.push(...from.slice(start, start + part));
      } else if (random.chance(0.05)) {
        set.push(0);
      } else {
        for (let b = 0; b < part; b++) set.push(content++);
      }
    }
    set.length = length;
    earlier.push(set);
    yield { first: at, set };
    // A gap, so that the next set does not follow this one.
    at += length + 1;
  }
}

describe('a pool and the oracle', () => {
  it.each([1, 2, 3, 4, 8, 16, 32, 64, 0])('agree with THN %i', async (thn) => {
    for (const seed of [1, 2, 3]) {
      const device = await open('ram:64MiB');
      await Pool.create(device, { thn, sampling: 1 });
      const pool = await Pool.open(device, { cacheBytes: 2 ** 21 });
      await pool.createVolume('one', BLOCKS * 4096);
      const disk = pool.openVolume('one');
      const oracle = new Oracle(thn);
      const wanted: number[] = new Array<number>(BLOCKS).fill(-1);
      const buffer = disk.memory.alloc(256 * 4096);
      for (const { first, set } of setsOf(new Random(seed * 100 + thn))) {
        for (const [i, block] of set.entries()) fillBlock(buffer.u32, i * 1024, block);
        const part = disk.memory.alloc(set.length * 4096);
        part.u8.set(buffer.u8.subarray(0, part.bytes));
        await disk.write(first, part);
        part.free();
        for (const [i, place] of oracle.write(set).entries()) wanted[first + i] = place;
      }
      // Places and blocks are given out in the same order: the n-th is the n-th.
      const pbns = mapOf(pool, 'one');
      const stored = [...new Set(pbns.filter((pbn) => pbn !== 0))].sort((a, b) => a - b);
      const placeOf = new Map(stored.map((pbn, place) => [pbn, place]));
      expect(pbns.map((pbn) => placeOf.get(pbn) ?? -1)).toEqual(wanted);
      expect(stored.length).toBe(oracle.places.length);
      const written = pbns.filter((pbn) => pbn !== 0).length;
      if (thn > 0 && thn <= 32) expect(stored.length).toBeLessThan(written * 0.9);
      else if (thn === 0) expect(stored.length).toBe(written);
      buffer.free();
      await disk.close();
      await pool.close();
      await device.close();
    }
  });
});
