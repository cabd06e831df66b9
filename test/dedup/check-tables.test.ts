// What a check keeps of blocks and nodes: exact, whatever the counts and places.

import { expect, test } from 'vitest';
import { ExtentSet, NodeTable, References } from '../../lib/dedup/check/check-tables.js';
import { checkPool, Pool, repairPool } from '../../lib/dedup/index.js';
import { Random } from '../soak/harness.js';
import { DEVICE, PoolImage } from './pool-image.js';
import { open } from '../../lib/open.js';

const COUNTS = 1012;

test('references are those of a plain table, with counts that fit in a byte or not', () => {
  const random = new Random(7);
  const references = new References();
  const model = new Map<number, number>();
  const groups = [2, 255, 256, 2 ** 24 - 1];
  const values = [0, 1, 2, 253, 254, 255, 256, 257, 65_536, 2 ** 31];
  for (let i = 0; i < 20_000; i++) {
    const group = groups[random.below(groups.length)]!;
    const index = random.below(4) === 0 ? random.below(COUNTS) : 1008 + random.below(4);
    const key = group * COUNTS + index;
    expect(references.at(group, index)).toBe(model.get(key) ?? 0);
    // One more or less, as maps are read and mended, across what a byte holds; or anything.
    const step = (model.get(key) ?? 0) + (random.chance(0.5) ? 1 : -1);
    const isStep = random.chance(0.7) && step >= 0;
    const count = isStep ? step : values[random.below(values.length)]!;
    references.set(group, index, count);
    model.set(key, count);
  }
  const found = new Uint32Array(COUNTS).fill(77);
  for (const group of [...groups, 3, 1000]) {
    references.copyTo(found, group);
    const wanted = Uint32Array.from(found, (_, b) => model.get(group * COUNTS + b) ?? 0);
    expect(found).toEqual(wanted);
  }
});

test('extents and nodes are found where they were put, and nowhere else', () => {
  const random = new Random(8);
  const extents = new ExtentSet();
  const nodes = new NodeTable();
  const inSet = new Set<number>();
  const numbers = new Map<number, number>();
  // Dense, and on both sides of where pieces meet.
  const place = (): number => (1 + random.below(4)) * 2 ** 27 + random.below(600) - 300;
  for (let i = 0; i < 20_000; i++) {
    const [extent, pbn] = [place(), place()];
    if (random.chance(0.2)) {
      const value = random.chance(0.2) ? 0 : random.below(2 ** 31) * 2 ** 15;
      extents.add(extent);
      inSet.add(extent);
      nodes.set(pbn, value);
      numbers.set(pbn, value);
    }
    expect(extents.has(extent)).toBe(inSet.has(extent));
    expect(nodes.get(pbn)).toBe(numbers.get(pbn));
  }
});

test('a block that is named more often than a byte counts', async () => {
  const [block, runs, times] = [4096, 16, 600];
  const device = await open(DEVICE);
  await Pool.create(device);
  const pool = await Pool.open(device);
  await pool.createVolume('same', runs * times * block);
  const disk = pool.openVolume('same');
  const buffer = disk.memory.alloc(runs * block);
  buffer.u32.forEach((_, i, words) => (words[i] = Math.imul(i + 1, 2654435761)));
  for (let i = 0; i < times; i++) await disk.write(i * runs, buffer);
  buffer.free();
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true, blocks: runs });

  const image = await PoolImage.of(device);
  const [extent] = image.extents(false);
  const pbn = image.count(extent! >>> 2);
  const counts = image.set(pbn, 8, COUNTS).filter((at) => image.page(pbn)[at] === times);
  expect(counts).toHaveLength(runs);
  // Also counts whose last byte is the right one.
  for (const [wrong, what] of [
    [times - 1, 'too low'],
    [times - 256, 'too low'],
    [times + 256, 'too high'],
  ] as const) {
    const copy = image.copy();
    copy.change(pbn, (words) => (words[counts[0]!] = wrong));
    await copy.put(device);
    const { findings } = await checkPool(device);
    expect(findings).toMatchObject([{ kind: 'references', where: { pbn } }]);
    expect(findings[0]!.message).toContain(`1 blocks with ${what} a count`);
    expect(findings[0]!.message).toContain(`counted ${wrong}, named ${times} times`);
    const report = await repairPool(device);
    expect(report).toMatchObject({ done: true, leftTotal: 0, check: { clean: true } });
    const mended = await PoolImage.of(device);
    expect(mended.page(mended.count(extent! >>> 2))[counts[0]!]).toBe(times);
  }
  await device.close();
});
