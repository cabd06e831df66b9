import { afterEach, describe, expect, it } from 'vitest';
import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { BlockDevice } from '../../lib/hpdi/index.js';
import { Queue } from '../../lib/hpdi/queue.js';
import { Flag, Op, Status } from '../../lib/hpdi/records.js';
import { Memory } from '../../lib/memory/index.js';
import { fillList, fillPattern, one, pattern, put, run, collect } from '../support/requests.js';
import { TwinBackend, type TwinOptions } from '../support/twin.js';

const cleanups: (() => Promise<void> | void)[] = [];

afterEach(async () => {
  while (cleanups.length > 0) await cleanups.pop()!();
});

interface Rig {
  twin: TwinBackend;
  backend: ReturnType<typeof wrapFault>;
  control: NonNullable<ReturnType<typeof faultControl>>;
  queue: Queue;
  memory: Memory;
}

function rig(
  keys: Record<string, string | number>,
  twinOptions: TwinOptions = {},
  depth = 32,
): Rig {
  const twin = new TwinBackend(twinOptions);
  const options = new Map(Object.entries(keys).map(([key, value]) => [key, String(value)]));
  const backend = wrapFault(twin, options);
  const memory = new Memory();
  const queue = new Queue(backend.openQueue({ depth }), depth);
  cleanups.push(() => memory.close());
  cleanups.push(() => backend.close());
  cleanups.push(() => queue.close());
  return { twin, backend, control: faultControl(backend)!, queue, memory };
}

/** Writes one pattern per block, `count` of them, and returns the statuses by block. */
async function writeBlocks(r: Rig, count: number, seed: number, flags = 0): Promise<number[]> {
  const statuses: number[] = [];
  const buffer = r.memory.alloc(512);
  for (let lba = 0; lba < count; lba++) {
    fillPattern(buffer.u8, seed + lba);
    const request = { op: Op.WRITE, flags, tag: lba, blocks: 1, lba, address: buffer.address };
    statuses.push((await one(r.queue, request)).code);
  }
  buffer.free();
  return statuses;
}

/**
 * What the wrapped device holds of each block: the seed of its pattern (less lba), -1 for zeros.
 */
function heldBlocks(twin: TwinBackend, count: number, seeds: number[]): number[] {
  return Array.from({ length: count }, (_, lba) => {
    const block = Buffer.from(twin.block(lba));
    const seed = seeds.find((s) => block.equals(pattern(512, s + lba)));
    return seed ?? (block.every((byte) => byte === 0) ? -1 : NaN);
  });
}

describe('without faults', () => {
  it('passes every operation on and gives back its own tag', async () => {
    const r = rig({ seed: 1 }, { latencyPolls: 3, capacity: 4 });
    const buffers = Array.from({ length: 24 }, () => r.memory.alloc(1024));
    const done = await run(
      r.queue,
      ...buffers.map((buffer, i) => {
        fillPattern(buffer.u8, i);
        const tag = i % 2 === 0 ? 0x7fff_fff0 : i;
        return { op: Op.WRITE, tag, blocks: 2, lba: i * 2, address: buffer.address };
      }),
    );
    expect(done.map((d) => d.code)).toEqual(new Array(24).fill(Status.OK));
    expect(done.map((d) => d.tag)).toEqual(buffers.map((_, i) => (i % 2 === 0 ? 0x7fff_fff0 : i)));
    for (let i = 0; i < 24; i++) {
      expect(Buffer.from(r.twin.data.subarray(i * 1024, (i + 1) * 1024))).toEqual(
        Buffer.from(pattern(1024, i)),
      );
    }
  });

  it('leaves comparisons to reads, which have all that befalls a read', async () => {
    const r = rig({ seed: 1 });
    const buffer = r.memory.alloc(512);
    const compare = { op: Op.COMPARE, tag: 9, blocks: 1, lba: 0, address: buffer.address };
    const done = await one(r.queue, compare);
    expect(done).toMatchObject({ tag: 9, code: Status.UNSUPPORTED });
    expect(r.twin.log).toEqual([]);
    const device = new BlockDevice(r.backend);
    await device.compare(0, buffer);
    buffer.u8[100] = 1;
    const found = await one(device.queue({ depth: 4 }), compare);
    expect(found).toMatchObject({ tag: 9, code: Status.MISCOMPARE, resultLo: 100 });
    expect(r.twin.log.map(({ op }) => op)).toEqual([Op.READ, Op.READ]);
  });

  it('has the wrapped device report what is wrong', async () => {
    const r = rig({ dropWrites: 1, torn: 1 });
    const buffer = r.memory.alloc(512);
    const bad = { op: Op.WRITE, blocks: 1, lba: 256, address: buffer.address };
    expect((await one(r.queue, bad)).code).toBe(Status.BAD_RANGE);
    expect((await one(r.queue, { ...bad, lba: 0, address: 0 })).code).toBe(Status.BAD_ADDRESS);
    expect((await one(r.queue, { op: 99, blocks: 1 })).code).toBe(Status.UNSUPPORTED);
    expect(r.control.counters).toMatchObject({ operations: 3, dropped: 0, torn: 0 });
  });

  it('refuses keys and values it does not know', () => {
    const wrap = (key: string, value: string) =>
      wrapFault(new TwinBackend(), new Map([[key, value]]));
    expect(() => wrap('eror', '1')).toThrow(/fault\.errors/);
    expect(() => wrap('errors', '1.5')).toThrow(/probability/);
    expect(() => wrap('errorOps', 'read,wirte')).toThrow(/errorOps/);
    expect(() => wrap('errorStatus', 'OK')).toThrow(/errorStatus/);
    expect(() => wrap('seed', '-1')).toThrow(/integer/);
    expect(() => wrap('cache', 'much')).toThrow(/size/);
  });
});

