// Allocator: where new blocks, and new nodes, go.
//
// Each fills one extent at a time, from its start: a series of new blocks is contiguous,
// and an extent has either blocks or nodes. First come extents that were never used, up to the end
// of the device, then empty ones, then those with much room (`extent-search.ts`).
//
// Invariants
// 1. The pages of an open extent (summary, counts, fingerprints) are pinned.
// 2. Nodes without which no checkpoint can be, and nothing be deleted, are put aside before anybody
//    else gets one: a full pool goes on, and opens.

import { Miss } from '../durable/pages.js';
import { Group } from '../format/layout.js';
import { ExtentSearch, Found } from './extent-search.js';
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
/** Extents that are opened in one call. */
const OPENED_MOST = 512;

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
  private readonly searches: ExtentSearch[];
  /** Empty extents are not for what is looked for. */
  private sparing = false;
  /** Extents of nodes were looked at, and none has room. */
  private nodesFilled = false;
  /** Nodes have an extent, or had one. */
  private nodesBegun = false;

  constructor(space: Space) {
    this.space = space;
    const isOpen = (extent: number): boolean => this.isOpen(extent);
    this.searches = [Stream.blocks, Stream.nodes, Stream.moves].map((stream) => {
      const kind = { nodes: stream === Stream.nodes, emptyOnly: stream === Stream.moves };
      return new ExtentSearch(space, kind, isOpen);
    });
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
    for (let tries = 0; tries < OPENED_MOST; tries++) {
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
    const fresh: number = this.sparing ? Miss.bad : this.neverUsed();
    if (fresh === Miss.wait) return false;
    if (fresh >= 0) {
      const isOpen = this.enter(open, fresh, nodes, true);
      if (isOpen || space.unusable.has(fresh)) this.opened++;
      return isOpen;
    }
    return this.reuse(open, stream);
  }

  /** Nodes go to holes between others when the pool was opened, and where space is short. */
  private get sparesNodes(): boolean {
    const { nodesFree, extentsEmpty } = this.space;
    if (this.nodesFilled || nodesFree - this.aside.length < NODES_SPARED) return false;
    return !this.nodesBegun || extentsEmpty <= 2 * this.extentsKept;
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

  /** An extent that others have left, or have room in. What was found is kept until it is open. */
  private reuse(open: OpenExtent, stream: Stream): boolean {
    const nodes = stream === Stream.nodes;
    const search = this.searches[stream]!;
    const found = search.look(this.sparing);
    if (found === Found.none && nodes && this.sparing) this.nodesFilled = true;
    else if (found === Found.none) this.full = true;
    if (found !== Found.yes) return false;
    // It may be another's by now, or have been filled.
    const below = stream === Stream.moves ? 1 : Group.blocks;
    const used = search.usable(search.best, below, this.sparing);
    if (used === Miss.wait) return false;
    if (used >= 0 && !this.enter(open, search.best, nodes, used === 0)) return false;
    search.end();
    return used >= 0;
  }

  private enter(open: OpenExtent, extent: number, nodes: boolean, empty: boolean): boolean {
    const { space } = this;
    const group = Math.floor(extent / Group.extents);
    const begun = empty ? space.beginExtent(extent, nodes) : 0;
    if (begun === Miss.bad) space.unusable.add(extent);
    if (begun < 0) return false;
    const count = space.count(group);
    const summary = space.summary(group);
    const fingerprints = nodes || count < 0 || summary < 0 ? -1 : space.fingerprints(extent);
    const worst = Math.min(count, summary, nodes ? 0 : fingerprints);
    if (worst === Miss.bad) space.unusable.add(extent);
    if (count < 0 || summary < 0) return false;
    if (!nodes && fingerprints < 0) return false;
    if (nodes) {
      this.nodesBegun = true;
      this.nodesFilled = false;
    }
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
