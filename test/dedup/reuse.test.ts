// Places that are given out again: what was there is nobody's any more, and what is there now is
// not taken for it.

import { expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { Magic } from '../../lib/dedup/format/layout.js';
import { groupOf } from '../../lib/dedup/format/numbers.js';
import { open } from '../../lib/open.js';
import { PAGE, range, read, write } from './contents.js';
import { turn } from './turn.js';

const OPEN = { cacheBytes: 2 ** 23, indexBytes: 2 ** 20 };
const RUN = 64;
/** Blocks of a leaf of a map. */
const LEAF = 512;

it('finds no duplicates among nodes that are where their blocks were', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 1, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  for (const name of ['old', 'new']) await pool.createVolume(name, 2 ** 26);
  await pool.createVolume('wide', 2 ** 40);
  const [old, wide, again] = ['old', 'wide', 'new'].map((name) => pool.openVolume(name));
  // No extent is left that was never used.
  let count = 0;
  while (await write(old!, count, range(count + 1, RUN)).then(() => true, isFull)) count += RUN;
  expect(count * PAGE).toBeGreaterThan(2 ** 25);
  await old!.discard(0, count);
  await pool.checkpoint();
  // A leaf each: nodes go where the first contents were, and are not on the device yet.
  const { pages, space } = pool.engine.parts;
  const { done } = pool.engine.parts.checkpoint;
  for (let i = 0; i < 600; i++) await write(wide!, i * LEAF, [10 ** 6 + i]);
  expect(pool.engine.parts.checkpoint.done).toBe(done);
  expect(pages.dirtyCount).toBeGreaterThan(600);
  // Their extents have the fingerprints of the time before.
  const { stale } = pool.engine.parts.thn;
  const half = Math.floor(count / 2 / RUN) * RUN;
  for (let at = 0; at < half; at += RUN) await write(again!, at, range(at + 1, RUN));
  expect(pool.engine.parts.thn.stale).toBeGreaterThan(stale);
  await pool.checkpoint();
  expect(space.broken).toBe(null);
  for (let at = 0; at < half; at += RUN) {
    expect(await read(again!, at, RUN)).toEqual(range(at + 1, RUN));
  }
  for (const disk of [old!, wide!, again!]) await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();

  function isFull(error: unknown): boolean {
    expect(error).toMatchObject({ code: 'NO_SPACE' });
    return false;
  }
});

it('keeps a block that is referred to anew while its last reference goes', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 1, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  for (const name of ['a', 'b']) await pool.createVolume(name, 2 ** 24);
  const [a, b] = ['a', 'b'].map((name) => pool.openVolume(name));
  await write(a!, 0, range(1, RUN));
  const { engine } = pool;
  const { trees, space, catalogue, checkpoint } = engine.parts;
  const pbn = trees.entry(trees.leaf(catalogue.get('a'), 0, Magic.node), 0);
  const counts = space.count(groupOf(pbn));
  const count = (): number => space.countIn(counts, pbn);
  expect(count()).toBe(1);
  // Compared with it, and not entered yet, when the last reference goes and a checkpoint is taken.
  const { writing } = engine;
  const held: [number, number][] = [];
  writing.answered = (...answer) => void held.push(answer);
  const same = write(b!, 0, [1]);
  while (held.length === 0) await turn(pool);
  await a!.discard(0, 1);
  const taken = engine.checkpoint();
  while (!checkpoint.waitsFor(0) && !checkpoint.waitsFor(1)) await turn(pool);
  expect(count()).toBe(0);
  // It is entered and complete, and its reference waits for a page of counts.
  space.settle = () => true;
  Reflect.deleteProperty(writing, 'answered');
  for (const answer of held) writing.answered(...answer);
  await same;
  for (let i = 0; i < 20; i++) await turn(pool);
  expect(space.unsettled).toBeGreaterThan(0);
  expect(space.isFree(counts, pbn)).toBe(false);
  Reflect.deleteProperty(space, 'settle');
  expect(await taken).toBe(true);
  expect(count()).toBe(1);
  expect(await read(b!, 0, 1)).toEqual([1]);
  await a!.close();
  await b!.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});
