// The search for an extent with room, where none is left that was never used: an empty one, if
// there are any to be had; else one with much room.
//
// It goes on where the last one ended, in as many calls as it takes. Spans without an empty extent
// are passed over by their root word; nodes have a list of their extents. Of extents with room the
// best of those that were seen is taken once it has the mean of all and enough were seen: to go
// over all of a large pool for the very best would cost more than it gains.

import { Miss } from '../durable/pages.js';
import { Group, Span, SpanShift, SpanWord } from '../format/layout.js';
import type { Space } from './space.js';

/** Extents that are looked at in one call, and at least before one with the mean room is taken. */
const LOOKS = 512;
const SEEN = 64;
const SPAN_EXTENTS = Group.extents * Span.groups;

export const enum Found {
  /** Ask again: pages are on their way, or there is more to be looked at. */
  wait = 0,
  yes = 1,
  none = 2,
}

const enum Phase {
  idle,
  empties,
  rooms,
  done,
}

export class ExtentSearch {
  best = -1;
  private bestUsed = 0;
  private readonly space: Space;
  private readonly nodes: boolean;
  private readonly emptyOnly: boolean;
  private readonly isOpen: (extent: number) => boolean;
  private phase = Phase.idle;
  private left = 0;
  private seen = 0;
  /** Blocks free in an extent with blocks, on the average. */
  private mean = 1;
  private emptiesAt = 0;
  private roomsAt = 0;

  constructor(
    space: Space,
    kind: { nodes: boolean; emptyOnly: boolean },
    isOpen: (extent: number) => boolean,
  ) {
    this.space = space;
    this.nodes = kind.nodes;
    this.emptyOnly = kind.emptyOnly;
    this.isOpen = isOpen;
  }

  /** Goes on; `best` is what was found. `sparing`: empty ones are not for this. */
  look(sparing: boolean): Found {
    if (this.phase === Phase.done) {
      const used = this.usable(this.best, this.emptyOnly ? 1 : Group.blocks, sparing);
      if (used === Miss.wait) return Found.wait;
      if (used >= 0) return Found.yes;
    }
    if (this.phase === Phase.done || this.phase === Phase.idle) this.begin(sparing);
    if (sparing && this.phase === Phase.empties) this.toRooms();
    const found = this.goOn(sparing);
    if (found === Found.yes) this.phase = Phase.done;
    if (found === Found.none) this.phase = Phase.idle;
    return found;
  }

  /** What was found is open, or of no use. */
  end(): void {
    this.phase = Phase.idle;
  }

  private begin(sparing: boolean): void {
    if (sparing || this.space.extentsEmpty === 0) {
      this.toRooms();
      return;
    }
    this.phase = Phase.empties;
    this.left = this.extents;
  }

  private toRooms(): void {
    const { space, nodes } = this;
    const { extentsUsed, nodesFree, nodeExtents } = space;
    this.phase = Phase.rooms;
    this.left = this.emptyOnly ? 0 : nodes ? nodeExtents.count : this.extents;
    this.seen = 0;
    this.best = -1;
    this.bestUsed = Group.blocks;
    const free = space.available - nodesFree - space.extentsEmpty * Group.blocks;
    const mean = nodes ? nodesFree / nodeExtents.count : free / extentsUsed;
    this.mean = Math.max(1, Math.floor(mean));
  }

  /** All of the groups that are in use. */
  private get extents(): number {
    return (this.space.highWater - this.space.firstGroup) * Group.extents;
  }

  private goOn(sparing: boolean): Found {
    for (let looks = 0; looks < LOOKS; looks++) {
      if (this.left <= 0) {
        if (this.phase === Phase.rooms) return this.best >= 0 ? Found.yes : Found.none;
        this.toRooms();
        continue;
      }
      const isEmpty = this.phase === Phase.empties;
      const extent = isEmpty ? this.nextEmpty() : this.nextRoom();
      if (extent < 0) continue;
      const used = this.usable(extent, isEmpty ? 1 : this.bestUsed, sparing);
      if (used === Miss.wait) return Found.wait;
      this.passed(isEmpty);
      if (used < 0) continue;
      this.best = extent;
      this.bestUsed = used;
      if (used === 0) return Found.yes;
      if (this.seen >= SEEN && Group.blocks - used >= this.mean) return Found.yes;
    }
    return Found.wait;
  }

  /** The next extent of a span that has an empty one; -1: a span was passed over. */
  private nextEmpty(): number {
    const { space } = this;
    this.emptiesAt = this.inGroups(this.emptiesAt);
    const extent = this.emptiesAt;
    const span = Math.floor(extent / SPAN_EXTENTS);
    const word = space.roots[space.spanAt(span)]!;
    if (((word >>> SpanShift.empty) & SpanWord.emptyMask) > 0) return extent;
    this.emptiesAt = (span + 1) * SPAN_EXTENTS;
    this.left -= this.emptiesAt - extent;
    return -1;
  }

  /** The next extent of a span with room, or of nodes; -1: a span was passed over. */
  private nextRoom(): number {
    const { space } = this;
    if (this.nodes) {
      if (space.nodeExtents.count === 0) {
        this.left = 0;
        return -1;
      }
      if (this.roomsAt >= space.nodeExtents.count) this.roomsAt = 0;
      return space.nodeExtents.at(this.roomsAt);
    }
    this.roomsAt = this.inGroups(this.roomsAt);
    const extent = this.roomsAt;
    const span = Math.floor(extent / SPAN_EXTENTS);
    if (space.roots[space.spanAt(span)]! >>> SpanShift.free > 0) return extent;
    this.roomsAt = (span + 1) * SPAN_EXTENTS;
    this.left -= this.roomsAt - extent;
    return -1;
  }

  private passed(isEmpty: boolean): void {
    this.left--;
    if (isEmpty) {
      this.emptiesAt++;
      return;
    }
    this.roomsAt++;
    this.seen++;
    // What was the best of few is good enough once many were seen.
    if (this.seen === SEEN && this.best >= 0 && Group.blocks - this.bestUsed >= this.mean) {
      this.left = 0;
    }
  }

  private inGroups(extent: number): number {
    const from = this.space.firstGroup * Group.extents;
    return extent < from || extent >= from + this.extents ? from : extent;
  }

  /** Blocks in use of an extent that has room for what is wanted; a Miss where it cannot be had. */
  usable(extent: number, below: number, sparing: boolean): number {
    const { space, nodes } = this;
    const group = Math.floor(extent / Group.extents);
    const summary = space.summary(group);
    if (summary < 0) return summary;
    const used = space.usedIn(summary, extent);
    if (used >= below || this.isOpen(extent)) return Miss.bad;
    if (used === 0 && sparing) return Miss.bad;
    if (space.victims.get(extent) !== 0 || space.unusable.has(extent)) return Miss.bad;
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
}
