// DevicePark: how the queue of a served device blocks its thread: it looks for a while, the longer
// the shorter its last sleeps were, and then sleeps on the channel's descriptor.

import { native } from '../native.js';
import type { RecordChannel } from './record-channel.js';

/** How long it looks before it sleeps, from, to; and polls between two looks at the clock. */
const SPIN_MS_MIN = 0.005;
const SPIN_MS_MAX = 0.1;
const SPIN_POLLS = 512;
/** A sleep that is shorter was not worth it: being woken may take a good part of that. */
const SHORT_MS = 0.25;

export class DevicePark {
  private spinMs = SPIN_MS_MIN;
  private readonly fds = new Int32Array(1);

  /** True: something came, or words[at] is not `word` any more. */
  spin(channel: RecordChannel, words: Int32Array, at: number, word: number): boolean {
    let until = 0;
    for (;;) {
      for (let poll = 0; poll < SPIN_POLLS; poll++) {
        if (channel.ready || words[at] !== word) return true;
      }
      const now = performance.now();
      if (until === 0) until = now + this.spinMs;
      else if (now >= until) return false;
      native.yieldCpu(); // the server may wait for this processor, or the kernel for it
    }
  }

  /** Sleeps on a channel that was armed. */
  sleep(channel: RecordChannel, mostUs: number): void {
    const before = performance.now();
    this.sleepOn(channel.wakeFd, mostUs);
    const short = performance.now() - before < SHORT_MS;
    this.spinMs = short
      ? Math.min(SPIN_MS_MAX, this.spinMs * 2)
      : Math.max(SPIN_MS_MIN, this.spinMs / 2);
  }

  sleepOn(fd: number, mostUs: number): void {
    this.fds[0] = fd;
    native.park(this.fds, mostUs);
  }
}
