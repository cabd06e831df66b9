// Faults: verified work over a device that fails, delays, tears, reorders, hangs and loses its
// power, with settings drawn by chance.
//
// What must hold, block by block: a read sees the newest acknowledged write, or a later one that
// failed; after a power cut a block holds the newest write that a flush covered, or a later one.
// Failures come with the status they were asked for; nothing hangs.

import { join } from 'node:path';
import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { driver as fileDriver } from '../../lib/drivers/file/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { BlockDevice, Flag, Op, Status, type Queue } from '../../lib/hpdi/index.js';
import { defaultMemory, type DmaBuffer } from '../../lib/memory/index.js';
import { completionAt, put, type Completion } from '../support/requests.js';
import { check, Random, scratchFolder, within, type Soak, type SoakRun } from './harness.js';

const UNITS = 64;
const DEPTH = 16;
const BLOCKS_MAX = 4;
const STEPS = 40;
const EXPECTED: ReadonlySet<number> = new Set([
  Status.OK,
  Status.MEDIA_ERROR,
  Status.DEVICE_ERROR,
  Status.DEVICE_GONE,
  Status.TIMED_OUT,
]);

/**
 * What a block may hold. Writes of one block are never in flight together, so its versions are in
 * the order of their numbers.
 */
class Block {
  /** Newest version that a flush or FUA covered. */
  durable = 0;
  /** Newest acknowledged version. */
  acknowledged = 0;
  /** Versions after `durable` that were tried, acknowledged or not. */
  tried: number[] = [];
  busy = false;

  /** Whether a reader may see the version while the device is up. */
  mayShow(version: number): boolean {
    if (version === this.acknowledged) return true;
    return version > this.acknowledged && this.tried.includes(version);
  }

  mayStay(version: number): boolean {
    return version === this.durable || this.tried.includes(version);
  }

  /** Everything up to `version` is on the medium. */
  settle(version: number): void {
    if (version <= this.durable) return;
    this.durable = version;
    this.tried = this.tried.filter((each) => each > version);
  }
}

interface Flight {
  op: number;
  fua: boolean;
  first: number;
  count: number;
  version: number;
  buffer: DmaBuffer;
  /** FLUSH: what was acknowledged when it was sent. */
  covered: number[];
}

class FaultsRun implements SoakRun {
  private readonly random: Random;
  private readonly file = join(scratchFolder(), 'device');
  private readonly takenBefore = defaultMemory().taken;
  private version = 0;
  private blocks: Block[] = [];
  private flights: (Flight | null)[] = [];
  private device!: BlockDevice;
  private queue!: Queue;
  private failed = 0;
  private blocksMax = BLOCKS_MAX;

  constructor(random: Random) {
    this.random = random;
  }

  async round(index: number): Promise<number> {
    const settings = this.settings();
    const label = [...settings].map(([key, value]) => `fault.${key}=${value}`).join('&');
    try {
      await within(50_000, 'a device under faults', this.live(settings));
    } catch (cause) {
      throw new Error(`round ${index}, ${label}`, { cause });
    }
    return 1;
  }

  finish(): Promise<void> {
    check(this.failed > 0 || this.version < 10_000, 'no operation failed in all this time');
    check(defaultMemory().taken === this.takenBefore, 'buffers are missing from the pools');
    return Promise.resolve();
  }

  /** Settings that harm, but do not lie: dropped and torn writes are not acknowledged. */
  private settings(): Map<string, string> {
    const { random } = this;
    const settings = new Map([['seed', String(random.u32())]]);
    const maybe = (key: string, value: string): void => {
      if (random.chance(0.4)) settings.set(key, value);
    };
    maybe('errors', random.pick(['0.02', '0.2']));
    maybe('reorder', random.pick(['0.1', '0.9']));
    maybe('torn', random.pick(['0.05', '0.5']));
    maybe('cache', random.pick(['4KiB', '16KiB', '1MiB']));
    maybe('gone', String(random.below(400)));
    maybe('stuck', '0.02');
    if (settings.has('stuck')) settings.set('stuckMs', String(random.between(1, 20)));
    maybe('delayUs', random.pick(['10', '300']));
    return settings;
  }

  private async live(settings: ReadonlyMap<string, string>): Promise<void> {
    const { random } = this;
    const inner = random.chance(0.5)
      ? await ramDriver.open('1MiB', new Map(), 'ram:')
      : await fileDriver.open(this.file, new Map([['create', '1MiB']]), 'file:');
    const backend = wrapFault(inner, settings);
    const control = faultControl(backend)!;
    this.device = new BlockDevice(backend);
    const buffers = Array.from({ length: DEPTH }, () => this.device.memory.alloc(BLOCKS_MAX * 512));
    this.blocks = Array.from({ length: UNITS }, () => new Block());
    this.flights = new Array<null>(DEPTH).fill(null);
    const split = random.chance(0.5);
    const most = split ? BLOCKS_MAX : this.device.nativeInfo.maxTransferBlocks;
    this.blocksMax = Math.min(BLOCKS_MAX, most);
    this.queue = this.device.queue({ depth: DEPTH, split });
    try {
      const first = buffers[0]!;
      control.heal();
      await this.learn(first, (block, version) => this.adopt(block, version));
      for (let life = random.between(1, 3); life > 0; life--) {
        for (let step = 0; step < STEPS; step++) await this.step(buffers);
        // In the middle of what is in flight, which must complete all the same.
        const cut = random.chance(0.7);
        if (cut) await control.cut({ survive: random.pick([0, 0.5, 1]) });
        while (this.flights.some((flight) => flight !== null)) await this.take();
        control.heal();
        const rule = cut
          ? (block: Block, version: number): boolean => block.mayStay(version)
          : (block: Block, version: number): boolean => block.mayShow(version);
        await this.learn(first, (block, version, index) => {
          const held = `durable ${block.durable}, acknowledged ${block.acknowledged}`;
          check(rule(block, version), `block ${index} shows ${version}: ${held}, cut ${cut}`);
          this.adopt(block, version, cut);
        });
      }
    } finally {
      await this.device.close();
      for (const buffer of buffers) buffer.free();
    }
  }

