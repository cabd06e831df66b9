// The adapter where a device is slow, memory goes away or is not there, and ranges meet: what the
// model in adapter.test.ts does not play through.

import { afterEach, describe, expect, it } from 'vitest';
import { Adapter } from '../../lib/hpdi/adapter.js';
import { CompletionRing } from '../../lib/hpdi/completions.js';
import type { DeviceInfo } from '../../lib/hpdi/info.js';
import { Queue } from '../../lib/hpdi/queue.js';
import { Flag, Op, Sg, Status } from '../../lib/hpdi/records.js';
import { addressSpace, Memory, type DmaBuffer } from '../../lib/memory/index.js';
import { completionAt, fillList, fillPattern, pattern, put } from '../support/requests.js';
import type { Completion, Request } from '../support/requests.js';
import { HeldDriver, heldInfo } from './held.js';

const BLOCK = 512;
/** Blocks that a bounce buffer holds. */
const BOUNCE_BLOCKS = 256;
const ROUNDS_MAX = 100_000;

const cleanups: (() => Promise<void> | void)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Rig {
  driver: HeldDriver;
  queue: Queue;
  memory: Memory;
  /** What tells the adapter of changes of the device. */
  source: { info: DeviceInfo };
}

function rig(changes: Partial<DeviceInfo> = {}): Rig {
  const info = heldInfo(changes);
  const source = { info };
  const driver = new HeldDriver(info);
  const memory = new Memory({ pageBytes: 4096 });
  const queue = new Queue(new Adapter(driver, source, memory, 16), 16);
  cleanups.push(async () => {
    await queue.close();
    memory.close();
  });
  return { driver, queue, memory, source };
}

function submit({ queue }: Rig, ...requests: Request[]): void {
  for (const request of requests) expect(put(queue, request)).toBe(true);
  expect(queue.submit()).toBe(requests.length);
}

/** Polls until `count` completed; `next` picks the held operation that completes in each round. */
function finish(
  { driver, queue }: Rig,
  count: number,
  next: (held: number) => number = () => 0,
): Completion[] {
  const all: Completion[] = [];
  for (let round = 0; all.length < count && round < ROUNDS_MAX; round++) {
    if (driver.held.length > 0) driver.complete(next(driver.held.length));
    const done = queue.poll(16);
    for (let i = 0; i < done; i++) all.push(completionAt(queue, i));
  }
  expect(all).toHaveLength(count);
  return all;
}

function takeAll(memory: Memory): void {
  memory.alloc = () => {
    throw new RangeError('no memory');
  };
}

