// Intake: copies of what is written, in the pool's own memory, for pools with data checksums: a
// client that changes its buffer under way cannot part a block from its fingerprint then, so that
// this is the checksum which reads are held against (read-checks.ts).
//
// Sets wait, in order, while no memory is free.

import { Status } from '../../hpdi/index.js';
import type { OwnMemory, Reach } from '../reach.js';
import { native } from '../../native.js';
import { Page, SetMax } from '../format/layout.js';
import { SETS, type Fifo, type SetTable } from './sets.js';

/** Pieces of memory: for sets of up to 8 blocks, and for any. */
const SMALL_BLOCKS = 8;
const SMALL = 512;
const LARGE = 32;
/** Words of an entry of copyList. */
const COPY_WORDS = 8;
const TWO_32 = 4294967296;

export class Intake {
  private readonly sets: SetTable;
  private readonly segment: OwnMemory;
  /** By set: its piece; -1: none. Small ones come first. */
  private readonly pieces = new Int32Array(SETS).fill(-1);
  private readonly freeSmall = Int32Array.from({ length: SMALL }, (_, i) => i);
  private freeSmallCount = SMALL;
  private readonly freeLarge = Int32Array.from({ length: LARGE }, (_, i) => SMALL + i);
  private freeLargeCount = LARGE;
  private readonly copies = new Uint32Array(SetMax.blocks * COPY_WORDS);

  constructor(sets: SetTable, reach: Reach) {
    this.sets = sets;
    const blocks = SMALL * SMALL_BLOCKS + LARGE * SetMax.blocks;
    this.segment = reach.alloc(blocks * Page.bytes);
  }

  close(): void {
    this.segment.close();
  }

  // hot:begin

  /** Copies the sets of a list, as far as there is memory, and hands them on. */
  take(from: Fifo, to: Fifo): void {
    while (from.length > 0) {
      const set = from.head;
      const piece = this.claim(this.sets.counts[set]!);
      if (piece < 0) return;
      from.shift();
      this.pieces[set] = piece;
      this.copy(set, this.addressOf(piece));
      to.push(set);
    }
  }

  /** A set is complete, or has failed. */
  give(set: number): void {
    const piece = this.pieces[set]!;
    if (piece < 0) return;
    this.pieces[set] = -1;
    if (piece < SMALL) this.freeSmall[this.freeSmallCount++] = piece;
    else this.freeLarge[this.freeLargeCount++] = piece;
  }

  private claim(blocks: number): number {
    if (blocks <= SMALL_BLOCKS && this.freeSmallCount > 0) {
      return this.freeSmall[--this.freeSmallCount]!;
    }
    return this.freeLargeCount > 0 ? this.freeLarge[--this.freeLargeCount]! : -1;
  }

  private addressOf(piece: number): number {
    const blocks =
      piece < SMALL ? piece * SMALL_BLOCKS : SMALL * SMALL_BLOCKS + (piece - SMALL) * SetMax.blocks;
    return this.segment.address + blocks * Page.bytes;
  }

  /** A buffer that is no memory any more fails its set. */
  private copy(set: number, address: number): void {
    const { sets, copies } = this;
    const count = sets.counts[set]!;
    const base = set * SetMax.blocks;
    for (let b = 0; b < count; b++) {
      const from = sets.addresses[base + b]!;
      const to = address + b * Page.bytes;
      const at = b * COPY_WORDS;
      copies[at] = to >>> 0;
      copies[at + 1] = to / TWO_32;
      copies[at + 2] = from >>> 0;
      copies[at + 3] = from / TWO_32;
      copies[at + 4] = Page.bytes;
      sets.addresses[base + b] = to;
    }
    if (native.copyList(copies, count) < count) sets.statuses[set] = Status.BAD_ADDRESS;
  }

  // hot:end
}
