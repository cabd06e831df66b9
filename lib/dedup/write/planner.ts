// Planner: what becomes of each block of a set, and the requests to the device that this takes.
//
// Sets are planned in the order in which they came. A set gets all its places at once or, when
// pages are not here or space is short, waits at the head of the line.
//
// Invariants
// 1. A block is kept as a reference only after its bytes were compared with the stored ones: a
//    fingerprint alone may be of bytes that the client has changed since.
// 2. A set's new blocks are in the index and in the fingerprint pages when they have a place: later
//    sets find them, and wait until they are written.

import { Op, Status } from '../../hpdi/index.js';
import { native } from '../../native.js';
import { Stream, type Allocator } from '../space/allocator.js';
import type { Catalogue } from '../maps/catalogue.js';
import type { FingerprintIndex } from './fingerprint-index.js';
import { Compare, compareBlocks, EQUAL } from './hasher.js';
import type { PoolIo } from '../durable/io.js';
import { Fingerprint, Group, Head, Page, SetMax } from '../format/layout.js';
import type { Llrrm } from '../llrrm/llrrm.js';
import { Fate, SETS, type SetTable } from './sets.js';
import { setPair } from '../format/numbers.js';
import type { Space } from '../space/space.js';
import { Stage, type StageClock } from '../stats/stage-clock.js';
import type { Thn } from './thn.js';

/** What `plan` gives. */
export const enum Plan {
  done = 0,
  /** Pages, or other writes, are on their way: ask again. */
  wait = 1,
  /** A checkpoint would free blocks. */
  checkpoint = 2,
  noSpace = 3,
}

const TWO_32 = 4294967296;
/** Lengths of runs are counted by powers of two, up to a set's. */
const RUN_CLASSES = 9;
/** Blocks that the index is told of in one call. */
const INSERTS = 1024;
const EXTENT_MASK = Group.extentPages - 1;

export interface PlannerParts {
  readonly sets: SetTable;
  readonly catalogue: Catalogue;
  readonly space: Space;
  readonly allocator: Allocator;
  readonly io: PoolIo;
  readonly thn: Thn;
  readonly index: FingerprintIndex;
  readonly clock: StageClock;
}

export class Planner {
  /** Blocks so far by what became of them, and those whose bytes were others after all. */
  fresh = 0;
  zero = 0;
  same = 0;
  unequal = 0;
  /** Of `same`, those of runs shorter than THN; and runs by length: 2^i to 2^(i + 1) - 1 blocks. */
  short = 0;
  readonly runLengths = new Float64Array(RUN_CLASSES);
  /** Low-latency memory that has bytes to compare with. */
  llrrm: Llrrm | null = null;
  private readonly parts: PlannerParts;
  private readonly writeKind: number;
  private readonly readKind: number;
  private readonly matchKind: number;
  private readonly compares = new Uint32Array(SetMax.blocks * Compare.words);
  /** What the index is still to be told: fingerprints, and blocks. */
  private readonly prints = new Uint32Array(INSERTS * Fingerprint.words);
  private readonly blocks = new Uint32Array(INSERTS * 2);
  private inserts = 0;
  /** What it is to forget. */
  private readonly oldPrints = new Uint32Array(INSERTS * Fingerprint.words);
  private readonly oldBlocks = new Uint32Array(INSERTS * 2);
  private removes = 0;
  /** Runs that are being compared: set, first block, how many. */
  private readonly runs = new Int32Array(SETS * 64 * 3);
  private readonly freeRuns: Int32Array;
  private freeRunCount: number;

  /** `matchKind`: of comparisons by the device; 0 where it does none by itself. */
  constructor(parts: PlannerParts, writeKind: number, readKind: number, matchKind: number) {
    this.parts = parts;
    this.writeKind = writeKind;
    this.readKind = readKind;
    this.matchKind = matchKind;
    const runs = this.runs.length / 3;
    this.freeRuns = Int32Array.from({ length: runs }, (_, i) => i);
    this.freeRunCount = runs;
  }

