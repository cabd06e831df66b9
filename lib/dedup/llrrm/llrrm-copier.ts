// LlrrmCopier: which blocks are worth being in low-latency memory, and their copies on the way.
//
// Invariants
// 1. A block is copied while it has references (its data is with the device then); one that loses
//    the last while it is copied has left the table, and its copy counts for nothing.
// 2. What is not copied for want of room or of buffers is left out: it is copied when it is read.
// 3. Where there is no room, what is read for the second time within a while takes the place of
//    what is cold: one that is read once would only cost the data device another read. Blocks of
//    short runs that were shared take it at once: where they are, the data device would seek.

import { Op, Status } from '../../hpdi/index.js';
import type { OwnMemory, Reach } from '../reach.js';
import { native } from '../../native.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import { Io, type PoolIo } from '../durable/io.js';
import { Page } from '../format/layout.js';
import { LLRRM_RUN, SlotState, type LlrrmTable } from './llrrm-table.js';
import { Miss } from '../durable/pages.js';
import type { ReadChecks } from '../volume/read-checks.js';
import { groupOf } from '../format/numbers.js';
import type { Space } from '../space/space.js';
import type { Trees } from '../maps/trees.js';

/** Copies that are made at a time, of up to LLRRM_RUN blocks each. */
const JOBS = 8;
/** Blocks that wait to be copied, and runs that were read and not found. */
const WANTED = 2 ** 16;
const SEEN = 1024;
/** Runs that were read that one round looks at. */
const LOOKS = 32;
const GHOSTS_LEAST = 64;
const GHOSTS_MOST = 2 ** 16;
const TWO_32 = 4294967296;

export interface CopierParts {
  readonly space: Space;
  readonly trees: Trees;
  readonly volumes: readonly (VolumeRecord | null)[];
  /** The data device's. */
  readonly io: PoolIo;
  /** Holds blocks against their fingerprints, of pools with data checksums. */
  readonly checks: ReadChecks | null;
}

/** Where copies go. */
export interface CopierTarget {
  readonly table: LlrrmTable;
  readonly io: PoolIo;
  /** Page of slot 0. */
  readonly firstPage: number;
  readonly threshold: number;
  /** Kind of its writes. */
  readonly writeKind: number;
  readonly failed: string | null;
  erred(status: number): void;
}

export class LlrrmCopier {
  /** Blocks copied so far; not copied, for too many waited. */
  promoted = 0;
  overflowed = 0;
  private readonly parts: CopierParts;
  private readonly target: CopierTarget;
  /** Blocks; below 0 those that are read, or will be at random: others make room for them. */
  private readonly wanted = new Float64Array(WANTED);
  private wantedFirst = 0;
  private wantedCount = 0;
  /** Runs that were read: volume, leaf, first block, blocks. */
  private readonly seen = new Float64Array(SEEN * 4);
  private seenFirst = 0;
  private seenCount = 0;
  /** First blocks of runs that were read and found no room. */
  private readonly ghosts: Float64Array;
  private readonly buffers: OwnMemory;
  private readonly ranges = new Uint32Array(LLRRM_RUN * 4);
  private readonly crcs = new Uint32Array(LLRRM_RUN);
  private readonly jobCounts = new Int32Array(JOBS);
  private readonly jobSlots = new Int32Array(JOBS * LLRRM_RUN);
  /** Writes of a copy that are on their way, and what became of them. */
  private readonly jobLeft = new Int32Array(JOBS);
  private readonly jobStatuses = new Uint32Array(JOBS);
  private readonly freeJobs = Int32Array.from({ length: JOBS }, (_, i) => i);
  private freeJobCount = JOBS;

  constructor(parts: CopierParts, target: CopierTarget, reach: Reach) {
    this.parts = parts;
    this.target = target;
    this.ghosts = new Float64Array(
      Math.min(GHOSTS_MOST, Math.max(GHOSTS_LEAST, target.table.slots)),
    );
    this.buffers = reach.alloc(JOBS * LLRRM_RUN * Page.bytes);
  }

