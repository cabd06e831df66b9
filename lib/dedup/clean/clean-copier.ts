// CleanCopier: copies the blocks of victims to empty extents, in the order of their places, so that
// what was a run is one.
//
// Invariants
// 1. A run lies in one extent afterwards, as before: what does not fit begins another one.
// 2. A copy is known (`moved`), and found by its fingerprint, once it is with the device, and if
//    its block had references all the time: one without may have been discarded under the read.
// 3. The pass holds a reference on each copy, in a map of its own: its place stays the copy's.

import { Op, Status } from '../../hpdi/index.js';
import type { OwnMemory } from '../reach.js';
import { Stream } from '../space/allocator.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import { Phase } from '../durable/checkpoint.js';
import type { EngineParts } from '../engine-parts.js';
import { Io } from '../durable/io.js';
import { Fingerprint, Group, Head, Magic, Node, Page } from '../format/layout.js';
import { groupOf, setPair } from '../format/numbers.js';
import { Miss } from '../durable/pages.js';

const enum Stage {
  read = 0,
  write = 1,
  enter = 2,
}

export class CleanCopier {
  inFlight = 0;
  /** Blocks that were copied. */
  copied = 0;
  /** There was no room for the rest. */
  isShort = false;
  /** Where blocks of victims are now, 0: where they were; by victim and block of its extent. */
  private readonly moves: Float64Array;
  private readonly victims: Float64Array;
  private readonly holder: VolumeRecord;
  private readonly parts: EngineParts;
  private readonly segment: OwnMemory;
  private victim = 0;
  private stage = Stage.read;
  private status = 0;
  /** Checkpoints that are to be done before no room counts; 0: there was some. */
  private fullTill = 0;
  /** Page of the victim that the stage is at. */
  private page = 0;
  /** By page of the victim: whether it is copied, and to where. */
  private readonly wanted = new Uint8Array(Group.extentPages);
  private readonly targets = new Float64Array(Group.extentPages);
  private readonly print = new Uint32Array(Fingerprint.words);
  private readonly block = new Uint32Array(2);

  constructor(parts: EngineParts, victims: Float64Array, holder: VolumeRecord) {
    this.parts = parts;
    this.victims = victims;
    this.holder = holder;
    this.moves = new Float64Array(victims.length * Group.blocks);
    this.segment = parts.io.reach.alloc(Group.extentPages * Page.bytes);
  }

  /** Where a block of a victim is now; 0: where it was. */
  moved(victim: number, pbn: number): number {
    return this.moves[victim * Group.blocks + (pbn % Group.extentPages) - Group.metaPages]!;
  }

  /** Goes on: 1, 0 when all is copied or there is no room for more, or Miss.wait. */
  step(): number {
    if (this.inFlight > 0) return Miss.wait;
    if (this.victim === this.victims.length) return 0;
    if (this.stage === Stage.read) return this.read();
    if (this.status !== 0) return this.next(); // what it could not read or write stays
    if (this.stage === Stage.write) return this.write();
    return this.enter();
  }

  answered(status: number): void {
    this.inFlight--;
    if (status !== Status.OK) this.status = status;
  }

  /** Nothing is at the device: what was not entered is free. */
  close(): void {
    this.undo();
    this.segment.close();
  }

  private undo(): void {
    for (let page = 0; page < Group.extentPages; page++) {
      if (this.targets[page] !== 0) this.parts.space.unreserve(this.targets[page]!);
      this.targets[page] = 0;
    }
  }

  private next(): number {
    this.undo();
    this.status = 0;
    this.stage = Stage.read;
    this.victim++;
    return 1;
  }

  private get first(): number {
    return this.victims[this.victim]! * Group.extentPages;
  }

