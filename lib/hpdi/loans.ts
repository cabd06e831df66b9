// LoanTable: buffers that a device's owner filled and lends out (READ_LOAN), by address and
// generation.
//
// A loan is named by its completion's result words: the address, and a generation of 20 bits that
// goes up each time the slot is used. A release with another generation, or of a loan that is not
// out, is refused: nothing is released twice.

import type { DmaBuffer, Memory } from '../memory/index.js';

const GENERATION_MASK = 0xfffff;

export class LoanTable {
  private readonly memory: Memory;
  private readonly buffers: (DmaBuffer | undefined)[];
  private readonly generations: Uint32Array;
  private readonly free: Int32Array;
  private freeCount: number;
  private readonly slotByAddress = new Map<number, number>();

  constructor(memory: Memory, capacity: number) {
    this.memory = memory;
    this.buffers = new Array<DmaBuffer | undefined>(capacity).fill(undefined);
    this.generations = new Uint32Array(capacity);
    this.free = new Int32Array(capacity);
    for (let i = 0; i < capacity; i++) this.free[i] = capacity - 1 - i;
    this.freeCount = capacity;
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
        this.slotByAddress.delete(buffer.address);
        this.buffers[slot] = undefined;
        buffer.free();
      }
      buffer = this.memory.alloc(bytes);
      this.buffers[slot] = buffer;
      this.slotByAddress.set(buffer.address, slot);
    }
    this.freeCount--;
    this.generations[slot] = (this.generations[slot]! + 1) | 0x80000000;
    return slot;
  }

  address(slot: number): number {
    return this.buffers[slot]!.address;
  }

  resultLo(slot: number): number {
    return this.address(slot) >>> 0;
  }

  resultHi(slot: number): number {
    const high = Math.floor(this.address(slot) / 2 ** 32);
    return (high | ((this.generations[slot]! & GENERATION_MASK) << 12)) >>> 0;
  }

  /** Gives a loan back; false when it is not out under this generation. */
  release(resultLo: number, resultHi: number): boolean {
    const address = (resultHi & 0xfff) * 2 ** 32 + (resultLo >>> 0);
    const slot = this.slotByAddress.get(address);
    if (slot === undefined) return false;
    const word = this.generations[slot]!;
    if ((word & 0x80000000) === 0) return false;
    if ((word & GENERATION_MASK) !== resultHi >>> 12) return false;
    this.drop(slot);
    return true;
  }

  /** Gives a slot back without a release (its read failed). */
  drop(slot: number): void {
    this.generations[slot] = this.generations[slot]! & 0x7fffffff;
    this.free[this.freeCount++] = slot;
  }

  /** Frees all buffers, also of loans that are out. */
  close(): void {
    for (const buffer of this.buffers) if (buffer !== undefined && !buffer.freed) buffer.free();
    this.buffers.fill(undefined);
    this.slotByAddress.clear();
  }
}
