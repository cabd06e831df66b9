// Adapter: right requests of every kind, over devices whose limits are drawn by chance (transfer
// size, alignment, boundary, missing operations), held against an array of bytes.
//
// What must hold: each operation does to the device and to its buffers just what it does to the
// model; bytes beside the buffers stay as they were; COMPARE names the first byte that differs.

import { join } from 'node:path';
import { BlockDevice, Flag, Op, Status } from '../../lib/hpdi/index.js';
import type { Backend, DeviceInfo, Queue, QueueOptions } from '../../lib/hpdi/index.js';
import { driver as fileDriver } from '../../lib/drivers/file/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { addressSpace, defaultMemory, type DmaBuffer } from '../../lib/memory/index.js';
import { completionAt, fillList, fillPattern, put } from '../support/requests.js';
import type { Completion } from '../support/requests.js';
import { check, Random, scratchFolder, within, type Soak, type SoakRun } from './harness.js';

const BYTES = 512 * 1024;
const LANES = 8;
const LANE_BYTES = BYTES / LANES;
const ARENA_BYTES = 2 * LANE_BYTES;
const ROUNDS_PER_DEVICE = 200;
const FILL = 0xc3;

/** A device that claims less than it can do. */
class Limited implements Backend {
  readonly uri: string;
  readonly scheme: string;
  readonly info: DeviceInfo;

  constructor(
    private readonly inner: Backend,
    limits: Partial<DeviceInfo>,
  ) {
    this.uri = inner.uri;
    this.scheme = inner.scheme;
    this.info = { ...inner.info, ...limits };
  }

  openQueue(options: QueueOptions): ReturnType<Backend['openQueue']> {
    return this.inner.openQueue(options);
  }

  share(): unknown {
    return this.inner.share();
  }

  explainDetail(code: number, detail: number): string {
    return this.inner.explainDetail(code, detail);
  }

  close(): Promise<void> {
    return this.inner.close();
  }
}

/** An operation in flight, in a lane (a part of device and model) of its own. */
interface Flight {
  label: string;
  finish: (done: Completion) => void;
}

class Lane {
  /** Room for the data at any offset, and what lies beside it. */
  readonly arena: DmaBuffer = defaultMemory().alloc(ARENA_BYTES);
  readonly list: DmaBuffer = defaultMemory().alloc(4096);
  /** What the arena is expected to hold. */
  readonly wanted = Buffer.alloc(ARENA_BYTES, FILL);

  constructor(readonly index: number) {
    this.arena.u8.fill(FILL);
  }
}

class AdapterRun implements SoakRun {
  private readonly random: Random;
  private readonly file = join(scratchFolder(), 'device');
  private readonly model = Buffer.alloc(BYTES);
  private readonly lanes = Array.from({ length: LANES }, (_, index) => new Lane(index));
  private readonly takenBefore = defaultMemory().taken;
  private device: BlockDevice | null = null;
  private queue: Queue | null = null;
  private label = '';

  constructor(random: Random) {
    this.random = random;
  }

  async round(index: number): Promise<number> {
    try {
      if (index % ROUNDS_PER_DEVICE === 0) await this.open();
      const flights = this.lanes.map((lane) => this.issue(lane));
      this.queue!.submit();
      await within(20_000, 'operations in flight', this.settle(flights));
      if (index % 16 === 0) await this.verify();
    } catch (cause) {
      throw new Error(`round ${index}, ${this.label}`, { cause });
    }
    return LANES;
  }

  async finish(): Promise<void> {
    await this.device?.close();
    check(defaultMemory().taken === this.takenBefore, 'buffers are missing from the pools');
    for (const lane of this.lanes) {
      lane.arena.free();
      lane.list.free();
    }
  }

