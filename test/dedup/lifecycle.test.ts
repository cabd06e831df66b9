// The ends of a pool: what is asked of it while it closes, and after; who opens it meanwhile; what
// was under way when it was closed goes on when it is opened.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { Cpl, Op, Status } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { put } from '../support/requests.js';
import { range, read, write } from './contents.js';

const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const CLOSED = { code: 'DEVICE_CLOSED' };
let dir: string;

beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'penstock-'));
});

afterAll(() => {
  rmSync(dir, { recursive: true });
});

it('takes no checkpoint after it was closed', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  await pool.close();
  await expect(pool.checkpoint()).rejects.toMatchObject(CLOSED);
  await pool.settle();
  await device.close();
});

it('ends what was asked for before it was closed, one way or the other', async () => {
  const device = await open('ram:64MiB');
  const slow = await open('ram:16MiB?fault.delayUs=20000');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  const configured = pool.configure({ llrrm: slow });
  const made = pool.createVolume('v', 2 ** 24, { reserve: 2 ** 20 });
  const grown = pool.grow();
  await pool.close();
  const ends = await Promise.allSettled([configured, made, grown]);
  for (const end of ends) {
    if (end.status === 'rejected') expect(end.reason).toMatchObject(CLOSED);
  }
  await slow.close();
  await device.close();
});

it('closes under a client that never stops, with all that was acknowledged', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('v', 2 ** 24);
  const disk = pool.openVolume('v');
  const lanes = range(0, 8).map((block) => ({ block, tried: 0, kept: 0 }));
  const writers = lanes.map(async (lane) => {
    for (;;) {
      lane.tried += lanes.length;
      await write(disk, lane.block, [lane.tried + lane.block]);
      lane.kept = lane.tried;
      await new Promise((go) => setImmediate(go));
    }
  });
  const ended = Promise.allSettled(writers);
  while (lanes.some((lane) => lane.kept === 0)) await new Promise((go) => setImmediate(go));
  await pool.close(100);
  for (const end of await ended) {
    expect(end).toMatchObject({ status: 'rejected', reason: { code: 'DEVICE_GONE' } });
  }
  await disk.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true, journalEntries: 0 });
  const again = await Pool.open(device, OPEN);
  const volume = again.openVolume('v');
  for (const { block, tried, kept } of lanes) {
    const [content] = await read(volume, block, 1);
    expect([kept + block, tried + block]).toContain(content);
  }
  await volume.close();
  await again.close();
  await device.close();
});

it.each([512, 4096])('closes under a queue of blocks of %i that submits for ever', async (size) => {
  const device = await open('ram:64MiB');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('v', 2 ** 24);
  const disk = pool.openVolume('v', { blockSize: size });
  const queue = disk.queue({ depth: 8, split: false });
  const buffer = disk.memory.alloc(size);
  const statuses = new Map<number, number>();
  let stop = false;
  const client = (async () => {
    // It does not hear what it is told.
    while (!stop || queue.inFlight > 0) {
      while (!stop && put(queue, { op: Op.WRITE, lba: 3, blocks: 1, address: buffer.address }));
      queue.submit();
      const done = queue.poll(8);
      for (let i = 0; i < done; i++) {
        const status = queue.cq[i * Cpl.words + Cpl.status]!;
        statuses.set(status, (statuses.get(status) ?? 0) + 1);
      }
      await new Promise((go) => setImmediate(go));
    }
  })();
  while (statuses.size === 0) await new Promise((go) => setImmediate(go));
  await pool.close(20);
  stop = true;
  await client;
  expect([...statuses.keys()].sort()).toEqual([Status.OK, Status.DEVICE_GONE].sort());
  buffer.free();
  await queue.close();
  await disk.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true, journalEntries: 0 });
  await device.close();
});

it.each([512, 4096])('completes what a volume of blocks of %i has taken', async (size) => {
  const device = await open('ram:64MiB?fault.delayUs=1000');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('v', 2 ** 24);
  const disk = pool.openVolume('v', { blockSize: size });
  const buffers = range(0, 8).map((i) => {
    const buffer = disk.memory.alloc(size);
    buffer.u8.fill(1 + i);
    return buffer;
  });
  const writes = Promise.allSettled(buffers.map((buffer, i) => disk.write(3 + 9 * i, buffer)));
  await Promise.resolve(); // they are submitted by now
  await pool.close(0);
  for (const { status } of await writes) expect(status).toBe('fulfilled');
  for (const buffer of buffers) buffer.free();
  await disk.close();
  const again = await Pool.open(device, OPEN);
  const volume = again.openVolume('v', { blockSize: size });
  const buffer = volume.memory.alloc(size);
  for (const i of range(0, 8)) {
    await volume.read(3 + 9 * i, buffer);
    expect(buffer.u8.every((byte) => byte === 1 + i)).toBe(true);
  }
  buffer.free();
  await volume.close();
  await again.close();
  await device.close();
});

it('is not made anew where it is open', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  await expect(Pool.create(device, { force: true })).rejects.toMatchObject({ code: 'POOL_BUSY' });
  await pool.createVolume('v', 2 ** 24);
  await pool.close();
  await device.close();
});

it('is opened by its URI once the one that is closing is closed', async () => {
  const uri = `file:${join(dir, 'p.img')}`;
  const device = await open(`${uri}?create=64MiB`);
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  for (const name of ['a', 'b']) await pool.createVolume(name, 2 ** 24);
  await pool.close();
  await device.close();
  // Closing takes longer than the second for which a lock is waited for.
  const slow = `${uri}?fault.delayUs=250000`;
  const a = await open(`dedup:${slow}#a`);
  await write(a, 0, [7]);
  const closing = a.close();
  const b = await open(`dedup:${slow}#b`);
  await closing;
  await b.close();
  const again = await open(`dedup:${uri}#a`);
  expect(await read(again, 0, 1)).toEqual([7]);
  await again.close();
});

it('goes on with a deletion when it is opened, though nobody asks anything of it', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('v', 2 ** 25);
  const disk = pool.openVolume('v');
  for (let at = 0; at < 4096; at += 64) await write(disk, at, range(1 + at, 64));
  await disk.close();
  const { reclaimer } = pool.engine as unknown as { reclaimer: { step: () => void } };
  reclaimer.step = () => undefined; // it gets no further here
  await pool.deleteVolume('v');
  await pool.close();
  const again = await Pool.open(device, OPEN);
  const most = performance.now() + 20_000;
  while (again.stats().data_blocks_used > 16 && performance.now() < most) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  expect(again.stats().data_blocks_used).toBeLessThanOrEqual(16);
  await again.close();
  await device.close();
});
