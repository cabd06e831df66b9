// THN: which blocks of a set are a sequence of blocks that are stored already (SEEDS, the THN page;
// US20090271402, iDedup).
//
// A series of at least `thn` blocks of the set that equals blocks which follow each other in one
// extent is kept as references to those; everything else is stored as new. What fits is decided by
// fingerprints here; the bytes are compared afterwards (planner.ts).
//
// Invariants
// 1. A candidate counts when its count is above 0, or it is given out for a write that is under
//    way; the set then waits for that write.
// 2. The longest run wins, then the lowest address; runs of a set do not overlap, and none goes
//    through a block of zeros or across an extent.

import { PenstockError } from '../../errors.js';
import type { FingerprintIndex } from './fingerprint-index.js';
import { Fingerprint, Group, Head, Page, SetMax } from '../format/layout.js';
import type { Llrrm } from '../llrrm/llrrm.js';
import { Miss } from '../durable/pages.js';
import { Fate, type SetTable } from './sets.js';
import { groupOf, setPair } from '../format/numbers.js';
import type { Space } from '../space/space.js';

/** Words of a fingerprint's candidates: how many, and four pairs. */
const CANDIDATE_WORDS = 9;
const EXTENT_MASK = Group.extentPages - 1;

export class Thn {
  /** Runs of at least this many blocks are references; 0: nothing is deduplicated. */
  thn: number;
  /** Candidates that were looked at, and those that were not what the index said. */
  candidates = 0;
  stale = 0;
  /** Low-latency memory: short runs are shared where it has them, or is to have them. */
  llrrm: Llrrm | null = null;
  private readonly sets: SetTable;
  private readonly space: Space;
  private readonly index: FingerprintIndex;
  private readonly found = new Uint32Array(SetMax.blocks * CANDIDATE_WORDS);
  /** The best run of the block that is looked at. */
  private bestFrom = 0;
  private bestLength = 0;
  private bestPbn = 0;
  private readonly print = new Uint32Array(Fingerprint.words);
  private readonly block = new Uint32Array(2);
  /** Extents of which this set can have no pages: asked for again they would be read again. */
  private readonly bad = new Set<number>();
  private badOf = -1;
  /** Pages that the cache had loaded when this set was looked at first. */
  private loadsBefore = 0;
  private missing = false;
  private underWay = false;

  constructor(sets: SetTable, space: Space, index: FingerprintIndex, thn: number) {
    if (!Number.isInteger(thn) || thn < 0 || thn > SetMax.blocks) {
      throw new PenstockError('BAD_OPTION', `thn is from 0 to ${SetMax.blocks}, not ${thn}`, {
        hint: '8 is a good value; 0 stores everything as new',
        exitCode: 2,
      });
    }
    this.sets = sets;
    this.space = space;
    this.index = index;
    this.thn = thn;
  }

  /** Whether sets of so many blocks are looked at. */
  looksAt(count: number): boolean {
    return this.thn > 0 && count >= this.thn;
  }

  /**
   * Sets the fate and place of the blocks of a set that are stored already; the others stay as they
   * are. False: pages are on their way, or a write that it depends on is: ask again.
   */
  find(set: number): boolean {
    const { sets, found } = this;
    const count = sets.counts[set]!;
    this.forget(set);
    if (!this.looksAt(count) || sets.unequal[set] !== 0) return true;
    if (this.badOf !== set) {
      this.badOf = set;
      // (Clearing makes a new table, also of an empty one.)
      if (this.bad.size > 0) this.bad.clear();
      this.loadsBefore = this.space.pages.loads;
    }
    const view = sets.views[set]!;
    if (this.index.probe(view, count, found) === 0) return true;
    this.missing = false;
    this.underWay = false;
    this.look(set, false);
    // Only then: a short run would take the first blocks of a long one that begins within it.
    if (this.llrrm !== null) this.look(set, true);
    if (!this.missing && !this.underWay) {
      this.badOf = -1;
      return true;
    }
    this.forget(set); // nothing of this look counts
    return false;
  }

  /** Shares runs of at least THN blocks, or `short` ones that are worth it. */
  private look(set: number, short: boolean): void {
    const { sets, found } = this;
    const count = sets.counts[set]!;
    const base = set * SetMax.blocks;
    let floor = 0;
    for (let i = 0; i < count;) {
      if (sets.fates[base + i] !== Fate.fresh) {
        i++;
        floor = i;
        continue;
      }
      this.bestLength = 0;
      const candidates = found[i * CANDIDATE_WORDS]!;
      for (let c = 0; c < candidates; c++) {
        const at = i * CANDIDATE_WORDS + 1 + c * 2;
        this.follow(set, i, floor, found[at + 1]! * 4294967296 + found[at]!);
      }
      if (short ? !this.isWorth() : this.bestLength < this.thn) {
        i++;
        continue;
      }
      for (let b = 0; b < this.bestLength; b++) {
        sets.fates[base + this.bestFrom + b] = Fate.same;
        sets.pbns[base + this.bestFrom + b] = this.bestPbn + b;
      }
      i = this.bestFrom + this.bestLength;
      floor = i;
    }
  }

