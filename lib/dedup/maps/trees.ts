// Trees: maps of volumes, and the catalogue, as copy-on-write radix trees of pages.
//
// Invariants
// 1. A page of a tree that the last checkpoint knows is never changed in its place: who changes it
//    gets it under another pbn first (`own`), and so its parents.
// 2. A page that several trees share has a count above 1: who changes it gets a copy, and what it
//    names gets one reference more.
// 3. Nodes of the current generation belong to one tree: taking a snapshot begins another one.

import { Req } from '../../hpdi/index.js';
import { Stream, type Allocator } from '../space/allocator.js';
import { Group, Head, Magic, Node, Page, Volume } from '../format/layout.js';
import { Miss, type PageCache } from '../durable/pages.js';
import { groupOf, pair } from '../format/numbers.js';
import type { Space } from '../space/space.js';

/** What `leaf` gives where nothing was ever written; otherwise as Miss. */
export const HOLE = -3;

export interface Tree {
  /** 0: empty. */
  root: number;
  level: number;
}

/** A volume's map. */
export interface MapTree extends Tree {
  readonly serial: number;
}

/** Blocks of one look-up. */
const LOOKS = 2 ** 15;
/** Leaves that are remembered. */
const REMEMBERED = 2 ** 14;

/** Words of a leaf that is remembered (-1: none): its volume's serial, its frame, and that's. */
const enum Known {
  leaf = 0,
  tree = 1,
  frame = 2,
  serial = 3,
  words = 4,
}

/** Level that a tree of so many leaves needs. */
export function levelOf(leaves: number): number {
  let level = 0;
  for (let span = 1; span < leaves; span *= Node.entries) level++;
  return level;
}

export class Trees {
  readonly pages: PageCache;
  readonly space: Space;
  private readonly allocator: Allocator;

  /** Whether a pbn may need more than 32 bits. */
  private wide = false;
  /** Leaves of maps by where they hash to, as `Known`. */
  private readonly known = new Int32Array(REMEMBERED * Known.words).fill(-1);
  /** Frames of a look-up. */
  private readonly found = new Int32Array(LOOKS);

  constructor(pages: PageCache, space: Space, allocator: Allocator) {
    this.pages = pages;
    this.space = space;
    this.allocator = allocator;
    this.spans(space.endGroup);
  }

  /** Blocks lie below this group. */
  spans(endGroup: number): void {
    this.wide = endGroup > 2 ** 32 / Group.pages;
  }

  // hot:begin

  /** As `leaf`, of a volume's map: where its leaf was a moment ago is remembered. */
  mapLeaf(volume: MapTree, leaf: number): number {
    const known = this.knownLeaf(volume, leaf);
    if (known >= 0) return known;
    const frame = this.leaf(volume, leaf, Magic.node);
    if (frame >= 0) this.remember(volume, leaf, frame);
    return frame;
  }

  /** The frame of a leaf if it is remembered, and here; -1 says nothing. */
  private knownLeaf(volume: MapTree, leaf: number): number {
    const { known } = this;
    const at = this.placeOf(volume, leaf);
    if (known[at] !== leaf || known[at + Known.tree] !== (volume.serial | 0)) return -1;
    const frame = known[at + Known.frame]!;
    if ((this.pages.serials[frame]! | 0) !== known[at + Known.serial]) return -1;
    this.pages.keep(frame);
    return frame;
  }

  private placeOf(volume: MapTree, leaf: number): number {
    return ((leaf ^ Math.imul(volume.serial, 0x9e3779b1)) & (REMEMBERED - 1)) * Known.words;
  }

