// A volatile write cache in front of a device, one line per logical block, that a power cut
// empties.
//
// Writes are acknowledged once they stand in a line. FLUSH (and FUA) wait for a job: all lines
// that were dirty when it began are written to the device, then the device is flushed. One job
// at a time:
//
//   IDLE ─begin─> WRITING ─written─> FLUSHING ─flushed─> SETTLING ─old reads done─> IDLE
//
// Invariants:
// 1. A line that is being written out is never written into: a newer write to its block takes a
//    new line and the old one dies with the job. So what the device gets of a block is one
//    write's data.
// 2. Two writes of one block are never in flight in the device: one job at a time, and no job
//    runs while an operation that changes blocks past the cache (DISCARD, COPY, …) is in the
//    device.
// 3. Reads go to the device and are patched from the lines when they complete. A line stays
//    until every read that began before its job's end has completed (SETTLING), so no read sees
//    older data.
// 4. Operations past the cache are issued only between jobs, after one that covered what came
//    before.
// 5. The map (block → line) holds the newest line of each block; dead lines are not in it.

import { type Backend, Cpl, Interposed, Op, powerOfTwo, Req, Status } from '../../hpdi/index.js';
import type { Copies, Pieces } from './copies.js';
import type { Random } from './random.js';

const enum Line {
  FREE = 0,
  DIRTY = 1,
  WRITING = 2,
  CLEAN = 3,
  DEAD = 4,
}

const enum Phase {
  IDLE = 0,
  WRITING = 1,
  FLUSHING = 2,
  SETTLING = 3,
}

const TWO_32 = 2 ** 32;
const QUEUE_DEPTH = 64;
/** Rounds of drain-and-advance after which a cache that does not come to rest is a bug. */
const ROUNDS_MAX = 1_000_000;

/** A queue that uses the cache. */
export interface CacheClient {
  /** Takes completions from the device. */
  pull(): void;
  /** Job `job` has been flushed, or failed with `status`. */
  onFlushed(job: number, status: number): void;
  /** The cache is between jobs. */
  onSettled(job: number, status: number): void;
}

export class WriteCache {
  readonly lines: number;
  /** Operations past the cache that are in the device. */
  through = 0;
  /** 0 or 1: which of the two read counters a read that begins now counts in. */
  epoch = 0;
  readonly clients: CacheClient[] = [];
  private readonly ring: Interposed;
  private readonly address: number;
  private readonly blockSize: number;
  private readonly mergeMax: number;
  private readonly canFlush: boolean;
  private readonly copies: Copies;
  private readonly block: Float64Array;
  private readonly state: Uint8Array;
  private readonly next: Int32Array;
  private readonly buckets: Int32Array;
  private readonly free: Uint32Array;
  private freeCount = 0;
  private dirty: Uint32Array;
  private dirtyCount = 0;
  private job: Uint32Array;
  private jobCount = 0;
  private jobNext = 0;
  private jobStatus: number = Status.OK;
  private phase: Phase = Phase.IDLE;
  private started = 0;
  private requested = 0;
  /** While a cut runs nothing else may write to the device. */
  private cutting = false;
  private readonly reads = new Uint32Array(2);
  private readonly record = new Uint32Array(Req.words);

  /** `address` is where `bytes` of memory lie that the device may read. */
  constructor(inner: Backend, copies: Copies, address: number, bytes: number) {
    const info = inner.info;
    this.blockSize = info.blockSize;
    this.lines = Math.floor(bytes / info.blockSize);
    this.mergeMax = info.boundary > 0 ? 1 : info.maxTransferBlocks;
    this.canFlush = (info.operations & (1 << Op.FLUSH)) !== 0;
    this.copies = copies;
    this.address = address;
    this.ring = new Interposed(inner.openQueue({ depth: QUEUE_DEPTH, split: false }), QUEUE_DEPTH);
    this.block = new Float64Array(this.lines);
    this.state = new Uint8Array(this.lines);
    this.next = new Int32Array(this.lines);
    this.buckets = new Int32Array(powerOfTwo(this.lines * 2)).fill(-1);
    this.free = new Uint32Array(this.lines);
    this.dirty = new Uint32Array(this.lines);
    this.job = new Uint32Array(this.lines);
    this.reset();
  }

  get dirtyLines(): number {
    return this.dirtyCount + (this.phase === Phase.IDLE ? 0 : this.jobCount);
  }

  /** Whether a write of `blocks` finds room now. */
  hasRoom(blocks: number): boolean {
    return this.freeCount >= blocks;
  }

