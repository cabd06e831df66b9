// Space: reference counts, and what of the device is used (docs/format.md, "Places").
//
// References are added and taken through a queue, in the order of the journal: a count page that is
// not in memory holds up what follows, and nobody else. The counts are exact when it is empty.
//
// Invariants
// 1. A block whose count falls to 0 is not free before a checkpoint that knows of it is durable,
//    and whoever may still read it has finished: until then its bit in `pending` stands.
// 2. A block that is given out for a write has its bit in `reserved` until it is referred to, or
//    the write has failed.
// 3. Changing a page changes its parents: they are in memory, and dirty, when it is.

import { Deltas } from './deltas.js';
import { Discards } from './discards.js';
import { Freed } from './freed.js';
import { FrameBits, Side } from '../durable/frame-bits.js';
import { countIndex, groupOf } from '../format/numbers.js';
import { Frame, Miss, type PageCache } from '../durable/pages.js';
import { NodeExtents } from './node-extents.js';
import { PbnTable } from './pbn-table.js';
import type { ReferenceWatcher } from './reference-watcher.js';
import {
  Group,
  GroupShift,
  Head,
  Magic,
  Page,
  Span,
  SpanShift,
  SpanWord,
} from '../format/layout.js';

/** Places of the table of extents that are being emptied. */
const VICTIMS = 2 ** 13;
// A pbn is a number above 2^32 now and then; `%` of such is slow, and its low bits are enough.
const GROUP_MASK = Group.pages - 1;
const EXTENT_MASK = Group.extentPages - 1;

export interface SpaceFacts {
  readonly firstGroup: number;
  /** First group that is not there any more. */
  readonly endGroup: number;
  readonly highWater: number;
  readonly roots: number;
}

export class Space {
  readonly firstGroup: number;
  endGroup: number;
  /** First group that was never used. */
  highWater: number;
  /** The root pages, as they stand in memory; whoever makes this reads them. */
  readonly roots: Uint32Array;
  readonly rootDirty: Uint8Array;
  /** The checkpoint that is being built: changes belong to it. */
  generation = 1;
  /** Extents with a block in use. */
  extentsUsed = 0;
  /** Blocks without a count in extents that hold nodes: no place for data. */
  nodesFree = 0;
  readonly nodeExtents = new NodeExtents();
  readonly unusable = new Set<number>(); // extents whose pages cannot be used
  /** Blocks with a count; given out and not counted yet; freed and not free yet. */
  used = 0;
  reserved = 0;
  readonly pending = new Float64Array(2);
  /** Of those, where blocks may be put, not only nodes. */
  readonly reusable = new Float64Array(2);
  /** A count went below 0, or a page of space cannot be read: nothing may be changed any more. */
  broken: string | null = null;
  /** Who is told of references, as counts change. */
  watcher: ReferenceWatcher | null = null;
  readonly pages: PageCache;
  /** What is being given back to the device is given to nobody. */
  readonly discards = new Discards();
  /** Extents that are being emptied, by number: nothing is put there, nor referred to anew. */
  readonly victims = new PbnTable(VICTIMS);
  private readonly bits: FrameBits;
  /** pbn: one more; -pbn: one less. */
  readonly deltas = new Deltas();
  private knownGroup = -1;
  private knownCount = 0;
  private knownSummary = 0;
  private countSerial = 0;
  private summarySerial = 0;
  private readonly freed = new Freed();

  constructor(pages: PageCache, roots: Uint32Array, facts: SpaceFacts) {
    this.pages = pages;
    this.roots = roots;
    this.rootDirty = new Uint8Array(facts.roots);
    this.firstGroup = facts.firstGroup;
    this.endGroup = facts.endGroup;
    this.highWater = facts.highWater;
    this.bits = new FrameBits(pages);
    this.countUsed();
  }

  get blocksTotal(): number {
    return (this.endGroup - this.firstGroup) * Group.counts;
  }

  /** Blocks that may be given out now. */
  get available(): number {
    const { pending } = this;
    return this.blocksTotal - this.used - this.reserved - pending[0]! - pending[1]!;
  }

  /** Extents without a block in use. */
  get extentsEmpty(): number {
    return (this.endGroup - this.firstGroup) * Group.extents - this.extentsUsed;
  }

  /** References that were added or taken and are not in the counts yet. */
  get unsettled(): number {
    return this.deltas.length;
  }

