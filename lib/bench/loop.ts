// The hot loop of a worker: fill free slots, one submit, one poll, one clock read per round.
//
// Closed loop: every free slot is filled at once and its latency counts from the clock read before
// its batch was filled, so the engine's own work counts against the device, never for it. Open loop
// (`intervalTicks` > 0): operation k is due at start + k · interval; it is issued when it is due
// and a slot is free, and its latency counts from when it was due (no coordinated omission).
//
// Invariants: no allocation per operation (state between slices lives in typed arrays, times are
// doubles in locals); an error ends issuing, never the draining; a slot is free or in flight, and
// its buffer is looked at only while it is free. The loop runs in slices that return, so that V8
// compiles it as an ordinary function instead of replacing a running frame.

import { Cpl, Op, Req, type Queue } from '../hpdi/index.js';
import type { Histogram } from './histogram.js';
import type { Contents } from './pattern.js';
import { Control, Phase, Progress } from './progress.js';
import type { Slots } from './slots.js';
import { Outcome, Steady } from './steady.js';
import type { Verifier } from './verify.js';
import type { Plan } from './workload.js';

const ROUNDS_PER_SLICE = 512;
/** The steady loop comes back this often, for stop requests and progress. */
const CRUISE_SECONDS = 0.01;
const TWO32 = 2 ** 32;
/** A stop request is seen within this time. */
const PARK_US_MAX = 50_000;
/** Timers wake late by about this much: the rest of a wait is spun, so that due times are kept. */
const SPIN_US = 80;

/** The time stamp counter: read() stores it as two words. */
export interface Clock {
  readonly words: Uint32Array;
  readonly read: () => void;
  /** Ticks per second. */
  readonly hertz: number;
}

/** Words of `state`: what a slice leaves for the next one. */
const enum State {
  /** Ticks since the loop began, at the last clock read. */
  now = 0,
  issued = 1,
  /** Operations completed, failures included. */
  completed = 2,
  failed = 3,
  /** Open loop: when the next operation is due. */
  due = 4,
  measureStart = 5,
  reads = 6,
  writes = 7,
  /** When the loop has to look up: the ramp's end, then the deadline. */
  horizon = 8,
  /** The clock when the loop began. */
  origin = 9,
  words = 10,
}

const enum Flag {
  issuing = 0,
  measuring = 1,
  stopped = 2,
  words = 3,
}

export interface LoopOptions {
  queue: Queue;
  plan: Plan;
  slots: Slots;
  clock: Clock;
  control: Int32Array;
  progress: Float64Array;
  reads: Histogram;
  writes: Histogram;
  unitBlocks: number;
  /** Operations to issue; Infinity: until the deadline. */
  operations: number;
  rampSeconds: number;
  /** Seconds from the end of the ramp on; 0: no deadline. */
  runtimeSeconds: number;
  /** Open loop: seconds between two operations of this worker; 0: closed loop. */
  intervalSeconds: number;
  /** Open loop: the first operation's due time, which spreads the workers over an interval. */
  firstDueSeconds: number;
  verifier: Verifier | null;
  contents: Contents | null;
}

export interface LoopOutcome {
  reads: number;
  writes: number;
  failed: number;
  /** Status word of the first failed operation; 0: none. */
  status: number;
  measuredSeconds: number;
  /** The stop word ended the run. */
  stopped: boolean;
  polls: number;
  doorbells: number;
}

export class Loop {
  private readonly state = new Float64Array(State.words);
  private readonly freeSlots: Uint32Array;
  private freeCount: number;
  private readonly slotStamp: Float64Array;
  private readonly slotWrite: Uint8Array;
  /** Place in the plan of the next operation. */
  private planAt = 0;
  /** Flag words: a field that changes late would make V8 compile the loop again in mid-run. */
  private readonly flags = new Uint8Array(Flag.words);
  private status = 0;
  private readonly nsPerTick: number;
  private readonly rampTicks: number;
  private readonly deadlineTicks: number;
  private readonly intervalTicks: number;
  private readonly steady: Steady | null;
  private pollsBefore = 0;
  private doorbellsBefore = 0;

