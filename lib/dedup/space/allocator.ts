// Allocator: where new blocks, and new nodes, go.
//
// Each fills one extent at a time, from its start: a series of new blocks is contiguous,
// and an extent has either blocks or nodes. First come extents that were never used, up to the end
// of the device, then empty ones, then those with the most room.
//
// Invariants
// 1. The pages of an open extent (summary, counts, fingerprints) are pinned.
// 2. Nodes without which no checkpoint can be, and nothing be deleted, are put aside before anybody
//    else gets one: a full pool goes on, and opens.

import { Group, Span, SpanShift } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import type { Space } from './space.js';

export const enum Stream {
  blocks = 0,
  nodes = 1,
  /** Blocks that leave extents which are to be empty: to empty ones, a run to one of them. */
  moves = 2,
}

/** Empty extents kept for nodes: writes of data find no space before (a part, and at least). */
const NODES_PART = 256;
const EXTENTS_KEPT = 2;
/** Whom nodes are for. */
export const enum NodesFor {
  writes = 0,
  /** What gives more back than it takes: maps that are taken apart. */
  deleting = 1,
  catalogue = 2,
}

/** Nodes put aside for the catalogue, beside one for each of its pages; and for deleting. */
const CATALOGUE_NODES = 32;
const DELETING_NODES = 32;
/** Free places for nodes from which on they get no other extent while space is short. */
const NODES_SPARED = 128;
/** Extents that are looked at in one call. */
const LOOKS = 512;

class OpenExtent {
  /** pbn / 256; -1: none. */
  extent = -1;
  /** Page of the extent that is looked at next. */
  next = 0;
  summary = -1;
  count = -1;
  /** -1 for nodes. */
  fingerprints = -1;
}

/** A round over all extents: what is left to be looked at, and the best one so far. */
class Round {
  left = 0;
  cursor = 0;
  best = -1;
  bestUsed: number = Group.blocks;
  /** The best one is to be opened. */
  found = false;
}

export class Allocator {
  /** Of the last `take`: its first block. */
  pbn = 0;
  /** Nothing is left for what was asked; it may be once a checkpoint is done. */
  full = false;
  nodesFor = NodesFor.writes;
  /** Pages of the catalogue. */
  cataloguePages = 1;
  /** Nodes that are put aside. */
  private readonly aside: number[] = [];
  private readonly space: Space;
  private readonly open = [new OpenExtent(), new OpenExtent(), new OpenExtent()];
  /** Extents of the group below the high-water mark that were opened. */
  private opened: number = Group.extents;
  private readonly rounds = [new Round(), new Round(), new Round()];
  /** Empty extents are not for what is looked for. */
  private sparing = false;
  /** Extents of nodes were looked at, and none has room. */
  private nodesFilled = false;

  constructor(space: Space) {
    this.space = space;
  }

  /** Blocks that a write may take now. */
  get room(): number {
    const { space } = this;
    const kept = Math.min(this.extentsKept, space.extentsEmpty) * Group.blocks;
    // Those that are put aside are among the free ones of extents of nodes.
    return space.available + this.aside.length - space.nodesFree - kept;
  }

  /** Nodes need extents of their own: blocks leave some empty ones. */
  get extentsKept(): number {
    return Math.max(EXTENTS_KEPT, Math.floor(this.space.blocksTotal / Group.blocks / NODES_PART));
  }

  /** Frame of the fingerprint page of the extent that blocks go to; `take` has just succeeded. */
  get fingerprints(): number {
    return this.open[Stream.blocks]!.fingerprints;
  }

  /**
   * Reserves up to `wanted` blocks that follow each other, from `pbn` on; returns how many. 0: none
   * now; ask again when pages have come, unless `full`.
   */
  take(stream: Stream, wanted: number): number {
    if (stream !== Stream.nodes) return this.takeFrom(stream, wanted);
    if (this.nodesFor === NodesFor.writes && !this.putAside()) return 0;
    const got = this.takeFrom(stream, 1);
    if (got > 0 || !this.full) return got;
    const { aside } = this;
    const least = this.nodesFor === NodesFor.catalogue ? 0 : this.catalogueNodes;
    if (this.nodesFor === NodesFor.writes || aside.length <= least) return 0;
    this.pbn = aside.pop()!;
    this.full = false;
    return 1;
  }

