// Round trips of loans by the friendly path, as `bench idc` times them: a buffer is allocated, lent
// to the other process, comes back as a loan of our own memory, and is released.

import type { Message } from '../idc/index.js';
import type { Histogram } from './histogram.js';
import type { IdcCrew } from './idc-crew.js';

const TWO32 = 2 ** 32;
/** Looks for an answer between two looks at the clock. */
const LOOKS = 1024;

export class LoanLoop {
  private readonly crew: IdcCrew;
  private readonly bytes: number;
  /** A message is at the other side, since `last`. */
  private isOut = false;
  private last = 0;

  constructor(crew: IdcCrew, bytes: number) {
    this.crew = crew;
    this.bytes = bytes;
  }

  /** A slice of `seconds`. */
  run(histogram: Histogram, seconds: number): void {
    const { domain, loans, clock } = this.crew;
    const { hertz } = clock;
    let now = this.now();
    const until = now + seconds * hertz;
    if (!this.isOut) this.last = now;
    while (now < until) {
      if (!this.isOut && !loans.trySend(domain.alloc(this.bytes))) return;
      this.isOut = true;
      const message = this.answer(until);
      if (message === null) return;
      message.release();
      now = this.now();
      histogram.record(Math.round(((now - this.last) * 1e9) / hertz), 1);
      this.last = now;
      this.isOut = false;
    }
  }

  /** Has the other side stop, once all is back. */
  async stop(): Promise<void> {
    const { domain, loans } = this.crew;
    if (this.isOut) (await loans.receive())?.release();
    const last = domain.alloc(this.bytes);
    while (!loans.trySend(last, { aux: 1 })) await this.crew.turn();
    (await loans.receive())?.release();
  }

  private answer(until: number): Message | null {
    const { loans } = this.crew;
    for (;;) {
      for (let look = 0; look < LOOKS; look++) {
        const message = loans.tryReceive();
        if (message !== null) return message;
      }
      if (this.now() > until) return null;
    }
  }

  private now(): number {
    const { words, read } = this.crew.clock;
    read();
    return words[1]! * TWO32 + words[0]!;
  }
}
