// Buffers that a device's server fills and lends to one client: what its reads complete with.
//
// Invariants
// 1. A buffer is free, filled (its read is in flight), or lent. It goes back once, and by the words
//    that it was lent under: the address, and above it a generation that goes up at every use.
// 2. A client has at most `bytesMax` of them, free ones included. Free ones of another size are
//    given up for one that is wanted.
// 3. Nothing is allocated once there are as many as the client uses at a time.

import { PenstockError } from '../errors.js';
import type { DmaBuffer, Memory } from '../memory/index.js';

const enum State {
  free = 0,
  filled = 1,
  lent = 2,
  /** Its memory was given up; the number is used again for another. */
  none = 3,
}

const CLASSES = 32;
const GENERATION_MASK = 0xfffff;
/** Numbers of buffers; more than loans and reads that one client may have at a time. */
export const BUFFERS_MAX = 1 << 16;

export class LentBuffers {
  /** Loan words by number. */
  lo = new Uint32Array(64);
  hi = new Uint32Array(64);
  /** Bytes of free, filled and lent buffers together. */
  bytes = 0;
  /** Buffers that are lent by READ_LOAN. */
  lent = 0;
  private readonly memory: Memory;
  private readonly bytesMax: number;
  private readonly least: number;
  private states = new Uint8Array(64).fill(State.none);
  private sizes = new Uint8Array(64);
  private generations = new Uint32Array(64);
  private next = new Int32Array(64);
  /** The session that uses a buffer. */
  private owners = new Int32Array(64);
  /** First free buffer of each size (log2), or -1; the rest by `next`. */
  private readonly heads = new Int32Array(CLASSES).fill(-1);
  private nameless = -1;
  private used = 0;
  private readonly buffers: (DmaBuffer | null)[] = [];

  /** `least`: bytes of the smallest buffer, as the device wants them aligned. */
  constructor(memory: Memory, bytesMax: number, least: number) {
    this.memory = memory;
    this.bytesMax = bytesMax;
    this.least = Math.max(9, Math.ceil(Math.log2(least)));
  }

  // hot:begin

  /** The number of a buffer of at least `bytes`, or -1: the client has all it may have. */
  take(bytes: number, owner: number): number {
    let size = bytes < 2 ? 0 : 32 - Math.clz32(bytes - 1);
    if (size < this.least) size = this.least;
    let buffer = this.heads[size]!;
    if (buffer < 0) {
      buffer = this.make(size);
      if (buffer < 0) return -1;
    } else {
      this.heads[size] = this.next[buffer]!;
    }
    const generation = (this.generations[buffer]! + 1) & GENERATION_MASK;
    this.generations[buffer] = generation;
    this.owners[buffer] = owner;
    this.states[buffer] = State.filled;
    this.hi[buffer] = (this.hi[buffer]! & 0xfff) | (generation << 12);
    return buffer;
  }

  /** A filled buffer goes to the client, until it gives it back. */
  lend(buffer: number): void {
    this.states[buffer] = State.lent;
    this.lent++;
  }

  /** The client gives a loan back; false when it has none of this number and these words. */
  release(buffer: number, lo: number, hi: number, owner: number): boolean {
    if (buffer >= this.used || this.states[buffer] !== State.lent) return false;
    if (this.owners[buffer] !== owner || this.lo[buffer] !== lo || this.hi[buffer] !== hi)
      return false;
    this.lent--;
    this.free(buffer);
    return true;
  }

  /** A buffer is done with: its read failed, or the client has copied it. */
  free(buffer: number): void {
    const size = this.sizes[buffer]!;
    this.states[buffer] = State.free;
    this.next[buffer] = this.heads[size]!;
    this.heads[size] = buffer;
  }

  // hot:end

  /** A session is over: what it used and was lent is free. Nothing of it is in flight. */
  freeOf(owner: number): void {
    for (let buffer = 0; buffer < this.used; buffer++) {
      const state = this.states[buffer]!;
      if (this.owners[buffer] !== owner || state === State.free || state === State.none) continue;
      if (state === State.lent) this.lent--;
      this.free(buffer);
    }
  }

  /** Frees the memory of all. Nothing may be in flight into any of them. */
  close(): void {
    for (const buffer of this.buffers) {
      // The domain may be closed by now, and its memory with it.
      if (buffer !== null && !buffer.freed) buffer.free();
    }
    this.buffers.length = 0;
    this.states.fill(State.none);
    this.heads.fill(-1);
    this.nameless = -1;
    this.used = 0;
    this.bytes = 0;
    this.lent = 0;
  }

  private make(size: number): number {
    const bytes = 2 ** size;
    if (this.bytes + bytes > this.bytesMax) this.giveUp(bytes);
    if (this.bytes + bytes > this.bytesMax) return -1;
    const number = this.name();
    if (number < 0) return -1;
    let memory: DmaBuffer;
    try {
      memory = this.memory.alloc(bytes);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      this.unname(number);
      return -1; // OUT_OF_MEMORY
    }
    this.buffers[number] = memory;
    this.bytes += bytes;
    this.sizes[number] = size;
    this.lo[number] = memory.address >>> 0;
    this.hi[number] = Math.floor(memory.address / 2 ** 32);
    return number;
  }

  /** Gives up free buffers, the largest first, until `bytes` more may be had. */
  private giveUp(bytes: number): void {
    for (let size = CLASSES - 1; size >= 0; size--) {
      for (let number = this.heads[size]!; number >= 0; number = this.heads[size]!) {
        if (this.bytes + bytes <= this.bytesMax) return;
        this.heads[size] = this.next[number]!;
        this.buffers[number]!.free();
        this.buffers[number] = null;
        this.bytes -= 2 ** size;
        this.unname(number);
      }
    }
  }

  private name(): number {
    const number = this.nameless;
    if (number >= 0) {
      this.nameless = this.next[number]!;
      return number;
    }
    if (this.used === BUFFERS_MAX) return -1;
    if (this.used === this.lo.length) this.grow();
    this.buffers.push(null);
    return this.used++;
  }

  private unname(number: number): void {
    this.states[number] = State.none;
    this.next[number] = this.nameless;
    this.nameless = number;
  }

  private grow(): void {
    const length = this.lo.length * 2;
    const wider = <T extends { set(from: T): void }>(old: T, fresh: T): T => {
      fresh.set(old);
      return fresh;
    };
    this.lo = wider(this.lo, new Uint32Array(length));
    this.hi = wider(this.hi, new Uint32Array(length));
    this.states = wider(this.states, new Uint8Array(length).fill(State.none));
    this.sizes = wider(this.sizes, new Uint8Array(length));
    this.generations = wider(this.generations, new Uint32Array(length));
    this.next = wider(this.next, new Int32Array(length));
    this.owners = wider(this.owners, new Int32Array(length));
  }
}
