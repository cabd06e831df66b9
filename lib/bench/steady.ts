// The steady state of a closed loop, made for speed: every slot is in flight, and a completion's
// slot goes out again at once with the next operation of the plan.
//
// After a system call little of this program is left in the processor's caches, so what counts at
// depth 1 is how many cache lines a round touches: the plan's operations stand interleaved, a
// slot's words in one line, and nothing is looked at that has not changed. The general loop
// (loop.ts) starts and ends a run, and does what this one does not: pacing, verifying, contents
// that change.

import { Cpl, Op, Req, type Queue } from '../hpdi/index.js';
import { Control as Enter, enterControl } from '../uring/index.js';
import type { Histogram } from './histogram.js';
import { Control } from './progress.js';
import type { Slots } from './slots.js';
import type { Plan } from './workload.js';

const TWO32 = 2 ** 32;
/**
 * Latencies are counted in lots of this many: one at a time, the histogram would be out of the
 * cache.
 */
const SAMPLES_MIN = 512;
/** A sample's count of writes is shifted by this; its count of reads stands below. */
const WRITES_UNIT = 2 ** 20;
/** Operations submitted at once to a device that completes later; a power of two. */
const EARLY_BATCH = 4;
/** How long a round blocks when nothing completes. */
const PARK_US = 20_000;

/** Set in a high word (of an LBA, of an address): the operation is a write. */
const WRITE_BIT = 0x80000000;

/** Words of an operation of the plan. */
const enum Operation {
  lbaLo = 0,
  /** With WRITE_BIT. */
  lbaHi = 1,
  words = 2,
}

/** Words of a slot; its second half is a double: when its operation was issued. */
const enum Lane {
  addressLo = 0,
  /** With WRITE_BIT. */
  addressHi = 1,
  words = 4,
}

/** Words of `outcome`, as of the last run. */
export const enum Outcome {
  now = 0,
  reads = 1,
  writes = 2,
  /** Status word of a failed operation; 0: none. */
  status = 3,
  failed = 4,
  words = 5,
}

export interface SteadyOptions {
  queue: Queue;
  plan: Plan;
  slots: Slots;
  clock: { readonly words: Uint32Array; readonly read: () => void; readonly hertz: number };
  reads: Histogram;
  writes: Histogram;
  unitBlocks: number;
  control: Int32Array;
  /** The clock when the run began; stamps are ticks since then. */
  originTicks: number;
  /** Per slot: when its operation was issued. */
  slotStamp: Float64Array;
}

export class Steady {
  readonly outcome = new Float64Array(Outcome.words);
  private readonly lanes: Uint32Array;
  private readonly stamps: Float64Array;
  /** Pairs: ticks, and how many reads and writes took them. */
  private readonly samples: Float64Array;
  private sampled = 0;
  private operations = new Uint32Array(0);
  private length = 0;
  private next = 0;
  private readonly nsPerTick: number;
  private readonly options: SteadyOptions;
  private running = false;

  constructor(options: SteadyOptions) {
    this.options = options;
    const { slots } = options;
    this.nsPerTick = 1e9 / options.clock.hertz;
    const lanes = new ArrayBuffer(slots.depth * Lane.words * 4);
    this.lanes = new Uint32Array(lanes);
    this.stamps = new Float64Array(lanes);
    this.samples = new Float64Array(2 * (SAMPLES_MIN + options.queue.depth));
  }

  /** Takes over what the general loop has in flight, once. `planAt`: the plan's next operation. */
  begin(slotWrite: Uint8Array, planAt: number): void {
    if (this.running) return;
    this.running = true;
    for (let slot = 0; slot < slotWrite.length; slot++) {
      this.aim(slot, slotWrite[slot] !== 0);
      this.stamps[slot * 2 + 1] = this.options.slotStamp[slot]!;
    }
    this.take(planAt);
  }

  /** Gives back which slots are writing; the general loop drains them. */
  end(slotWrite: Uint8Array): void {
    if (!this.running) return;
    this.running = false;
    for (let slot = 0; slot < slotWrite.length; slot++) {
      const high = this.lanes[slot * Lane.words + Lane.addressHi]!;
      slotWrite[slot] = (high & WRITE_BIT) !== 0 ? 1 : 0;
      this.options.slotStamp[slot] = this.stamps[slot * 2 + 1]!;
    }
  }

  /** Rounds until the clock is past `untilTicks` or an operation fails; see `outcome`. */
  run(untilTicks: number): void {
    const { outcome } = this;
    const { control } = this.options;
    outcome[Outcome.now] = 0;
    outcome[Outcome.reads] = 0;
    outcome[Outcome.writes] = 0;
    do {
      this.rounds(untilTicks);
      this.count();
    } while (
      outcome[Outcome.now]! < untilTicks &&
      outcome[Outcome.status] === 0 &&
      control[Control.stop] === 0
    );
  }

  // hot:begin