  /** What a set was found to equal is not what it refers to any more. */
  forget(set: number): void {
    const { sets } = this;
    const base = set * SetMax.blocks;
    for (let b = 0; b < sets.counts[set]!; b++) {
      if (sets.fates[base + b] === Fate.same) sets.fates[base + b] = Fate.fresh;
    }
  }

  /** Whether the best run, which is short, is shared all the same. */
  private isWorth(): boolean {
    const { llrrm, bestPbn, bestLength } = this;
    if (llrrm === null || bestLength === 0) return false;
    const counts = this.space.count(groupOf(bestPbn));
    return counts >= 0 && llrrm.isWorth(counts, bestPbn, bestLength);
  }

  /** How far block `i` and its neighbours go with the blocks round `pbn`. */
  private follow(set: number, i: number, floor: number, pbn: number): void {
    const { space, sets } = this;
    this.candidates++;
    const extent = Math.floor(pbn / Group.extentPages);
    const group = groupOf(pbn);
    if (group < space.firstGroup || group >= space.highWater) return;
    if (space.victims.get(extent) !== 0) return;
    if (this.bad.size > 0 && this.bad.has(extent)) return;
    const counts = space.count(group);
    if (counts < 0) {
      this.missed(counts, extent);
      return;
    }
    // Nodes are where it was freed: the fingerprints there are of the time before.
    if (space.holdsNodes(space.summary(group), extent) || !this.isStored(counts, pbn)) {
      this.drop(set, i, pbn);
      return;
    }
    const prints = space.fingerprints(extent);
    if (prints < 0) {
      this.missed(prints, extent);
      return;
    }
    if (!this.equals(set, i, prints, pbn)) {
      this.drop(set, i, pbn);
      return;
    }
    const end = (extent + 1) * Group.extentPages;
    const base = set * SetMax.blocks;
    const count = sets.counts[set]!;
    let length = 1;
    while (i + length < count && pbn + length < end) {
      if (sets.fates[base + i + length] !== Fate.fresh) break;
      if (!this.equals(set, i + length, prints, pbn + length)) break;
      if (!this.isStored(counts, pbn + length)) break;
      length++;
    }
    let from = i;
    if (this.index.rate > 1) {
      const first = extent * Group.extentPages + Group.metaPages;
      while (from > floor && pbn - (i - from) > first) {
        const before = pbn - (i - from) - 1;
        if (!this.equals(set, from - 1, prints, before) || !this.isStored(counts, before)) break;
        from--;
      }
      length += i - from;
    }
    const start = pbn - (i - from);
    if (length < this.bestLength || (length === this.bestLength && start >= this.bestPbn)) return;
    this.bestFrom = from;
    this.bestLength = length;
    this.bestPbn = start;
    if (length < this.thn) return;
    for (let b = 0; b < length; b++) {
      if (space.countIn(counts, start + b) === 0) this.underWay = true;
    }
  }

  /** Candidates in more extents than the cache has frames for are never all here: some are left. */
  private missed(miss: number, extent: number): void {
    const { pages } = this.space;
    if (miss === Miss.bad) this.bad.add(extent);
    else if (pages.loads - this.loadsBefore < pages.frames) this.missing = true;
  }

  private isStored(counts: number, pbn: number): boolean {
    const { space } = this;
    return space.countIn(counts, pbn) !== 0 || space.isReserved(counts, pbn);
  }

  private equals(set: number, i: number, prints: number, pbn: number): boolean {
    const { words } = this.space.pages;
    const page = ((pbn >>> 0) & EXTENT_MASK) - Group.metaPages;
    const at = (prints << Page.shift) + Head.words + page * Fingerprint.words;
    const { fingerprints } = this.sets;
    const of = (set * SetMax.blocks + i) * Fingerprint.words;
    return (
      words[at] === fingerprints[of] &&
      words[at + 1] === fingerprints[of + 1] &&
      words[at + 2] === fingerprints[of + 2] &&
      words[at + 3] === fingerprints[of + 3]
    );
  }

  /** The index named a block that is another one by now. */
  private drop(set: number, i: number, pbn: number): void {
    this.stale++;
    const { print, block, sets } = this;
    const of = (set * SetMax.blocks + i) * Fingerprint.words;
    for (let word = 0; word < Fingerprint.words; word++) {
      print[word] = sets.fingerprints[of + word]!;
    }
    setPair(block, 0, pbn);
    this.index.remove(print, block, 1);
  }
}