  /** Gathers the copies of `blocks` blocks from `pieces` into lines. There must be room. */
  write(lba: number, blocks: number, pieces: Pieces): void {
    for (let i = 0; i < blocks; i++) {
      let line = this.find(lba + i);
      if (line < 0 || this.state[line] !== Line.DIRTY) {
        if (line >= 0) {
          this.unmap(line);
          this.state[line] = Line.DEAD;
        }
        line = this.map(lba + i);
      }
      pieces.copyOut(this.blockSize, this.address + line * this.blockSize);
    }
  }

  /** Gathers the copies that bring a completed read of the device up to date. */
  patch(lba: number, blocks: number, pieces: Pieces): void {
    for (let i = 0; i < blocks; i++) {
      const line = this.find(lba + i);
      if (line < 0) pieces.skip(this.blockSize);
      else pieces.copyIn(this.blockSize, this.address + line * this.blockSize);
    }
  }

  /** Whether any of the blocks stands in the cache. */
  overlaps(lba: number, blocks: number): boolean {
    if (this.freeCount === this.lines) return false;
    for (let i = 0; i < blocks; i++) if (this.find(lba + i) >= 0) return true;
    return false;
  }

  readBegins(): number {
    this.reads[this.epoch]!++;
    return this.epoch;
  }

  readEnds(epoch: number): void {
    this.reads[epoch]!--;
  }

  /** Asks for a job that begins after now; returns its number. */
  request(): number {
    this.requested = this.started + 1;
    return this.requested;
  }

  /** Moves all that can move, without blocking. */
  advance(): void {
    for (let i = 0; i < this.clients.length; i++) this.clients[i]!.pull();
    let moved = !this.cutting;
    for (let step = 0; moved && step < 8; step++) {
      this.pull();
      moved = this.step();
    }
    if (!this.cutting) this.ring.flush();
    this.copies.run();
  }

  /** Works until `job` has settled. */
  async settle(job: number): Promise<void> {
    for (let round = 0; round < ROUNDS_MAX; round++) {
      this.advance();
      if (this.phase === Phase.IDLE && this.started >= job) return;
      await this.ring.driver.drain();
    }
    throw new Error('the write cache did not come to rest');
  }

  /** One drain of the device and what follows from it. */
  async pump(): Promise<void> {
    this.advance();
    await this.ring.driver.drain();
    this.advance();
  }

  /**
   * A power cut: of the unflushed blocks those for which the draw says so reach the device, the
   * rest are lost; the cache is empty then. `survive` is a chance of 2^32. Returns how many were
   * lost.
   */
  async cut(random: Random, survive: number): Promise<number> {
    this.cutting = true;
    await this.quiesce();
    let lost = 0;
    for (let line = 0; line < this.lines; line++) {
      if (this.state[line] !== Line.DIRTY && this.state[line] !== Line.WRITING) continue;
      if (!random.chance(survive)) {
        lost++;
        continue;
      }
      if (this.ring.slotsFree === 0 || this.ring.pending === QUEUE_DEPTH) await this.quiesce();
      this.issueWrite(line, 1);
    }
    await this.quiesce();
    this.reset();
    this.cutting = false;
    return lost;
  }

  /** Writes everything back, as an orderly shutdown does. */
  async close(flush: boolean): Promise<void> {
    if (flush) await this.settle(this.request());
    await this.ring.driver.close();
  }

  private reset(): void {
    this.state.fill(Line.FREE);
    this.buckets.fill(-1);
    // Popped in ascending order, so that a large write lands in adjacent lines and merges.
    for (let i = 0; i < this.lines; i++) this.free[i] = this.lines - 1 - i;
    this.freeCount = this.lines;
    this.dirtyCount = 0;
    this.jobCount = 0;
    this.jobNext = 0;
    this.jobStatus = Status.OK;
    this.phase = Phase.IDLE;
    this.requested = this.started;
  }

  private async quiesce(): Promise<void> {
    for (let round = 0; round < ROUNDS_MAX; round++) {
      this.ring.flush();
      if (this.ring.slotsUsed === 0) return;
      await this.ring.driver.drain();
      this.pull();
    }
    throw new Error('the write cache did not come to rest');
  }

  private pull(): void {
    const done = this.ring.pull();
    for (let i = 0; i < done; i++) {
      this.ring.give(this.ring.cq[i * Cpl.words + Cpl.tag]!);
      const status = this.ring.cq[i * Cpl.words + Cpl.status]!;
      if (status !== Status.OK && this.jobStatus === Status.OK) this.jobStatus = status;
    }
  }

