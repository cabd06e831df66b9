// One queue under faults: every operation passes a fixed series of seeded decisions at
// submission.
//
//   submit: gone? → error? → stuck? → delay? → dropped? → torn? → cache, or the wrapped driver
//   completion: wrapped driver → (cache patch) → held until due → ready → handed out
//
// Invariants:
// 1. A slot is in exactly one place: the ring or the wrapped driver, waiting for the cache,
//    stuck, held until due, or ready. Only a slot that is held or ready has its final status.
// 2. An operation that the wrapped driver has completes only after the wrapped driver completed
//    it, whatever the fault: until then the device may touch its buffer.
// 3. Decisions at submission draw from a stream of their own: they depend on the seed, the number
//    of the queue and the sequence of operations, never on the timing of completions.
// 4. Nothing allocates per operation. The clock is read once per batch, and only while something
//    is delayed. Waiting: while all that is outstanding is in the wrapped driver, its own
//    descriptor serves; otherwise ours does, a timerfd set to the next due time, or to TICK_US
//    while the wrapped driver or the cache has work as well, since one descriptor cannot wait
//    for both.

import { native } from '../../native.js';
import {
  Cpl,
  Flag,
  Interposed,
  Op,
  type QueueCounters,
  type QueueDriver,
  Req,
  Status,
} from '../../hpdi/index.js';
import { fence } from '../../wire/index.js';
import type { FaultDevice } from './device.js';
import { Completions } from './completions.js';
import { Random } from './random.js';
import { shuffleIssue } from './shuffle.js';
import { Wait, Waits } from './waits.js';
import type { CacheClient } from './write-cache.js';

/** What becomes of a slot when the wrapped driver, or the cache, is done with it. */
const enum Kind {
  PLAIN = 0,
  /** A read to be patched from the cache. */
  PATCHED = 1,
  /** Past the cache: no job may run meanwhile. */
  THROUGH = 2,
}

const TICK_US = 100;
const ROUNDS_MAX = 1_000_000;
export class FaultQueue implements QueueDriver, CacheClient {
  private readonly device: FaultDevice;
  private readonly ring: Interposed;
  private readonly submitDraws: Random;
  private readonly completions: Completions;
  private readonly work = new Uint32Array(Req.words);
  /** Each slot's record, with what faults changed of it. */
  private readonly records: Uint32Array;
  private readonly kind: Uint8Array;
  private readonly epoch: Uint8Array;
  private readonly waits: Waits;
  private readonly list: Uint8Array;
  private readonly stuck: Uint32Array;
  private stuckCount = 0;
  private draining = false;
  private timer = -1;
  private readonly parkFds = new Int32Array(2);

  constructor(device: FaultDevice, driver: QueueDriver, depth: number, index: number) {
    this.device = device;
    this.ring = new Interposed(driver, depth);
    const slots = this.ring.depth;
    this.submitDraws = new Random(device.options.seed, index * 2);
    this.completions = new Completions(
      slots,
      new Random(device.options.seed, index * 2 + 1),
      device.options.reorder,
    );
    this.records = new Uint32Array(slots * Req.words);
    this.kind = new Uint8Array(slots);
    this.epoch = new Uint8Array(slots);
    this.waits = new Waits(slots);
    this.list = new Uint8Array(slots);
    this.stuck = new Uint32Array(slots);
  }

  get counters(): QueueCounters {
    return this.ring.driver.counters;
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = sq.length / Req.words - 1;
    const wanted = (tail - head) | 0;
    const count = wanted < this.ring.slotsFree ? wanted : this.ring.slotsFree;
    const { delayUs, stuckMs, reorder } = this.device.options;
    const nowUs = delayUs > 0 || stuckMs > 0 ? clockUs() : 0;
    const issuedFrom = this.ring.tail;
    for (let i = 0; i < count; i++) {
      this.submitOne(sq, ((head + i) & mask) * Req.words, nowUs);
    }
    if (reorder > 0) shuffleIssue(this.ring, issuedFrom, this.submitDraws, reorder);
    this.device.copies.run();
    this.ring.flush();
    this.device.cache?.advance();
    return count;
  }