  private read(): number {
    const { space, io } = this.parts;
    const { first, wanted } = this;
    if (!space.settle()) return Miss.wait;
    const summary = space.summary(groupOf(first));
    const counts = summary < 0 ? summary : space.count(groupOf(first));
    if (counts === Miss.wait) return counts;
    if (counts < 0 || space.holdsNodes(summary, this.victims[this.victim]!)) return this.next();
    let from = 0;
    let to = 0;
    for (let page: number = Group.metaPages; page < Group.extentPages; page++) {
      wanted[page] = space.countIn(counts, first + page) === 0 ? 0 : 1;
      if (wanted[page] === 0) continue;
      if (from === 0) from = page;
      to = page + 1;
    }
    if (from === 0) return this.next();
    this.stage = Stage.write;
    this.page = from;
    this.inFlight++;
    io.ask(Op.READ, first + from, to - from, this.addressOf(from), Io.clean, 0);
    return 1;
  }

  /** The next run gets a place, and is written. */
  private write(): number {
    const { allocator, io } = this.parts;
    const { wanted } = this;
    while (this.page < Group.extentPages && wanted[this.page] === 0) this.page++;
    if (this.page === Group.extentPages) {
      this.stage = Stage.enter;
      this.page = Group.metaPages;
      return 1;
    }
    const { page } = this;
    let length = 1;
    while (page + length < Group.extentPages && wanted[page + length] === 1) length++;
    const got = allocator.take(Stream.moves, length);
    if (got === 0 && (!allocator.full || this.mayFree())) return Miss.wait;
    if (got === 0) {
      // The rest stays where it is.
      this.undo();
      this.victim = this.victims.length;
      this.isShort = true;
      return 0;
    }
    this.fullTill = 0;
    for (let b = 0; b < got; b++) this.targets[page + b] = allocator.pbn + b;
    this.inFlight++;
    io.ask(Op.WRITE, allocator.pbn, got, this.addressOf(page), Io.clean, 0);
    this.page += got;
    return 1;
  }

  /** Whether a checkpoint may make room that is not there now: one that begins from here on. */
  private mayFree(): boolean {
    const { checkpoint, space } = this.parts;
    const isIdle = checkpoint.phase === Phase.idle;
    if (this.fullTill === 0) this.fullTill = checkpoint.done + (isIdle ? 1 : 2);
    if (isIdle && space.pending[0]! + space.pending[1]! === 0) return false;
    return !isIdle || checkpoint.done < this.fullTill;
  }

  private enter(): number {
    for (; this.page < Group.extentPages; this.page++) {
      if (this.targets[this.page] === 0) continue;
      const result = this.enterBlock(this.first + this.page, this.targets[this.page]!);
      if (result === Miss.wait) return result;
      if (result === Miss.bad) return this.next();
      this.targets[this.page] = 0;
    }
    return this.next();
  }

  private enterBlock(from: number, to: number): number {
    const { space, trees, index } = this.parts;
    const { holder, print, block } = this;
    if (!space.settle()) return Miss.wait;
    const place = this.victim * Group.extentPages + (from % Group.extentPages);
    holder.changed = true;
    const leaf = trees.ownLeaf(holder, Math.floor(place / Node.entries), Magic.node);
    if (leaf < 0) return leaf;
    const counts = space.count(groupOf(from));
    if (counts < 0) return counts;
    if (space.countIn(counts, from) === 0) {
      space.unreserve(to);
      return 0;
    }
    const old = space.fingerprints(Math.floor(from / Group.extentPages));
    if (old < 0) return old;
    const extent = Math.floor(to / Group.extentPages);
    const prints = space.fingerprints(extent);
    if (prints < 0) return prints;
    space.addRef(to);
    trees.setEntry(leaf, place % Node.entries, to);
    const { words } = space.pages;
    const at = printAt(old, from);
    for (let i = 0; i < Fingerprint.words; i++) {
      print[i] = words[at + i]!;
      words[printAt(prints, to) + i] = print[i]!;
    }
    space.touchFingerprints(prints, extent);
    setPair(block, 0, to);
    index.insert(print, block, 1);
    const b = (from % Group.extentPages) - Group.metaPages;
    this.moves[this.victim * Group.blocks + b] = to;
    this.copied++;
    return 0;
  }

  private addressOf(page: number): number {
    return this.segment.address + page * Page.bytes;
  }
}

/** Where a block's fingerprint is in the frame of its page. */
function printAt(frame: number, pbn: number): number {
  const b = (pbn % Group.extentPages) - Group.metaPages;
  return (frame << Page.shift) + Head.words + b * Fingerprint.words;
}