describe('errors', () => {
  it('fails the chosen operations, the same ones for the same seed', async () => {
    const keys = { seed: 5, errors: 0.5, errorOps: 'write', errorStatus: 'NO_SPACE' };
    const first = rig(keys);
    const statuses = await writeBlocks(first, 64, 100);
    const failed = statuses.filter((status) => status === Status.NO_SPACE).length;
    expect(failed).toBeGreaterThan(10);
    expect(failed).toBeLessThan(54);
    expect(failed).toBe(first.control.counters.errors);
    // A write that failed is not done.
    expect(heldBlocks(first.twin, 64, [100])).toEqual(
      statuses.map((status) => (status === Status.OK ? 100 : -1)),
    );
    expect(await writeBlocks(rig(keys), 64, 100)).toEqual(statuses);
    expect(await writeBlocks(rig({ ...keys, seed: 6 }), 64, 100)).not.toEqual(statuses);
    const buffer = first.memory.alloc(512);
    for (let lba = 0; lba < 64; lba++) {
      const read = { op: Op.READ, blocks: 1, lba, address: buffer.address };
      expect((await one(first.queue, read)).code).toBe(Status.OK);
    }
  });

  it('fails one operation by its number, or all from one on', async () => {
    const failed = async (keys: Record<string, string | number>): Promise<number[]> => {
      const statuses = await writeBlocks(rig(keys), 9, 100);
      return [...statuses.keys()].filter((i) => statuses[i] !== Status.OK);
    };
    expect(await failed({ errorAt: 4 })).toEqual([3]);
    expect(await failed({ errorFrom: 7, errorOps: 'write' })).toEqual([6, 7, 8]);
    expect(await failed({ errorAt: 4, errorOps: 'read,flush' })).toEqual([]);
  });

  it('gives a GIVEn buffer home also when the device never sees it', async () => {
    for (const keys of [
      { errors: 1 },
      { dropWrites: 1 },
      { torn: 1 },
      { gone: 0 },
      { cache: '64k' },
    ]) {
      const r = rig(keys as Record<string, number>);
      const buffer = r.memory.alloc(512);
      const flags = Flag.GIVE;
      await one(r.queue, { op: Op.WRITE, flags, blocks: 1, lba: 0, address: buffer.address });
      expect(buffer.freed).toBe(true);
      expect(r.memory.taken).toBe(0);
    }
  });
});

