// FrameBits: what is known of a group's blocks beside their counts, in memory only: a bit each for
// "given out for a write", and for "freed in the time of an even, of an odd checkpoint".
//
// Invariant: a frame with any bit set is pinned once for it: its page stays.

import type { PageCache } from './pages.js';

/** Where the bits of a kind begin, in words of a frame's. */
export const enum Side {
  reserved = 0,
  /** Of even checkpoints; those of odd ones follow. */
  pending = 32,
  words = 96,
}

export class FrameBits {
  private readonly pages: PageCache;
  private readonly words: Uint32Array;
  /** By frame: bits that are set, and those of them that say "given out". */
  private readonly counts: Uint16Array;
  private readonly reserved: Uint16Array;

  constructor(pages: PageCache) {
    this.pages = pages;
    this.words = new Uint32Array(pages.frames * Side.words);
    this.counts = new Uint16Array(pages.frames);
    this.reserved = new Uint16Array(pages.frames);
  }

  // hot:begin

  has(frame: number, side: number, index: number): boolean {
    const word = this.words[frame * Side.words + side + (index >>> 5)]!;
    return ((word >>> (index & 31)) & 1) === 1;
  }

  /** Whether a block has any bit. */
  any(frame: number, index: number): boolean {
    const { words } = this;
    const at = frame * Side.words + (index >>> 5);
    const bits = words[at]! | words[at + Side.pending]! | words[at + Side.pending + 32]!;
    return ((bits >>> (index & 31)) & 1) === 1;
  }

  /** Sets a bit that is not set. */
  set(frame: number, side: number, index: number): void {
    const at = frame * Side.words + side + (index >>> 5);
    const { counts } = this;
    const { pins } = this.pages;
    this.words[at] = this.words[at]! | (1 << (index & 31));
    if (counts[frame] === 0) pins[frame] = pins[frame]! + 1;
    counts[frame] = counts[frame]! + 1;
    if (side === Side.reserved) this.addReserved(frame, 1);
  }

  /** False: it was not set. */
  clear(frame: number, side: number, index: number): boolean {
    if (frame < 0 || !this.has(frame, side, index)) return false;
    const at = frame * Side.words + side + (index >>> 5);
    const { counts } = this;
    const { pins } = this.pages;
    this.words[at] = this.words[at]! & ~(1 << (index & 31));
    counts[frame] = counts[frame]! - 1;
    if (counts[frame] === 0) pins[frame] = pins[frame]! - 1;
    if (side === Side.reserved) this.addReserved(frame, -1);
    return true;
  }

  private addReserved(frame: number, by: number): void {
    const { reserved, pages } = this;
    const was = reserved[frame]!;
    reserved[frame] = was + by;
    if (was === 0) pages.reservedCount++;
    else if (was + by === 0) pages.reservedCount--;
  }

  // hot:end
}
