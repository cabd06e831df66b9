// Checkpoint: makes the state of the pool durable as a whole (docs/format.md, "States").
//
// It begins at a moment when all counts are settled: every page that changed is copied to memory of
// its own, with its place, sequence and checksum, and the pool goes on. The copies are written, the
// device flushed, the superblock written, the device flushed. Then what the state before needed is
// free: journal, old places of nodes, blocks without references.
//
//   idle → (begin) → looking → writing → flushing → confirming → naming → ending → releasing
//
// Invariants
// 1. Frames whose copies are not durable yet stay in memory (`staged`).
// 2. Blocks that were freed are not given out before everybody who may still read them has
//    finished: who began in the checkpoint's time or before (`readers`).
// 3. Nothing is written, and nothing named, unless the pool was found to be this owner's just
//    before (`fence.ts`).

import { Op } from '../../hpdi/index.js';
import { native } from '../../native.js';
import type { Fence } from './fence.js';
import type { PoolIo } from './io.js';
import type { OwnMemory } from '../reach.js';
import type { Journal } from './journal.js';
import { GroupShift, Group, Head, Magic, Page, Place, SpanWord } from '../format/layout.js';
import type { PageCache } from './pages.js';
import { setPair } from '../format/numbers.js';
import type { Space } from '../space/space.js';

export const enum Phase {
  idle = 0,
  looking = 1,
  writing = 2,
  flushing = 3,
  confirming = 4,
  naming = 5,
  ending = 6,
  releasing = 7,
}

/** Pages of one write. */
const RUN_PAGES = 64;
const FRAME_END = 2 ** 16;
const TWO_32 = 4294967296;

/** Whose requests these are: what a look is answered with may be an error. */
const enum Owner {
  state = 0,
  look = 1,
}

export class Checkpoint {
  phase: Phase = Phase.idle;
  /** Number of the last one that is over: what it freed is free. */
  released = 0;
  /** Checkpoints that are durable, and the last one's sequence. */
  done = 0;
  seq = 0;
  pagesWritten = 0;
  /** Longest time that one took to begin, in ms: nothing else happens meanwhile. */
  beginMsMax = 0;
  /** Status of what failed; the pool takes no changes after that. */
  broken = 0;
  /** Reads and writes that began in even and in odd checkpoints' time and are not finished. */
  readonly readers = new Int32Array(2);
  /** Bits of which slot each root page is in; the superblock's. */
  readonly rootSlots: Uint32Array;
  private readonly io: PoolIo;
  private readonly kind: number;
  private readonly pages: PageCache;
  private readonly space: Space;
  private readonly journal: Journal;
  readonly fence: Fence;
  private readonly seed: number;
  private readonly segment: OwnMemory;
  /** The last page of the segment. */
  private readonly superblock: Uint32Array;
  /** Entry of crc32cList for it. */
  private readonly superHash: Uint32Array;
  private readonly order: Float64Array;
  private readonly copies: Uint32Array;
  private readonly hashes: Uint32Array;
  private readonly crcs: Uint32Array;
  private readonly writeSuper: (words: Uint32Array, checkpoint: number) => number;
  private number = 0;
  /** References that were asked for when its readers had finished; -1: they have not. */
  private mark = -1;
  private position = 0;
  private stagedSeq = 0;
  private waiting = 0;
  private count = 0;
  private superPbn = 0;

  /** `writeSuper` fills a superblock's page for a checkpoint and returns its pbn. */
  constructor(
    parts: {
      io: PoolIo;
      pages: PageCache;
      space: Space;
      journal: Journal;
      fence: Fence;
      seed: number;
    },
    kind: number,
    rootSlots: Uint32Array,
    writeSuper: (words: Uint32Array, checkpoint: number) => number,
  ) {
    this.io = parts.io;
    this.kind = kind;
    this.rootSlots = rootSlots;
    this.pages = parts.pages;
    this.space = parts.space;
    this.journal = parts.journal;
    this.fence = parts.fence;
    this.seed = parts.seed;
    this.writeSuper = writeSuper;
    const most = this.pages.frames + parts.space.rootDirty.length + 1;
    this.segment = parts.io.reach.alloc(most * Page.bytes);
    const last = (most - 1) << Page.shift;
    this.superblock = this.segment.u32.subarray(last, last + Page.words);
    const address = this.segment.address + (most - 1) * Page.bytes;
    this.superHash = Uint32Array.of(address >>> 0, address / TWO_32, Page.bytes, 0);
    this.order = new Float64Array(most);
    this.copies = new Uint32Array(most * 8);
    this.hashes = new Uint32Array(most * 4);
    this.crcs = new Uint32Array(most);
  }

