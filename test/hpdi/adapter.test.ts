// The adapter against a model: whatever the device's limits, any request does what it says,
// completes once, with its first failing part, and hands the device nothing beyond its limits.

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Adapter } from '../../lib/hpdi/adapter.js';
import type { DeviceInfo } from '../../lib/hpdi/info.js';
import { Queue } from '../../lib/hpdi/queue.js';
import { Flag, Op, Status } from '../../lib/hpdi/records.js';
import { addressSpace, Memory, type DmaBuffer } from '../../lib/memory/index.js';
import {
  completionAt,
  fillList,
  fillPattern,
  put,
  type Completion,
  type Request,
} from '../support/requests.js';
import { StrictDriver, strictInfo } from './strict.js';

const BLOCK = 512;
const LANES = 8;
const LANE_BLOCKS = 64;
const LANE_BYTES = LANE_BLOCKS * BLOCK;
/** Each lane's memory: room for misplaced and scattered data, then its list. */
const ARENA_BYTES = 3 * LANE_BYTES;
const BASIC = (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD);

interface Rig {
  driver: StrictDriver;
  queue: Queue;
  memory: Memory;
  close(): Promise<void>;
}

function rig(
  info: DeviceInfo,
  options: { depth?: number; capacity?: number; seed?: number } = {},
): Rig {
  const { depth = 16, ...rest } = options;
  const driver = new StrictDriver({ info, ...rest });
  const memory = new Memory({ pageBytes: 4096 });
  const queue = new Queue(new Adapter(driver, { info }, memory, depth), depth);
  const close = async () => {
    await queue.close();
    expect(memory.taken).toBe(0);
    memory.close();
  };
  return { driver, queue, memory, close };
}

interface Step {
  op: number;
  start: number;
  blocks: number;
  offset: number;
  cuts: number[];
  damage: boolean;
  fua: boolean;
}

const limits = fc.record({
  maxTransferBlocks: fc.integer({ min: 1, max: 20 }),
  boundary: fc.constantFrom(0, 1, 2, 4, 8, 16, 32),
  addressAlign: fc.constantFrom(1, 4, 512),
  zeroes: fc.boolean(),
  capacity: fc.integer({ min: 1, max: 40 }),
  depth: fc.constantFrom(1, 2, 8, 16),
  seed: fc.nat(),
});

type Limits = typeof limits extends fc.Arbitrary<infer T> ? T : never;

const step: fc.Arbitrary<Step> = fc.record({
  op: fc.constantFrom(
    Op.READ,
    Op.WRITE,
    Op.COMPARE,
    Op.COPY,
    Op.WRITE_ZEROES,
    Op.DISCARD,
    Op.READ_LOAN,
  ),
  start: fc.integer({ min: 0, max: LANE_BLOCKS - 1 }),
  blocks: fc.integer({ min: 1, max: LANE_BLOCKS }),
  offset: fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 1023 })),
  cuts: fc.array(fc.integer({ min: 1, max: LANE_BYTES - 1 }), { maxLength: 6 }),
  damage: fc.boolean(),
  fua: fc.boolean(),
});

/** One lane: a part of the device and of memory that its requests keep to. */
class Lane {
  readonly first: number;
  readonly model: Uint8Array;
  readonly arena: DmaBuffer;
  readonly list: DmaBuffer;

  constructor(index: number, memory: Memory) {
    this.first = index * LANE_BLOCKS;
    this.model = new Uint8Array(LANE_BYTES);
    this.arena = memory.alloc(ARENA_BYTES);
    this.list = memory.alloc(4096);
  }

  /** The data of a request as pieces of the arena, in the list's order but not in memory's. */
  pieces({ blocks, offset, cuts }: Step): { at: number; bytes: number }[] {
    const bytes = blocks * BLOCK;
    const ends = [...new Set(cuts.filter((cut) => cut < bytes))].sort((a, b) => a - b);
    const starts = [0, ...ends];
    let at = offset;
    const pieces = [...ends, bytes].map((end, i) => ({ at: 0, bytes: end - starts[i]! }));
    for (const piece of [...pieces].reverse()) {
      piece.at = at;
      at += piece.bytes + (offset % 7);
    }
    return pieces;
  }

