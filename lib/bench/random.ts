// Pseudo-random numbers in 32-bit arithmetic: xoshiro128** (Blackman and Vigna, 2018), seeded by a
// splitmix32 stream, and an unbiased reduction to ranges up to 2^53.
//
// Invariants: the same (seed, stream) gives the same numbers everywhere; no state lives outside
// `state`, so that nothing is boxed; every value of a range is exactly equally likely.

const TWO32 = 2 ** 32;
const TWO53 = 2 ** 53;
/** Up to this range a 32-bit draw times the range is exact in a double. */
const SMALL_RANGE = 2 ** 21;

/** A bijection of 32-bit words that spreads every bit (the finalizer of MurmurHash3). */
export function mix32(word: number): number {
  let x = word | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** One 32-bit word from three, for keys of contents and of streams. */
export function hash32(a: number, b: number, c: number): number {
  return mix32(mix32(mix32((a | 0) + 0x9e3779b9) ^ b) + Math.imul(c, 0x9e3779b1));
}

export class Random {
  private readonly state = new Uint32Array(4);

  /** `stream` tells the workers of one job apart: their sequences have nothing in common. */
  constructor(seed: number, stream: number) {
    const high = Math.floor(seed / TWO32);
    let counter = hash32(seed, high, stream);
    for (let i = 0; i < 4; i++) {
      counter = (counter + 0x9e3779b9) | 0;
      this.state[i] = mix32(counter);
    }
    if (this.state.every((word) => word === 0)) this.state[0] = 1;
  }

  /** The next 32 bits. */
  next(): number {
    const state = this.state;
    const s0 = state[0]!;
    const s1 = state[1]!;
    const s2 = state[2]! ^ s0;
    const s3 = state[3]! ^ s1;
    const five = Math.imul(s1, 5);
    const result = Math.imul((five << 7) | (five >>> 25), 9);
    state[0] = s0 ^ s3;
    state[1] = s1 ^ s2;
    state[2] = s2 ^ (s1 << 9);
    state[3] = (s3 << 11) | (s3 >>> 21);
    return result >>> 0;
  }

  /** A fraction in [0, 1) with 53 random bits. */
  fraction(): number {
    const high = this.next() >>> 5;
    return (high * 2 ** 26 + (this.next() >>> 6)) / TWO53;
  }

  /** Fills `out` with `count` integers in [0, range), range an integer from 1 to 2^53. */
  fill(out: Float64Array, count: number, range: number): void {
    if (range <= SMALL_RANGE) this.fillSmall(out, count, range);
    else this.fillLarge(out, count, range);
  }

  /** An integer in [0, range). */
  below(range: number): number {
    one[0] = 0;
    this.fill(one, 1, range);
    return one[0];
  }

  /** Lemire's reduction: the high word of draw × range, unless the low word says it is biased. */
  private fillSmall(out: Float64Array, count: number, range: number): void {
    const rest = TWO32 % range;
    for (let i = 0; i < count; i++) {
      for (;;) {
        const product = this.next() * range;
        const high = Math.floor(product / TWO32);
        if (product - high * TWO32 < rest) continue;
        out[i] = high;
        break;
      }
    }
  }

  /** Equal shares of 53-bit draws; the draws beyond the last whole share are thrown away. */
  private fillLarge(out: Float64Array, count: number, range: number): void {
    const share = Math.floor(TWO53 / range);
    for (let i = 0; i < count; i++) {
      for (;;) {
        const high = this.next() >>> 6;
        const index = Math.floor((high * 2 ** 27 + (this.next() >>> 5)) / share);
        if (index >= range) continue;
        out[i] = index;
        break;
      }
    }
  }
}

const one = new Float64Array(1);