  /** `onMeasure` is called once, when counting begins. */
  constructor(
    private readonly options: LoopOptions,
    private readonly onMeasure: () => void,
  ) {
    const { clock, slots, queue } = options;
    if (queue.depth < slots.depth) throw new RangeError('the queue is shallower than the job');
    this.freeSlots = new Uint32Array(slots.depth);
    for (let i = 0; i < slots.depth; i++) this.freeSlots[i] = slots.depth - 1 - i;
    this.freeCount = slots.depth;
    this.slotStamp = new Float64Array(slots.depth);
    this.slotWrite = new Uint8Array(slots.depth);
    this.nsPerTick = 1e9 / clock.hertz;
    this.rampTicks = options.rampSeconds * clock.hertz;
    this.deadlineTicks =
      options.runtimeSeconds > 0 ? this.rampTicks + options.runtimeSeconds * clock.hertz : Infinity;
    this.intervalTicks = options.intervalSeconds * clock.hertz;
    this.state[State.due] = options.firstDueSeconds * clock.hertz;
    clock.read();
    this.state[State.origin] = clock.words[1]! * TWO32 + clock.words[0]!;
    const plain =
      this.intervalTicks === 0 && options.verifier === null && options.contents === null;
    const endless = options.operations === Infinity && this.deadlineTicks !== Infinity;
    this.steady =
      plain && endless
        ? new Steady({
            ...options,
            originTicks: this.state[State.origin]!,
            slotStamp: this.slotStamp,
          })
        : null;
  }

  /** Runs to the end: deadline, last operation, stop request or first error, and all completed. */
  run(): LoopOutcome {
    this.flags[Flag.issuing] = 1;
    if (!this.options.plan.refill()) this.flags[Flag.issuing] = 0;
    if (this.options.control[Control.stop] !== 0) this.stop();
    if (this.rampTicks === 0) this.beginMeasuring(0);
    else {
      this.state[State.horizon] = this.rampTicks;
      this.options.progress[Progress.phase] = Phase.ramp;
    }
    while (this.cruise() || this.slice()) this.turn();
    this.steady?.end(this.slotWrite);
    if (this.flags[Flag.measuring] === 0) this.beginMeasuring(this.state[State.now]!);
    const counters = this.options.queue.driver.counters;
    const state = this.state;
    return {
      reads: state[State.reads]!,
      writes: state[State.writes]!,
      failed: state[State.failed]!,
      status: this.status,
      measuredSeconds: (state[State.now]! - state[State.measureStart]!) / this.options.clock.hertz,
      stopped: this.flags[Flag.stopped] !== 0,
      polls: counters.polls - this.pollsBefore,
      doorbells: counters.doorbells - this.doorbellsBefore,
    };
  }

  /** Between slices: ramp over, deadline reached, stop requested. */
  private turn(): void {
    const state = this.state;
    const now = state[State.now]!;
    if (this.flags[Flag.measuring] === 0 && now >= this.rampTicks) this.beginMeasuring(now);
    if (now >= this.deadlineTicks) {
      this.flags[Flag.issuing] = 0;
      state[State.horizon] = Infinity;
    }
    if (this.options.control[Control.stop] !== 0) this.stop();
  }

  /** The steady loop for a while; false when this is none of its moments. */
  private cruise(): boolean {
    const { steady, state, flags } = this;
    if (steady === null) return false;
    if (flags[Flag.issuing] === 0) {
      steady.end(this.slotWrite);
      return false;
    }
    if (this.freeCount > 0) this.issue();
    if (this.freeCount > 0) return false;
    steady.begin(this.slotWrite, this.planAt);
    const { clock, progress } = this.options;
    steady.run(Math.min(state[State.horizon]!, state[State.now]! + CRUISE_SECONDS * clock.hertz));
    const { outcome } = steady;
    state[State.now] = outcome[Outcome.now]!;
    state[State.reads] = state[State.reads]! + outcome[Outcome.reads]!;
    state[State.writes] = state[State.writes]! + outcome[Outcome.writes]!;
    progress[Progress.readIos] = state[State.reads]!;
    progress[Progress.writeIos] = state[State.writes]!;
    if (outcome[Outcome.status] !== 0) {
      this.fail(outcome[Outcome.status]!);
      state[State.failed] = state[State.failed]! + outcome[Outcome.failed]! - 1;
    }
    return true;
  }