  /** What was found is what is there; after a cut it is also what stays. */
  private adopt(block: Block, version: number, cut = true): void {
    block.acknowledged = version;
    if (!cut) return;
    block.durable = version;
    block.tried = [];
  }

  /** Reads every block until it could be read. */
  private async learn(
    buffer: DmaBuffer,
    found: (block: Block, version: number, index: number) => void,
  ): Promise<void> {
    for (const [index, block] of this.blocks.entries()) {
      for (let attempt = 0; ; attempt++) {
        const request = { op: Op.READ, tag: 0, blocks: 1, lba: index, address: buffer.address };
        check(put(this.queue, request), 'no room for one record');
        const done = await this.one();
        check(EXPECTED.has(done.code), this.device.explain(done.status).message);
        if (done.status === 0) break;
        check(attempt < 1000, 'a block cannot be read');
      }
      found(block, this.versionIn(buffer, 0, index), index);
    }
  }

  private async one(): Promise<Completion> {
    for (;;) {
      this.queue.submit();
      if ((await this.queue.wait(100)) > 0) return completionAt(this.queue, 0);
    }
  }

  private async step(buffers: readonly DmaBuffer[]): Promise<void> {
    for (let i = this.random.between(1, 6); i > 0; i--) this.send(buffers);
    this.queue.submit();
    await this.take();
  }

  private send(buffers: readonly DmaBuffer[]): void {
    const { random } = this;
    const tag = this.flights.indexOf(null);
    if (tag < 0) return;
    const op = random.pick([Op.READ, Op.WRITE, Op.WRITE, Op.FLUSH]);
    const fua = op === Op.WRITE && random.chance(0.1);
    const count = op === Op.FLUSH ? 0 : random.between(1, this.blocksMax);
    const first = op === Op.FLUSH ? 0 : random.below(UNITS - count + 1);
    const range = this.blocks.slice(first, first + count);
    if (range.some((block) => block.busy)) return;
    const buffer = buffers[tag]!;
    const version = op === Op.WRITE ? ++this.version : 0;
    for (let i = 0; i < count; i++) this.fill(buffer, i, first + i, version);
    const word = op | (fua ? Flag.FUA : 0);
    const request = { op: word, tag, blocks: count, lba: first, address: buffer.address };
    if (!put(this.queue, request)) return;
    for (const block of range) {
      block.busy = true;
      if (op === Op.WRITE) block.tried.push(version);
    }
    const covered = op === Op.FLUSH ? this.blocks.map((block) => block.acknowledged) : [];
    this.flights[tag] = { op, fua, first, count, version, buffer, covered };
  }

  private async take(): Promise<void> {
    if (this.queue.head !== this.queue.tail) this.queue.submit();
    const wait = this.random.chance(0.5);
    const count = wait ? await this.queue.wait(20) : this.queue.park(1000);
    for (let i = 0; i < count; i++) this.complete(completionAt(this.queue, i));
  }

  private complete(done: Completion): void {
    const flight = this.flights[done.tag];
    check(flight !== null && flight !== undefined, `tag ${done.tag} came twice`);
    this.flights[done.tag] = null;
    check(EXPECTED.has(done.code), this.device.explain(done.status).message);
    const range = this.blocks.slice(flight.first, flight.first + flight.count);
    for (const block of range) block.busy = false;
    if (done.status !== 0) {
      this.failed++;
      return;
    }
    if (flight.op === Op.FLUSH) {
      for (const [i, block] of this.blocks.entries()) block.settle(flight.covered[i]!);
      return;
    }
    for (const [i, block] of range.entries()) {
      if (flight.op === Op.WRITE) {
        block.acknowledged = flight.version;
        if (flight.fua) block.settle(flight.version);
        continue;
      }
      const version = this.versionIn(flight.buffer, i, flight.first + i);
      const text = `block ${flight.first + i} reads ${version}, acknowledged ${block.acknowledged}`;
      check(block.mayShow(version), text);
    }
  }

  private fill(buffer: DmaBuffer, at: number, block: number, version: number): void {
    const words = buffer.u32.subarray(at * 128, at * 128 + 128);
    words.fill((Math.imul(block + 1, 0x9e3779b1) ^ version) >>> 0);
    words[0] = version;
    words[1] = block;
  }

  /** The version a block of the buffer holds; a block that is none of ours fails. */
  private versionIn(buffer: DmaBuffer, at: number, block: number): number {
    const words = buffer.u32.subarray(at * 128, at * 128 + 128);
    const version = words[0]!;
    if (version === 0 && words.every((word) => word === 0)) return 0;
    const word = (Math.imul(block + 1, 0x9e3779b1) ^ version) >>> 0;
    const whole = words[1] === block && words.subarray(2).every((each) => each === word);
    check(whole, `block ${block} is torn, or another's`);
    return version;
  }
}

export const faultsSoak: Soak = {
  full: 5_000,
  unit: 'rounds',
  start(random) {
    return Promise.resolve(new FaultsRun(random));
  },
};