  /**
   * What a map has at the first blocks of requests, whose records are at `records` in `sq`: pbns,
   * in two words (the high ones stay 0 until some need them); 0 where it has nothing, or where its
   * leaf is not remembered. One pass after the other: nothing waits for the one before.
   */
  lookUp(
    volume: MapTree,
    sq: Uint32Array,
    records: Int32Array,
    count: number,
    pbns: Int32Array,
    pbnsHi: Int32Array,
  ): void {
    const { found } = this;
    const { words, bytes } = this.pages;
    for (let i = 0; i < count; i++) {
      // (A volume has 2^34 blocks at most: 2^25 leaves.)
      const at = records[i]! + Req.lbaLo;
      const leaf = (sq[at + 1]! << (32 - Node.shift)) | (sq[at]! >>> Node.shift);
      found[i] = this.knownLeaf(volume, leaf);
    }
    for (let i = 0; i < count; i++) {
      const frame = found[i]!;
      const e = sq[records[i]! + Req.lbaLo]! & (Node.entries - 1);
      pbns[i] = frame < 0 ? 0 : words[(frame << Page.shift) + Head.words + e]!;
    }
    if (!this.wide) return;
    for (let i = 0; i < count; i++) {
      const frame = found[i]!;
      const e = sq[records[i]! + Req.lbaLo]! & (Node.entries - 1);
      const at = (frame << (Page.shift + 2)) + Node.high * 4 + e;
      pbnsHi[i] = frame < 0 ? 0 : bytes[at]!;
    }
  }

  private remember(volume: MapTree, leaf: number, frame: number): void {
    const { known } = this;
    const at = this.placeOf(volume, leaf);
    known[at] = leaf;
    known[at + Known.tree] = volume.serial;
    known[at + Known.frame] = frame;
    known[at + Known.serial] = this.pages.serials[frame]!;
  }

  /** What entry `e` of a node names. */
  entry(frame: number, e: number): number {
    const { pages } = this;
    const low = pages.words[(frame << Page.shift) + Head.words + e]!;
    // Up to 16 TiB the high bits are 0, and a line of the processor's cache less is touched.
    if (!this.wide) return low;
    const high = pages.bytes[(frame << (Page.shift + 2)) + Node.high * 4 + e]!;
    return high * 4294967296 + low;
  }

  setEntry(frame: number, e: number, pbn: number): void {
    const { pages } = this;
    pages.bytes[(frame << (Page.shift + 2)) + Node.high * 4 + e] = pbn / 4294967296;
    pages.words[(frame << Page.shift) + Head.words + e] = pbn >>> 0;
  }

  /** The frame of a leaf, for reading; HOLE, or a Miss. */
  leaf(tree: Tree, leaf: number, magic: number): number {
    let pbn = tree.root;
    if (pbn === 0) return HOLE;
    for (let { level } = tree; level > 0; level--) {
      const frame = this.get(pbn, Magic.node, level);
      if (frame < 0) return frame;
      pbn = this.entry(frame, (leaf >>> (Node.shift * (level - 1))) & (Node.entries - 1));
      if (pbn === 0) return HOLE;
    }
    return this.get(pbn, magic, 0);
  }

  /** The frame of a node of a map, for reading; or a Miss. */
  node(pbn: number, level: number): number {
    return this.get(pbn, Magic.node, level);
  }

  /** The frame of a page of a tree that is what its place in the tree says; or a Miss. */
  private get(pbn: number, magic: number, level: number): number {
    const { pages } = this;
    const frame = pages.get(pbn, magic, 0);
    if (frame < 0 || pages.words[(frame << Page.shift) + Head.own] === level) return frame;
    return pages.mismatch(pbn);
  }

  // hot:end

  /**
   * By how many maps a leaf of a volume is shared, about: the product of its own count and of those
   * above it. 0: nothing is there; or a Miss.
   */
  sharers(volume: Tree, leaf: number): number {
    let sharers = 1;
    let pbn = volume.root;
    for (let { level } = volume; pbn !== 0; level--) {
      const counts = this.space.count(groupOf(pbn));
      if (counts < 0) return counts;
      sharers *= this.space.countIn(counts, pbn);
      if (level === 0) return sharers;
      const frame = this.get(pbn, Magic.node, level);
      if (frame < 0) return frame;
      pbn = this.entry(frame, (leaf >>> (Node.shift * (level - 1))) & (Node.entries - 1));
    }
    return 0;
  }

  /** The first leaf from `leaf` on that is there; -1 when none is, or a Miss below that. */
  nextLeaf(tree: Tree, leaf: number): number {
    const end = Node.entries ** tree.level;
    for (let at = leaf; at < end;) {
      let pbn = tree.root;
      let skipped = tree.root === 0;
      if (skipped) return -1;
      for (let { level } = tree; level > 0; level--) {
        const frame = this.get(pbn, Magic.node, level);
        if (frame < 0) return frame - 1;
        const span = Node.entries ** (level - 1);
        let e = Math.floor(at / span) % Node.entries;
        while (e < Node.entries && this.entry(frame, e) === 0) {
          e++;
          at = (Math.floor(at / span) + 1) * span;
        }
        if (e === Node.entries) {
          skipped = true;
          break;
        }
        pbn = this.entry(frame, e);
      }
      if (!skipped) return at;
    }
    return -1;
  }