  private get catalogueNodes(): number {
    return CATALOGUE_NODES + this.cataloguePages;
  }

  /** False: not all that is to be put aside is. */
  private putAside(): boolean {
    while (this.aside.length < this.catalogueNodes + DELETING_NODES) {
      if (this.takeFrom(Stream.nodes, 1) === 0) return false;
      this.aside.push(this.pbn);
    }
    return true;
  }

  private takeFrom(stream: Stream, wanted: number): number {
    const open = this.open[stream]!;
    const { space } = this;
    this.full = false;
    if (stream === Stream.moves && open.next + wanted > Group.extentPages) this.letGo(stream);
    for (let tries = 0; tries < LOOKS; tries++) {
      if (open.extent < 0 && !this.openExtent(stream, open)) return 0;
      const base = open.extent * Group.extentPages;
      let { next } = open;
      while (next < Group.extentPages && !space.isFree(open.count, base + next)) next++;
      let end = next;
      while (end < Group.extentPages && end - next < wanted) {
        if (!space.isFree(open.count, base + end)) break;
        end++;
      }
      open.next = end;
      for (let page = next; page < end; page++) space.reserve(open.count, base + page);
      this.pbn = base + next;
      if (open.next === Group.extentPages) this.close(open);
      if (end > next) return end - next;
    }
    return 0;
  }

  /** Whether an extent is open. */
  isOpen(extent: number): boolean {
    const { open } = this;
    return open[0]!.extent === extent || open[1]!.extent === extent || open[2]!.extent === extent;
  }

  /** What an extent still has is for others. */
  letGo(stream: Stream): void {
    const open = this.open[stream]!;
    if (open.extent >= 0) this.close(open);
  }

  private close(open: OpenExtent): void {
    this.pin(open, -1);
    open.extent = -1;
  }

  private openExtent(stream: Stream, open: OpenExtent): boolean {
    const nodes = stream === Stream.nodes;
    const { space } = this;
    this.sparing = nodes ? this.sparesNodes : space.extentsEmpty <= this.extentsKept;
    if (nodes && space.nodesBest >= 0) return this.goOn(open);
    const fresh: number = this.sparing ? Miss.bad : this.neverUsed();
    if (fresh === Miss.wait) return false;
    if (fresh >= 0) {
      if (!this.enter(open, fresh, nodes, true)) return false;
      this.opened++;
      return true;
    }
    return this.reuse(open, stream);
  }

  /** Where space is short, nodes go to holes between others, as long as there are many. */
  private get sparesNodes(): boolean {
    const { nodesFree, extentsEmpty } = this.space;
    if (this.nodesFilled || extentsEmpty > 2 * this.extentsKept) return false;
    return nodesFree - this.aside.length >= NODES_SPARED;
  }

  /** Nodes go on where there was most room for them when the pool was opened. */
  private goOn(open: OpenExtent): boolean {
    const { space } = this;
    const used = this.usable(space.nodesBest, true, Group.blocks);
    if (used === Miss.wait) return false;
    const isOpen = used > 0 && this.enter(open, space.nodesBest, true, false);
    space.nodesBest = -1;
    return isOpen;
  }

  /** An extent that was never used; Miss.wait: ask again; Miss.bad: there is none. */
  private neverUsed(): number {
    const { space } = this;
    if (this.opened === Group.extents) {
      if (space.highWater >= space.endGroup) return Miss.bad;
      if (!space.openGroup()) return Miss.wait;
      this.opened = 0;
    }
    const extent = (space.highWater - 1) * Group.extents + this.opened;
    const isDiscarded = space.discards.has(extent * Group.extentPages + Group.metaPages);
    return isDiscarded ? Miss.wait : extent;
  }

