// What is deduplicated together: equal data that several write at the same time is stored once,
// whatever becomes of the first of them, and a set is what one batch has of blocks that follow each
// other.

import { afterEach, describe, expect, it, vi } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { faultControl } from '../../lib/drivers/fault/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { Op, Status, type BlockDevice, type Queue } from '../../lib/hpdi/index.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { fillBlock } from '../soak/dedup-model.js';
import { collect, put, run, type Request } from '../support/requests.js';
import { PAGE, range, read, write } from './contents.js';
import { withFaults } from './with-faults.js';

const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const BLOCKS = 4096;

function filled(disk: BlockDevice, contents: readonly number[]): DmaBuffer {
  const buffer = disk.memory.alloc(contents.length * PAGE);
  for (const [i, content] of contents.entries()) fillBlock(buffer.u32, i * 1024, content);
  return buffer;
}

describe('equal data that is written twice at the same time', () => {
  afterEach(() => vi.restoreAllMocks());

  /** Blocks that both write, after `BEFORE` others. */
  const COUNT = 64;
  const BEFORE = 8;

  /**
   * The first write is at the device, the second one comes meanwhile. `errorAt`: the write of the
   * device that fails, of all since it was opened; 0: none. `dataWrite` is that of the first one.
   */
  async function race(names: readonly [string, string], errorAt: number) {
    const ram = await ramDriver.open('48MiB', new Map(), 'ram:');
    const sound = withFaults(ram, []);
    await Pool.create(sound, { thn: 8, sampling: 1 });
    const made = await Pool.open(sound, OPEN);
    for (const name of ['a', 'b']) await made.createVolume(name, BLOCKS * PAGE);
    await made.close();

    const failing = withFaults(ram, [
      ['errorOps', 'write'],
      ['errorAt', String(errorAt === 0 ? Number.MAX_SAFE_INTEGER : errorAt)],
    ]);
    // What fails takes its time, too.
    const device = withFaults(failing.backend, [['delayUs', '2000']]);
    const pool = await Pool.open(device, OPEN);
    const disks = names.map((name) => pool.openVolume(name));
    // The pages that a plan needs are here from then on.
    await write(disks[0]!, 0, range(1, BEFORE));
    const control = faultControl(failing.backend)!;
    const dataWrite = control.counters.fallible + 1;
    const { planner, sets, space, thn, io } = pool.engine.parts;
    const setsFree = sets.freeSets;
    const { reserved } = space;
    const { reads } = io;
    const buffers = disks.map((disk) => filled(disk, range(1000, COUNT)));
    const queues = disks.map((disk) => disk.queue({ depth: 4, split: false }));
    // No delay ends between the two, however slow this is.
    const clock = vi.spyOn(performance, 'now').mockReturnValue(performance.now());
    for (const [i, queue] of queues.entries()) {
      const { address } = buffers[i]!;
      put(queue, { op: Op.WRITE, blocks: COUNT, lba: 100 + i * 500, address });
      queue.submit();
    }
    // Both are under way, and only one of them has blocks of its own. The other one waits with its
    // comparison until those are written.
    expect(sets.freeSets).toBe(setsFree - 2);
    expect(space.reserved).toBe(reserved + COUNT);
    expect(planner).toMatchObject({ fresh: BEFORE + COUNT, same: 0 });
    expect(io.reads).toBe(reads);
    clock.mockRestore();
    const statuses: number[] = [];
    for (const queue of queues) statuses.push((await collect(queue, 1))[0]!.code);

    const contents: number[][] = [];
    for (const [i, disk] of disks.entries()) contents.push(await read(disk, 100 + i * 500, COUNT));
    const { fresh, same, unequal, runLengths } = planner;
    const { logical_blocks_used: logical, savings } = pool.stats();
    const told = { fresh, same, unequal, logical, saved: savings.run, stale: thn.stale };
    for (const buffer of buffers) buffer.free();
    for (const queue of queues) await queue.close();
    for (const disk of disks) await disk.close();
    await pool.close();
    const { errors } = control.counters;
    for (const each of [device, failing]) await each.close();
    const report = await checkPool(sound, { data: true });
    await sound.close();
    await ram.close();
    const runs = [...runLengths];
    return { dataWrite, statuses, contents, told, runs, errors, report };
  }

  const PLACES = [
    ['two volumes', ['a', 'b']],
    ['two places of a volume', ['a', 'a']],
  ] as const;

  it.each(PLACES)('is stored once: %s', async (_, names) => {
    const { statuses, contents, told, runs, report } = await race(names, 0);
    expect(statuses).toEqual([Status.OK, Status.OK]);
    expect(told).toMatchObject({ fresh: BEFORE + COUNT, same: COUNT, unequal: 0, saved: COUNT });
    expect(told).toMatchObject({ logical: BEFORE + 2 * COUNT, stale: 0 });
    // In one run: of 64 to 127 blocks.
    expect(runs).toEqual([0, 0, 0, 0, 0, 0, 1, 0, 0]);
    expect(contents).toEqual([range(1000, COUNT), range(1000, COUNT)]);
    expect(report).toMatchObject({ clean: true, blocks: BEFORE + COUNT });
  });

  it.each(PLACES)('is stored by the second one where the first one fails: %s', async (_, names) => {
    const { dataWrite } = await race(names, 0);
    const { statuses, contents, told, errors, report } = await race(names, dataWrite);
    expect(errors).toBe(1);
    expect(statuses).toEqual([Status.MEDIA_ERROR, Status.OK]);
    // What was to be shared is known to be gone, and nothing refers to it.
    expect(told).toMatchObject({ fresh: BEFORE + 2 * COUNT, same: 0, unequal: 0, saved: 0 });
    expect(told.stale).toBeGreaterThan(0);
    expect(told.logical).toBe(BEFORE + COUNT);
    expect(contents).toEqual([new Array(COUNT).fill(0), range(1000, COUNT)]);
    expect(report).toMatchObject({ clean: true, blocks: BEFORE + COUNT });
  });
});

