// A queue's slots: requests in flight by command identifier, free identifiers, and completions that
// wait for the caller's poll because the device did not make them.
//
// Tags stand in memory of the queue's own: when the home ends, its segment shows zeros, and each
// operation completes all the same.

import { CompletionRing, Req, Status } from '../../hpdi/index.js';
import { Slot } from './pairs.js';

export class QueueSlots {
  readonly count: number;
  /** Records, in the pair's segment: the home's watchdog looks at them. */
  readonly words: Uint32Array;
  readonly tags: Uint32Array;
  readonly free: Uint16Array;
  freeCount: number;
  readonly done: CompletionRing;
  private serial = 1;

  constructor(words: Uint32Array, count: number, depth: number) {
    this.count = count;
    this.words = words;
    this.tags = new Uint32Array(count);
    this.free = new Uint16Array(count);
    for (let i = 0; i < count; i++) this.free[i] = count - 1 - i;
    this.freeCount = count;
    // A queue's worth may be refused while as many are in flight: a drain brings both here.
    this.done = new CompletionRing(2 ** Math.ceil(Math.log2(depth)) * 2);
  }

  get idle(): boolean {
    return this.freeCount === this.count;
  }

  // hot:begin

  /** Keeps the request at word `record` of sq; its slot. There is a free one. */
  take(sq: Uint32Array, record: number): number {
    const { words } = this;
    const slot = this.free[--this.freeCount]!;
    const s = slot * Slot.words;
    this.tags[slot] = sq[record + Req.tag]!;
    words[s + Slot.tries] = 0;
    words[s + Slot.blocks] = sq[record + Req.blocks]!;
    words[s + Slot.serial] = this.serial = (this.serial + 1) | 0;
    words[s + Slot.lbaLo] = sq[record + Req.lbaLo]!;
    words[s + Slot.lbaHi] = sq[record + Req.lbaHi]!;
    words[s + Slot.addressLo] = sq[record + Req.addressLo]!;
    words[s + Slot.addressHi] = sq[record + Req.addressHi]!;
    words[s] = sq[record]!;
    return slot;
  }

  // hot:end

  /** Completes a slot without the device. */
  finish(slot: number, status: number): void {
    this.done.push(this.tags[slot]!, status, 0, 0);
    this.words[slot * Slot.words] = 0;
    this.free[this.freeCount++] = slot;
  }

  /** The device is gone: completes whatever is in flight. */
  failAll(): void {
    if (this.idle) return;
    const isFree = new Uint8Array(this.count);
    for (let i = 0; i < this.freeCount; i++) isFree[this.free[i]!] = 1;
    for (let slot = 0; slot < this.count; slot++) {
      if (isFree[slot] === 0) this.finish(slot, Status.DEVICE_GONE);
    }
  }
}