describe('a split request', () => {
  it('fails, and writes nothing stale, when its memory goes away while it waits', () => {
    const r = rig();
    // More pieces than bounce buffers: the last one is copied only when another has completed.
    const blocks = 17 * BOUNCE_BLOCKS;
    const segment = addressSpace().create(4 * 2 ** 20);
    segment.u8.fill(0x77);
    submit(r, { op: Op.WRITE, tag: 1, blocks, address: segment.address + 4 });
    segment.close();
    const [done] = finish(r, 1);
    expect(done).toMatchObject({ tag: 1, code: Status.BAD_ADDRESS });
    const last = r.driver.data.subarray(16 * BOUNCE_BLOCKS * BLOCK, blocks * BLOCK);
    expect(last.every((byte) => byte === 0)).toBe(true);
  });

  it('says so when what it is compared with goes away', () => {
    const r = rig();
    const segment = addressSpace().create(2 ** 21);
    submit(r, { op: Op.COMPARE, tag: 1, blocks: 4, address: segment.address });
    segment.close();
    expect(finish(r, 1)[0]).toMatchObject({ code: Status.BAD_ADDRESS, resultLo: 0 });
  });

  it('completes with NO_MEMORY where there is none for bouncing', () => {
    const r = rig();
    const buffer = r.memory.alloc(4 * BLOCK);
    takeAll(r.memory);
    submit(
      r,
      { op: Op.READ, tag: 1, blocks: 1, address: buffer.address + 4 },
      { op: Op.COPY, tag: 2, blocks: 1, lba: 8, address: 0 },
      { op: Op.WRITE_ZEROES, tag: 3, blocks: 1 },
      { op: Op.READ_LOAN, tag: 4, blocks: 1 },
      { op: Op.READ, tag: 5, blocks: 1, address: buffer.address },
    );
    const codes = finish(r, 5).map(({ tag, code }) => [tag, code]);
    expect(codes.sort()).toEqual([
      [1, Status.NO_MEMORY],
      [2, Status.NO_MEMORY],
      [3, Status.NO_MEMORY],
      [4, Status.NO_MEMORY],
      [5, Status.OK],
    ]);
    buffer.free();
  });

  it('lets others in while a long one is on its way', () => {
    const r = rig();
    const buffer = r.memory.alloc(2 * BLOCK);
    const blocks = 8192;
    submit(r, { op: Op.COPY, tag: 1, blocks, lba: blocks, address: 0 });
    submit(r, { op: Op.READ, tag: 2, blocks: 1, address: buffer.address + 4 });
    expect(finish(r, 2).map(({ tag }) => tag)).toEqual([2, 1]);
    buffer.free();
  });

  it('reads its list once, and is not led astray by what becomes of it', () => {
    const r = rig({ maxTransferBlocks: 1 });
    const buffers = [r.memory.alloc(BLOCK), r.memory.alloc(BLOCK), r.memory.alloc(BLOCK)];
    const [first, second, elsewhere] = buffers as [DmaBuffer, DmaBuffer, DmaBuffer];
    const list = r.memory.alloc(64);
    fillPattern(r.driver.data.subarray(0, 2 * BLOCK), 3);
    const pieces = [first, second].map(({ address }) => ({ address, bytes: BLOCK }));
    submit(r, { op: Op.READ, tag: 1, blocks: 2, ...fillList(list, pieces) });
    list.u32[Sg.words] = elsewhere.address >>> 0;
    list.u32[Sg.words + Sg.bytes] = 0xffff_ffff;
    expect(finish(r, 1)[0]!.code).toBe(Status.OK);
    const wanted = pattern(2 * BLOCK, 3);
    expect(Buffer.concat([first.u8, second.u8]).equals(wanted)).toBe(true);
    expect(elsewhere.u8.every((byte) => byte === 0)).toBe(true);
    for (const buffer of [...buffers, list]) buffer.free();
  });

  it('tells no difference of its own when an earlier part failed otherwise', () => {
    const r = rig();
    const buffer = r.memory.alloc(2 * BOUNCE_BLOCKS * BLOCK);
    buffer.u8.fill(1);
    r.driver.bad.add(0);
    submit(r, {
      op: Op.COMPARE,
      tag: 1,
      blocks: 2 * BOUNCE_BLOCKS,
      address: buffer.address,
    });
    // The later part first.
    const [done] = finish(r, 1, (held) => held - 1);
    expect(done).toMatchObject({ code: Status.MEDIA_ERROR, resultLo: 0, resultHi: 0 });
    buffer.free();
  });

  it('sees that the device has grown or shrunk', () => {
    const r = rig({ blocks: 64 });
    const resize = (blocks: number): void => void (r.source.info = heldInfo({ blocks }));
    const beyond = { op: Op.COPY, tag: 1, blocks: 8, lba: 64, address: 0 };
    submit(r, beyond);
    expect(finish(r, 1)[0]!.code).toBe(Status.BAD_RANGE);
    resize(128);
    submit(r, beyond);
    expect(finish(r, 1)[0]!.code).toBe(Status.OK);
    resize(64);
    submit(r, { ...beyond, lba: 0, address: 60 });
    expect(finish(r, 1)[0]!.code).toBe(Status.BAD_RANGE);
  });

  it('gives a GIVEn buffer home when it does not hold the request', () => {
    const r = rig();
    const given = r.memory.alloc(BLOCK);
    expect(r.memory.taken).toBe(1);
    const request = { op: Op.WRITE, flags: Flag.GIVE, tag: 1, blocks: 2 ** 13 };
    submit(r, { ...request, address: given.address });
    expect(finish(r, 1)[0]!.code).toBe(Status.BAD_ADDRESS);
    expect(given.freed).toBe(true);
    expect(r.memory.taken).toBe(0);
  });

  it('is not mistaken for a part when its tag has the bit that marks parts', () => {
    const r = rig();
    const buffer = r.memory.alloc(BLOCK);
    const { address } = buffer;
    submit(
      r,
      { op: Op.COPY, tag: 1, blocks: 8, lba: 64, address: 0 },
      { op: Op.READ, tag: 0x8000_0000, blocks: 1, address },
      { op: Op.FLUSH, tag: 0xffff_ffff },
    );
    const codes = finish(r, 3).map(({ tag, code }) => [tag, code]);
    expect(codes.sort((a, b) => a[0]! - b[0]!)).toEqual([
      [1, Status.OK],
      [0x8000_0000, Status.BAD_REQUEST],
      [0xffff_ffff, Status.BAD_REQUEST],
    ]);
    buffer.free();
  });

  it('refuses metadata that it cannot split off', () => {
    const r = rig({ metadataBytes: 8, flags: Flag.FUA | Flag.SG | Flag.META });
    const buffer = r.memory.alloc(BLOCK);
    submit(r, { op: Op.READ, flags: Flag.META, tag: 1, blocks: 1, address: buffer.address });
    expect(finish(r, 1)[0]!.code).toBe(Status.UNSUPPORTED);
    buffer.free();
  });
});