  poll(cq: Uint32Array, max: number): number {
    const cache = this.device.cache;
    if (cache !== null) cache.advance();
    else this.pull();
    const { completions, ring } = this;
    if (completions.dueCount > 0) this.releaseDue();
    const there = completions.readyCount;
    const count = max < there ? max : there;
    for (let i = 0; i < count; i++) {
      ring.give(completions.handOut(cq, i * Cpl.words, ring.tags));
    }
    return count;
  }

  arm(): void {
    if (this.pureInner()) {
      this.ring.driver.arm();
      return;
    }
    const { nextDueUs, heldCount, readyCount } = this.completions;
    let us = nextDueUs === Infinity ? Infinity : nextDueUs - clockUs();
    if (this.ring.slotsUsed > this.stuckCount + heldCount && us > TICK_US) us = TICK_US;
    if (readyCount > 0) us = 0;
    const nanoseconds = us === Infinity ? 0 : Math.max(1, Math.ceil(us * 1000));
    native.timerfdSet(this.timerFd(), nanoseconds, 0);
  }

  eventFd(): number {
    return this.pureInner() ? this.ring.driver.eventFd() : this.timerFd();
  }

  park(timeoutUs: number): void {
    const driver = this.ring.driver;
    const pure = this.pureInner();
    if (pure && driver.park !== undefined) {
      driver.park(timeoutUs);
      return;
    }
    this.arm();
    if (!pure && this.ring.inFlight > 0) driver.arm();
    fence();
    this.pull();
    if (this.completions.readyCount > 0) return;
    // The descriptor may still be readable from completions that are long here. poll(2) leaves
    // negative descriptors out.
    const fd = this.ring.inFlight > 0 ? driver.eventFd() : -1;
    if (pure && fd < 0) return;
    this.parkFds[0] = fd;
    this.parkFds[1] = pure ? -1 : this.timerFd();
    native.park(this.parkFds, timeoutUs);
  }

  release(resultLo: number, resultHi: number): boolean {
    return this.ring.driver.release(resultLo, resultHi);
  }

  /** Stuck operations complete with TIMED_OUT and delays are waived: nothing hangs. */
  async drain(): Promise<void> {
    this.draining = true;
    this.freeStuck(Status.TIMED_OUT);
    for (let round = 0; round < ROUNDS_MAX; round++) {
      const cache = this.device.cache;
      if (cache !== null) await cache.pump();
      this.pull();
      this.releaseDue();
      if (this.ring.slotsUsed === this.completions.readyCount) {
        this.draining = false;
        return;
      }
      await this.ring.driver.drain();
    }
    throw new Error('a queue under faults did not come to rest');
  }

  async close(): Promise<void> {
    await this.drain();
    await this.ring.driver.close();
    if (this.timer >= 0) native.fileClose(this.timer);
    this.timer = -1;
    this.device.forget(this);
  }

  /**
   * The device has gone: what is not in the wrapped driver completes now, the rest when it is.
   */
  gone(): void {
    this.freeStuck(Status.DEVICE_GONE);
    for (let slot = 0; slot < this.ring.depth && this.waits.count > 0; slot++) {
      if (this.waits.of(slot) !== Wait.NONE) this.endWait(slot, Status.DEVICE_GONE);
    }
    this.completions.overrule(Status.DEVICE_GONE);
    this.releaseDue();
  }

  /** Waits until the wrapped driver has nothing of this queue. */
  async quiesce(): Promise<void> {
    for (let round = 0; round < ROUNDS_MAX; round++) {
      this.pull();
      if (this.ring.inFlight + this.ring.pending === 0) return;
      await this.ring.driver.drain();
    }
    throw new Error('a queue under faults did not come to rest');
  }

  pull(): void {
    const ring = this.ring;
    ring.flush();
    const done = ring.pull();
    const cq = ring.cq;
    for (let i = 0; i < done; i++) {
      const c = i * Cpl.words;
      const slot = cq[c + Cpl.tag]!;
      this.innerDone(slot, cq[c + Cpl.status]!, cq[c + Cpl.resultLo]!, cq[c + Cpl.resultHi]!);
    }
    if (done > 0) this.device.copies.run();
  }

  onFlushed(job: number, status: number): void {
    const { waits } = this;
    for (let slot = 0; slot < this.ring.depth && waits.count > 0; slot++) {
      if (waits.of(slot) === Wait.FLUSHED && waits.until(slot, job)) this.endWait(slot, status);
    }
  }