  /** Copies are on their way. */
  get busy(): boolean {
    return this.freeJobCount < JOBS;
  }

  /** Nothing is on its way, or waits to be. */
  get idle(): boolean {
    return !this.busy && this.wantedCount + this.seenCount === 0;
  }

  // hot:begin

  /** A run was read from the data device: it is copied if it has references enough. */
  noticed(volume: number, leaf: number, pbnLo: number, pbnHi: number, count: number): void {
    if (this.seenCount === SEEN || this.target.failed !== null) return;
    const at = ((this.seenFirst + this.seenCount) & (SEEN - 1)) * 4;
    this.seenCount++;
    this.seen[at] = volume;
    this.seen[at + 1] = leaf;
    this.seen[at + 2] = pbnHi * TWO_32 + (pbnLo >>> 0);
    this.seen[at + 3] = count;
  }

  // hot:end

  /** A block has references enough: it is copied if there is room. */
  worth(pbn: number): void {
    if (this.target.table.room > 0) this.want(pbn);
  }

  /** A block is shared in a run shorter than THN. */
  joined(pbn: number): void {
    const { table } = this.target;
    const slot = table.slotOf(pbn | 0, (pbn / TWO_32) | 0);
    if (slot < 0) this.want(-pbn);
    else table.warm(slot);
  }

  private want(pbn: number): void {
    if (this.target.failed !== null) return;
    if (this.wantedCount === WANTED) {
      this.overflowed++;
      return;
    }
    this.wanted[(this.wantedFirst + this.wantedCount) & (WANTED - 1)] = pbn;
    this.wantedCount++;
  }

  /** Begins copies; called once a round. */
  step(): void {
    this.look();
    while (this.wantedCount > 0 && this.freeJobCount > 0) if (!this.copy()) break;
  }

  /** Nothing more is copied. */
  stop(): void {
    this.wantedCount = 0;
    this.seenCount = 0;
  }

  close(): void {
    this.buffers.close();
  }

  /** The data device has answered the read of a copy. */
  loaded(job: number, status: number): void {
    const count = this.jobCounts[job]!;
    if (status !== Status.OK || this.target.failed !== null || !this.isWanted(job)) {
      this.end(job, false);
      return;
    }
    const address = this.bufferOf(job);
    const pbn = this.target.table.pbnOf(this.jobSlots[job * LLRRM_RUN]!);
    const { checks } = this.parts;
    if (checks !== null && !checks.isWhole(pbn, count, address)) {
      this.end(job, false);
      return;
    }
    const { ranges } = this;
    for (let b = 0; b < count; b++) {
      ranges[b * 4] = (address + b * Page.bytes) >>> 0;
      ranges[b * 4 + 1] = address / TWO_32;
      ranges[b * 4 + 2] = Page.bytes;
    }
    native.crc32cList(ranges, count, this.crcs);
    const base = job * LLRRM_RUN;
    const { jobSlots } = this;
    const { table, io, firstPage, writeKind } = this.target;
    this.jobStatuses[job] = Status.OK;
    this.jobLeft[job] = 0;
    for (let b = 0; b < count;) {
      const slot = jobSlots[base + b]!;
      let length = 0;
      while (b + length < count && jobSlots[base + b + length] === slot + length) {
        table.crcs[slot + length] = this.crcs[b + length]!;
        length++;
      }
      this.jobLeft[job] = this.jobLeft[job]! + 1;
      const from = address + b * Page.bytes;
      io.ask(Op.WRITE, firstPage + slot, length, from, writeKind, job);
      b += length;
    }
  }

  /** The device has taken a part of a copy. */
  stored(job: number, status: number): void {
    if (status !== Status.OK) {
      this.target.erred(status);
      this.jobStatuses[job] = status;
    }
    this.jobLeft[job] = this.jobLeft[job]! - 1;
    if (this.jobLeft[job] === 0) this.end(job, this.jobStatuses[job] === Status.OK);
  }

