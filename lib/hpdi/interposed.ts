// What a wrapper's queue needs between the caller's ring and the wrapped driver's.
//
// Invariants:
// 1. Every operation taken from the caller has one slot, from submit until its completion is
//    handed out; the wrapped driver sees the slot's number as the tag, so callers' tags may
//    repeat.
// 2. Slots never run out: there are as many as the queue is deep, and Queue.reserve grants no
//    more.
// 3. Records the wrapped driver did not take (back-pressure) stay in the ring for the next flush.
// 4. Nothing here allocates after construction.

import type { QueueDriver } from './driver.js';
import { Cpl, Req } from './records.js';

/** Smallest power of two that is at least `n`. */
export function powerOfTwo(n: number): number {
  let size = 1;
  while (size < n) size *= 2;
  return size;
}

export class Interposed {
  readonly driver: QueueDriver;
  readonly depth: number;
  readonly mask: number;
  /** The ring the wrapped driver reads; records hold slots for tags. */
  readonly sq: Uint32Array;
  /** Where the wrapped driver's completions are polled to. */
  readonly cq: Uint32Array;
  /** The caller's tag of each slot. */
  readonly tags: Uint32Array;
  head = 0;
  tail = 0;
  /** Operations that the wrapped driver has taken and not completed. */
  inFlight = 0;
  private readonly free: Uint32Array;
  private freeCount: number;

  constructor(driver: QueueDriver, depth: number) {
    this.driver = driver;
    this.depth = powerOfTwo(depth);
    this.mask = this.depth - 1;
    this.sq = new Uint32Array(this.depth * Req.words);
    this.cq = new Uint32Array(this.depth * Cpl.words);
    this.tags = new Uint32Array(this.depth);
    this.free = new Uint32Array(this.depth);
    for (let slot = 0; slot < this.depth; slot++) this.free[slot] = this.depth - 1 - slot;
    this.freeCount = this.depth;
  }

  get slotsFree(): number {
    return this.freeCount;
  }

  /** Operations that have a slot. */
  get slotsUsed(): number {
    return this.depth - this.freeCount;
  }

  take(tag: number): number {
    this.freeCount--;
    const slot = this.free[this.freeCount]!;
    this.tags[slot] = tag;
    return slot;
  }

  give(slot: number): void {
    this.free[this.freeCount] = slot;
    this.freeCount++;
  }

  /** Copies the record at word `from` of `records` to the ring with `slot` for its tag. */
  push(records: Uint32Array, from: number, slot: number): void {
    const sq = this.sq;
    const to = (this.tail & this.mask) * Req.words;
    sq[to + Req.op] = records[from + Req.op]!;
    sq[to + Req.tag] = slot;
    sq[to + Req.blocks] = records[from + Req.blocks]!;
    sq[to + Req.aux] = records[from + Req.aux]!;
    sq[to + Req.lbaLo] = records[from + Req.lbaLo]!;
    sq[to + Req.lbaHi] = records[from + Req.lbaHi]!;
    sq[to + Req.addressLo] = records[from + Req.addressLo]!;
    sq[to + Req.addressHi] = records[from + Req.addressHi]!;
    this.tail = (this.tail + 1) | 0;
  }

  /** Hands what stands in the ring to the wrapped driver; returns whether anything is left. */
  flush(): boolean {
    if (this.head === this.tail) return false;
    const taken = this.driver.submit(this.sq, this.head, this.tail);
    this.head = (this.head + taken) | 0;
    this.inFlight += taken;
    return this.head !== this.tail;
  }

  /** Polls the wrapped driver into `cq`; returns how many completions stand there. */
  pull(): number {
    if (this.inFlight === 0) return 0;
    const done = this.driver.poll(this.cq, this.depth);
    this.inFlight -= done;
    return done;
  }

  /** Records in the ring that the wrapped driver has not taken yet. */
  get pending(): number {
    return (this.tail - this.head) | 0;
  }
}