  onSettled(job: number, status: number): void {
    const { ring, waits } = this;
    for (let slot = 0; slot < ring.depth && waits.count > 0; slot++) {
      if (waits.of(slot) === Wait.FLUSHED || !waits.until(slot, job)) continue;
      if (status !== Status.OK) {
        this.endWait(slot, status);
      } else if (waits.stop(slot) === Wait.SETTLED) {
        this.kind[slot] = Kind.THROUGH;
        this.device.cache!.through++;
        ring.push(this.records, slot * Req.words, slot);
      } else {
        this.cacheWrite(slot);
      }
    }
    ring.flush();
  }

  private submitOne(sq: Uint32Array, from: number, nowUs: number): void {
    const device = this.device;
    const options = device.options;
    const work = this.work;
    for (let w = 0; w < Req.words; w++) work[w] = sq[from + w]!;
    const slot = this.ring.take(work[Req.tag]!);
    const op = work[Req.op]! & 0xff;
    this.completions.begin(slot);
    this.kind[slot] = Kind.PLAIN;
    this.list[slot] = 0;
    const at = slot * Req.words;
    this.records.set(work, at);

    if (device.countOperation()) {
      this.refuse(slot, Status.DEVICE_GONE);
      return;
    }
    const draws = this.submitDraws;
    const isDrawn = draws.chance(options.errors);
    if (((options.errorOps >>> op) & 1) === 1 && (device.countFallible() || isDrawn)) {
      device.counters.errors++;
      this.refuse(slot, options.errorStatus);
      return;
    }
    if (draws.chance(options.stuck)) {
      device.counters.stuck++;
      this.stuck[this.stuckCount++] = slot;
      if (options.stuckMs > 0) this.completions.setDue(slot, nowUs + options.stuckMs * 1000);
      return;
    }
    if (draws.chance(options.delayChance)) {
      device.counters.delayed++;
      this.completions.setDue(slot, nowUs + options.delayUs);
    }
    if (op === Op.WRITE && this.harmWrite(slot, draws)) return;
    if (op === Op.COMPARE) {
      this.refuse(slot, Status.UNSUPPORTED);
      return;
    }
    if (device.cache !== null) this.submitCached(slot, op);
    else this.ring.push(this.records, at, slot);
  }

  /** Drops or tears a write; true when nothing of it goes on. */
  private harmWrite(slot: number, draws: Random): boolean {
    const device = this.device;
    const at = slot * Req.words;
    const drop = draws.chance(device.options.dropWrites);
    const tear = draws.chance(device.options.torn);
    // What the device would refuse anyway goes to it unharmed, for its own error.
    if ((!drop && !tear) || !device.checkTransfer(this.records, at, false)) return false;
    if (drop) {
      device.counters.dropped++;
      this.refuse(slot, Status.OK);
      return true;
    }
    device.counters.torn++;
    const status = device.options.tornAck ? Status.OK : Status.DEVICE_ERROR;
    const blocks = draws.below(this.records[at + Req.blocks]!);
    const list = blocks === 0 ? 0 : device.cutList(this.records, at, blocks);
    if (blocks === 0 || list < 0) {
      this.refuse(slot, status);
      return true;
    }
    this.list[slot] = list;
    this.completions.verdict[slot] = status;
    this.records[at + Req.blocks] = blocks;
    return false;
  }

  /** Completes an operation that no device has seen. */
  private refuse(slot: number, status: number): void {
    this.device.takeGiven(this.records, slot * Req.words);
    this.finish(slot, status);
  }

  private submitCached(slot: number, op: number): void {
    const device = this.device;
    const cache = device.cache!;
    const at = slot * Req.words;
    const inRange = op === Op.FLUSH || device.checkTransfer(this.records, at, op === Op.READ);
    if (op === Op.FLUSH) {
      this.startWait(slot, Wait.FLUSHED);
    } else if (op === Op.WRITE && inRange) {
      this.cacheWrite(slot);
    } else if (op === Op.READ && inRange) {
      this.kind[slot] = Kind.PATCHED;
      this.epoch[slot] = cache.readBegins();
      this.ring.push(this.records, at, slot);
    } else if (op === Op.READ || op === Op.WRITE) {
      const blocks = this.records[at + Req.blocks]!;
      // The device's own limit may be above ours; all else that is wrong is its to tell.
      const inside = device.lbaOf(this.records, at) + blocks <= device.info.blocks;
      const tooLarge = blocks > device.info.maxTransferBlocks;
      if (inside && tooLarge) this.refuse(slot, Status.TOO_LARGE);
      else if (device.withMetadata(this.records, at)) this.refuse(slot, Status.UNSUPPORTED);
      else this.ring.push(this.records, at, slot);
    } else {
      this.startWait(slot, Wait.SETTLED);
    }
  }

