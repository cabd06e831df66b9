// BufferPool: equal buffers carved out of one segment; take and put in constant time, no garbage.
//
// Layout of the segment: `count` buffers from its start, then (page aligned) the control block that
// every environment of the process can see: magic, buffer size, count, the head of the returns
// list, one link and one state word per buffer.
//
// Invariants
// 1. The home environment alone takes buffers and keeps the free stack; others only return them:
//    they move the state 1 → 2 by compare-and-swap and push the buffer on the returns list, which
//    the home takes whole when its stack runs dry.
// 2. A state word is generation << 2 | state (0 free, 1 taken, 2 on its way home). The generation
//    goes up at every take, so that a handle of an earlier life is known.
// 3. put of a buffer that is not taken is an error, in any environment; nothing is put twice.

import { PenstockError } from '../errors.js';
import { native } from '../native.js';
import type { Segment } from './segment.js';
import { addressSpace, roundUp, type SegmentOptions } from './space.js';

const enum Control {
  magic = 0,
  bufferBytes = 1,
  count = 2,
  /** Index + 1 of the first returned buffer; 0: none. */
  returns = 3,
  links = 8,
}

const enum State {
  free = 0,
  taken = 1,
  returning = 2,
  mask = 3,
}

const MAGIC = 0x4c4f4f50;
const POISON = 0xa5;

/** A part of a segment. */
export interface Place {
  readonly segment: Segment;
  readonly offset: number;
}

export interface PoolOptions extends SegmentOptions {
  /** Bytes of each buffer; a power of two from 512 on. */
  bufferBytes: number;
  count: number;
  /**
   * Where the pool lies; a new segment when left out. Buffers of a pool that does not begin where
   * its segment does are freed by its own thread.
   */
  within?: Place;
  /**
   * Fill free buffers with a pattern and check it at the next take (default: PENSTOCK_POISON=1).
   */
  poison?: boolean;
}

export class BufferPool {
  readonly segment: Segment;
  /** Address of the first buffer. */
  readonly start: number;
  readonly bufferBytes: number;
  readonly count: number;
  private readonly control: Int32Array;
  private readonly states: number;
  private readonly freeIndices: Int32Array;
  private freeCount: number;
  private readonly views: (Uint8Array | undefined)[];
  private readonly poison: boolean;

  constructor(options: PoolOptions) {
    const { bufferBytes, count } = options;
    if (bufferBytes < 512 || !Number.isInteger(Math.log2(bufferBytes))) {
      throw new RangeError(
        `a pool's buffers have a power of two of bytes from 512 on, not ${bufferBytes}`,
      );
    }
    if (!Number.isInteger(count) || count < 1)
      throw new RangeError(`count is from 1 on, not ${count}`);
    const { within } = options;
    this.segment = within?.segment ?? addressSpace().create(poolBytes(bufferBytes, count), options);
    const offset = within?.offset ?? 0;
    this.start = this.segment.address + offset;
    const controlOffset = offset + roundUp(bufferBytes * count, 4096);
    this.bufferBytes = bufferBytes;
    this.count = count;
    this.control = new Int32Array(this.segment.u8.buffer, controlOffset, Control.links + 2 * count);
    this.states = Control.links + count;
    // There may be what an earlier pool, or an earlier life, left.
    if (within !== undefined) this.control.fill(0);
    this.control[Control.magic] = MAGIC;
    this.control[Control.bufferBytes] = bufferBytes;
    this.control[Control.count] = count;
    // Who is not at home finds the pool by its segment: one that begins there has it to itself.
    if (offset === 0) {
      native.setSegmentCompanion(this.segment.id, this.segment.address + controlOffset);
    }
    this.freeIndices = new Int32Array(count);
    for (let i = 0; i < count; i++) this.freeIndices[i] = count - 1 - i;
    this.freeCount = count;
    this.views = new Array<Uint8Array | undefined>(count).fill(undefined);
    this.poison = options.poison ?? process.env['PENSTOCK_POISON'] === '1';
    if (this.poison) this.segment.u8.fill(POISON, offset, offset + bufferBytes * count);
  }

  /** Buffers that are out. */
  get taken(): number {
    this.bringHome();
    return this.count - this.freeCount;
  }

  /** The address of a free buffer, or 0 when all are out (back-pressure). */
  take(): number {
    if (this.freeCount === 0) {
      this.bringHome();
      if (this.freeCount === 0) return 0;
    }
    const index = this.freeIndices[--this.freeCount]!;
    const control = this.control;
    control[this.states + index] =
      ((control[this.states + index]! & ~State.mask) + 4) | State.taken;
    if (this.poison) this.checkPoison(index);
    return this.start + index * this.bufferBytes;
  }