  /** Rounds until the samples are full, too. */
  private rounds(untilTicks: number): void {
    const { queue, clock, originTicks, unitBlocks } = this.options;
    const { words } = clock;
    const { sq, cq, mask, depth } = queue;
    const { lanes, stamps, samples } = this;
    const room = samples.length - 2 * depth;
    let sampled = 0;
    let now = 0;
    let failures = 0;
    let failure = 0;
    enterControl[Enter.stamp] = 1;
    let enters = enterControl[Enter.stamps]!;
    let early = false;
    do {
      if (queue.tail !== queue.head) queue.submit();
      let done = queue.poll(depth);
      early = queue.inFlight > 0;
      if (done === 0) done = queue.park(PARK_US);
      // A system call of this round has read the clock when it returned; else we do.
      if (enterControl[Enter.stamps] !== enters) {
        enters = enterControl[Enter.stamps]!;
        now = enterControl[Enter.ticksHi]! * TWO32 + enterControl[Enter.ticksLo]!;
      } else {
        clock.read();
        now = words[1]! * TWO32 + words[0]!;
      }
      now -= originTicks;
      let index = queue.tail;
      let stamp = -1;
      let readRun = 0;
      let writeRun = 0;
      for (let i = 0; i < done; i++) {
        const slot = cq[i * Cpl.words + Cpl.tag]!;
        const status = cq[i * Cpl.words + Cpl.status]!;
        const lane = slot * Lane.words;
        const issued = stamps[slot * 2 + 1]!;
        const aimed = lanes[lane + Lane.addressHi]!;
        // Operations of one batch share their stamp: runs of equal latency are counted together.
        if (issued !== stamp) {
          if (readRun + writeRun > 0) {
            samples[sampled] = now - stamp;
            samples[sampled + 1] = readRun + writeRun * WRITES_UNIT;
            sampled += 2;
          }
          readRun = 0;
          writeRun = 0;
          stamp = issued;
        }
        if (status !== 0) {
          failures++;
          failure = status;
        } else if ((aimed & WRITE_BIT) === 0) readRun++;
        else writeRun++;
        if (this.next === this.length) this.refill();
        const { operations } = this;
        const at = this.next;
        this.next = at + Operation.words;
        const lbaHi = operations[at + Operation.lbaHi]!;
        if (((lbaHi ^ aimed) & WRITE_BIT) !== 0) this.aim(slot, (lbaHi & WRITE_BIT) !== 0);
        const r = (index & mask) * Req.words;
        sq[r] = (lbaHi & WRITE_BIT) === 0 ? Op.READ : Op.WRITE;
        sq[r + Req.tag] = slot;
        sq[r + Req.blocks] = unitBlocks;
        sq[r + Req.aux] = 0;
        sq[r + Req.lbaLo] = operations[at]!;
        sq[r + Req.lbaHi] = lbaHi & ~WRITE_BIT;
        sq[r + Req.addressLo] = lanes[lane]!;
        sq[r + Req.addressHi] = lanes[lane + Lane.addressHi]! & ~WRITE_BIT;
        stamps[slot * 2 + 1] = now;
        index = (index + 1) | 0;
        queue.reserve(1);
        // What did not complete while it was submitted comes from a device with a queue of its own,
        // which runs dry less when it gets small batches early.
        if (early && (i & (EARLY_BATCH - 1)) === EARLY_BATCH - 1) queue.submit();
      }
      if (readRun + writeRun > 0) {
        samples[sampled] = now - stamp;
        samples[sampled + 1] = readRun + writeRun * WRITES_UNIT;
        sampled += 2;
      }
    } while (now < untilTicks && failures === 0 && sampled < room);
    if (queue.tail !== queue.head) queue.submit();
    this.sampled = sampled;
    enterControl[Enter.stamp] = 0;
    const { outcome } = this;
    outcome[Outcome.now] = now;
    outcome[Outcome.status] = failure;
    outcome[Outcome.failed] = failures;
  }

  // hot:end

  /** Points a slot at its buffer for reads or for writes. */
  private aim(slot: number, writes: boolean): void {
    const { addressLo, addressHi, depth } = this.options.slots;
    const place = writes ? depth + slot : slot;
    const lane = slot * Lane.words;
    this.lanes[lane] = addressLo[place]!;
    this.lanes[lane + Lane.addressHi] = addressHi[place]! | (writes ? WRITE_BIT : 0);
  }

  /** Counts the samples. */
  private count(): void {
    const { samples, sampled, nsPerTick, outcome } = this;
    const { reads, writes } = this.options;
    for (let i = 0; i < sampled; i += 2) {
      const ns = Math.floor(samples[i]! * nsPerTick + 0.5);
      const writeCount = Math.floor(samples[i + 1]! / WRITES_UNIT);
      const readCount = samples[i + 1]! - writeCount * WRITES_UNIT;
      if (readCount > 0) reads.record(ns, readCount);
      if (writeCount > 0) writes.record(ns, writeCount);
      outcome[Outcome.reads] = outcome[Outcome.reads]! + readCount;
      outcome[Outcome.writes] = outcome[Outcome.writes]! + writeCount;
    }
  }

  private refill(): void {
    this.options.plan.refill();
    this.take(0);
  }

  /** Interleaves the plan's operations, from `planAt` on. */
  private take(planAt: number): void {
    const { plan } = this.options;
    if (this.operations.length < plan.length * Operation.words) {
      this.operations = new Uint32Array(plan.length * Operation.words);
    }
    const { operations } = this;
    for (let i = 0; i < plan.length; i++) {
      const at = i * Operation.words;
      operations[at] = plan.lbaLo[i]!;
      operations[at + Operation.lbaHi] = plan.lbaHi[i]! | (plan.writes[i] === 0 ? 0 : WRITE_BIT);
    }
    this.next = planAt * Operation.words;
    this.length = plan.length * Operation.words;
  }
}
