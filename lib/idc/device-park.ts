// DevicePark: how the queue of a served device blocks its thread: it looks for a while, the longer
// the shorter its last sleeps were, and then sleeps on the channel's descriptor.

import { native } from '../native.js';
import type { RecordChannel } from './record-channel.js';

/**
 * Rounds in which it looks before it sleeps, from, to (about 5 µs, 100 µs), and polls of a round.
 * They are counted, since a look at the clock leaves a number on the heap.
 */
const ROUNDS_MIN = 4;
const ROUNDS_MAX = 96;
const ROUND_POLLS = 512;
/** A sleep that is shorter was not worth it: being woken may take a good part of that. */
const SHORT_MS = 0.25;

export class DevicePark {
  private rounds = ROUNDS_MIN;
  private readonly fds = new Int32Array(1);

  /** True: something came, or words[at] is not `word` any more. */
  spin(channel: RecordChannel, words: Int32Array, at: number, word: number): boolean {
    for (let round = 0; round < this.rounds; round++) {
      for (let poll = 0; poll < ROUND_POLLS; poll++) {
        if (channel.ready || words[at] !== word) return true;
      }
      native.yieldCpu(); // the server may wait for this processor, or the kernel for it
    }
    return false;
  }

  /** Sleeps on a channel that was armed. */
  sleep(channel: RecordChannel, mostUs: number): void {
    const before = performance.now();
    this.sleepOn(channel.wakeFd, mostUs);
    const short = performance.now() - before < SHORT_MS;
    this.rounds = short
      ? Math.min(ROUNDS_MAX, this.rounds * 2)
      : Math.max(ROUNDS_MIN, this.rounds >> 1);
  }

  sleepOn(fd: number, mostUs: number): void {
    this.fds[0] = fd;
    native.park(this.fds, mostUs);
  }
}