  /** Gives a set's blocks their places, and asks the device for what that takes. */
  plan(set: number): Plan {
    const { sets, allocator, thn } = this.parts;
    const count = sets.counts[set]!;
    const base = set * SetMax.blocks;
    if (sets.planned[set] === 0) {
      // Sets before this one are found by it.
      if (thn.looksAt(count)) this.insert();
      if (!this.find(set)) return Plan.wait;
      if (this.freeRunCount < SetMax.blocks) return Plan.wait;
    }
    let wanted = 0;
    for (let b = sets.planned[set]!; b < count; b++) {
      if (sets.fates[base + b] === Fate.fresh) wanted++;
    }
    if (wanted > 0) {
      const room = allocator.room - this.parts.catalogue.promised(sets.volumes[set]!);
      if (room < wanted) return this.lack(wanted - room);
    }
    for (let b = sets.planned[set]!; b < count;) {
      let length = 0;
      if (sets.fates[base + b] !== Fate.fresh) {
        b++;
        sets.planned[set] = b;
        continue;
      }
      while (b + length < count && sets.fates[base + b + length] === Fate.fresh) length++;
      const got = allocator.take(Stream.blocks, length);
      if (got === 0) {
        if (!allocator.full) return Plan.wait;
        return this.lack(1);
      }
      this.enterPrints(set, b, got, allocator.pbn);
      for (let i = 0; i < got; i++) sets.pbns[base + b + i] = allocator.pbn + i;
      b += got;
      sets.planned[set] = b;
    }
    this.ask(set, 0);
    return Plan.done;
  }

  /** Looks for what is stored already; false: pages, or other writes, are on their way. */
  private find(set: number): boolean {
    const { thn, clock, sets } = this.parts;
    if (!thn.looksAt(sets.counts[set]!)) return thn.find(set);
    const was = clock.turn(Stage.lookUp);
    const found = thn.find(set);
    clock.turn(was);
    return found;
  }

  /** So many blocks are missing. Only a checkpoint that frees them for blocks is of any use. */
  private lack(blocks: number): Plan {
    const { pending, reusable } = this.parts.space;
    if (reusable[0]! + reusable[1]! === 0) return Plan.noSpace;
    return pending[0]! + pending[1]! >= blocks ? Plan.checkpoint : Plan.noSpace;
  }

  /** The data device has the bytes of a run, or not. Returns the run's set. */
  compared(run: number, status: number, loanLo: number, loanHi: number): number {
    if (status === Status.OK) {
      const set = this.comparedWith(run, loanLo, loanHi);
      this.parts.io.release(loanLo, loanHi);
      return set;
    }
    return this.unread(run);
  }

  /**
   * The device itself has compared a run. Returns the run's set; or -1: which of its blocks differ
   * is to be seen yet.
   */
  matched(run: number, status: number): number {
    if ((status & 0xff) === Status.MISCOMPARE) {
      this.loanRun(run);
      return -1;
    }
    if (status !== Status.OK) return this.unread(run);
    const length = this.runs[run * 3 + 2]!;
    this.same += length;
    this.countRun(length);
    this.freeRuns[this.freeRunCount++] = run;
    return this.runs[run * 3]!;
  }

  /** What cannot be read cannot be referred to. */
  private unread(run: number): number {
    const { sets } = this.parts;
    const set = this.runs[run * 3]!;
    const base = set * SetMax.blocks + this.runs[run * 3 + 1]!;
    const length = this.runs[run * 3 + 2]!;
    this.freeRuns[this.freeRunCount++] = run;
    sets.fates.fill(Fate.fresh, base, base + length);
    sets.pbns.fill(0, base, base + length);
    this.unequal += length;
    return set;
  }

  private countRun(length: number): void {
    const lengths = this.runLengths;
    lengths[31 - Math.clz32(length)] = lengths[31 - Math.clz32(length)]! + 1;
  }