  close(): void {
    this.segment.close();
  }

  /** Begins one. The journal's entry is committed, all counts are settled. */
  begin(): void {
    const started = performance.now();
    const { space, journal } = this;
    this.number = space.generation;
    this.mark = -1;
    this.position = journal.written;
    this.stagedSeq = journal.seq;
    this.turnSlots();
    this.stage();
    // What the superblock says is of this moment, too.
    this.superPbn = this.writeSuper(this.superblock, this.number);
    native.crc32cList(this.superHash, 1, this.crcs);
    this.superblock[Head.crc] = this.crcs[0]!;
    space.generation++;
    this.look(Phase.looking);
    this.beginMsMax = Math.max(this.beginMsMax, performance.now() - started);
  }

  /** The device has answered a request of a checkpoint. */
  answered(owner: number, status: number): void {
    if (status !== 0 && owner === Owner.state && this.broken === 0) this.broken = status;
    this.waiting--;
    if (this.waiting > 0 || this.broken !== 0) return;
    switch (this.phase) {
      case Phase.looking:
        this.fence.judge(this.number);
        if (!this.fence.fenced) this.writePages();
        break;
      case Phase.writing:
        this.flush(Phase.flushing);
        break;
      case Phase.flushing:
        this.look(Phase.confirming);
        break;
      case Phase.confirming:
        this.fence.judge(this.number);
        if (!this.fence.fenced) this.name();
        break;
      case Phase.naming:
        this.flush(Phase.ending);
        break;
      default:
        this.end();
    }
  }

  /** Whether it waits for who began in the time of this parity. */
  waitsFor(parity: number): boolean {
    return this.phase === Phase.releasing && parity === (this.number & 1);
  }

  /** Looks whether those who may still read what was freed have finished. */
  step(): void {
    if (this.phase !== Phase.releasing || this.readers[this.number & 1] !== 0) return;
    const { deltas } = this.space;
    // References that they have added anew may not be in the counts yet.
    if (this.mark < 0) this.mark = deltas.pushed;
    if (deltas.pushed - deltas.length < this.mark) return;
    this.space.release(this.number);
    this.pages.heldCount = 0;
    this.released = this.number;
    this.phase = Phase.idle;
  }

  /** Which slot each changed page goes to is written in its parent: from the leaves on. */
  private turnSlots(): void {
    const { pages, space } = this;
    const { dirty, magics, slots, words } = pages;
    for (let frame = 0; frame < pages.frames; frame++) {
      if (dirty[frame] === 0) continue;
      const magic = magics[frame]!;
      if (magic !== Magic.count && magic !== Magic.fingerprint) continue;
      const pbn = pages.pbns[frame]!;
      const group = Math.floor(pbn / Group.pages);
      const summary = pages.frameOf(space.summaryPbn(group >>> 8));
      const extent = ((pbn % Group.pages) | 0) >>> Group.extentShift;
      const bit = magic === Magic.count ? 1 : 1 << (GroupShift.fingerprint + extent);
      const at = space.groupAt(summary, group) + 1;
      words[at] = (words[at]! ^ bit) >>> 0;
      slots[frame] = slots[frame]! ^ 1;
    }
    for (let frame = 0; frame < pages.frames; frame++) {
      if (dirty[frame] === 0 || magics[frame] !== Magic.summary) continue;
      const at = space.spanAt(words[(frame << Page.shift) + Head.own]!);
      space.roots[at] = (space.roots[at]! ^ SpanWord.slot) >>> 0;
      slots[frame] = slots[frame]! ^ 1;
    }
  }