  /** The frame of the summary page of a group's span; or a Miss. */
  summary(group: number): number {
    const span = group >>> Span.shift;
    const word = this.roots[this.spanAt(span)]!;
    return this.pages.get(this.summaryPbn(span), Magic.summary, word & SpanWord.slot);
  }

  /** The frame of a group's count page; or a Miss. */
  count(group: number): number {
    const summary = this.summary(group);
    if (summary < 0) return summary;
    const slot = this.pages.words[this.groupAt(summary, group) + 1]! & 1;
    return this.pages.get(this.countPbn(group), Magic.count, slot);
  }

  /** The frame of an extent's fingerprint page; or a Miss. The extent has blocks in use. */
  fingerprints(extent: number): number {
    const group = Math.floor(extent / Group.extents);
    const summary = this.summary(group);
    if (summary < 0) return summary;
    const word = this.pages.words[this.groupAt(summary, group) + 1]!;
    const slot = (word >>> (GroupShift.fingerprint + (extent % Group.extents))) & 1;
    return this.pages.get(extent * Group.extentPages, Magic.fingerprint, slot);
  }

  /** A block's count in the frame of its count page. */
  countIn(frame: number, pbn: number): number {
    return this.pages.words[(frame << Page.shift) + Head.words + countIndex(pbn)]!;
  }

  /** Blocks in use of an extent, in the frame of its summary page. */
  usedIn(summary: number, extent: number): number {
    const group = Math.floor(extent / Group.extents);
    const word = this.pages.words[this.groupAt(summary, group)]!;
    return (word >>> ((extent % Group.extents) * 8)) & 0xff;
  }

  /** Whether blocks can be there at all: a map that names anything else is damaged. Not at 0. */
  holdsBlocks(pbnLo: number, pbnHi: number, count: number): boolean {
    const group = (pbnHi << (32 - Group.shift)) | (pbnLo >>> Group.shift);
    if (group < this.firstGroup || group >= this.highWater) return false;
    const page = pbnLo & EXTENT_MASK;
    return page >= Group.metaPages && page + count <= Group.extentPages;
  }

  addRef(pbn: number): void {
    this.deltas.push(pbn);
  }

  dropRef(pbn: number): void {
    this.deltas.push(-pbn);
  }

  /** Brings the counts up to date as far as their pages are here; true when all are. */
  settle(): boolean {
    const { deltas } = this;
    while (deltas.length > 0) {
      if (!this.apply(deltas.head)) return false;
      deltas.shift();
    }
    return true;
  }

  /** Whether a block may be given out: no count, not reserved, freed or discarded a moment ago. */
  isFree(count: number, pbn: number): boolean {
    if (this.countIn(count, pbn) !== 0) return false;
    if (this.discards.inFlight > 0 && this.discards.has(pbn)) return false;
    const index = countIndex(pbn);
    return !this.bits.any(count, index);
  }

  /** Whether a block is given out for a write that has not been entered yet. */
  isReserved(count: number, pbn: number): boolean {
    return this.bits.has(count, Side.reserved, countIndex(pbn));
  }

  reserve(count: number, pbn: number): void {
    this.bits.set(count, Side.reserved, countIndex(pbn));
    this.reserved++;
  }

  /** The write of a block that was given out failed: it is free, for nothing refers to it. */
  unreserve(pbn: number): void {
    const count = this.pages.frameOf(this.countPbn(groupOf(pbn)));
    if (this.bits.clear(count, Side.reserved, countIndex(pbn))) this.reserved--;
  }

  /** Blocks whose last reference was taken in the time of checkpoint `generation` are free now. */
  release(generation: number): void {
    const parity = generation & 1;
    const at = Side.pending + parity * 32;
    for (let i = 0; i < this.freed.count(parity); i++) {
      const pbn = this.freed.at(parity, i);
      const count = this.pages.frameOf(this.countPbn(groupOf(pbn)));
      if (this.bits.clear(count, at, countIndex(pbn))) {
        this.pending[parity] = this.pending[parity]! - 1;
      }
    }
    this.freed.clear(parity);
    this.reusable[parity] = 0;
  }