  /** Compares a run with its bytes, which are lent. Blocks that differ are to be stored as new. */
  comparedWith(run: number, loanLo: number, loanHi: number): number {
    const { sets, clock } = this.parts;
    const was = clock.turn(Stage.compare);
    const set = this.runs[run * 3]!;
    const length = this.runs[run * 3 + 2]!;
    this.freeRuns[this.freeRunCount++] = run;
    const base = set * SetMax.blocks + this.runs[run * 3 + 1]!;
    const loan = (loanHi & 0xfff) * TWO_32 + loanLo;
    const { compares } = this;
    const isShort = length < this.parts.thn.thn;
    for (let b = 0; b < length; b++) {
      compareBlocks(compares, b, sets.addresses[base + b]!, loan + b * Page.bytes);
    }
    const done = native.compareList(compares, length);
    let equal = 0;
    for (let b = 0; b < length; b++) {
      if (b < done && compares[b * Compare.words + Compare.result] === EQUAL) {
        equal++;
        if (isShort) this.llrrm?.copier.joined(sets.pbns[base + b]!);
        continue;
      }
      sets.fates[base + b] = Fate.fresh;
      sets.pbns[base + b] = 0;
    }
    this.same += equal;
    this.unequal += length - equal;
    if (isShort) this.short += equal;
    this.countRun(length);
    clock.turn(was);
    return set;
  }

  /**
   * After the comparison: places for the blocks that turned out to be new. Plan.done with nothing
   * at the device means that there were none.
   */
  again(set: number): Plan {
    const { sets, allocator, catalogue } = this.parts;
    const count = sets.counts[set]!;
    const base = set * SetMax.blocks;
    let wanted = 0;
    for (let b = 0; b < count; b++) {
      if (sets.fates[base + b] === Fate.fresh && sets.pbns[base + b] === 0) wanted++;
    }
    if (wanted === 0) return Plan.done;
    // What is promised to other volumes is theirs.
    const room = allocator.room - catalogue.promised(sets.volumes[set]!);
    if (room < wanted) return this.lack(wanted - room);
    for (let b = 0; b < count; b++) {
      if (sets.fates[base + b] !== Fate.fresh || sets.pbns[base + b] !== 0) continue;
      if (allocator.take(Stream.blocks, 1) === 0) return allocator.full ? this.lack(1) : Plan.wait;
      sets.pbns[base + b] = allocator.pbn;
      this.enterPrints(set, b, 1, allocator.pbn);
      this.write(set, b, 1);
    }
    return Plan.done;
  }

  /** A set waits for space: it is planned anew, and holds nothing until then. */
  forget(set: number): void {
    this.undo(set);
    this.parts.thn.forget(set);
    this.parts.sets.planned[set] = 0;
  }

  /** A set has failed: the blocks that it was given are free. */
  undo(set: number): void {
    const { sets, space } = this.parts;
    const base = set * SetMax.blocks;
    for (let b = 0; b < sets.planned[set]!; b++) {
      const pbn = sets.pbns[base + b]!;
      if (sets.fates[base + b] === Fate.fresh && pbn !== 0) space.unreserve(pbn);
    }
  }

  /** Asks for the writes of new blocks, and for the reads of those to be compared. */
  private ask(set: number, from: number): void {
    const { sets } = this.parts;
    const count = sets.counts[set]!;
    const base = set * SetMax.blocks;
    for (let b = from; b < count;) {
      const fate = sets.fates[base + b]!;
      let length = 1;
      if (fate === Fate.zero) {
        this.zero++;
        b++;
        continue;
      }
      const isWrite = fate === Fate.fresh;
      while (b + length < count && sets.fates[base + b + length] === fate) {
        const at = base + b + length;
        if (sets.pbns[at] !== sets.pbns[at - 1]! + 1) break;
        if (isWrite && sets.addresses[at] !== sets.addresses[at - 1]! + Page.bytes) break;
        length++;
      }
      if (isWrite) this.write(set, b, length);
      else {
        const run = this.freeRuns[--this.freeRunCount]!;
        this.runs[run * 3] = set;
        this.runs[run * 3 + 1] = b;
        this.runs[run * 3 + 2] = length;
        const isShort = length < this.parts.thn.thn;
        if (!isShort || this.llrrm?.compare(sets.pbns[base + b]!, length, run) !== true) {
          this.readRun(run);
        }
        sets.atDevice[set] = sets.atDevice[set]! + 1;
      }
      b += length;
    }
  }