  private async open(): Promise<void> {
    const { random } = this;
    await this.device?.close();
    const size = `${BYTES / 1024}KiB`;
    const inner = random.chance(0.5)
      ? await ramDriver.open(size, new Map(), 'ram:')
      : await fileDriver.open(
          this.file,
          new Map([
            ['create', size],
            ['direct', '1'],
          ]),
          'file:',
        );
    const bits = random.chance(0.5) ? 0 : 1 << Op.WRITE_ZEROES;
    const limits = {
      maxTransferBlocks: random.pick([1, 2, 3, 7, 64, inner.info.maxTransferBlocks]),
      addressAlign: Math.max(inner.info.addressAlign, random.pick([1, 4, 512, 4096])),
      boundary: random.pick([0, 0, 1, 5, 16]),
      operations: inner.info.operations & ~bits,
    };
    this.label = `${inner.scheme} ${JSON.stringify(limits)}`;
    this.device = new BlockDevice(new Limited(inner, limits));
    this.queue = this.device.queue({ depth: random.pick([8, 64]) });
    // The file is the one of the device before.
    await this.load();
  }

  private issue(lane: Lane): Flight {
    const { random, model } = this;
    const blockSize = this.device!.info.blockSize;
    const perLane = LANE_BYTES / blockSize;
    const blocks = random.chance(0.8) ? random.between(1, 12) : random.between(1, perLane);
    const first = random.below(perLane - blocks + 1);
    const bytes = blocks * blockSize;
    const start = lane.index * LANE_BYTES + first * blockSize;
    const lba = start / blockSize;
    const there = model.subarray(start, start + bytes);
    const ops = [Op.READ, Op.READ, Op.WRITE, Op.WRITE, Op.COMPARE, Op.COPY, Op.READ_LOAN];
    const op = random.pick([...ops, Op.WRITE_ZEROES, Op.DISCARD, Op.FLUSH]);
    const base = { op, tag: lane.index, blocks, lba };
    const label = `operation ${op}, ${blocks} blocks from ${lba}`;
    if (op === Op.READ || op === Op.WRITE || op === Op.COMPARE) {
      return this.transfer(lane, base, there, label);
    }
    if (op === Op.COPY) {
      // Within the lane, often overlapping: as memmove does it.
      const from = lane.index * perLane + random.below(perLane - blocks + 1);
      const source = model.subarray(from * blockSize, (from + blocks) * blockSize);
      const request = { ...base, address: from };
      return this.send(request, label, () => source.copy(model, start));
    }
    if (op === Op.READ_LOAN) {
      return this.send(base, label, (done) => this.examineLoan(done, there));
    }
    if (op === Op.FLUSH) return this.send({ ...base, blocks: 0, lba: 0 }, label, () => undefined);
    return this.send(base, label, () => there.fill(0));
  }

  /** READ, WRITE or COMPARE of a plain buffer or a scatter list, at any offset. */
  private transfer(
    lane: Lane,
    base: { op: number; tag: number; blocks: number; lba: number },
    there: Buffer,
    label: string,
  ): Flight {
    const { random } = this;
    const { op } = base;
    const pieces = this.pieces(there.length, random.chance(0.5) ? 1 : random.between(2, 9));
    // Data in place of the arena's filling, as the caller of a WRITE or COMPARE has it.
    const data = Buffer.from(there);
    if (op === Op.WRITE) fillPattern(data, random.u32());
    let differs = -1;
    if (op === Op.COMPARE && random.chance(0.3)) {
      differs = random.below(data.length);
      data[differs]! ^= 1 + random.below(255);
    }
    const spread = (bytes: Buffer): void => {
      let at = 0;
      for (const piece of pieces) {
        bytes.copy(lane.wanted, piece.offset, at, at + piece.bytes);
        at += piece.bytes;
      }
    };
    if (op !== Op.READ) {
      spread(data);
      lane.arena.u8.set(lane.wanted);
    }
    const listed = pieces.map(({ offset, bytes }) => ({
      address: lane.arena.address + offset,
      bytes,
    }));
    const where =
      pieces.length === 1
        ? { address: listed[0]!.address, flags: 0, segments: 0 }
        : fillList(lane.list, listed);
    if (op === Op.WRITE && random.chance(0.2)) where.flags |= Flag.FUA;
    const finish = (done: Completion): void => {
      if (op === Op.WRITE) data.copy(there);
      if (op === Op.READ) spread(there);
      check(done.code === (differs < 0 ? 0 : Status.MISCOMPARE), `status ${done.status}`);
      check(differs < 0 || done.resultLo === differs, `${differs} differs, not ${done.resultLo}`);
      check(lane.wanted.equals(lane.arena.u8), 'buffer, or what is beside it, is not as it should');
      lane.wanted.fill(FILL);
      lane.arena.u8.fill(FILL);
    };
    return this.send({ ...base, ...where }, label, finish, op === Op.COMPARE);
  }