describe('COPY', () => {
  const COUNT = 1500;

  it.each([
    ['up by one', 100, 101],
    ['up by more than a piece', 100, 100 + BOUNCE_BLOCKS + 7],
    ['down by one', 101, 100],
    ['down by more than a piece', 100 + BOUNCE_BLOCKS + 7, 100],
    ['onto itself', 100, 100],
  ])('moves blocks %s as if all were read first', (_, source, target) => {
    for (const boundary of [0, 64]) {
      const r = rig({ boundary });
      fillPattern(r.driver.data, 9);
      const wanted = new Uint8Array(r.driver.data);
      wanted.copyWithin(target * BLOCK, source * BLOCK, (source + COUNT) * BLOCK);
      submit(r, { op: Op.COPY, tag: 1, blocks: COUNT, lba: target, address: source });
      // The latest operation completes first, so that parts in flight together would show.
      expect(finish(r, 1, (held) => held - 1)[0]!.code).toBe(Status.OK);
      expect(Buffer.compare(r.driver.data, wanted)).toBe(0);
    }
  });

  it('crosses no boundary where it reads, either', () => {
    const r = rig({ boundary: 8 });
    submit(r, { op: Op.COPY, tag: 1, blocks: 24, lba: 800, address: 5 });
    expect(finish(r, 1)[0]!.code).toBe(Status.OK);
  });
});

describe('a completion ring', () => {
  it('asserts that it is not overfilled, and goes on as it was', () => {
    const ring = new CompletionRing(2);
    const cq = new Uint32Array(8);
    ring.push(1, 0, 0, 0);
    ring.push(2, 0, 0, 0);
    expect(() => ring.push(3, 0, 0, 0)).toThrow(/overflow/);
    expect(ring.drain(cq, 0, 2)).toBe(2);
    expect([cq[0], cq[4]]).toEqual([1, 2]);
    ring.push(3, 0, 0, 0);
    expect(ring.length).toBe(1);
  });

  it.each([0, 3, -4])('has no capacity of %d', (capacity) => {
    expect(() => new CompletionRing(capacity)).toThrow(RangeError);
  });
});