  // hot:begin
  /** Some rounds; false when the run is over. */
  private slice(): boolean {
    const { queue, clock, control, verifier, progress } = this.options;
    const { state, flags, freeSlots, slotStamp, slotWrite } = this;
    const { cq } = queue;
    const words = clock.words;
    let now = state[State.now]!;
    for (let round = 0; round < ROUNDS_PER_SLICE; round++) {
      if (flags[Flag.issuing] !== 0) this.issue();
      const inFlight = queue.inFlight + ((queue.tail - queue.head) | 0);
      if (inFlight === 0 && flags[Flag.issuing] === 0) return false;
      const done = this.collect(inFlight);

      clock.read();
      now = words[1]! * TWO32 + words[0]! - state[State.origin]!;
      state[State.now] = now;

      // Operations of one batch share their stamp: runs of equal latency are counted together.
      let freeCount = this.freeCount;
      let stamp = -1;
      let run = 0;
      let runWrites = 0;
      let good = 0;
      let goodWrites = 0;
      for (let i = 0; i < done; i++) {
        const slot = cq[i * Cpl.words + Cpl.tag]!;
        const status = cq[i * Cpl.words + Cpl.status]!;
        const write = slotWrite[slot]!;
        if (verifier !== null) verifier.complete(slot, write, status !== 0);
        freeSlots[freeCount++] = slot;
        if (status !== 0) {
          this.fail(status);
          continue;
        }
        good++;
        goodWrites += write;
        if (slotStamp[slot] !== stamp) {
          if (run > 0) this.record(now - stamp, run, runWrites);
          stamp = slotStamp[slot]!;
          run = 0;
          runWrites = 0;
        }
        run++;
        runWrites += write;
      }
      if (run > 0) this.record(now - stamp, run, runWrites);
      this.freeCount = freeCount;
      if (done > 0) {
        if (verifier !== null) verifier.check(this.options.slots.readViews);
        state[State.writes] = state[State.writes]! + goodWrites;
        state[State.reads] = state[State.reads]! + good - goodWrites;
        progress[Progress.writeIos] = state[State.writes]!;
        progress[Progress.readIos] = state[State.reads]!;
      }
      // What is rare happens between slices: code not seen before makes V8 throw this away.
      if (now >= state[State.horizon]! || control[Control.stop] !== 0) break;
    }
    return true;
  }

  /** Counts `run` operations of one latency, `runWrites` of them writes. */
  private record(ticks: number, run: number, runWrites: number): void {
    const ns = Math.floor(ticks * this.nsPerTick + 0.5);
    if (runWrites < run) this.options.reads.record(ns, run - runWrites);
    if (runWrites > 0) this.options.writes.record(ns, runWrites);
  }

