// Entering: sets whose data is with the device, and unmaps, become part of the state: in the maps,
// the counts and the journal, in one step each.
//
// Invariant: maps and counts change in the order of the journal's records, and only when the record
// has room in the entry that is gathered; so a checkpoint between two steps is exact.

import type { Journal } from '../durable/journal.js';
import { Fingerprint, Node, Rec, RecKind, SetMax } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import { Fate, type SetTable } from '../write/sets.js';
import { setPair } from '../format/numbers.js';
import type { Space } from '../space/space.js';
import type { Trees } from './trees.js';
import type { VolumeRecord } from './catalogue.js';

const NODE_MASK = Node.entries - 1;

export class Entering {
  /** References that a map gave up because its block was written again, or unmapped. */
  overwritten = 0;
  /** Sequence of the entry that the last record went to. */
  seq = 0;
  private readonly sets: SetTable;
  private readonly space: Space;
  private readonly trees: Trees;
  private readonly journal: Journal;

  constructor(parts: { sets: SetTable; space: Space; trees: Trees; journal: Journal }) {
    this.sets = parts.sets;
    this.space = parts.space;
    this.trees = parts.trees;
    this.journal = parts.journal;
  }

  /** Enters a set: 0, or a Miss. */
  enter(set: number): number {
    const { sets, journal, trees } = this;
    const volume = sets.volumes[set]!;
    const count = sets.counts[set]!;
    const lbn = sets.lbns[set]!;
    if (!journal.room(count * (Rec.words + Fingerprint.words))) return Miss.wait;
    const first = Math.floor(lbn / Node.entries);
    const last = Math.floor((lbn + count - 1) / Node.entries);
    // Its root may move though the rest has to wait: a checkpoint in between has to know.
    volume.changed = true;
    const frame = trees.ownMapLeaf(volume, first);
    if (frame < 0) return frame;
    const second = last === first ? frame : trees.ownMapLeaf(volume, last);
    if (second < 0) return second;
    for (let b = 0; b < count; b++) {
      const pbn = sets.pbns[set * SetMax.blocks + b]!;
      const leaf = Math.floor((lbn + b) / Node.entries) === first ? frame : second;
      this.map(volume, leaf, (lbn + b) & NODE_MASK, pbn);
    }
    this.record(set, volume, lbn, count);
    sets.seqs[set] = this.seq;
    return 0;
  }

  /**
   * Unmaps up to `count` blocks from `lbn` on, of one leaf or of leaves that are not there; returns
   * how many, or a Miss.
   */
  unmap(volume: VolumeRecord, lbn: number, count: number): number {
    const { journal, trees } = this;
    if (!journal.room(Rec.words)) return Miss.wait;
    const leaf = Math.floor(lbn / Node.entries);
    const next = trees.nextLeaf(volume, leaf);
    if (next < -1) return next + 1;
    if (next !== leaf) {
      // Nothing is mapped up to there.
      return next < 0 ? count : Math.min(count, next * Node.entries - lbn);
    }
    volume.changed = true;
    const frame = trees.ownMapLeaf(volume, leaf);
    if (frame < 0) return frame;
    const here = Math.min(count, (leaf + 1) * Node.entries - lbn);
    for (let b = 0; b < here; b++) this.map(volume, frame, (lbn + b) & NODE_MASK, 0);
    this.unmapRecord(volume, lbn, here);
    return here;
  }

  /** Points a map's entry at a block; 0 is a hole. */
  map(volume: VolumeRecord, frame: number, e: number, pbn: number): void {
    const { trees, space } = this;
    const old = trees.entry(frame, e);
    // First the reference, then the end of another: a block that is written as it was stays.
    if (pbn !== 0) {
      space.addRef(pbn);
      volume.mapped++;
    }
    if (old !== 0) {
      space.dropRef(old);
      volume.mapped--;
      this.overwritten++;
    }
    trees.setEntry(frame, e, pbn);
  }

  /** Records of a set: one for each series of blocks that follow each other on the device. */
  private record(set: number, volume: VolumeRecord, lbn: number, count: number): void {
    const { sets } = this;
    const base = set * SetMax.blocks;
    for (let b = 0; b < count;) {
      const isZero = sets.fates[base + b] === Fate.zero;
      let length = 1;
      while (b + length < count) {
        const at = base + b + length;
        if ((sets.fates[at] === Fate.zero) !== isZero) break;
        if (!isZero && sets.pbns[at] !== sets.pbns[at - 1]! + 1) break;
        length++;
      }
      if (isZero) this.unmapRecord(volume, lbn + b, length);
      else this.writeRecord(set, b, length, volume, lbn + b);
      b += length;
    }
  }

  private writeRecord(
    set: number,
    b: number,
    length: number,
    volume: VolumeRecord,
    lbn: number,
  ): void {
    const { sets, journal } = this;
    const { words, at } = journal;
    words[at] = RecKind.write | (length << 8);
    words[at + Rec.volume] = volume.index;
    setPair(words, at + Rec.lbnLo, lbn);
    setPair(words, at + Rec.pbnLo, sets.pbns[set * SetMax.blocks + b]!);
    words[at + Rec.serial] = volume.serial;
    const from = (set * SetMax.blocks + b) * Fingerprint.words;
    const prints = length * Fingerprint.words;
    const { fingerprints } = sets;
    for (let i = 0; i < prints; i++) words[at + Rec.words + i] = fingerprints[from + i]!;
    journal.added(Rec.words + prints);
    this.seq = journal.seq;
  }

  private unmapRecord(volume: VolumeRecord, lbn: number, count: number): void {
    const { journal } = this;
    const { words, at } = journal;
    words[at] = RecKind.unmap;
    words[at + Rec.volume] = volume.index;
    setPair(words, at + Rec.lbnLo, lbn);
    setPair(words, at + Rec.pbnLo, count);
    words[at + Rec.serial] = volume.serial;
    journal.added(Rec.words);
    this.seq = journal.seq;
  }
}
