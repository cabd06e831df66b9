// StageClock: how much of the processor's time each stage of a write takes.
//
// Time belongs to one stage at a time: a stage within another stops the outer one's. The clock is
// read where a stage begins and ends with something to do, once for all that it does in a round.

import type { Ticks } from './ticks.js';

export const enum Stage {
  /** None of those below, and all that is not the pool. */
  other = 0,
  hash = 1,
  lookUp = 2,
  compare = 3,
  enter = 4,
  journal = 5,
  /** Of a checkpoint: what it does in one step, at its beginning. */
  checkpoint = 6,
  stages = 7,
}

const TWO_32 = 4294967296;

export class StageClock {
  /** By stage. */
  readonly ticks = new Float64Array(Stage.stages);
  private readonly clock: Ticks;
  private readonly last = new Uint32Array(2);
  private stage: number = Stage.other;

  constructor(clock: Ticks) {
    this.clock = clock;
  }

  /** A stage begins, and another one stops: returns that, to be turned back to. */
  turn(stage: number): number {
    const { clock, last, ticks, stage: was } = this;
    const { words } = clock;
    clock.read();
    ticks[was] = ticks[was]! + (words[1]! - last[1]!) * TWO_32 + (words[0]! - last[0]!);
    last[0] = words[0]!;
    last[1] = words[1]!;
    this.stage = stage;
    return was;
  }
}