  gather(pieces: readonly { at: number; bytes: number }[]): Uint8Array {
    return Buffer.concat(pieces.map(({ at, bytes }) => this.arena.u8.subarray(at, at + bytes)));
  }

  scatter(pieces: readonly { at: number; bytes: number }[], data: Uint8Array): void {
    let from = 0;
    for (const { at, bytes } of pieces) {
      this.arena.u8.set(data.subarray(from, from + bytes), at);
      from += bytes;
    }
  }

  free(): void {
    this.arena.free();
    this.list.free();
  }
}

interface Planned {
  request: Request;
  check(completion: Completion): void;
}

function plan(lane: Lane, wanted: Step, tag: number, r: Rig): Planned {
  const blocks = Math.min(wanted.blocks, LANE_BLOCKS - wanted.start);
  const s = { ...wanted, blocks };
  const from = s.start * BLOCK;
  const bytes = blocks * BLOCK;
  const pieces = lane.pieces(s);
  const request: Request = { op: s.op, tag, lba: lane.first + s.start, blocks };
  const device = () => r.driver.data.subarray(lane.first * BLOCK).subarray(from, from + bytes);
  const model = () => lane.model.subarray(from, from + bytes);
  const firstBad = [...r.driver.bad]
    .filter((block) => block >= request.lba! && block < request.lba! + blocks)
    .sort((a, b) => a - b)[0];
  const withData = s.op === Op.READ || s.op === Op.WRITE || s.op === Op.COMPARE;
  if (withData && pieces.length === 1) request.address = lane.arena.address + pieces[0]!.at;
  if (withData && pieces.length > 1) {
    const listed = pieces.map((piece) => ({
      address: lane.arena.address + piece.at,
      bytes: piece.bytes,
    }));
    Object.assign(request, fillList(lane.list, listed));
  }
  if (s.fua && s.op !== Op.READ_LOAN) request.flags = (request.flags ?? 0) | Flag.FUA;

  const data = fillPattern(new Uint8Array(bytes), tag * 31 + s.start);
  let expected: number = Status.OK;
  let difference = -1;
  if (s.op === Op.WRITE) {
    lane.scatter(pieces, data);
    if (firstBad === undefined) lane.model.set(data, from);
  } else if (s.op === Op.READ) {
    lane.arena.u8.fill(0xee);
  } else if (s.op === Op.COMPARE) {
    const there = new Uint8Array(model());
    if (s.damage) {
      difference = (tag * 7919 + s.offset) % bytes;
      there[difference]! ^= 0x40;
      expected = Status.MISCOMPARE;
    }
    lane.scatter(pieces, there);
  } else if (s.op === Op.COPY) {
    // Into the other half of the lane, so that source and target do not meet; the device's
    // boundaries lie differently in the two.
    const half = LANE_BLOCKS / 2;
    const source = s.start % (half - 3);
    const target = half + source + (s.offset % 4);
    const count = Math.min(blocks, LANE_BLOCKS - target, half - source);
    Object.assign(request, {
      blocks: count,
      address: lane.first + source,
      lba: lane.first + target,
    });
    const bad = [...r.driver.bad].some(
      (block) =>
        (block >= request.address! && block < request.address! + count) ||
        (block >= request.lba! && block < request.lba! + count),
    );
    if (!bad) {
      lane.model.copyWithin(target * BLOCK, source * BLOCK, (source + count) * BLOCK);
    }
    return {
      request,
      check(completion) {
        expect(completion.code).toBe(bad ? Status.MEDIA_ERROR : Status.OK);
        resync();
      },
    };
  } else if (s.op !== Op.READ_LOAN && firstBad === undefined) {
    lane.model.fill(0, from, from + bytes);
  }

  /** After a failure the parts may or may not have been written: the model learns which. */
  function resync(): void {
    const start = lane.first * BLOCK;
    if (r.driver.bad.size > 0) {
      lane.model.set(r.driver.data.subarray(start, start + LANE_BYTES));
      return;
    }
    expect(Buffer.compare(lane.model, r.driver.data.subarray(start, start + LANE_BYTES))).toBe(0);
  }

  return {
    request,
    check(completion) {
      if (firstBad !== undefined && s.op !== Op.COMPARE) {
        expect(completion.status).toBe((Status.MEDIA_ERROR | (firstBad << 8)) >>> 0);
        resync();
        return;
      }
      if (firstBad !== undefined) {
        expect([Status.MEDIA_ERROR, Status.MISCOMPARE]).toContain(completion.code);
        return;
      }
      expect(completion.code).toBe(expected);
      if (s.op === Op.READ) expect(Buffer.compare(lane.gather(pieces), model())).toBe(0);
      if (difference >= 0) expect(completion.resultLo).toBe(difference);
      if (s.op === Op.READ_LOAN) checkLoan(r, completion, device());
      resync();
    },
  };
}

