// Ticks: the time stamp counter, for what is too short or too often for another clock.

import { native } from '../../native.js';

export class Ticks {
  /** Lo and hi of the last `read`. */
  readonly words: Uint32Array;
  /** Stores the counter into `words`. */
  readonly read: () => void;

  constructor() {
    const clock = native.tscClock();
    this.words = new Uint32Array(clock.words);
    this.read = clock.read;
  }
}

/** Milliseconds of so many ticks. */
export function ticksMs(ticks: number): number {
  return (ticks * 1000) / native.tscHertz();
}