  private cacheWrite(slot: number): void {
    const device = this.device;
    const cache = device.cache!;
    const at = slot * Req.words;
    const blocks = this.records[at + Req.blocks]!;
    if (!cache.hasRoom(blocks)) {
      this.startWait(slot, Wait.ROOM);
      return;
    }
    if (!device.loadPieces(this.records, at)) {
      this.refuse(slot, Status.BAD_ADDRESS);
      return;
    }
    cache.write(device.lbaOf(this.records, at), blocks, device.pieces);
    device.copies.run();
    device.takeGiven(this.records, at);
    // FUA: the completion waits for a job that covers it.
    if ((this.records[at + Req.op]! & Flag.FUA) !== 0) this.startWait(slot, Wait.FLUSHED);
    else this.finish(slot, Status.OK);
  }

  private startWait(slot: number, wait: Wait): void {
    this.waits.start(slot, wait, this.device.cache!.request());
  }

  private endWait(slot: number, status: number): void {
    // A FLUSH carries no buffer and a FUA write has given its own back.
    if (this.waits.stop(slot) === Wait.FLUSHED) this.finish(slot, status);
    else this.refuse(slot, status);
  }

  private innerDone(slot: number, status: number, resultLo: number, resultHi: number): void {
    const device = this.device;
    const at = slot * Req.words;
    if (this.kind[slot] === Kind.THROUGH) device.cache!.through--;
    if (this.kind[slot] === Kind.PATCHED) {
      if (status === Status.OK && device.loadPieces(this.records, at)) {
        const blocks = this.records[at + Req.blocks]!;
        device.cache!.patch(device.lbaOf(this.records, at), blocks, device.pieces);
      }
      device.cache!.readEnds(this.epoch[slot]!);
    }
    this.completions.resultLo[slot] = resultLo;
    this.completions.resultHi[slot] = resultHi;
    if (device.isGone) {
      // The caller never learns of the loan, so it goes back from here.
      if (status === Status.OK && (this.records[at]! & 0xff) === Op.READ_LOAN) {
        this.ring.driver.release(resultLo, resultHi);
      }
      this.finish(slot, Status.DEVICE_GONE);
    } else {
      this.finish(slot, status);
    }
  }

  /** Gives a slot its final status. */
  private finish(slot: number, status: number): void {
    if (this.list[slot] !== 0) this.device.freeList(this.list[slot]!);
    this.completions.finish(slot, status);
  }

  /** Readies what is due, and times out stuck operations whose time is over. */
  private releaseDue(): void {
    const now = this.draining || this.device.isGone ? Infinity : clockUs();
    if (now < this.completions.nextDueUs) return;
    for (let i = this.stuckCount - 1; i >= 0; i--) {
      const slot = this.stuck[i]!;
      const due = this.completions.dueUs[slot]!;
      if (due > 0 && due <= now) {
        this.stuck[i] = this.stuck[--this.stuckCount]!;
        this.refuse(slot, Status.TIMED_OUT);
      }
    }
    this.completions.release(now);
  }

  private freeStuck(status: number): void {
    while (this.stuckCount > 0) this.refuse(this.stuck[--this.stuckCount]!, status);
  }

  /** Whether all that is outstanding is in the wrapped driver and completes when it does. */
  private pureInner(): boolean {
    return (
      this.device.cache === null &&
      this.completions.dueCount === 0 &&
      this.ring.inFlight === this.ring.slotsUsed
    );
  }

  private timerFd(): number {
    if (this.timer < 0) this.timer = native.timerfdCreate();
    return this.timer;
  }
}

/** Read once per batch, and only while something is delayed. */
function clockUs(): number {
  return performance.now() * 1000;
}
