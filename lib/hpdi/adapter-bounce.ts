// Bounce buffers of an adapter, and the copies and comparisons between them and a request's data.
//
// Invariant: a buffer that was taken belongs to one child until it is given back, or until the
// adapter is closed, when the device is done with all of them.

import type { DmaBuffer, Memory } from '../memory/index.js';
import { native } from '../native.js';
import type { Parent } from './adapter-parent.js';

const BOUNCE_BYTES = 128 * 1024;
const BOUNCES = 16;

/** An entry of native.copyList and native.compareList. */
const enum Entry {
  toLo = 0,
  toHi = 1,
  fromLo = 2,
  fromHi = 3,
  bytes = 4,
  /** compareList: offset of the first difference, or NO_DIFFERENCE. */
  difference = 5,
  words = 8,
}

const NO_DIFFERENCE = 0xffff_ffff;

/** What `firstDifference` gives besides an offset. */
export const SAME = -1;
export const LOST = -2;

export class BounceBuffers {
  /** Blocks that one buffer holds. */
  readonly blocks: number;
  private readonly memory: Memory;
  private readonly blockSize: number;
  private readonly bytes: number;
  private readonly free: DmaBuffer[] = [];
  private made = 0;
  private zeroed: DmaBuffer | null = null;
  private readonly entry = new Uint32Array(Entry.words);

  constructor(memory: Memory, blockSize: number) {
    this.memory = memory;
    this.blockSize = blockSize;
    this.bytes = Math.max(BOUNCE_BYTES, blockSize);
    this.blocks = Math.floor(this.bytes / blockSize);
  }

  /** No buffer will come back: when none can be had either, waiting for one is in vain. */
  get noneOut(): boolean {
    return this.made === this.free.length;
  }

  /** A buffer, or null when all are out or there is no memory. */
  take(): DmaBuffer | null {
    const buffer = this.free.pop();
    if (buffer !== undefined) return buffer;
    if (this.made >= BOUNCES) return null;
    const made = this.alloc();
    if (made !== null) this.made++;
    return made;
  }

  give(buffer: DmaBuffer): void {
    this.free.push(buffer);
  }

  /** A buffer full of zeros that nobody writes, or null when there is no memory. */
  zeroes(): DmaBuffer | null {
    if (this.zeroed === null) {
      this.zeroed = this.alloc();
      this.zeroed?.u8.fill(0);
    }
    return this.zeroed;
  }

  /** Frees all buffers. All must have been given back. */
  close(): void {
    for (const buffer of this.free) buffer.free();
    this.made -= this.free.length;
    this.free.length = 0;
    this.zeroed?.free();
    this.zeroed = null;
  }

  /**
   * Copies `blocks` blocks, of the request's data from its block `start` on, into the bounce buffer
   * or out of it. False when the caller's memory went away meanwhile.
   */
  move(parent: Parent, start: number, blocks: number, bounce: DmaBuffer, out: boolean): boolean {
    const bytes = blocks * this.blockSize;
    let offset = start * this.blockSize;
    let done = 0;
    for (let i = 0; i < parent.lengths.length && done < bytes; i++) {
      const length = parent.lengths[i]!;
      if (offset >= length) {
        offset -= length;
        continue;
      }
      const part = Math.min(length - offset, bytes - done);
      const there = parent.addresses[i]! + offset;
      const here = bounce.address + done;
      this.fill(out ? there : here, out ? here : there, part);
      if (native.copyList(this.entry, 1) !== 1) return false;
      done += part;
      offset = 0;
    }
    return true;
  }

  /**
   * Compares the request's data with the bounce buffer: byte offset of the first difference within
   * the piece, SAME, or LOST when the caller's memory went away meanwhile.
   */
  firstDifference(parent: Parent, start: number, blocks: number, bounce: DmaBuffer): number {
    const bytes = blocks * this.blockSize;
    let offset = start * this.blockSize;
    let done = 0;
    for (let i = 0; i < parent.lengths.length && done < bytes; i++) {
      const length = parent.lengths[i]!;
      if (offset >= length) {
        offset -= length;
        continue;
      }
      const part = Math.min(length - offset, bytes - done);
      this.fill(parent.addresses[i]! + offset, bounce.address + done, part);
      if (native.compareList(this.entry, 1) !== 1) return LOST;
      const difference = this.entry[Entry.difference]!;
      if (difference !== NO_DIFFERENCE) return done + difference;
      done += part;
      offset = 0;
    }
    return SAME;
  }

  private alloc(): DmaBuffer | null {
    try {
      return this.memory.alloc(this.bytes);
    } catch {
      return null; // OUT_OF_MEMORY: a request waits or fails with NO_MEMORY
    }
  }

  private fill(to: number, from: number, bytes: number): void {
    const { entry } = this;
    entry[Entry.toLo] = to >>> 0;
    entry[Entry.toHi] = Math.floor(to / 2 ** 32);
    entry[Entry.fromLo] = from >>> 0;
    entry[Entry.fromHi] = Math.floor(from / 2 ** 32);
    entry[Entry.bytes] = bytes;
  }
}