function checkLoan({ queue, memory }: Rig, completion: Completion, wanted: Uint8Array): void {
  const { resultLo, resultHi } = completion;
  const address = (resultHi & 0xfff) * 2 ** 32 + resultLo;
  expect(memory.taken).toBeGreaterThan(0);
  expect(Buffer.compare(viewAt(address, wanted.length), wanted)).toBe(0);
  expect(queue.release(resultLo, (resultHi + 0x1000) >>> 0)).toBe(false);
  expect(queue.release(resultLo, resultHi)).toBe(true);
  expect(queue.release(resultLo, resultHi)).toBe(false);
}

function viewAt(address: number, bytes: number): Uint8Array {
  const segment = addressSpace().find(address)!;
  return segment.u8.subarray(address - segment.address, address - segment.address + bytes);
}

async function play(limit: Limits, steps: Step[], badBlocks: number[]): Promise<void> {
  const info = strictInfo({
    blocks: LANES * LANE_BLOCKS,
    maxTransferBlocks: limit.maxTransferBlocks,
    boundary: limit.boundary,
    addressAlign: limit.addressAlign,
    operations: limit.zeroes ? BASIC | (1 << Op.WRITE_ZEROES) : BASIC,
  });
  const r = rig(info, limit);
  for (const block of badBlocks) r.driver.bad.add(block);
  const lanes = Array.from({ length: LANES }, (_, i) => new Lane(i, r.memory));
  try {
    for (let at = 0; at < steps.length; at += LANES) {
      const batch = steps.slice(at, at + Math.min(LANES, limit.depth));
      const planned = batch.map((s, i) => plan(lanes[i]!, s, i, r));
      for (const { request } of planned) expect(put(r.queue, request)).toBe(true);
      const done: Completion[] = [];
      for (let polls = 0; done.length < planned.length; polls++) {
        if (polls > 2000) throw new Error(`${done.length} of ${planned.length} completed`);
        r.queue.submit();
        const count = r.queue.poll(3);
        for (let i = 0; i < count; i++) done.push(completionAt(r.queue, i));
      }
      expect(done.map(({ tag }) => tag).sort()).toEqual(planned.map((_, i) => i));
      for (const completion of done) planned[completion.tag]!.check(completion);
      expect(r.queue.poll(16)).toBe(0);
      expect(r.queue.inFlight).toBe(0);
    }
    expect(r.driver.violations).toEqual([]);
  } finally {
    for (const lane of lanes) lane.free();
    await r.close();
  }
}

describe('the adapter', () => {
  it('does any request within any limits, as a model does', { timeout: 60_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(limits, fc.array(step, { minLength: 1, maxLength: 40 }), (limit, steps) =>
        play(limit, steps, []),
      ),
      { numRuns: 60 },
    );
  });

  it('completes with the first failing part', { timeout: 60_000 }, async () => {
    const bad = fc.array(fc.nat({ max: LANES * LANE_BLOCKS - 1 }), { minLength: 1, maxLength: 30 });
    await fc.assert(
      fc.asyncProperty(limits, fc.array(step, { minLength: 1, maxLength: 24 }), bad, play),
      { numRuns: 60 },
    );
  });
});