describe('delays and stuck operations', () => {
  it('completes nothing before it is due', async () => {
    const r = rig({ delayUs: 30_000 });
    const buffer = r.memory.alloc(512);
    const before = performance.now();
    put(r.queue, { op: Op.READ, tag: 1, blocks: 1, lba: 0, address: buffer.address });
    r.queue.submit();
    expect(r.queue.poll(32)).toBe(0);
    await collect(r.queue, 1);
    // A lower bound is no timing assertion: an early completion is what it would catch.
    expect(performance.now() - before).toBeGreaterThanOrEqual(29.9);
    expect(r.control.counters.delayed).toBe(1);
  });

  it('lets a thread park until a delayed operation is due', () => {
    const r = rig({ delayUs: 5_000 });
    put(r.queue, { op: Op.FLUSH, tag: 4 });
    r.queue.submit();
    let done = 0;
    for (let i = 0; i < 1000 && done === 0; i++) done = r.queue.park(1_000_000);
    expect(done).toBe(1);
  });

  it('keeps stuck operations until the drain, and then times them out', async () => {
    const r = rig({ stuck: 1 });
    put(r.queue, { op: Op.FLUSH, tag: 7 });
    r.queue.submit();
    expect(await r.queue.wait(20)).toBe(0);
    await r.queue.drain();
    expect((await collect(r.queue, 1))[0]).toMatchObject({ tag: 7, code: Status.TIMED_OUT });
    expect(r.twin.log).toEqual([]);
  });

  it('times a stuck operation out by its deadline', async () => {
    const r = rig({ stuck: 1, stuckMs: 20 });
    expect((await one(r.queue, { op: Op.FLUSH, tag: 8 })).code).toBe(Status.TIMED_OUT);
  });
});

describe('damaged writes', () => {
  it('acknowledges dropped writes without doing them', async () => {
    const r = rig({ dropWrites: 0.5, seed: 3 });
    expect(await writeBlocks(r, 40, 7)).toEqual(new Array(40).fill(Status.OK));
    const held = heldBlocks(r.twin, 40, [7]);
    const dropped = held.filter((seed) => seed === -1).length;
    expect(dropped).toBe(r.control.counters.dropped);
    expect(dropped).toBeGreaterThan(5);
    expect(dropped).toBeLessThan(35);
  });

  it.each([
    ['plain', false, '0'],
    ['SG', true, '1'],
  ])('tears %s writes at a block', async (_name, list, tornAck) => {
    const r = rig({ torn: 1, tornAck, seed: 11 });
    const prefixes = new Set<number>();
    const buffer = r.memory.alloc(8 * 512);
    const entries = r.memory.alloc(512);
    for (let round = 0; round < 20; round++) {
      r.twin.data.fill(0);
      fillPattern(buffer.u8, round + 1);
      const before = Buffer.from(entries.u8);
      const target = list
        ? fillList(entries, [
            { address: buffer.address, bytes: 300 },
            { address: buffer.address + 300, bytes: 8 * 512 - 300 },
          ])
        : { address: buffer.address };
      const given = list ? Buffer.from(entries.u8) : before;
      const done = await one(r.queue, { op: Op.WRITE, blocks: 8, lba: 8, ...target });
      expect(done.code).toBe(tornAck === '1' ? Status.OK : Status.DEVICE_ERROR);
      expect(Buffer.from(entries.u8)).toEqual(given);
      let prefix = 0;
      const blockOf = (i: number): Buffer => Buffer.from(r.twin.block(8 + i));
      while (
        prefix < 8 &&
        blockOf(prefix).equals(buffer.u8.subarray(prefix * 512, prefix * 512 + 512))
      )
        prefix++;
      expect(prefix).toBeLessThan(8);
      for (let i = prefix; i < 8; i++) expect(blockOf(i)).toEqual(Buffer.alloc(512));
      prefixes.add(prefix);
    }
    expect(prefixes.size).toBeGreaterThan(3);
    expect(r.control.counters.torn).toBe(20);
  });

  it('shuffles order at issue and at completion and loses nothing', async () => {
    const r = rig({ reorder: 1, seed: 2 });
    const requests = Array.from({ length: 32 }, (_, i) => ({ op: Op.FLUSH, tag: i, lba: i }));
    const done = await run(r.queue, ...requests);
    const inOrder = requests.map((request) => request.tag);
    const tags = done.map((d) => d.tag);
    expect(tags).not.toEqual(inOrder);
    expect([...tags].sort((a, b) => a - b)).toEqual(inOrder);
    const issued = r.twin.log.map((operation) => operation.lba);
    expect(issued).not.toEqual(inOrder);
    expect([...issued].sort((a, b) => a - b)).toEqual(inOrder);
    expect(issued).not.toEqual(tags);
  });
});

