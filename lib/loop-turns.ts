// Turns of the event loop, for loops of awaits that are settled at once: a promise that is resolved
// already goes on before timers, signals and other I/O are looked at, however often.

/** How long these may wait, in ms; longer only where one await takes longer. */
const TURN_MS = 4;
/** Looks at the clock: each time, or, while these come sooner than that, once in so many times. */
const LOOK_MS = 0.25;
const TIMES_MAX = 16;

export class LoopTurns {
  private times = 1;
  private left = 1;
  private lookedMs = 0;
  private turnedMs = 0;

  /** Null, mostly; what to await when the event loop has not turned here for long. */
  due(): Promise<void> | null {
    if (--this.left > 0) return null;
    const now = performance.now();
    this.times = now - this.lookedMs > LOOK_MS ? 1 : Math.min(TIMES_MAX, this.times * 2);
    this.left = this.times;
    this.lookedMs = now;
    return now - this.turnedMs < TURN_MS ? null : this.turn();
  }

  private async turn(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.turnedMs = performance.now();
  }
}