  /** Fills free slots with the next operations and submits them. */
  private issue(): void {
    const { queue, plan, slots, verifier, contents, unitBlocks, operations } = this.options;
    const { state, freeSlots, slotStamp, slotWrite, intervalTicks } = this;
    const { sq, mask } = queue;
    const { addressLo, addressHi } = slots;
    const depth = slots.depth;
    const paced = intervalTicks > 0;
    let stamp = state[State.now]!;
    const now = stamp;
    let count = this.freeCount;
    const left = operations - state[State.issued]!;
    if (left < count) count = left;
    if (paced) stamp = state[State.due]!;
    let planAt = this.planAt;
    let freeCount = this.freeCount;
    let issued = 0;
    let index = queue.tail;
    while (issued < count) {
      if (paced && stamp > now) break;
      if (planAt === plan.length) {
        planAt = 0;
        if (!plan.refill()) {
          this.flags[Flag.issuing] = 0;
          break;
        }
      }
      if (verifier !== null && verifier.isBusy(plan.units[planAt]!)) break;
      const slot = freeSlots[--freeCount]!;
      const write = plan.writes[planAt]!;
      const place = write === 0 ? slot : depth + slot;
      slotStamp[slot] = stamp;
      slotWrite[slot] = write;
      const r = (index & mask) * Req.words;
      sq[r + Req.op] = write === 0 ? Op.READ : Op.WRITE;
      sq[r + Req.tag] = slot;
      sq[r + Req.blocks] = unitBlocks;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = plan.lbaLo[planAt]!;
      sq[r + Req.lbaHi] = plan.lbaHi[planAt]!;
      sq[r + Req.addressLo] = addressLo[place]!;
      sq[r + Req.addressHi] = addressHi[place]!;
      if (verifier !== null) {
        verifier.begin(slot, plan.units[planAt]!, write, slots.writeViews[slot]!);
      } else if (write !== 0 && contents !== null) {
        contents.stamp(slots.writeViews[slot]!.words);
      }
      if (paced) stamp += intervalTicks;
      index++;
      planAt++;
      issued++;
    }
    this.planAt = planAt;
    this.freeCount = freeCount;
    if (paced) state[State.due] = stamp;
    if (issued > 0) {
      state[State.issued] = state[State.issued]! + issued;
      if (verifier !== null) verifier.seal(slots.writeViews);
      queue.reserve(issued);
    }
    if (state[State.issued]! >= operations) this.flags[Flag.issuing] = 0;
    if (queue.tail !== queue.head) queue.submit();
  }

  // hot:end

  /** Polls; with nothing there, blocks until something is or the loop has something to do. */
  private collect(inFlight: number): number {
    const { queue } = this.options;
    const flags = this.flags;
    if (queue.tail !== queue.head && flags[Flag.issuing] === 0) queue.submit();
    if (
      this.intervalTicks === 0 &&
      this.deadlineTicks === Infinity &&
      flags[Flag.measuring] !== 0
    ) {
      return queue.park(PARK_US_MAX);
    }
    const done = queue.poll(queue.depth);
    if (done > 0) return done;
    const waitUs = this.waitUs();
    if (waitUs <= 0) return 0;
    if (inFlight > 0) return queue.park(waitUs);
    Atomics.wait(this.options.control, Control.stop, 0, waitUs / 1000);
    return 0;
  }

  /** Microseconds until the loop has to look up again. */
  private waitUs(): number {
    const { state, flags } = this;
    const now = state[State.now]!;
    let until = flags[Flag.measuring] !== 0 ? this.deadlineTicks : this.rampTicks;
    if (flags[Flag.issuing] !== 0 && this.intervalTicks > 0) {
      // A backlog waits for a slot, not for the clock.
      if (this.freeCount > 0) until = Math.min(until, state[State.due]!);
    } else if (flags[Flag.issuing] === 0) until = Infinity;
    const us = ((until - now) * this.nsPerTick) / 1000;
    if (us >= PARK_US_MAX) return PARK_US_MAX;
    return this.intervalTicks > 0 ? Math.floor(us) - SPIN_US : Math.max(1, Math.ceil(us));
  }

  private beginMeasuring(now: number): void {
    const { reads, writes, progress, queue } = this.options;
    this.flags[Flag.measuring] = 1;
    reads.clear();
    writes.clear();
    const state = this.state;
    state[State.measureStart] = now;
    state[State.horizon] = this.deadlineTicks;
    state[State.reads] = 0;
    state[State.writes] = 0;
    progress[Progress.readIos] = 0;
    progress[Progress.writeIos] = 0;
    progress[Progress.phase] = Phase.measuring;
    this.pollsBefore = queue.driver.counters.polls;
    this.doorbellsBefore = queue.driver.counters.doorbells;
    this.onMeasure();
  }

  private fail(status: number): void {
    if (this.status === 0) this.status = status;
    this.state[State.failed] = this.state[State.failed]! + 1;
    this.flags[Flag.issuing] = 0;
  }

  private stop(): void {
    if (this.flags[Flag.issuing] === 0) return;
    this.flags[Flag.stopped] = 1;
    this.flags[Flag.issuing] = 0;
  }
}