describe('gone', () => {
  it('completes everything with DEVICE_GONE after its operations', async () => {
    const r = rig({ gone: 5 });
    expect(await writeBlocks(r, 8, 1)).toEqual([
      ...new Array(5).fill(Status.OK),
      ...new Array(3).fill(Status.DEVICE_GONE),
    ]);
    r.control.heal();
    expect(await writeBlocks(r, 8, 2)).toEqual(new Array(8).fill(Status.OK));
  });

  it('does not complete what the device still has before the device does', async () => {
    const r = rig({ seed: 1 }, { latencyPolls: 3 });
    const buffer = r.memory.alloc(512);
    fillPattern(r.twin.block(9), 77);
    put(r.queue, { op: Op.READ, tag: 3, blocks: 1, lba: 9, address: buffer.address });
    r.queue.submit();
    const cut = r.control.cut();
    await cut;
    // The read reached the buffer before the cut resolved, and completes as gone.
    expect(Buffer.from(buffer.u8)).toEqual(Buffer.from(pattern(512, 77)));
    expect((await collect(r.queue, 1))[0]).toMatchObject({ tag: 3, code: Status.DEVICE_GONE });
    expect((await one(r.queue, { op: Op.FLUSH })).code).toBe(Status.DEVICE_GONE);
  });
});

