// Pace: work in the background gives way to volumes at work. A step of it is followed by a rest of
// so many times what it took.

import type { VolumeQueue } from './volume/volume-queue.js';

const REST = 4;
/** A client with one request at a time has none between two. */
const IDLE_MS = 2;

export class Pace {
  private readonly queues: readonly (VolumeQueue | null)[];
  private busyMs = -Infinity;
  /** When the step began (-1: none has), and till when there is a rest. */
  private begunMs = -1;
  private restMs = 0;

  constructor(queues: readonly (VolumeQueue | null)[]) {
    this.queues = queues;
  }

  /** Whether volumes are at work, or were a moment ago. */
  atWork(nowMs: number): boolean {
    const { queues } = this;
    for (let i = 0; i < queues.length; i++) if (queues[i]?.busy === true) this.busyMs = nowMs;
    return nowMs - this.busyMs < IDLE_MS;
  }

  /** A step begins, unless one is under way. */
  begin(): void {
    if (this.begunMs < 0) this.begunMs = performance.now();
  }

  /** The step that was under way, if there was one, is over: whether there is a rest now. */
  isResting(): boolean {
    const now = performance.now();
    if (this.begunMs >= 0) this.restMs = now + REST * (now - this.begunMs);
    this.begunMs = -1;
    return this.atWork(now) && now < this.restMs;
  }

  /** The next step begins as if there had been none. */
  reset(): void {
    this.begunMs = -1;
    this.restMs = 0;
  }
}