  /** Gives a buffer back. Errors: BAD_ADDRESS (not a buffer of this pool), DOUBLE_FREE. */
  put(address: number): void {
    const index = this.indexOf(address);
    const at = this.states + index;
    const word = this.control[at]!;
    // By compare-and-swap, since another environment may be freeing it at this moment: one of the
    // two is a double free, and a buffer must not stand on the stack and the list at once.
    if (
      (word & State.mask) !== State.taken ||
      Atomics.compareExchange(this.control, at, word, word & ~State.mask) !== word
    ) {
      throw doubleFree(address);
    }
    if (this.poison) this.fill(index);
    this.freeIndices[this.freeCount++] = index;
  }

  /** The view over a buffer, made once. */
  view(address: number): Uint8Array {
    const index = this.indexOf(address);
    return (this.views[index] ??= this.bytesOf(index));
  }

  /**
   * Changes at every take and put: a handle that remembers it knows whether its buffer is still its
   * own.
   */
  stamp(address: number): number {
    return this.control[this.states + this.indexOf(address)]!;
  }

  /** Whether an address lies in the pool's buffers. */
  covers(address: number): boolean {
    return address >= this.start && address < this.start + this.count * this.bufferBytes;
  }

  /** Closes the segment, with all that is in it; the pool must not be used after. */
  close(): void {
    this.segment.close();
  }

  private indexOf(address: number): number {
    const index = (address - this.start) / this.bufferBytes;
    if (!Number.isInteger(index) || index < 0 || index >= this.count) {
      throw new PenstockError('BAD_ADDRESS', `address ${hex(address)} is no buffer of this pool`, {
        hint: 'put back the address that take gave, not one inside the buffer',
      });
    }
    return index;
  }

  /** Takes the whole returns list and frees what is on it. */
  private bringHome(): void {
    if (this.control[Control.returns] === 0) return;
    let next = Atomics.exchange(this.control, Control.returns, 0);
    while (next !== 0) {
      const index = next - 1;
      next = this.control[Control.links + index]!;
      const word = this.control[this.states + index]!;
      this.control[this.states + index] = word & ~State.mask;
      if (this.poison) this.fill(index);
      this.freeIndices[this.freeCount++] = index;
    }
  }

  private bytesOf(index: number): Uint8Array {
    const offset = this.start - this.segment.address + index * this.bufferBytes;
    return this.segment.u8.subarray(offset, offset + this.bufferBytes);
  }

  private fill(index: number): void {
    this.bytesOf(index).fill(POISON);
  }

  private checkPoison(index: number): void {
    const bytes = this.bytesOf(index);
    let at = 0;
    while (at < bytes.length && bytes[at] === POISON) at++;
    if (at === bytes.length) return;
    const address = hex(this.start + index * this.bufferBytes);
    throw new PenstockError(
      'USE_AFTER_FREE',
      `byte ${at} of ${address} was written after its free`,
      {
        hint: 'a view was kept, or an operation was still in flight when the buffer was freed',
      },
    );
  }
}

/** Bytes that a pool needs, with its control block. */
export function poolBytes(bufferBytes: number, count: number): number {
  return roundUp(bufferBytes * count, 4096) + (Control.links + 2 * count) * 4;
}

/** Returns a buffer to the pool of whichever environment of this process it belongs to. */
export function returnHome(address: number): void {
  const segment = addressSpace().find(address);
  const companion = segment === undefined ? 0 : native.segmentInfo(segment.id).companion;
  if (segment === undefined || companion === 0) {
    throw new PenstockError('BAD_ADDRESS', `no pool holds address ${hex(address)}`, {
      hint: 'only buffers that a pool gave out can be freed',
    });
  }
  const offset = companion - segment.address;
  const header = new Int32Array(segment.u8.buffer, offset, Control.links);
  const count = header[Control.count]!;
  const index = (address - segment.address) / header[Control.bufferBytes]!;
  if (header[Control.magic] !== MAGIC || !Number.isInteger(index) || index < 0 || index >= count) {
    throw new PenstockError('BAD_ADDRESS', `address ${hex(address)} is no pool buffer`, {
      hint: 'free the address that the pool gave, not one inside the buffer',
    });
  }
  const control = new Int32Array(segment.u8.buffer, offset, Control.links + 2 * count);
  const state = Control.links + count + index;
  const word = control[state]!;
  const wanted = (word & ~State.mask) | State.returning;
  if (
    (word & State.mask) !== State.taken ||
    Atomics.compareExchange(control, state, word, wanted) !== word
  ) {
    throw doubleFree(address);
  }
  for (;;) {
    const head = control[Control.returns]!;
    control[Control.links + index] = head;
    if (Atomics.compareExchange(control, Control.returns, head, index + 1) === head) return;
  }
}

function doubleFree(address: number): PenstockError {
  return new PenstockError('DOUBLE_FREE', `the buffer at ${hex(address)} is free already`, {
    hint: 'free each buffer once; a GIVEn buffer is freed by its device',
  });
}

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}