  /** The frame of a leaf that may be changed, made if it is not there; or a Miss. */
  ownLeaf(tree: Tree, leaf: number, magic: number): number {
    let parent = -1;
    let place = 0;
    let pbn = tree.root;
    for (let { level } = tree; ; level--) {
      const kind = level > 0 ? Magic.node : magic;
      const frame = pbn === 0 ? this.make(kind, level) : this.own(pbn, kind, level);
      if (frame < 0) return frame;
      const now = this.pages.pbns[frame]!;
      if (now !== pbn) {
        if (parent < 0) tree.root = now;
        else this.setEntry(parent, place, now);
      }
      if (level === 0) return frame;
      parent = frame;
      place = (leaf >>> (Node.shift * (level - 1))) & (Node.entries - 1);
      pbn = this.entry(frame, place);
    }
  }

  /** As `ownLeaf`, of a volume's map. */
  ownMapLeaf(volume: MapTree, leaf: number): number {
    const frame = this.ownLeaf(volume, leaf, Magic.node);
    // It may be a copy that is this volume's alone.
    if (frame >= 0) this.remember(volume, leaf, frame);
    return frame;
  }

  /**
   * Takes a part of a map apart, at most a leaf, of one whose volume nobody uses: 1, or 0 when
   * nothing is left, or a Miss. What other maps share stays.
   */
  takeApart(volume: Tree): number {
    const { pages, space } = this;
    // Whether something is shared depends on references that are still to be entered.
    if (!space.settle()) return Miss.wait;
    if (volume.root === 0) return 0;
    let parent = -1;
    let place = 0;
    let pbn = volume.root;
    for (let { level } = volume; ; level--) {
      const counts = space.count(groupOf(pbn));
      if (counts < 0) return counts;
      let left = -1;
      if (space.countIn(counts, pbn) === 1) {
        const frame = level > 0 ? this.own(pbn, Magic.node, level) : this.get(pbn, Magic.node, 0);
        if (frame < 0) return frame;
        if (level === 0) this.dropEntries(frame);
        else left = this.firstEntry(frame);
        const now = pages.pbns[frame]!;
        if (now !== pbn) this.name(volume, parent, place, now);
        pbn = now;
        if (left >= 0) {
          parent = frame;
          place = left;
          pbn = this.entry(frame, left);
          continue;
        }
      }
      // It is empty, or another map has it, too.
      space.dropRef(pbn);
      this.name(volume, parent, place, 0);
      return 1;
    }
  }

  /** Gives a tree another root, or a node another entry. */
  name(tree: Tree, parent: number, place: number, pbn: number): void {
    if (parent < 0) tree.root = pbn;
    else this.setEntry(parent, place, pbn);
  }

  private firstEntry(frame: number): number {
    for (let e = 0; e < Node.entries; e++) if (this.entry(frame, e) !== 0) return e;
    return -1;
  }

  private dropEntries(frame: number): void {
    for (let e = 0; e < Node.entries; e++) {
      const pbn = this.entry(frame, e);
      if (pbn !== 0) this.space.dropRef(pbn);
    }
  }

  /** One level more: the tree spans more leaves. False: ask again. */
  raise(tree: Tree): boolean {
    if (tree.root !== 0) {
      const frame = this.make(Magic.node, tree.level + 1);
      if (frame < 0) return false;
      this.setEntry(frame, 0, tree.root);
      tree.root = this.pages.pbns[frame]!;
    }
    tree.level++;
    return true;
  }

