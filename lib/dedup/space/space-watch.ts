// SpaceWatch: how near a pool is to being full, for who would rather know before a write fails.

import { PenstockError } from '../../errors.js';
import type { Engine } from '../engine.js';

export type SpaceState = 'ok' | 'low' | 'critical' | 'full';

const LOW = 0.8;
const CRITICAL = 0.95;
/** A state that was told stays until so much less is used: no flood of messages at a threshold. */
const BACK = 1 / 64;
const LOOK_MS = 200;
/** From the best to the worst. */
export const SPACE_STATES: readonly SpaceState[] = ['ok', 'low', 'critical', 'full'];

export class SpaceWatch {
  private readonly engine: Engine;
  /** Used parts from which a state counts. */
  private readonly from: readonly number[];
  private readonly listeners = new Set<(state: SpaceState) => void>();
  private told = 0;
  private timer: NodeJS.Timeout | null = null;

  /** Throws BAD_OPTION. */
  constructor(engine: Engine, low = LOW, critical = CRITICAL) {
    if (!(low > 0 && low <= critical && critical <= 1)) {
      throw new PenstockError(
        'BAD_OPTION',
        `space cannot be low at ${low}, critical at ${critical}`,
        {
          hint: 'give parts of the pool from 0 to 1, the lower one first: 0.8 and 0.95',
          exitCode: 2,
        },
      );
    }
    this.engine = engine;
    this.from = [0, low, critical, 1];
  }

  /** Part of the pool that is in use or promised, 0 to 1. */
  get used(): number {
    const { space, allocator, catalogue } = this.engine.parts;
    // What the next checkpoint frees for blocks is as good as free; nodes' places are for nodes.
    const freed = space.reusable[0]! + space.reusable[1]!;
    const free = allocator.room + freed - catalogue.promised(null);
    return 1 - Math.max(0, free) / space.blocksTotal;
  }

  get state(): SpaceState {
    return SPACE_STATES[this.level(0)]!;
  }

  /** Calls `listener` at each change; the function that it gives ends that. */
  subscribe(listener: (state: SpaceState) => void): () => void {
    this.listeners.add(listener);
    if (this.timer === null) {
      this.told = this.level(0);
      this.timer = setInterval(() => this.look(), LOOK_MS).unref();
    }
    return () => {
      this.listeners.delete(listener);
      if (this.listeners.size === 0) this.close();
    };
  }

  close(): void {
    if (this.timer !== null) clearInterval(this.timer);
    this.timer = null;
  }

  private look(): void {
    const now = this.level(0) > this.told ? this.level(0) : Math.min(this.told, this.level(BACK));
    if (now === this.told) return;
    this.told = now;
    for (const listener of [...this.listeners]) listener(SPACE_STATES[now]!);
  }

  private level(more: number): number {
    const used = this.used + more;
    let level = SPACE_STATES.length - 1;
    while (used < this.from[level]!) level--;
    return level;
  }
}