  /**
   * The group at the high-water mark is used from now on. False: no frame is free for its pages,
   * or it is being discarded.
   */
  openGroup(): boolean {
    const group = this.highWater;
    if (this.discards.has(group * Group.pages)) return false;
    const span = group >>> Span.shift;
    const at = this.spanAt(span);
    const isNew = group === Math.max(span * Span.groups, this.firstGroup);
    const summary = isNew
      ? this.make(this.summaryPbn(span), Magic.summary, span)
      : this.summary(group);
    if (summary === Miss.bad) this.broken ??= `the summary of span ${span} cannot be used`;
    if (summary < 0) return false;
    const { pins } = this.pages;
    pins[summary] = pins[summary]! + 1;
    const counts = this.make(this.countPbn(group), Magic.count, group);
    pins[summary] = pins[summary]! - 1;
    if (counts < 0) {
      if (isNew) this.pages.drop(summary);
      return false;
    }
    if (isNew) this.roots[at] = 0;
    const word = this.roots[at]!;
    this.roots[at] = (word + (4 << SpanShift.empty) + (Group.counts << SpanShift.free)) >>> 0;
    this.touched(summary, group);
    this.highWater++;
    return true;
  }

  /** An empty extent gets a new fingerprint page, or is one of nodes. A Miss: ask again. */
  beginExtent(extent: number, nodes: boolean): number {
    const { pages } = this;
    const group = Math.floor(extent / Group.extents);
    const k = extent % Group.extents;
    const summary = this.summary(group);
    if (summary < 0) return summary;
    const at = this.groupAt(summary, group) + 1;
    const bit = 1 << (GroupShift.nodes + k);
    const word = pages.words[at]!;
    if (!nodes) {
      const slot = (word >>> (GroupShift.fingerprint + k)) & 1;
      const pbn = extent * Group.extentPages;
      const known = pages.frameOf(pbn);
      if (known >= 0 && (pages.pins[known] !== 0 || pages.states[known] === Frame.loading)) {
        return Miss.wait;
      }
      if (known >= 0 && pages.staged[known] !== 0) return Miss.wait;
      if (known >= 0) pages.drop(known);
      pages.pins[summary] = pages.pins[summary]! + 1;
      const frame = pages.make(pbn, Magic.fingerprint, slot, this.generation);
      pages.pins[summary] = pages.pins[summary]! - 1;
      if (frame < 0) return frame;
      pages.words[(frame << Page.shift) + Head.own] = extent >>> 0;
    }
    const held = (word & bit) !== 0;
    if (nodes && !held) this.nodeExtents.add(extent);
    if (!nodes && held) this.nodeExtents.remove(extent);
    pages.words[at] = nodes ? word | bit : word & ~bit;
    this.touched(summary, group);
    return 0;
  }

  /** Whether an extent holds nodes, in the frame of its summary page. */
  holdsNodes(summary: number, extent: number): boolean {
    const word = this.pages.words[this.groupAt(summary, Math.floor(extent / Group.extents)) + 1]!;
    return ((word >>> (GroupShift.nodes + (extent % Group.extents))) & 1) === 1;
  }

  /** A fingerprint page was changed. */
  touchFingerprints(frame: number, extent: number): void {
    this.pages.touch(frame, this.generation);
    const group = Math.floor(extent / Group.extents);
    const summary = this.pages.frameOf(this.summaryPbn(group >>> Span.shift));
    this.touched(summary, group);
  }

  spanAt(span: number): number {
    const root = Math.floor(span / Span.perRoot);
    return (root << Page.shift) + Head.words + (span % Span.perRoot);
  }

  groupAt(summary: number, group: number): number {
    const place = (group & (Span.groups - 1)) * Span.groupWords;
    return (summary << Page.shift) + Head.words + place;
  }

  countPbn(group: number): number {
    return group * Group.pages + Group.sparePage;
  }

  summaryPbn(span: number): number {
    const group = Math.max(span * Span.groups, this.firstGroup);
    return group * Group.pages + 2 * Group.extentPages + Group.sparePage;
  }

  private apply(delta: number): boolean {
    const pbn = delta < 0 ? -delta : delta;
    const group = groupOf(pbn);
    const { pages } = this;
    if (!this.isKnown(group)) {
      const counts = this.count(group);
      if (counts < 0) {
        if (counts === Miss.bad) this.broken ??= `the counts of group ${group} cannot be used`;
        return false;
      }
      this.know(group, counts, this.summary(group));
    }
    const { knownCount: frame, knownSummary: summary } = this;
    const index = countIndex(pbn);
    const at = (frame << Page.shift) + Head.words + index;
    const count = pages.words[at]!;
    if (delta > 0) {
      pages.words[at] = count + 1;
      if (count === 0) this.nowUsed(summary, frame, pbn, index);
      this.tell(summary, pbn, count + 1);
    } else if (count === 0) {
      this.broken ??= `block ${pbn} has fewer references than entries that name it`;
      return false;
    } else {
      pages.words[at] = count - 1;
      if (count === 1) this.nowFreed(summary, frame, pbn, index);
    }
    pages.touch(frame, this.generation);
    this.touched(summary, group);
    return true;
  }

