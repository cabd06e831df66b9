// What a check keeps of each block and node it has seen. Pieces of tables are made when something
// in them is named, so that memory is the pool's part in use. No Map has an entry for each block or
// extent: one ends at 2^24 of them, which is extents of 16 TiB.

import { Group } from '../format/layout.js';

/** Groups of a piece of `References`: 253 KiB. */
const PIECE_GROUPS = 256;
/** A byte that holds this says: the count stands where four bytes hold it. */
const MANY = 255;

/** References to blocks: a byte each, as almost all have few. */
export class References {
  private readonly pieces = new Map<number, Uint8Array>();
  /** All counts of groups that have, or had, one which no byte holds. */
  private readonly wide = new Map<number, Uint32Array>();

  /** How often block `index` (0 to `Group.counts` - 1) of a group is named. */
  at(group: number, index: number): number {
    const piece = this.pieces.get(Math.floor(group / PIECE_GROUPS));
    if (piece === undefined) return 0;
    const count = piece[(group % PIECE_GROUPS) * Group.counts + index]!;
    return count < MANY ? count : this.wide.get(group)![index]!;
  }

  /** `count`: not negative. */
  set(group: number, index: number, count: number): void {
    const number = Math.floor(group / PIECE_GROUPS);
    let piece = this.pieces.get(number);
    if (piece === undefined) {
      piece = new Uint8Array(PIECE_GROUPS * Group.counts);
      this.pieces.set(number, piece);
    }
    const at = (group % PIECE_GROUPS) * Group.counts + index;
    piece[at] = Math.min(count, MANY);
    if (count < MANY) return;
    let wide = this.wide.get(group);
    if (wide === undefined) this.wide.set(group, (wide = new Uint32Array(Group.counts)));
    wide[index] = count;
  }

  /** Those of a whole group. */
  copyTo(to: Uint32Array, group: number): void {
    const piece = this.pieces.get(Math.floor(group / PIECE_GROUPS));
    if (piece === undefined) {
      to.fill(0);
      return;
    }
    const from = (group % PIECE_GROUPS) * Group.counts;
    to.set(piece.subarray(from, from + Group.counts));
    for (let b = to.indexOf(MANY); b >= 0; b = to.indexOf(MANY, b + 1)) to[b] = this.at(group, b);
  }
}

/** Extents of a piece of `ExtentSet`: 8 KiB. */
const PIECE_EXTENTS = 2 ** 16;

export class ExtentSet {
  private readonly pieces = new Map<number, Uint8Array>();

  has(extent: number): boolean {
    const piece = this.pieces.get(Math.floor(extent / PIECE_EXTENTS));
    const at = extent % PIECE_EXTENTS;
    return piece !== undefined && ((piece[at >>> 3]! >>> (at & 7)) & 1) === 1;
  }

  add(extent: number): void {
    const number = Math.floor(extent / PIECE_EXTENTS);
    let piece = this.pieces.get(number);
    if (piece === undefined) this.pieces.set(number, (piece = new Uint8Array(PIECE_EXTENTS / 8)));
    const at = extent % PIECE_EXTENTS;
    piece[at >>> 3]! |= 1 << (at & 7);
  }
}

/** A number for each page that is a node: they lie together, an extent has nodes or none. */
export class NodeTable {
  /** By extent; what stands there is one more than the number, 0 where there is none. */
  private readonly extents = new Map<number, Float64Array>();

  get(pbn: number): number | undefined {
    const kept = this.extents.get(Math.floor(pbn / Group.extentPages))?.[pbn % Group.extentPages];
    return kept === undefined || kept === 0 ? undefined : kept - 1;
  }

  /** `value`: not negative. */
  set(pbn: number, value: number): void {
    const extent = Math.floor(pbn / Group.extentPages);
    let values = this.extents.get(extent);
    if (values === undefined) {
      values = new Float64Array(Group.extentPages);
      this.extents.set(extent, values);
    }
    values[pbn % Group.extentPages] = value + 1;
  }
}