  /** Cuts `bytes` into pieces that lie somewhere in the arena, in order, with gaps between. */
  private pieces(bytes: number, count: number): { offset: number; bytes: number }[] {
    const { random } = this;
    const align = random.pick([1, 4, 512]);
    const cuts = new Set([0]);
    for (let i = 1; i < count; i++) cuts.add(Math.floor(random.below(bytes) / align) * align);
    const starts = [...cuts].sort((a, b) => a - b);
    let offset = 0;
    let slack = ARENA_BYTES - bytes;
    return starts.map((start, i) => {
      const length = (starts[i + 1] ?? bytes) - start;
      const gap = Math.floor(random.below(Math.min(slack, 5000) + 1) / align) * align;
      slack -= gap;
      offset += gap;
      const piece = { offset, bytes: length };
      offset += length;
      return piece;
    });
  }

  private examineLoan(done: Completion, there: Buffer): void {
    const address = (done.resultHi & 0xfff) * 2 ** 32 + done.resultLo;
    const segment = addressSpace().find(address);
    check(segment !== undefined, 'a loan outside of memory');
    const at = address - segment.address;
    check(there.equals(segment.u8.subarray(at, at + there.length)), 'a loan with other bytes');
    check(this.queue!.release(done.resultLo, done.resultHi), 'a loan was not taken back');
    check(!this.queue!.release(done.resultLo, done.resultHi), 'a loan was taken back twice');
  }

  private send(
    request: Parameters<typeof put>[1],
    label: string,
    finish: (done: Completion) => void,
    anyStatus = false,
  ): Flight {
    check(put(this.queue!, request), 'the queue has no room');
    return {
      label,
      finish: (done) => {
        check(anyStatus || done.status === 0, this.device!.explain(done.status).message);
        finish(done);
      },
    };
  }

  private async settle(flights: (Flight | undefined)[]): Promise<void> {
    for (let left = flights.length; left > 0;) {
      // Back-pressure: what the driver did not take goes again once something has completed.
      if (this.queue!.head !== this.queue!.tail) this.queue!.submit();
      const count = this.random.chance(0.5) ? await this.queue!.wait(1000) : this.queue!.park(1000);
      check(count > 0 || this.queue!.inFlight > 0, `${left} completions are missing`);
      left -= count;
      for (const done of Array.from({ length: count }, (_, i) => completionAt(this.queue!, i))) {
        const flight = flights[done.tag];
        check(flight !== undefined, `tag ${done.tag} came twice, or never went`);
        flights[done.tag] = undefined;
        try {
          flight.finish(done);
        } catch (cause) {
          throw new Error(flight.label, { cause });
        }
      }
    }
  }

  private async load(): Promise<void> {
    const buffer = this.device!.memory.alloc(BYTES);
    buffer.u8.set(fillPattern(this.model, this.random.u32()));
    await this.device!.write(0, buffer);
    buffer.free();
  }

  /** The whole device against the model. */
  private async verify(): Promise<void> {
    const buffer = this.device!.memory.alloc(BYTES);
    await this.device!.read(0, buffer);
    const same = this.model.equals(buffer.u8);
    buffer.free();
    check(same, 'the device and the model differ');
  }
}

export const adapterSoak: Soak = {
  full: 100_000,
  unit: 'operations',
  start(random) {
    return Promise.resolve(new AdapterRun(random));
  },
};