  /** Has the data device compare a run, or read it. */
  readRun(run: number): void {
    const { sets, io, thn } = this.parts;
    const place = this.runs[run * 3]! * SetMax.blocks + this.runs[run * 3 + 1]!;
    const length = this.runs[run * 3 + 2]!;
    // (Of a short one each block is low-latency memory's business.)
    if (this.matchKind === 0 || length < thn.thn || !this.isInOnePiece(place, length)) {
      this.loanRun(run);
      return;
    }
    const pbn = sets.pbns[place]!;
    const address = sets.addresses[place]!;
    const hi = (address / TWO_32) | 0;
    const pbnHi = (pbn / TWO_32) | 0;
    io.askWords(Op.COMPARE, pbn | 0, pbnHi, length, address | 0, hi, this.matchKind, run);
  }

  /** Whether the buffers of blocks of a set follow each other. */
  private isInOnePiece(place: number, length: number): boolean {
    const { addresses } = this.parts.sets;
    for (let at = place + 1; at < place + length; at++) {
      if (addresses[at] !== addresses[at - 1]! + Page.bytes) return false;
    }
    return true;
  }

  /** Asks the data device for the bytes of a run. */
  private loanRun(run: number): void {
    const { sets, io } = this.parts;
    const place = this.runs[run * 3]! * SetMax.blocks + this.runs[run * 3 + 1]!;
    const pbn = sets.pbns[place]!;
    const length = this.runs[run * 3 + 2]!;
    const pbnHi = (pbn / TWO_32) | 0;
    io.askWords(Op.READ_LOAN, pbn | 0, pbnHi, length, 0, 0, this.readKind, run);
  }

  private write(set: number, b: number, length: number): void {
    const { sets, io } = this.parts;
    const at = set * SetMax.blocks + b;
    const pbn = sets.pbns[at]!;
    const address = sets.addresses[at]!;
    const hi = (address / TWO_32) | 0;
    const pbnHi = (pbn / TWO_32) | 0;
    io.askWords(Op.WRITE, pbn | 0, pbnHi, length, address | 0, hi, this.writeKind, set);
    sets.atDevice[set] = sets.atDevice[set]! + 1;
    this.fresh += length;
  }

  /** Enters new blocks in their fingerprint page, and with the next `insert` in the index. */
  private enterPrints(set: number, b: number, length: number, pbn: number): void {
    const { sets, space, allocator } = this.parts;
    const frame = allocator.fingerprints;
    const { words } = space.pages;
    const page = ((pbn >>> 0) & EXTENT_MASK) - Group.metaPages;
    const to = (frame << Page.shift) + Head.words + page * Fingerprint.words;
    const from = (set * SetMax.blocks + b) * Fingerprint.words;
    if (this.inserts + length > INSERTS) this.insert();
    const { prints, blocks } = this;
    const { fingerprints } = sets;
    const at = this.inserts * Fingerprint.words;
    for (let i = 0; i < length; i++) this.leaves(to + i * Fingerprint.words, pbn + i);
    for (let i = 0; i < length * Fingerprint.words; i++) {
      const word = fingerprints[from + i]!;
      words[to + i] = word;
      prints[at + i] = word;
    }
    for (let i = 0; i < length; i++) setPair(blocks, (this.inserts + i) * 2, pbn + i);
    this.inserts += length;
    space.touchFingerprints(frame, Math.floor(pbn / Group.extentPages));
  }

  /** What was at a place before is not any more: the index is to forget it. */
  private leaves(at: number, pbn: number): void {
    const { index, space } = this.parts;
    const { words } = space.pages;
    const first = words[at]!;
    if (first === 0 || ((first >>> 4) & (index.rate - 1)) !== 0) return;
    const { oldPrints } = this;
    const to = this.removes * Fingerprint.words;
    for (let i = 0; i < Fingerprint.words; i++) oldPrints[to + i] = words[at + i]!;
    setPair(this.oldBlocks, this.removes * 2, pbn);
    this.removes++;
    if (this.removes === INSERTS) this.remove();
  }

  private remove(): void {
    this.parts.index.remove(this.oldPrints, this.oldBlocks, this.removes);
    this.removes = 0;
  }

  /** Tells the index of the blocks that were given places since the last time. */
  insert(): void {
    if (this.removes > 0) this.remove();
    if (this.inserts === 0) return;
    this.parts.index.insert(this.prints, this.blocks, this.inserts);
    this.inserts = 0;
  }
}
