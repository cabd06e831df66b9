// CleanWalk: lets the maps of all volumes and snapshots name the copies of blocks that have moved.
//
// What several maps share is shared afterwards. A shared node with such blocks below it is held by
// a map of the pass's own, twice; the second one is changed as any map is, which copies the nodes
// on the way, and whoever names the node names that copy from then on (`table`).
//
// Invariants
// 1. A node in the table and its copy are held until the table is empty: neither place becomes
//    another page's, and neither is changed.
// 2. A copy is sealed before a second map names it: who changes it gets one of its own.
// 3. That a node names no moved block is only remembered to save time (`clean`): wrong, it costs
//    an extent that does not come free.

import type { VolumeRecord } from '../maps/catalogue.js';
import type { CleanCopier } from './clean-copier.js';
import type { EngineParts } from '../engine-parts.js';
import { Group, Magic, Node, VolumeState } from '../format/layout.js';
import { groupOf } from '../format/numbers.js';
import { Miss } from '../durable/pages.js';
import { PbnTable } from '../space/pbn-table.js';
import { nodeAt, placeOf, putNode, seal } from '../maps/tree-nodes.js';

const TABLE = 2 ** 17;
const CLEAN = 2 ** 17;
/** Levels of nodes that can be held: those below a holder's root. */
const LEVELS = 3;
const LEAVES_MOST = 2 ** 27;

/** A part of a map that is walked: all of a volume's, or a node that is held. */
class Part {
  volume!: VolumeRecord;
  /** The node that it is the copy of, and its level; 0: all of a volume. */
  node = 0;
  level = 0;
  first = 0;
  end = 0;
  /** The leaf that comes next. */
  at = 0;
  /** By level: the node whose first leaf was looked at, and that had nothing since. */
  readonly starts = new Float64Array(LEVELS + 2);
}

export class CleanWalk {
  /** Nodes that were held, leaves that were changed, pages that could not be read. */
  held = 0;
  leaves = 0;
  unread = 0;
  /** What holds the nodes of the table. */
  holder: VolumeRecord;
  private readonly parts: EngineParts;
  private readonly copier: CleanCopier;
  private readonly table = new PbnTable(TABLE);
  private readonly clean = new PbnTable(CLEAN);
  private readonly walked = new Set<number>();
  private readonly stack = Array.from({ length: LEVELS + 1 }, () => new Part());
  private depth = 0;
  /** Leaf of the holder from which on it holds nothing. */
  private next = 0;
  private readonly path = new Float64Array(LEVELS + 2);

  constructor(parts: EngineParts, copier: CleanCopier) {
    this.parts = parts;
    this.copier = copier;
    this.holder = parts.catalogue.addHolder(Date.now());
  }

  /** Goes on, at most a leaf: 1, 0 when nothing is left, or a Miss. */
  step(): number {
    if (this.depth === 0) return this.begin();
    const part = this.stack[this.depth - 1]!;
    const { volume } = part;
    if (part.node === 0) {
      const { state } = volume;
      // One that is deleted meanwhile is taken apart.
      const isThere = state === VolumeState.volume || state === VolumeState.snapshot;
      part.end = isThere ? Node.entries ** volume.level : 0;
    }
    if (part.at >= part.end) return this.end(part);
    // Whether something is shared depends on references that are still to be entered.
    if (!this.parts.space.settle()) return Miss.wait;
    return this.look(part);
  }

  /** The next volume; 0 when there is none. */
  private begin(): number {
    const { catalogue } = this.parts;
    let left = 0;
    for (const volume of catalogue.list) {
      if (this.walked.has(volume.serial)) continue;
      left = Miss.wait;
      if (catalogue.copying.has(volume)) continue; // it has no map yet
      this.walked.add(volume.serial);
      this.push(volume, 0, 0, 0, Node.entries ** volume.level);
      return 1;
    }
    return left;
  }

  private push(volume: VolumeRecord, node: number, level: number, at: number, end: number): void {
    const part = this.stack[this.depth++]!;
    Object.assign(part, { volume, node, level, first: at, at, end });
    part.starts.fill(0);
  }

  private end(part: Part): number {
    const { trees } = this.parts;
    if (part.node !== 0) {
      const copy = nodeAt(trees, part.volume, part.first, part.level);
      if (copy < 0) return copy;
      seal(trees, copy, part.level);
      this.table.set(part.node, copy);
    }
    this.depth--;
    return 1;
  }

