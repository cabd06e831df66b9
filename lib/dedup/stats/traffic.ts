// Traffic: what volumes were asked since the pool was opened, what reads took from the devices, and
// how long a sample of them took.

import { Latency, UNIT_TICKS, UNITS_MAX } from './latency.js';
import { Ticks } from './ticks.js';

const TWO_32 = 4294967296;
/** One read in so many is timed: a prime, so that it meets every place of batches. */
const EVERY = 61;
/** No slot of a queue has this number. */
const NO_SLOT = 2 ** 30;

/** Where the blocks of a read came from; both is a sum. */
export const enum Tier {
  none = 0,
  device = 1,
  llrrm = 2,
}

/** Of a pool. */
export class Traffic {
  readonly ticks = new Ticks();
  readonly sinceMs = performance.now();
  reads = 0;
  blocksRead = 0;
  /** Requests to the data device for them. */
  deviceReads = 0;
  writes = 0;
  blocksWritten = 0;
  /** Of reads that one tier served, with the pages of their map in memory. */
  readonly device = new Latency();
  readonly llrrm = new Latency();
}

/** Of a queue: the read that is being timed, one at a time. */
export class ReadSample {
  /** -1: none; NO_SLOT: one without. */
  slot = -1;
  tier: number = Tier.none;
  private readonly traffic: Traffic;
  private readonly began = new Uint32Array(2);
  private left = EVERY;

  constructor(traffic: Traffic) {
    this.traffic = traffic;
  }

  // hot:begin

  /** Which of `count` reads that begin now is to be timed; -1: none. */
  due(count: number): number {
    const { left } = this;
    if (count < left) {
      this.left = left - count;
      return -1;
    }
    this.left = EVERY - ((count - left) % EVERY);
    return this.slot < 0 ? left - 1 : -1;
  }

  /** The time begins; whoever knows the slot says so, and each tier that is asked. */
  begin(): void {
    const { ticks } = this.traffic;
    const { began } = this;
    this.tier = Tier.none;
    ticks.read();
    began[0] = ticks.words[0]!;
    began[1] = ticks.words[1]!;
  }

  /** The read has no slot, and one tier serves it. */
  waitFor(tier: Tier): void {
    this.slot = NO_SLOT;
    this.tier = tier;
  }

  /** It is complete. */
  end(isGood: boolean): void {
    const { traffic, began, tier } = this;
    this.slot = -1;
    if (!isGood || (tier !== Tier.device && tier !== Tier.llrrm)) return;
    const { ticks } = traffic;
    const { words } = ticks;
    ticks.read();
    const took = (words[1]! - began[1]!) * TWO_32 + (words[0]! - began[0]!);
    const units = Math.min(took / UNIT_TICKS, UNITS_MAX) | 0;
    if (tier === Tier.device) traffic.device.record(units);
    else traffic.llrrm.record(units);
  }

  /** It waits for something else than a tier. */
  forget(): void {
    this.slot = -1;
  }

  // hot:end
}
