// Read extents: what the pool counts in its maps is what a plain look at every block finds.

import { expect, it } from 'vitest';
import { ExtentCounter } from '../../lib/dedup/maps/extents.js';
import { Pool } from '../../lib/dedup/index.js';
import { Magic, Node } from '../../lib/dedup/format/layout.js';
import { Miss } from '../../lib/dedup/durable/pages.js';
import { open } from '../../lib/open.js';
import { write } from './contents.js';

const CACHE_BYTES = 2 ** 20;

/** Writes blocks with these contents. */
function numbers(from: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => from + i);
}

/** The blocks that a volume maps, holes left out. */
async function blocksOf(pool: Pool, name: string): Promise<number[]> {
  const { engine } = pool;
  const volume = engine.parts.catalogue.get(name);
  const found: number[] = [];
  for (let lbn = 0; lbn < volume.bytes / 4096; lbn++) {
    let frame = engine.parts.trees.leaf(volume, Math.floor(lbn / Node.entries), Magic.node);
    while (frame === (Miss.wait as number)) {
      await engine.turn();
      frame = engine.parts.trees.leaf(volume, Math.floor(lbn / Node.entries), Magic.node);
    }
    const pbn = frame < 0 ? 0 : engine.parts.trees.entry(frame, lbn % Node.entries);
    if (pbn !== 0) found.push(pbn);
  }
  return found;
}

it('counts series, and which of them only metadata parts from the one before', () => {
  const counter = new ExtentCounter();
  // An extent of the pool has 256 pages, of which the first three are metadata.
  for (const pbn of [1027, 1028, 1029, 1031, 1278, 1279, 1283, 1284, 1027]) counter.add(pbn);
  expect(counter.result).toEqual({ blocks: 9, extents: 5, seams: 1 });
  counter.begin();
  counter.add(1028); // follows, but is another volume's
  expect(counter.result).toEqual({ blocks: 10, extents: 6, seams: 1 });
});

it('counts what the maps of all volumes say, also when they are not in memory', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { sampling: 1 });
  let pool = await Pool.open(device, { cacheBytes: CACHE_BYTES });
  // The third has more leaves than the cache has frames.
  for (const [name, blocks] of Object.entries({ one: 700, two: 700, wide: 160_000 })) {
    await pool.createVolume(name, blocks * 4096);
  }
  const [one, two, wide] = ['one', 'two', 'wide'].map((name) => pool.openVolume(name));
  for (let at = 0; at < 600; at += 200) await write(one!, at, numbers(at + 1, 200));
  // The same blocks in other order, in runs that the pool shares; a gap after each.
  for (let run = 0; run < 20; run++) await write(two!, run * 31, numbers(571 - run * 30, 30));
  for (let leaf = 0; leaf < 300; leaf++) await write(wide!, leaf * 512, [10_000 + leaf]);
  for (const disk of [one!, two!, wide!]) await disk.close();
  await pool.copyVolume('two', 'copy', 'snapshot');
  await pool.close();

  pool = await Pool.open(device, { cacheBytes: CACHE_BYTES });
  const counted = await pool.readExtents();
  let [blocks, extents] = [0, 0];
  for (const name of ['one', 'two', 'wide', 'copy']) {
    const found = await blocksOf(pool, name);
    blocks += found.length;
    extents += found.filter((pbn, i) => i === 0 || pbn !== found[i - 1]! + 1).length;
  }
  expect(counted).toMatchObject({ blocks, extents });
  expect(blocks).toBe(600 + 600 + 300 + 600);
  // At least the runs of `two` and its copy, and the extents that `one` fills.
  expect(extents).toBeGreaterThanOrEqual(2 * 20 + 3);
  expect(counted.seams).toBeLessThan(extents);
  await pool.close();

  // A walk that the close of its pool meets ends, and the pool is closed after it.
  pool = await Pool.open(device, { cacheBytes: CACHE_BYTES });
  const walk = pool.readExtents();
  const closed = pool.close();
  await expect(walk).rejects.toMatchObject({ code: 'DEVICE_CLOSED' });
  await closed;
  await device.close();
});
