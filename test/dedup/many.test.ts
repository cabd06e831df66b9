// Many volumes and snapshots: those that are asked for at once share a checkpoint.

import { expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';
import { Random } from '../soak/harness.js';
import { range, read, write } from './contents.js';

const VOLUMES = 10_000;
const SNAPSHOTS = 1000;

it('makes 10,000 volumes and 1,000 snapshots, and deletes them', async () => {
  const device = await open('ram:128MiB');
  await Pool.create(device);
  let pool = await Pool.open(device);
  const begun = pool.stats().checkpoints.done;
  const names = Array.from({ length: VOLUMES }, (_, i) => `v${i}`);
  await Promise.all(names.map((name) => pool.createVolume(name, 2 ** 30)));
  const disk = pool.openVolume('v7');
  const buffer = disk.memory.alloc(4096);
  buffer.u8.fill(7);
  await disk.write(99, buffer);
  await disk.close();
  const copies = Array.from({ length: SNAPSHOTS }, (_, i) => `s${i}`);
  await Promise.all(copies.map((name) => pool.copyVolume('v7', name, 'snapshot')));
  expect(pool.stats().checkpoints.done - begun).toBeLessThan(6);
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true, volumes: VOLUMES + SNAPSHOTS });
  pool = await Pool.open(device);
  expect(pool.volumes).toHaveLength(VOLUMES + SNAPSHOTS);
  const last = pool.openVolume(`s${SNAPSHOTS - 1}`);
  await last.read(99, buffer);
  expect(buffer.u8.every((byte) => byte === 7)).toBe(true);
  buffer.free();
  await last.close();
  await Promise.all([...names, ...copies].map((name) => pool.deleteVolume(name)));
  await pool.settle();
  expect(pool.stats()).toMatchObject({ volumes: 0, logical_blocks_used: 0 });
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true, volumes: 0, blocks: 0 });
  await device.close();
}, 60_000);

it('keeps apart 1,000 snapshots of a volume that is written between them', async () => {
  const blocks = 2048;
  const device = await open('ram:256MiB');
  await Pool.create(device, { sampling: 1 });
  const pool = await Pool.open(device, { cacheBytes: 2 ** 22, indexBytes: 2 ** 20 });
  await pool.createVolume('v', blocks * 4096);
  const disk = pool.openVolume('v');
  for (let first = 0; first < blocks; first += 64) await write(disk, first, range(1 + first, 64));
  const random = new Random(7);
  const model = range(1, blocks);
  const snapshots = new Map<string, number[]>();
  let deleting: Promise<void> = Promise.resolve();
  for (let i = 0; i < SNAPSHOTS; i++) {
    const first = random.below(blocks - 8);
    const contents = range(10_000 + 8 * i, 1 + random.below(8));
    await write(disk, first, contents);
    model.splice(first, contents.length, ...contents);
    await pool.copyVolume('v', `s${i}`, 'snapshot');
    snapshots.set(`s${i}`, [...model]);
    if (i % 3 !== 2) continue;
    // Beside what is written next.
    const gone = [...snapshots.keys()][random.below(snapshots.size)]!;
    snapshots.delete(gone);
    await deleting;
    deleting = pool.deleteVolume(gone);
  }
  await deleting;
  await pool.settle();
  await pool.clean();
  for (const [name, wanted] of [...snapshots]
    .filter((_, i) => i % 16 === 0)
    .concat([['v', model]])) {
    const volume = pool.openVolume(name);
    expect(await read(volume, 0, blocks)).toEqual(wanted);
    await volume.close();
  }
  await disk.close();
  await pool.close();
  const checked = await checkPool(device, { data: true });
  expect(checked).toMatchObject({ clean: true, volumes: 1 + snapshots.size });
  await device.close();
}, 120_000);