  /**
   * Gives `tail`, a tree of the same level, all that a map names from block `block` on: 0, or a
   * Miss. References move with their entries, so that only the nodes on the way there are new.
   */
  cut(tree: MapTree, tail: MapTree, block: number): number {
    const { pages } = this;
    if (tree.root === 0) return 0;
    const kept = block - 1;
    const leaf = Math.floor(kept / Node.entries);
    const ends = [this.ownLeaf(tree, leaf, Magic.node), this.ownLeaf(tail, leaf, Magic.node)];
    for (const end of ends) if (end < 0) return end;
    // All nodes on the way were changed a moment ago, so they are here.
    let from = pages.frameOf(tree.root);
    let to = pages.frameOf(tail.root);
    for (let { level } = tree; ; level--) {
      const place = Math.floor(kept / Node.entries ** level) % Node.entries;
      for (let e = place + 1; e < Node.entries; e++) {
        this.setEntry(to, e, this.entry(from, e));
        this.setEntry(from, e, 0);
      }
      if (level === 0) return 0;
      from = pages.frameOf(this.entry(from, place));
      to = pages.frameOf(this.entry(to, place));
    }
  }

  /** The tree spans no more than `level` says; what is beyond is not there. */
  lower(tree: Tree, level: number): void {
    for (; tree.level > level; tree.level--) {
      if (tree.root === 0) continue;
      // Its first child has its reference: only the node itself goes.
      const frame = this.pages.frameOf(tree.root);
      const child = this.entry(frame, 0);
      this.space.dropRef(tree.root);
      tree.root = child;
    }
  }

  /** Leaves of a map are not where they were. */
  forget(volume: MapTree): void {
    const { known } = this;
    for (let at = 0; at < known.length; at += Known.words) {
      if (known[at + Known.tree] === (volume.serial | 0)) known[at] = -1;
    }
  }

  /** The frame of a new page of a tree, with a reference; or a Miss. */
  make(magic: number, level: number): number {
    const { pages, space, allocator } = this;
    if (allocator.take(Stream.nodes, 1) === 0) return Miss.wait;
    const frame = pages.make(allocator.pbn, magic, 0, space.generation);
    if (frame < 0) {
      space.unreserve(allocator.pbn);
      return frame;
    }
    pages.words[(frame << Page.shift) + Head.own] = level;
    space.addRef(allocator.pbn);
    return frame;
  }

  /** The frame of a page that may be changed, which may be elsewhere then; or a Miss. */
  own(pbn: number, magic: number, level: number): number {
    const { pages, space } = this;
    const frame = this.get(pbn, magic, level);
    if (frame < 0 || pages.generations[frame] === space.generation) return frame;
    // Pages that are asked for below must not come in its place.
    pages.pins[frame] = pages.pins[frame]! + 1;
    const owned = this.ownFrame(frame, pbn, magic);
    pages.pins[frame] = pages.pins[frame]! - 1;
    return owned;
  }

  private ownFrame(frame: number, pbn: number, magic: number): number {
    const { pages, space, allocator } = this;
    // Whether it is shared depends on references that are still to be entered.
    if (!space.settle()) return Miss.wait;
    const counts = space.count(groupOf(pbn));
    if (counts < 0) return counts;
    // Before a node is taken: that may need a frame, and this one may be it.
    const isShared = space.countIn(counts, pbn) !== 1;
    if (allocator.take(Stream.nodes, 1) === 0) return Miss.wait;
    const to = allocator.pbn;
    if (!isShared) {
      pages.move(frame, to);
      pages.touch(frame, space.generation);
      space.addRef(to);
      space.dropRef(pbn);
      return frame;
    }
    const copy = pages.make(to, magic, 0, space.generation);
    if (copy < 0) {
      space.unreserve(to);
      return copy;
    }
    const from = frame << Page.shift;
    pages.words.copyWithin(copy << Page.shift, from, from + Page.words);
    space.addRef(to);
    this.refer(copy, magic);
    space.dropRef(pbn);
    return copy;
  }

  /** What a page that was copied names has a reference more. */
  private refer(frame: number, magic: number): void {
    if (magic === Magic.node) {
      for (let e = 0; e < Node.entries; e++) {
        const pbn = this.entry(frame, e);
        if (pbn !== 0) this.space.addRef(pbn);
      }
      return;
    }
    const first = (frame << Page.shift) + Head.words;
    for (let i = 0; i < Volume.perPage; i++) {
      const root = pair(this.pages.words, first + i * Volume.words + Volume.rootLo);
      if (root !== 0) this.space.addRef(root);
    }
  }
}