  /** Copies what changed to this checkpoint's own memory, in the order of the device. */
  private stage(): void {
    const { pages, space, order, copies } = this;
    let count = 0;
    for (let frame = 0; frame < pages.frames; frame++) {
      if (pages.dirty[frame] === 0) continue;
      order[count++] = pages.devicePbn(frame) * FRAME_END + frame;
      pages.dirty[frame] = 0;
      pages.staged[frame] = 1;
    }
    pages.dirtyCount = 0;
    pages.stagedCount = count;
    const sorted = order.subarray(0, count).sort();
    for (let i = 0; i < count; i++) {
      const frame = sorted[i]! % FRAME_END;
      const pbn = (sorted[i]! - frame) / FRAME_END;
      order[i] = pbn;
      this.head(pages.words, frame << Page.shift, pbn);
      this.copy(i, frame);
    }
    native.copyList(copies, count);
    const roots = this.segment.u32;
    for (let root = 0; root < space.rootDirty.length; root++) {
      if (space.rootDirty[root] === 0) continue;
      space.rootDirty[root] = 0;
      const from = root << Page.shift;
      // Word 7 and magic are set; which slot it goes to stands in the superblock.
      const slot = this.turnRoot(root);
      const pbn = Place.roots + 2 * root + slot;
      space.roots[from] = Magic.root;
      space.roots[from + Head.own] = root;
      this.head(space.roots, from, pbn);
      const to = count << Page.shift;
      for (let i = 0; i < Page.words; i++) roots[to + i] = space.roots[from + i]!;
      order[count++] = pbn;
    }
    this.count = count;
    this.checksum(count);
  }

  private turnRoot(root: number): number {
    const at = root >>> 5;
    this.rootSlots[at] = (this.rootSlots[at]! ^ (1 << (root & 31))) >>> 0;
    return (this.rootSlots[at]! >>> (root & 31)) & 1;
  }

  private head(words: Uint32Array, at: number, pbn: number): void {
    words[at + Head.crc] = this.seed;
    setPair(words, at + Head.pbnLo, pbn);
    setPair(words, at + Head.seqLo, this.stagedSeq);
    words[at + Head.checkpoint] = this.number;
    // Magic of frames: theirs.
    if (words === this.pages.words) words[at] = this.pages.magics[at >>> Page.shift]!;
  }

  private copy(i: number, frame: number): void {
    const { copies } = this;
    const from = this.pages.address + frame * Page.bytes;
    const to = this.segment.address + i * Page.bytes;
    const at = i * 8;
    copies[at] = to >>> 0;
    copies[at + 1] = to / TWO_32;
    copies[at + 2] = from >>> 0;
    copies[at + 3] = from / TWO_32;
    copies[at + 4] = Page.bytes;
  }

  private checksum(count: number): void {
    const { hashes, crcs, segment } = this;
    for (let i = 0; i < count; i++) {
      const address = segment.address + i * Page.bytes;
      hashes[i * 4] = address >>> 0;
      hashes[i * 4 + 1] = address / TWO_32;
      hashes[i * 4 + 2] = Page.bytes;
    }
    native.crc32cList(hashes, count, crcs);
    const words = segment.u32;
    for (let i = 0; i < count; i++) words[(i << Page.shift) + Head.crc] = crcs[i]!;
  }

  private look(phase: Phase): void {
    this.phase = phase;
    this.waiting = this.fence.ask(this.kind, Owner.look);
  }

  private writePages(): void {
    const { order, io, segment } = this;
    this.phase = Phase.writing;
    for (let first = 0; first < this.count;) {
      let next = first + 1;
      while (next < this.count && next - first < RUN_PAGES) {
        if (order[next] !== order[next - 1]! + 1) break;
        next++;
      }
      const address = segment.address + first * Page.bytes;
      const pbn = order[first]!;
      const pbnHi = (pbn / TWO_32) | 0;
      const hi = (address / TWO_32) | 0;
      io.askWords(Op.WRITE, pbn | 0, pbnHi, next - first, address | 0, hi, this.kind, Owner.state);
      this.waiting++;
      first = next;
    }
    this.pagesWritten += this.count;
    if (this.waiting === 0) this.flush(Phase.flushing);
  }

  private flush(phase: Phase): void {
    this.phase = phase;
    this.waiting = 1;
    this.io.askWords(Op.FLUSH, 0, 0, 0, 0, 0, this.kind, Owner.state);
  }

  private name(): void {
    this.phase = Phase.naming;
    this.waiting = 1;
    const lo = this.superHash[0]! | 0;
    const hi = this.superHash[1]! | 0;
    this.io.askWords(Op.WRITE, this.superPbn, 0, 1, lo, hi, this.kind, Owner.state);
  }

  private end(): void {
    this.pages.unstage();
    this.journal.reclaim(this.position);
    this.journal.durable = Math.max(this.journal.durable, this.stagedSeq);
    this.seq = this.stagedSeq;
    this.fence.wrote(this.superblock);
    this.done++;
    this.phase = Phase.releasing;
    this.step();
  }
}