describe('the volatile cache', () => {
  it('says so in the facts', () => {
    const r = rig({ cache: '64k' });
    expect(r.backend.info).toMatchObject({ volatileCache: true, maxTransferBlocks: 32 });
    expect(r.backend.info.flags & Flag.FUA).not.toBe(0);
    expect(() => r.backend.share()).toThrow(/cache/);
  });

  it('acknowledges writes before the device has them, and reads see them', async () => {
    const r = rig({ cache: '64k' });
    expect(await writeBlocks(r, 16, 50)).toEqual(new Array(16).fill(Status.OK));
    expect(heldBlocks(r.twin, 16, [50])).toEqual(new Array(16).fill(-1));
    expect(r.control.dirtyBlocks).toBe(16);
    // Half of the blocks read are in the cache.
    const buffer = r.memory.alloc(16 * 512);
    fillPattern(r.twin.block(16), 66);
    const entries = r.memory.alloc(512);
    const list = fillList(entries, [
      { address: buffer.address, bytes: 700 },
      { address: buffer.address + 1000, bytes: 16 * 512 - 1000 },
      { address: buffer.address + 700, bytes: 300 },
    ]);
    expect((await one(r.queue, { op: Op.READ, blocks: 16, lba: 8, ...list })).code).toBe(Status.OK);
    const expected = Buffer.concat([
      ...Array.from({ length: 8 }, (_, i) => pattern(512, 58 + i)),
      pattern(512, 66),
      Buffer.alloc(7 * 512),
    ]);
    const got = Buffer.from(buffer.u8);
    const inOrder = Buffer.concat([
      got.subarray(0, 700),
      got.subarray(1000),
      got.subarray(700, 1000),
    ]);
    expect(inOrder).toEqual(expected);
  });

  it('loses what was not flushed at a cut, and only that', async () => {
    const r = rig({ cache: '64k' }, { latencyPolls: 2 });
    await writeBlocks(r, 10, 100);
    expect((await one(r.queue, { op: Op.FLUSH, tag: 1 })).code).toBe(Status.OK);
    await writeBlocks(r, 6, 200);
    await r.control.cut();
    expect(r.control.counters.lostBlocks).toBe(6);
    expect(heldBlocks(r.twin, 10, [100, 200])).toEqual(new Array(10).fill(100));
    expect((await writeBlocks(r, 1, 300))[0]).toBe(Status.DEVICE_GONE);
    r.control.heal();
    expect(await writeBlocks(r, 2, 400)).toEqual([Status.OK, Status.OK]);
    expect((await one(r.queue, { op: Op.FLUSH })).code).toBe(Status.OK);
    expect(heldBlocks(r.twin, 3, [100, 400])).toEqual([400, 400, 100]);
  });

  it('lets a seeded subset of unflushed blocks survive', async () => {
    const outcome = async (seed: number): Promise<number[]> => {
      const r = rig({ cache: '64k', seed });
      await writeBlocks(r, 40, 9);
      await r.control.cut({ survive: 0.5 });
      return heldBlocks(r.twin, 40, [9]);
    };
    const first = await outcome(1);
    expect(first.every((seed) => seed === 9 || seed === -1)).toBe(true);
    expect(new Set(first).size).toBe(2);
    expect(await outcome(1)).toEqual(first);
    expect(await outcome(2)).not.toEqual(first);
  });

  it('writes FUA through', async () => {
    const r = rig({ cache: '64k' }, { latencyPolls: 2 });
    expect(await writeBlocks(r, 4, 30, Flag.FUA)).toEqual(new Array(4).fill(Status.OK));
    await r.control.cut();
    expect(heldBlocks(r.twin, 4, [30])).toEqual(new Array(4).fill(30));
  });

  it('reports a failed write-back to the flush and keeps the data', async () => {
    const r = rig({ cache: '64k' });
    await writeBlocks(r, 4, 30);
    r.twin.fail = Status.MEDIA_ERROR;
    expect((await one(r.queue, { op: Op.FLUSH })).code).toBe(Status.MEDIA_ERROR);
    r.twin.fail = Status.OK;
    expect((await one(r.queue, { op: Op.FLUSH })).code).toBe(Status.OK);
    expect(heldBlocks(r.twin, 4, [30])).toEqual(new Array(4).fill(30));
  });

  it('makes room by writing back, also for more than it holds', async () => {
    const r = rig({ cache: '4k' }, { latencyPolls: 2 });
    const buffers = Array.from({ length: 32 }, () => r.memory.alloc(1024));
    const requests = buffers.map((buffer, i) => {
      fillPattern(buffer.u8, i);
      return { op: Op.WRITE, tag: i, blocks: 2, lba: i * 2, address: buffer.address };
    });
    const done = await run(r.queue, ...requests);
    expect(done.map((d) => d.code)).toEqual(new Array(32).fill(Status.OK));
    await one(r.queue, { op: Op.FLUSH });
    for (let i = 0; i < 32; i++) {
      const held = Buffer.from(r.twin.data.subarray(i * 1024, (i + 1) * 1024));
      expect(held).toEqual(Buffer.from(pattern(1024, i)));
    }
  });

  it('orders operations past the cache after what it holds', async () => {
    const r = rig({ cache: '64k' });
    const buffer = r.memory.alloc(512);
    await writeBlocks(r, 3, 40);
    fillPattern(buffer.u8, 41);
    await new BlockDevice(r.backend).compare(1, buffer);
    await writeBlocks(r, 3, 60);
    expect((await one(r.queue, { op: Op.COPY, blocks: 1, lba: 20, address: 2 })).code).toBe(0);
    expect(Buffer.from(r.twin.block(20))).toEqual(Buffer.from(pattern(512, 62)));
    await writeBlocks(r, 3, 70);
    expect((await one(r.queue, { op: Op.WRITE_ZEROES, blocks: 1, lba: 2 })).code).toBe(0);
    await one(r.queue, { op: Op.READ, blocks: 1, lba: 2, address: buffer.address });
    expect(Buffer.from(buffer.u8)).toEqual(Buffer.alloc(512));
  });

  it('writes everything back at an orderly close', async () => {
    const twin = new TwinBackend();
    const backend = wrapFault(twin, new Map([['cache', '64k']]));
    const memory = new Memory();
    const queue = new Queue(backend.openQueue({ depth: 4 }), 4);
    const buffer = memory.alloc(512);
    fillPattern(buffer.u8, 5);
    await one(queue, { op: Op.WRITE, blocks: 1, lba: 3, address: buffer.address });
    await backend.close();
    expect(Buffer.from(twin.block(3))).toEqual(Buffer.from(pattern(512, 5)));
    expect(twin.closed).toBe(true);
    memory.close();
  });
});
