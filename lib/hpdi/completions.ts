// CompletionRing: completions that a driver has and its client has not polled yet.

import { Cpl } from './records.js';

/**
 * A ring of completion records, preallocated. Its owner takes no more operations than it holds;
 * one completion too many would overwrite another, so it is an assertion.
 */
export class CompletionRing {
  private readonly words: Uint32Array;
  private readonly mask: number;
  private head = 0;
  private tail = 0;

  /** `capacity` is a power of two. */
  constructor(capacity: number) {
    if (capacity < 1 || (capacity & (capacity - 1)) !== 0) {
      throw new RangeError(`a ring's capacity is a power of two, not ${capacity}`);
    }
    this.words = new Uint32Array(capacity * Cpl.words);
    this.mask = capacity - 1;
  }

  // hot:begin

  get length(): number {
    return (this.tail - this.head) | 0;
  }

  push(tag: number, status: number, resultLo: number, resultHi: number): void {
    if (((this.tail - this.head) | 0) > this.mask) throw new Error('a completion ring overflowed');
    const at = (this.tail & this.mask) * Cpl.words;
    const words = this.words;
    words[at] = tag;
    words[at + Cpl.status] = status;
    words[at + Cpl.resultLo] = resultLo;
    words[at + Cpl.resultHi] = resultHi;
    this.tail = (this.tail + 1) | 0;
  }

  /** Moves up to `max` completions to cq from record `start` on; returns how many. */
  drain(cq: Uint32Array, start: number, max: number): number {
    const waiting = (this.tail - this.head) | 0;
    const count = waiting < max ? waiting : max;
    const words = this.words;
    let to = start * Cpl.words;
    for (let i = 0; i < count; i++) {
      const at = ((this.head + i) & this.mask) * Cpl.words;
      cq[to] = words[at]!;
      cq[to + Cpl.status] = words[at + Cpl.status]!;
      cq[to + Cpl.resultLo] = words[at + Cpl.resultLo]!;
      cq[to + Cpl.resultHi] = words[at + Cpl.resultHi]!;
      to += Cpl.words;
    }
    this.head = (this.head + count) | 0;
    return count;
  }

  // hot:end
}