  private step(): boolean {
    switch (this.phase) {
      case Phase.IDLE:
        if (this.requested <= this.started || this.through > 0) return false;
        this.begin();
        return true;
      case Phase.WRITING:
        this.writeLines();
        if (this.jobNext < this.jobCount || this.ring.slotsUsed > 0) return false;
        if (this.canFlush && this.jobStatus === Status.OK) this.issueFlush();
        this.phase = Phase.FLUSHING;
        return true;
      case Phase.FLUSHING:
        if (this.ring.slotsUsed > 0) return false;
        this.flushed();
        return true;
      case Phase.SETTLING:
        if (this.reads[this.epoch ^ 1]! > 0) return false;
        this.settled();
        return true;
    }
  }

  private begin(): void {
    // The device reads the lines from here on: what was gathered for them must be there.
    this.copies.run();
    const lines = this.dirty;
    this.dirty = this.job;
    this.job = lines;
    this.jobCount = this.dirtyCount;
    this.jobNext = 0;
    this.jobStatus = Status.OK;
    this.dirtyCount = 0;
    this.started++;
    for (let i = 0; i < this.jobCount; i++) this.state[lines[i]!] = Line.WRITING;
    this.phase = Phase.WRITING;
  }

  private writeLines(): void {
    while (this.jobNext < this.jobCount && this.ring.slotsFree > 0) {
      const first = this.job[this.jobNext]!;
      let run = 1;
      while (
        this.jobNext + run < this.jobCount &&
        run < this.mergeMax &&
        this.job[this.jobNext + run] === first + run &&
        this.block[first + run] === this.block[first]! + run
      ) {
        run++;
      }
      this.issueWrite(first, run);
      this.jobNext += run;
    }
    this.ring.flush();
  }

  private issueWrite(line: number, blocks: number): void {
    const lba = this.block[line]!;
    const address = this.address + line * this.blockSize;
    const record = this.record;
    record[Req.op] = Op.WRITE;
    record[Req.blocks] = blocks;
    record[Req.lbaLo] = lba >>> 0;
    record[Req.lbaHi] = Math.floor(lba / TWO_32);
    record[Req.addressLo] = address >>> 0;
    record[Req.addressHi] = Math.floor(address / TWO_32);
    this.ring.push(record, 0, this.ring.take(0));
  }

  private issueFlush(): void {
    this.record.fill(0);
    this.record[Req.op] = Op.FLUSH;
    this.ring.push(this.record, 0, this.ring.take(0));
    this.ring.flush();
  }

  private flushed(): void {
    const failed = this.jobStatus !== Status.OK;
    for (let i = 0; i < this.jobCount; i++) {
      const line = this.job[i]!;
      if (this.state[line] !== Line.WRITING) continue;
      if (failed) {
        this.state[line] = Line.DIRTY;
        this.dirty[this.dirtyCount++] = line;
      } else {
        this.state[line] = Line.CLEAN;
      }
    }
    this.epoch ^= 1;
    this.phase = Phase.SETTLING;
    for (let i = 0; i < this.clients.length; i++) {
      this.clients[i]!.onFlushed(this.started, this.jobStatus);
    }
  }

  private settled(): void {
    for (let i = 0; i < this.jobCount; i++) {
      const line = this.job[i]!;
      if (this.state[line] === Line.CLEAN) this.unmap(line);
      else if (this.state[line] !== Line.DEAD) continue;
      this.state[line] = Line.FREE;
      this.free[this.freeCount++] = line;
    }
    this.jobCount = 0;
    this.phase = Phase.IDLE;
    for (let i = 0; i < this.clients.length; i++) {
      this.clients[i]!.onSettled(this.started, this.jobStatus);
    }
  }

  private bucket(lba: number): number {
    const mixed = Math.imul((lba >>> 0) ^ Math.floor(lba / TWO_32), 0x9e3779b1);
    return (mixed ^ (mixed >>> 15)) & (this.buckets.length - 1);
  }

  private find(lba: number): number {
    let line = this.buckets[this.bucket(lba)]!;
    while (line >= 0 && this.block[line] !== lba) line = this.next[line]!;
    return line;
  }

  private map(lba: number): number {
    const line = this.free[--this.freeCount]!;
    const bucket = this.bucket(lba);
    this.block[line] = lba;
    this.state[line] = Line.DIRTY;
    this.next[line] = this.buckets[bucket]!;
    this.buckets[bucket] = line;
    this.dirty[this.dirtyCount++] = line;
    return line;
  }

  private unmap(line: number): void {
    const bucket = this.bucket(this.block[line]!);
    let at = this.buckets[bucket]!;
    if (at === line) {
      this.buckets[bucket] = this.next[line]!;
      return;
    }
    while (this.next[at] !== line) at = this.next[at]!;
    this.next[at] = this.next[line]!;
  }
}
