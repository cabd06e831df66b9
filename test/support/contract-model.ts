// The contract suite's random part: operations against a model that is an array of bytes.
//
// Operations that do not overlap are in flight together, the others one after the other, so that
// the outcome is known to the byte. fast-check prints seed and path of a failure; a run is
// repeated with PENSTOCK_SEED.

import fc from 'fast-check';
import { expect, it } from 'vitest';
import { Op, Status, type Queue } from '../../lib/hpdi/index.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import type { Contract } from './contract.js';
import { fillList, fillPattern, run, type Request } from './requests.js';

const SPAN_BLOCKS = 96;
const FIRST_LBA = 400;

interface Step {
  op: number;
  lba: number;
  blocks: number;
  from: number;
  seed: number;
  offset: number;
  pieces: number;
}

const step = fc.record({
  op: fc.constantFrom(
    Op.READ,
    Op.WRITE,
    Op.WRITE,
    Op.WRITE_ZEROES,
    Op.COPY,
    Op.COMPARE,
    Op.DISCARD,
  ),
  lba: fc.nat(SPAN_BLOCKS - 1),
  blocks: fc.integer({ min: 1, max: 40 }),
  from: fc.nat(SPAN_BLOCKS - 1),
  seed: fc.nat(1000),
  offset: fc.constantFrom(0, 0, 0, 512, 4, 1),
  pieces: fc.constantFrom(0, 0, 1, 2, 7),
});

export function modelContract(contract: Contract): void {
  const { data, discardZeroes, modelRuns = 8 } = contract.expectations;
  if (!data) return;

  it('does random operations as the model does', async () => {
    const seed = Number(process.env['PENSTOCK_SEED'] ?? 20260101);
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 40 }), async (steps) => {
        const queue = contract.device.queue({ depth: 16 });
        const model = new Model(contract, queue);
        try {
          await model.start();
          const usable = steps.filter((s) => s.op !== Op.DISCARD || discardZeroes);
          for (const batch of batches(usable)) await model.doBatch(batch);
          await model.check();
        } finally {
          await queue.close();
          model.free();
        }
      }),
      { numRuns: modelRuns, seed },
    );
  });
}

/** Runs of steps none of which touches what another of the same run writes. */
function batches(steps: readonly Step[]): Step[][] {
  const all: Step[][] = [];
  let current: Step[] = [];
  for (const next of steps) {
    const clash = current.length === 8 || current.some((other) => overlap(other, next));
    if (clash) {
      all.push(current);
      current = [];
    }
    current.push(next);
  }
  if (current.length > 0) all.push(current);
  return all;
}

function overlap(a: Step, b: Step): boolean {
  const ranges = (s: Step): [number, number][] => {
    const own: [number, number] = [s.lba, s.lba + s.blocks];
    return s.op === Op.COPY ? [own, [s.from, s.from + s.blocks]] : [own];
  };
  return ranges(a).some(([from, to]) => ranges(b).some(([f, t]) => from < t && f < to));
}

class Model {
  private readonly contract: Contract;
  private readonly queue: Queue;
  private readonly blockSize: number;
  private readonly bytes: Uint8Array;
  private readonly buffers: DmaBuffer[] = [];

  constructor(contract: Contract, queue: Queue) {
    this.contract = contract;
    this.queue = queue;
    this.blockSize = contract.blockSize;
    this.bytes = new Uint8Array(2 * SPAN_BLOCKS * this.blockSize);
  }

  /** Writes the whole span, so that model and device agree. */
  async start(): Promise<void> {
    await this.doBatch([this.whole(Op.WRITE, 0), this.whole(Op.WRITE, SPAN_BLOCKS)]);
  }

  async check(): Promise<void> {
    await this.doBatch([this.whole(Op.READ, 0), this.whole(Op.READ, SPAN_BLOCKS)]);
  }

  free(): void {
    for (const buffer of this.buffers.splice(0)) buffer.free();
  }

  async doBatch(steps: readonly Step[]): Promise<void> {
    const checks: (() => void)[] = [];
    const requests = steps.map((s, tag) => ({ ...this.request(s, checks), tag }));
    const done = await run(this.queue, ...requests);
    for (const completion of done) {
      const wanted = steps[completion.tag]!;
      expect([wanted.op, completion.code]).toEqual([wanted.op, Status.OK]);
    }
    for (const check of checks) check();
    this.free();
  }

  private whole(op: number, lba: number): Step {
    return { op, lba, blocks: SPAN_BLOCKS, from: 0, seed: 7 + lba, offset: 0, pieces: 0 };
  }

  private range(lba: number, blocks: number): Uint8Array {
    return this.bytes.subarray(lba * this.blockSize, (lba + blocks) * this.blockSize);
  }

  /** The request of a step; the model is brought to what it will be. */
  private request(s: Step, checks: (() => void)[]): Request {
    const target = this.range(s.lba, s.blocks);
    const plain = { op: s.op, blocks: s.blocks, lba: FIRST_LBA + s.lba };
    if (s.op === Op.WRITE_ZEROES || s.op === Op.DISCARD) {
      target.fill(0);
      return plain;
    }
    if (s.op === Op.COPY) {
      // Source and target that overlap each other have no outcome to agree on.
      const from = Math.abs(s.from - s.lba) < s.blocks ? s.lba : s.from;
      target.set(this.range(from, s.blocks).slice());
      return { ...plain, address: FIRST_LBA + from };
    }
    const room = this.take(target.length + 1024);
    const inside = room.u8.subarray(s.offset, s.offset + target.length);
    if (s.op === Op.WRITE) target.set(fillPattern(inside, s.seed));
    else if (s.op === Op.COMPARE) inside.set(target);
    else {
      const wanted = target.slice();
      checks.push(() => expect(Buffer.from(inside).equals(wanted), 'data read').toBe(true));
    }
    return { ...plain, ...this.place(room.address + s.offset, target.length, s.pieces) };
  }

  /** A plain address, or a list of `pieces` pieces of uneven lengths. */
  private place(address: number, bytes: number, pieces: number): Partial<Request> {
    if (pieces === 0) return { address };
    const list = this.take(512);
    const length = Math.floor(bytes / pieces) - 3;
    const parts = Array.from({ length: pieces }, (_, i) => ({
      address: address + i * length,
      bytes: i === pieces - 1 ? bytes - i * length : length,
    }));
    return fillList(list, parts);
  }

  private take(bytes: number): DmaBuffer {
    const buffer = this.contract.buffer(bytes);
    this.buffers.push(buffer);
    return buffer;
  }
}