  /**
   * Goes round all extents once, in as many calls as that takes: the next that is empty, else the
   * one with the most room. What was found is kept until it is open, or of no use.
   */
  private reuse(open: OpenExtent, stream: Stream): boolean {
    const round = this.rounds[stream]!;
    const nodes = stream === Stream.nodes;
    const below = stream === Stream.moves ? 1 : Group.blocks;
    if (round.left <= 0 && !round.found && !this.beginRound(round, below)) return false;
    if (!round.found && !this.look(round, nodes)) return false;
    round.found = true;
    // It may be another's by now, or have been filled.
    const used = this.usable(round.best, nodes, below);
    if (used === Miss.wait) return false;
    if (used >= 0 && !this.enter(open, round.best, nodes, used === 0)) return false;
    round.found = false;
    round.left = 0;
    return used >= 0;
  }

  private beginRound(round: Round, below: number): boolean {
    const { space } = this;
    round.left = (space.highWater - space.firstGroup) * Group.extents;
    round.best = -1;
    round.bestUsed = below;
    return round.left > 0;
  }

  /** Goes on with a round; true when it has found an extent. */
  private look(round: Round, nodes: boolean): boolean {
    const { space } = this;
    const from = space.firstGroup * Group.extents;
    const end = space.highWater * Group.extents;
    for (let looks = 0; round.left > 0 && round.bestUsed > 0; looks++) {
      if (looks === LOOKS) return false;
      if (round.cursor >= end || round.cursor < from) round.cursor = from;
      const extent = round.cursor;
      const span = Math.floor(extent / (Group.extents * Span.groups));
      if (space.roots[space.spanAt(span)]! >>> SpanShift.free === 0) {
        round.cursor = (span + 1) * Group.extents * Span.groups;
        round.left -= round.cursor - extent;
        continue;
      }
      const used = this.usable(extent, nodes, round.bestUsed);
      if (used === Miss.wait) return false;
      round.left--;
      round.cursor++;
      if (used < 0) continue;
      round.best = extent;
      round.bestUsed = used;
    }
    if (round.best >= 0) return true;
    if (nodes && this.sparing) this.nodesFilled = true;
    else this.full = true;
    return false;
  }

  /** Blocks in use of an extent that has room for what is wanted; a Miss where it cannot be had. */
  private usable(extent: number, nodes: boolean, below: number): number {
    const { space } = this;
    const group = Math.floor(extent / Group.extents);
    const summary = space.summary(group);
    if (summary < 0) return summary;
    const used = space.usedIn(summary, extent);
    if (used >= below || this.isOpen(extent)) return Miss.bad;
    if (used === 0 && this.sparing) return Miss.bad;
    if (space.victims.get(extent) !== 0) return Miss.bad;
    if (used > 0 && space.holdsNodes(summary, extent) !== nodes) return Miss.bad;
    const count = space.count(group);
    if (count < 0) return count;
    return this.hasRoom(count, extent, used === 0) ? used : Miss.bad;
  }

  /** Whether a block of the extent is free; all of them, if it is to be empty. */
  private hasRoom(count: number, extent: number, empty: boolean): boolean {
    const base = extent * Group.extentPages;
    for (let page: number = Group.metaPages; page < Group.extentPages; page++) {
      if (this.space.isFree(count, base + page) !== empty) return !empty;
    }
    return empty;
  }

  private enter(open: OpenExtent, extent: number, nodes: boolean, empty: boolean): boolean {
    const { space } = this;
    const group = Math.floor(extent / Group.extents);
    if (empty && space.beginExtent(extent, nodes) < 0) return false;
    const count = space.count(group);
    const summary = space.summary(group);
    if (count < 0 || summary < 0) return false;
    const fingerprints = nodes ? -1 : space.fingerprints(extent);
    if (!nodes && fingerprints < 0) return false;
    if (nodes) this.nodesFilled = false;
    open.extent = extent;
    open.next = Group.metaPages;
    open.summary = summary;
    open.count = count;
    open.fingerprints = fingerprints;
    this.pin(open, 1);
    return true;
  }

  private pin(open: OpenExtent, by: number): void {
    const { pins } = this.space.pages;
    const { summary, count, fingerprints } = open;
    pins[summary] = pins[summary]! + by;
    pins[count] = pins[count]! + by;
    if (fingerprints >= 0) pins[fingerprints] = pins[fingerprints]! + by;
  }
}
