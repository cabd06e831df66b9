// Which operations of a queue wait for which job of the write cache.

/** What a slot waits for. */
export const enum Wait {
  NONE = 0,
  /** A job's flush: FLUSH and FUA writes. */
  FLUSHED = 1,
  /** Lines that a job frees: writes. */
  ROOM = 2,
  /** The pause after a job: operations past the cache. */
  SETTLED = 3,
}

export class Waits {
  count = 0;
  private readonly waits: Uint8Array;
  private readonly jobs: Float64Array;

  constructor(slots: number) {
    this.waits = new Uint8Array(slots);
    this.jobs = new Float64Array(slots);
  }

  of(slot: number): Wait {
    return this.waits[slot]!;
  }

  /** Whether a slot waits for `job` or an earlier one. */
  until(slot: number, job: number): boolean {
    return this.waits[slot] !== Wait.NONE && this.jobs[slot]! <= job;
  }

  start(slot: number, wait: Wait, job: number): void {
    this.waits[slot] = wait;
    this.jobs[slot] = job;
    this.count++;
  }

  stop(slot: number): Wait {
    const wait: Wait = this.waits[slot]!;
    this.waits[slot] = Wait.NONE;
    this.count--;
    return wait;
  }
}
