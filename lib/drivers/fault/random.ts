// Seeded random numbers for fault decisions: mulberry32, one stream per queue.
//
// The state lies in a typed array, so that drawing allocates nothing; the same seed and the same
// sequence of draws give the same decisions on every machine.

export class Random {
  private readonly state = new Int32Array(1);

  constructor(seed: number, stream: number) {
    this.state[0] = Math.imul(seed | 0, 0x9e3779b1) ^ Math.imul(stream + 1, 0x85ebca6b);
  }

  /** The next number, 0 to 2^32 - 1. */
  next(): number {
    const s = (this.state[0]! + 0x6d2b79f5) | 0;
    this.state[0] = s;
    let t = Math.imul(s ^ (s >>> 15), 1 | s);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) >>> 0;
  }

  /** An integer from 0 to `n` - 1. */
  below(n: number): number {
    return Math.floor((this.next() / 0x1_0000_0000) * n);
  }

  /**
   * True with the probability `chance` / 2^32. Draws nothing for 0, so unused faults leave the
   * stream alone.
   */
  chance(chance: number): boolean {
    return chance > 0 && this.next() < chance;
  }
}