  /** Nodes are nobody's business but the trees'. */
  private tell(summary: number, pbn: number, references: number): void {
    const { watcher } = this;
    if (watcher === null) return;
    if (this.holdsNodes(summary, Math.floor(pbn / Group.extentPages))) return;
    watcher.referred(pbn, references);
  }

  /** References come in series of one group: its frames are remembered. */
  private isKnown(group: number): boolean {
    const { serials } = this.pages;
    return (
      group === this.knownGroup &&
      serials[this.knownCount] === this.countSerial &&
      serials[this.knownSummary] === this.summarySerial
    );
  }

  private know(group: number, count: number, summary: number): void {
    const { serials } = this.pages;
    this.knownGroup = group;
    this.knownCount = count;
    this.knownSummary = summary;
    this.countSerial = serials[count]!;
    this.summarySerial = serials[summary]!;
  }

  // hot:begin
  private nowUsed(summary: number, frame: number, pbn: number, index: number): void {
    this.used++;
    if (this.bits.clear(frame, Side.reserved, index)) this.reserved--;
    for (let parity = 0; parity < 2; parity++) {
      if (!this.bits.clear(frame, Side.pending + parity * 32, index)) continue;
      this.pending[parity] = this.pending[parity]! - 1;
    }
    this.change(summary, pbn, 1);
  }

  private nowFreed(summary: number, frame: number, pbn: number, index: number): void {
    this.used--;
    this.watcher?.freed(pbn);
    const parity = this.generation & 1;
    this.bits.set(frame, Side.pending + parity * 32, index);
    this.pending[parity] = this.pending[parity]! + 1;
    this.change(summary, pbn, -1);
    const extent = Math.floor(pbn / Group.extentPages);
    const isReusable = !this.holdsNodes(summary, extent) || this.usedIn(summary, extent) === 0;
    if (isReusable) this.reusable[parity] = this.reusable[parity]! + 1;
    this.freed.push(parity, pbn);
  }

  /** Changes the used blocks of a block's extent, in its summary page and above. */
  private change(summary: number, pbn: number, by: number): void {
    const { words } = this.pages;
    const group = groupOf(pbn);
    const at = this.groupAt(summary, group);
    const shift = (((pbn >>> 0) & GROUP_MASK) >>> Group.extentShift) * 8;
    const before = (words[at]! >>> shift) & 0xff;
    words[at] = (words[at]! + (by << shift)) >>> 0;
    const root = this.spanAt(group >>> Span.shift);
    let word = this.roots[root]! - by * (1 << SpanShift.free);
    if (this.holdsNodes(summary, Math.floor(pbn / Group.extentPages))) {
      this.nodesFree +=
        before === 0 ? Group.blocks - 1 : before + by === 0 ? 1 - Group.blocks : -by;
    }
    if (before === 0) {
      word -= 1 << SpanShift.empty;
      this.extentsUsed++;
    }
    if (before + by === 0) {
      word += 1 << SpanShift.empty;
      this.extentsUsed--;
    }
    this.roots[root] = word >>> 0;
  }
  // hot:end

  private touched(summary: number, group: number): void {
    this.pages.touch(summary, this.generation);
    this.rootDirty[Math.floor((group >>> Span.shift) / Span.perRoot)] = 1;
  }

  private make(pbn: number, magic: number, own: number): number {
    // (One of a pool that was here before goes: the high-water mark says that nobody needs it.)
    const frame = this.pages.make(pbn, magic, 0, this.generation);
    if (frame >= 0) this.pages.words[(frame << Page.shift) + Head.own] = own >>> 0;
    return frame;
  }

  /** What the root pages say is in use. */
  private countUsed(): void {
    const groups = this.highWater - this.firstGroup;
    this.used = groups * Group.counts;
    this.extentsUsed = groups * Group.extents;
    for (let span = this.firstGroup >>> Span.shift; span * Span.groups < this.highWater; span++) {
      const word = this.roots[this.spanAt(span)]!;
      this.used -= word >>> SpanShift.free;
      this.extentsUsed -= (word >>> SpanShift.empty) & SpanWord.emptyMask;
    }
  }
}
