// Many volumes and snapshots: those that are asked for at once share a checkpoint.

import { expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';

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
