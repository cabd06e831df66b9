// Which unit of the range comes next: sequential, uniform, zipf, pareto, normal, or every unit once
// in a random order. Units are numbered from 0; a chooser fills an array of them at a time, so that
// the call costs nothing per operation.
//
// Zipf is Gray et al., "Quickly generating billion-record synthetic databases" (SIGMOD 1994), as in
// fio; pareto is fio's. Their hot units would be neighbours: a bijection scatters them.

import { PenstockError } from '../errors.js';
import { mix32, type Random } from './random.js';

export interface Chooser {
  /** Fills out[0 … count) with unit numbers. */
  fill(out: Float64Array, count: number): void;
}

/** 0, 1, 2, … and from the end round to the start. */
export class Sequential implements Chooser {
  private readonly at = new Float64Array(1);

  constructor(private readonly range: number) {}

  fill(out: Float64Array, count: number): void {
    let next = this.at[0]!;
    for (let i = 0; i < count; i++) {
      out[i] = next;
      next++;
      if (next === this.range) next = 0;
    }
    this.at[0] = next;
  }
}

class Uniform implements Chooser {
  constructor(
    private readonly range: number,
    private readonly random: Random,
  ) {}

  fill(out: Float64Array, count: number): void {
    this.random.fill(out, count, this.range);
  }
}

/** A bijection of [0, range), range up to 2^31: mixing within a power of two, cycle-walked. */
export class Scatter {
  private readonly mask: number;
  private readonly half: number;
  private readonly factor: number;

  constructor(
    private readonly range: number,
    key: number,
  ) {
    const bits = Math.max(1, Math.ceil(Math.log2(range)));
    this.mask = bits === 32 ? -1 : (1 << bits) - 1;
    this.half = Math.max(1, bits >> 1);
    this.factor = mix32(key) | 1;
  }

  at(index: number): number {
    let x = index | 0;
    do {
      for (let round = 0; round < 3; round++) {
        x ^= x >>> this.half;
        x = (Math.imul(x, this.factor) + 0x6d2b79f5) & this.mask;
      }
      x ^= x >>> this.half;
    } while (x >= this.range);
    return x;
  }
}

/** Every unit once in a random order, then in that order again. */
export class Shuffled implements Chooser {
  private readonly at = new Float64Array(1);
  private readonly scatter: Scatter;

  constructor(
    private readonly range: number,
    random: Random,
  ) {
    this.scatter = new Scatter(range, random.next());
  }

  fill(out: Float64Array, count: number): void {
    let next = this.at[0]!;
    for (let i = 0; i < count; i++) {
      out[i] = this.scatter.at(next);
      next++;
      if (next === this.range) next = 0;
    }
    this.at[0] = next;
  }
}

/** Ranks (0 is the most frequent) drawn from a skewed distribution and scattered over the range. */
abstract class Skewed implements Chooser {
  private readonly scatter: Scatter | null;

  constructor(
    protected readonly range: number,
    protected readonly random: Random,
  ) {
    // The same scatter for every worker of a job, so that they share their hot units.
    this.scatter = range <= 2 ** 31 ? new Scatter(range, 0x5ca77e2) : null;
  }

  protected abstract rank(): number;

  fill(out: Float64Array, count: number): void {
    const last = this.range - 1;
    for (let i = 0; i < count; i++) {
      const drawn = Math.floor(this.rank());
      const rank = drawn > last ? last : drawn < 0 ? 0 : drawn;
      out[i] = this.scatter === null ? this.spread(rank) : this.scatter.at(rank);
    }
  }

  /** Beyond 2^31 units a hash: a few ranks meet in one unit, which no workload notices. */
  private spread(rank: number): number {
    const high = mix32(Math.floor(rank / 2 ** 32) + 0x51ed27);
    return ((high >>> 11) * 2 ** 32 + mix32((rank % 2 ** 32) ^ high)) % this.range;
  }
}

class Zipf extends Skewed {
  private readonly zeta: number;
  private readonly second: number;
  private readonly alpha: number;
  private readonly eta: number;

  constructor(range: number, random: Random, theta: number) {
    super(range, random);
    this.zeta = zeta(range, theta);
    this.second = 1 + 0.5 ** theta;
    this.alpha = 1 / (1 - theta);
    this.eta = (1 - (2 / range) ** (1 - theta)) / (1 - this.second / this.zeta);
  }

  protected rank(): number {
    const u = this.random.fraction();
    const uz = u * this.zeta;
    if (uz < 1) return 0;
    if (uz < this.second) return 1;
    return this.range * (this.eta * u - this.eta + 1) ** this.alpha;
  }
}

/** Sum of 1/i^theta for i = 1 … n: the first terms one by one, the rest by Euler and Maclaurin. */
export function zeta(n: number, theta: number): number {
  const exact = Math.min(n, 10_000);
  let sum = 0;
  for (let i = 1; i <= exact; i++) sum += i ** -theta;
  if (n === exact) return sum;
  const integral = (n ** (1 - theta) - exact ** (1 - theta)) / (1 - theta);
  return sum + integral + (n ** -theta - exact ** -theta) / 2;
}

class Pareto extends Skewed {
  private readonly power: number;

  constructor(range: number, random: Random, h: number) {
    super(range, random);
    this.power = Math.log(h) / Math.log(1 - h);
  }

  protected rank(): number {
    return this.range * this.random.fraction() ** this.power;
  }
}

/** A normal distribution round the middle (Box and Muller); draws outside are redrawn. */
class Normal implements Chooser {
  constructor(
    private readonly range: number,
    private readonly random: Random,
    private readonly deviation: number,
  ) {}

  fill(out: Float64Array, count: number): void {
    for (let i = 0; i < count; i++) {
      let unit = -1;
      while (unit < 0 || unit >= this.range) {
        const radius = Math.sqrt(-2 * Math.log(1 - this.random.fraction()));
        const z = radius * Math.cos(2 * Math.PI * this.random.fraction());
        unit = Math.floor((0.5 + z * this.deviation) * this.range);
      }
      out[i] = unit;
    }
  }
}

/** Checks the text of `randomDistribution` and gives its parts. */
export function parseDistribution(text: string): { kind: string; value: number } {
  const [kind = '', argument = ''] = text.split(':', 2);
  const value = argument === '' ? NaN : Number(argument);
  if (kind === 'random' && argument === '') return { kind, value: 0 };
  if (kind === 'zipf' && value > 0 && value !== 1 && value < 10) return { kind, value };
  if (kind === 'pareto' && value > 0 && value < 1) return { kind, value };
  if (kind === 'normal' && value > 0 && value <= 100) return { kind, value };
  throw new PenstockError('BAD_OPTION', `random-distribution '${text}' is not one that is known`, {
    hint: 'random, zipf:THETA (above 0, not 1), pareto:H (0 to 1), normal:DEVIATION (percent)',
    exitCode: 2,
  });
}

/** The chooser of a random workload over `range` units. */
export function randomChooser(distribution: string, range: number, random: Random): Chooser {
  const { kind, value } = parseDistribution(distribution);
  if (range === 1) return new Sequential(1);
  if (kind === 'zipf') return new Zipf(range, random, value);
  if (kind === 'pareto') return new Pareto(range, random, value);
  if (kind === 'normal') return new Normal(range, random, value / 100);
  return new Uniform(range, random);
}