describe('a set', () => {
  /** THN 8, and `stored` from block 0 on. */
  async function withStored(
    stored: readonly number[],
    use: (pool: Pool, disk: BlockDevice, queue: Queue) => Promise<void>,
  ): Promise<void> {
    const device = await open('ram:64MiB');
    await Pool.create(device, { thn: 8, sampling: 1 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('a', BLOCKS * PAGE);
    const disk = pool.openVolume('a');
    await write(disk, 0, stored);
    const queue = disk.queue({ depth: 1024, split: false });
    await use(pool, disk, queue);
    await queue.close();
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  }

  const requestOf = (lba: number, { address }: DmaBuffer, from: number, blocks = 1): Request => ({
    ...{ op: Op.WRITE, lba, blocks },
    address: address + from * PAGE,
  });

  it('is of blocks that one batch has next to each other, whatever its requests are', async () => {
    const again = range(100, 8);
    await withStored(range(90, 40), async (pool, disk, queue) => {
      const { planner } = pool.engine.parts;
      const buffer = filled(disk, again);
      const singles = (first: number, step: number): Request[] =>
        range(0, 8).map((i) => requestOf(first + i * step, buffer, i));
      for (const completion of await run(queue, ...singles(1000, 1))) {
        expect(completion.code).toBe(Status.OK);
      }
      expect(planner).toMatchObject({ fresh: 40, same: 8 });
      expect(planner.runLengths[3]).toBe(1);
      // One after the other they are sets of one block.
      for (const request of singles(2000, 1)) await run(queue, request);
      expect(planner).toMatchObject({ fresh: 48, same: 8 });
      // So are those that do not lie next to each other, in this order.
      await run(queue, ...singles(3000, 2));
      await run(queue, ...singles(3100, 1).reverse());
      expect(planner).toMatchObject({ fresh: 64, same: 8 });
      // Large and small ones may follow each other.
      await run(queue, requestOf(3500, buffer, 0, 3), requestOf(3503, buffer, 3, 5));
      expect(planner).toMatchObject({ fresh: 64, same: 16 });
      for (const first of [1000, 2000, 3100, 3500])
        expect(await read(disk, first, 8)).toEqual(again);
      expect((await read(disk, 3000, 15)).filter((_, i) => i % 2 === 0)).toEqual(again);
      buffer.free();
    });
  });

  it.each([1, 40, 600])(
    'has at most 256 blocks: a series of 600, %i in a request',
    async (inRequest) => {
      const known = range(100, 12);
      await withStored(known, async (pool, disk, queue) => {
        // What is stored already lies within a set, and over the ends of two of them.
        const series = range(5000, 600);
        for (const at of [122, 248, 504]) series.splice(at, 12, ...known);
        const buffer = filled(disk, series);
        const requests: Request[] = [];
        for (let at = 0; at < 600; at += inRequest) {
          requests.push(requestOf(1000 + at, buffer, at, inRequest));
        }
        await run(queue, ...requests);
        const { planner } = pool.engine.parts;
        expect(planner).toMatchObject({ same: 12 + 8 + 8, fresh: 12 + 600 - 28 });
        expect([...planner.runLengths]).toEqual([0, 0, 0, 3, 0, 0, 0, 0, 0]);
        expect(await read(disk, 1000, 600)).toEqual(series);
        buffer.free();
      });
    },
  );
});