  private end(job: number, isGood: boolean): void {
    const { jobSlots } = this;
    const { table } = this.target;
    for (let b = 0; b < this.jobCounts[job]!; b++) {
      const slot = jobSlots[job * LLRRM_RUN + b]!;
      table.users[slot] = 0;
      if (table.states[slot] === SlotState.leaving) table.letGo(slot);
      else if (!isGood) table.drop(slot);
      else {
        table.filled(slot, table.crcs[slot]!);
        this.promoted++;
      }
    }
    this.freeJobs[this.freeJobCount++] = job;
  }

  /** Looks at runs that were read: who is worth it is wanted here. */
  private look(): void {
    const { seen, parts } = this;
    for (let looked = 0; looked < LOOKS && this.seenCount > 0; looked++) {
      const at = this.seenFirst * 4;
      const volume = parts.volumes[seen[at]!];
      const pbn = seen[at + 2]!;
      if (volume !== null && volume !== undefined) {
        const counts = parts.space.count(groupOf(pbn));
        const sharers = parts.trees.sharers(volume, seen[at + 1]!);
        // Its pages are on their way: not worth waiting for more than one.
        if (counts === Miss.wait || sharers === Miss.wait) return;
        if (counts >= 0 && sharers > 0 && this.isAdmitted(pbn)) {
          for (let b = 0; b < seen[at + 3]!; b++) {
            const references = parts.space.countIn(counts, pbn + b) * sharers;
            if (references >= this.target.threshold) this.want(-pbn - b);
          }
        }
      }
      this.seenFirst = (this.seenFirst + 1) & (SEEN - 1);
      this.seenCount--;
    }
  }

  /** Whether there is room for a run, or it was read before, a while ago at most. */
  private isAdmitted(pbn: number): boolean {
    if (this.target.table.room > 0) return true;
    const { ghosts } = this;
    const place = (Math.imul(pbn | 0, 0x9e3779b1) >>> 0) % ghosts.length;
    const isKnown = ghosts[place] === pbn;
    ghosts[place] = isKnown ? 0 : pbn;
    return isKnown;
  }

  /** Copies the next series of blocks that are wanted; false: it cannot go on now. */
  private copy(): boolean {
    const { parts } = this;
    const { table } = this.target;
    const first = Math.abs(this.wanted[this.wantedFirst]!);
    const counts = parts.space.count(groupOf(first));
    if (counts === Miss.wait) return false;
    const job = this.freeJobs[this.freeJobCount - 1]!;
    const base = job * LLRRM_RUN;
    let count = 0;
    while (this.wantedCount > 0 && count < LLRRM_RUN) {
      const wanted = this.wanted[this.wantedFirst]!;
      const pbn = Math.abs(wanted);
      if (pbn !== first + count || groupOf(pbn) !== groupOf(first)) break;
      const isWanted = counts >= 0 && parts.space.countIn(counts, pbn) !== 0;
      const isHere = table.slotOf(pbn | 0, (pbn / TWO_32) | 0) >= 0;
      const slot = isWanted && !isHere ? table.claim(pbn, wanted < 0 ? 1 : 0) : -1;
      if (slot < 0 && count > 0) break;
      this.wantedFirst = (this.wantedFirst + 1) & (WANTED - 1);
      this.wantedCount--;
      if (slot < 0) return true;
      table.users[slot] = 1;
      this.jobSlots[base + count] = slot;
      count++;
    }
    this.freeJobCount--;
    this.jobCounts[job] = count;
    parts.io.ask(Op.READ, first, count, this.bufferOf(job), Io.promote, job);
    return true;
  }

  /** All its blocks are still what they were when it began: none was freed, and given out anew. */
  private isWanted(job: number): boolean {
    const { states } = this.target.table;
    for (let b = 0; b < this.jobCounts[job]!; b++) {
      if (states[this.jobSlots[job * LLRRM_RUN + b]!] !== SlotState.filling) return false;
    }
    return true;
  }

  private bufferOf(job: number): number {
    return this.buffers.address + job * LLRRM_RUN * Page.bytes;
  }
}
