// LoanTable: buffers that a device's owner filled and lends out (READ_LOAN), by address and
// generation.
//
// A loan is named by its completion's result words: the address, and a generation of 20 bits that
// goes up each time the slot is used. A release with another generation, or of a loan that is not
// out, is refused: nothing is released twice.

import type { DmaBuffer, Memory } from '../memory/index.js';

const GENERATION_MASK = 0xfffff;
const OUT = 0x80000000;
const EMPTY = -1;

export class LoanTable {
  private readonly memory: Memory;
  private readonly buffers: (DmaBuffer | undefined)[];
  private readonly generations: Uint32Array;
  private readonly free: Int32Array;
  private freeCount: number;
  /** Slots that have a buffer, by its address: heads of buckets, and the rest by `next`. */
  private readonly heads: Int32Array;
  private readonly next: Int32Array;
  /** Words of each slot's address, with a sign: no number of them is an object of the heap. */
  private readonly lo: Int32Array;
  private readonly hi: Int32Array;

  constructor(memory: Memory, capacity: number) {
    this.memory = memory;
    this.buffers = new Array<DmaBuffer | undefined>(capacity).fill(undefined);
    this.generations = new Uint32Array(capacity);
    this.free = new Int32Array(capacity);
    for (let i = 0; i < capacity; i++) this.free[i] = capacity - 1 - i;
    this.freeCount = capacity;
    this.heads = new Int32Array(2 ** Math.ceil(Math.log2(capacity * 2))).fill(EMPTY);
    this.next = new Int32Array(capacity);
    this.lo = new Int32Array(capacity);
    this.hi = new Int32Array(capacity);
  }

  /** Loans that are out. */
  get out(): number {
    return this.buffers.length - this.freeCount;
  }

  /**
   * Takes a buffer of at least `bytes`: its slot, or -1 when all loans are out. Throws
   * OUT_OF_MEMORY.
   */
  take(bytes: number): number {
    if (this.freeCount === 0) return -1;
    const slot = this.free[this.freeCount - 1]!;
    let buffer = this.buffers[slot];
    if (buffer === undefined || buffer.bytes < bytes) {
      if (buffer !== undefined) {
        this.unlink(slot);
        this.buffers[slot] = undefined;
        buffer.free();
      }
      buffer = this.memory.alloc(bytes);
      this.buffers[slot] = buffer;
      this.link(slot, buffer.address);
    }
    this.freeCount--;
    this.generations[slot] = (this.generations[slot]! + 1) | OUT;
    return slot;
  }

  address(slot: number): number {
    return this.buffers[slot]!.address;
  }

  /** Result words of a loan, with a sign. */
  resultLo(slot: number): number {
    return this.lo[slot]!;
  }

  resultHi(slot: number): number {
    return this.hi[slot]! | ((this.generations[slot]! & GENERATION_MASK) << 12);
  }

  // hot:begin

  /** Gives a loan back; false when it is not out under this generation. */
  release(resultLo: number, resultHi: number): boolean {
    const lo = resultLo | 0;
    const hi = resultHi & 0xfff;
    let slot = this.heads[this.bucketOf(lo)]!;
    while (slot !== EMPTY && (this.lo[slot] !== lo || this.hi[slot] !== hi)) {
      slot = this.next[slot]!;
    }
    if (slot === EMPTY) return false;
    const word = this.generations[slot]!;
    if ((word & OUT) === 0 || (word & GENERATION_MASK) !== resultHi >>> 12) return false;
    this.drop(slot);
    return true;
  }

  /** Gives a slot back without a release (its read failed). */
  drop(slot: number): void {
    this.generations[slot] = this.generations[slot]! & ~OUT;
    this.free[this.freeCount++] = slot;
  }

  private bucketOf(lo: number): number {
    // Buffers start at multiples of 512 bytes.
    return (Math.imul(lo >>> 9, 0x9e3779b1) >>> 12) & (this.heads.length - 1);
  }

  // hot:end

  /** Frees all buffers, also of loans that are out. */
  close(): void {
    for (const buffer of this.buffers) if (buffer !== undefined && !buffer.freed) buffer.free();
    this.buffers.fill(undefined);
    this.heads.fill(EMPTY);
  }

  private link(slot: number, address: number): void {
    this.lo[slot] = address | 0;
    this.hi[slot] = Math.floor(address / 2 ** 32);
    const bucket = this.bucketOf(this.lo[slot]!);
    this.next[slot] = this.heads[bucket]!;
    this.heads[bucket] = slot;
  }

  private unlink(slot: number): void {
    const bucket = this.bucketOf(this.lo[slot]!);
    let before = EMPTY;
    for (let at = this.heads[bucket]!; at !== slot; at = this.next[at]!) before = at;
    if (before === EMPTY) this.heads[bucket] = this.next[slot]!;
    else this.next[before] = this.next[slot]!;
  }
}