  /** Goes down to a leaf, and does what is to be done there. */
  private look(part: Part): number {
    const { trees, space } = this.parts;
    const { volume, at } = part;
    let pbn = volume.root;
    let shared = -1;
    let above = 0;
    for (let { level } = volume; ; level--) {
      const span = Node.entries ** level;
      const first = Math.floor(at / span) * span;
      this.path[level] = pbn;
      if (pbn === 0 || this.clean.get(pbn) !== 0) return this.pass(part, first + span, shared);
      if (at === first) part.starts[level] = pbn;
      const isBelow = part.node === 0 || level < part.level;
      const copy = isBelow ? this.table.get(pbn) : 0;
      if (copy !== 0) {
        if (shared >= 0) return this.hold(part, this.path[shared]!, shared);
        return this.replace(part, level, copy, first + span);
      }
      const counts = space.count(groupOf(pbn));
      if (counts < 0) return this.miss(part, counts, first + span);
      const count = space.countIn(counts, pbn);
      // What a node that was copied for the pass names has the node's reference, too.
      const own = part.node !== 0 && above === 1 ? 2 : 1;
      if (isBelow && shared < 0 && count > own && level < LEVELS && !this.table.isFull) {
        shared = level;
      }
      above = count;
      const frame = trees.node(pbn, level);
      if (frame < 0) return this.miss(part, frame, first + span);
      if (level === 0) {
        if (!this.namesMoved(frame)) return this.pass(part, at + 1, shared);
        if (shared >= 0) return this.hold(part, this.path[shared]!, shared);
        return this.change(part);
      }
      pbn = trees.entry(frame, placeOf(at, level));
    }
  }

  private miss(part: Part, miss: number, next: number): number {
    if (miss === Miss.wait) return miss;
    this.unread++;
    part.starts.fill(0);
    part.at = next;
    return 1;
  }

  /** Nothing is to be done up to `next`. Of nodes that are met again that is remembered. */
  private pass(part: Part, next: number, shared: number): number {
    const { path } = this;
    for (let level = 0; level <= shared; level++) {
      const pbn = part.starts[level]!;
      if (next % Node.entries ** level === 0 && pbn !== 0 && pbn === path[level]) {
        this.clean.set(pbn, 1);
      }
    }
    part.at = next;
    return 1;
  }

  /** Holds a node that maps share, and walks its copy. */
  private hold(part: Part, node: number, level: number): number {
    const { trees } = this.parts;
    const span = Node.entries ** level;
    if (this.depth === 1 && (this.table.count > TABLE / 2 || this.next > LEAVES_MOST / 2)) {
      this.renew();
    }
    const { holder } = this;
    const first = Math.ceil(this.next / span) * span;
    holder.changed = true;
    for (let i = 0; i < 2; i++) {
      const result = putNode(trees, holder, first + i * span, level, node);
      if (result < 0) return result;
    }
    this.next = first + 2 * span;
    this.held++;
    part.starts.fill(0);
    this.push(holder, node, level, first + span, first + 2 * span);
    return 1;
  }

  /** The table is given up, with what it held. */
  private renew(): void {
    const { catalogue } = this.parts;
    catalogue.deleting.push(this.holder);
    this.holder = catalogue.addHolder(Date.now());
    this.table.clear();
    this.next = 0;
  }

  private replace(part: Part, level: number, copy: number, next: number): number {
    const { trees } = this.parts;
    part.volume.changed = true;
    const result = putNode(trees, part.volume, part.at, level, copy);
    if (result < 0) return result;
    trees.forget(part.volume);
    part.starts.fill(0);
    part.at = next;
    return 1;
  }

  /** Changes a leaf. */
  private change(part: Part): number {
    const { trees, space } = this.parts;
    const { volume, at } = part;
    volume.changed = true;
    const isHeld = part.node !== 0;
    const frame = isHeld ? trees.ownLeaf(volume, at, Magic.node) : trees.ownMapLeaf(volume, at);
    if (frame < 0) return frame;
    for (let e = 0; e < Node.entries; e++) {
      const pbn = trees.entry(frame, e);
      const to = pbn === 0 ? 0 : this.movedTo(pbn);
      if (to === 0) continue;
      space.addRef(to);
      space.dropRef(pbn);
      trees.setEntry(frame, e, to);
    }
    this.leaves++;
    part.starts.fill(0);
    part.at = at + 1;
    return 1;
  }

  private namesMoved(frame: number): boolean {
    const { trees } = this.parts;
    for (let e = 0; e < Node.entries; e++) {
      const pbn = trees.entry(frame, e);
      if (pbn !== 0 && this.movedTo(pbn) !== 0) return true;
    }
    return false;
  }

  private movedTo(pbn: number): number {
    const victim = this.parts.space.victims.get(Math.floor(pbn / Group.extentPages));
    return victim === 0 ? 0 : this.copier.moved(victim - 1, pbn);
  }
}
