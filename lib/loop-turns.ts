// Turns of the event loop, for loops of awaits that are settled at once: a promise that is resolved
// already goes on before timers, signals and other I/O are looked at, however often.

/** How long these may wait, in ms. */
const TURN_MS = 4;
/** The clock is asked once in so many times. */
const TIMES = 16;

export class LoopTurns {
  private times = 0;
  private lastMs = 0;

  /** Null, mostly; what to await when the event loop has not turned here for long. */
  due(): Promise<void> | null {
    this.times = (this.times + 1) % TIMES;
    if (this.times !== 0 || performance.now() - this.lastMs < TURN_MS) return null;
    return this.turn();
  }

  private async turn(): Promise<void> {
    await new Promise((resolve) => setImmediate(resolve));
    this.lastMs = performance.now();
  }
}
