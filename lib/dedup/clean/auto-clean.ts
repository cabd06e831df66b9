// Cleaning by itself: now and then it is looked whether new data still finds empty extents, and a
// pass is begun where there will soon be none while much room is in holes. A pass that gained
// nothing puts the next one off, twice as long each time.

import { PenstockError } from '../../errors.js';
import type { Engine } from '../engine.js';
import { Group } from '../format/layout.js';
import type { CleanReport } from './clean.js';

/** Empty extents from which on, and free blocks outside of them up to which, nothing is done. */
const EMPTY_PART = 16;
const HOLES_PART = 16;
/** A pass needs some to copy to, beside those that are kept for nodes. */
const EMPTY_LEAST = 8;
const PUT_OFF_MOST = 64;
const EVERY_MS_LEAST = 10;
const EVERY_MS_MOST = 2 ** 31 - 1;

export class AutoClean {
  /** Passes that it has begun. */
  passes = 0;
  private readonly engine: Engine;
  private readonly clean: () => Promise<CleanReport>;
  private readonly timer: NodeJS.Timeout | null;
  private busy = false;
  private putOff = 1;
  private left = 1;

  /** Looks every so many ms; 0: never. Throws BAD_OPTION. */
  constructor(engine: Engine, everyMs: number, clean: () => Promise<CleanReport>) {
    if (everyMs !== 0 && !(everyMs >= EVERY_MS_LEAST && everyMs <= EVERY_MS_MOST)) {
      throw new PenstockError('BAD_OPTION', `cleaning cannot be looked for every ${everyMs} ms`, {
        hint: 'from 10 ms to 24 days: dedup.clean=1m; 0 for never',
        exitCode: 2,
      });
    }
    this.engine = engine;
    this.clean = clean;
    this.timer = everyMs === 0 ? null : setInterval(() => void this.look(), everyMs).unref();
  }

  close(): void {
    if (this.timer !== null) clearInterval(this.timer);
  }

  private async look(): Promise<void> {
    const { engine } = this;
    if (this.busy || engine.closing || engine.failed !== null || engine.holds > 0) return;
    if (!this.isWorthIt() || --this.left > 0) return;
    this.busy = true;
    this.passes++;
    try {
      const { freed } = await this.clean();
      this.putOff = freed > 0 ? 1 : Math.min(2 * this.putOff, PUT_OFF_MOST);
    } catch {
      // The pool has failed or was closed; who uses it is told so.
    }
    this.left = this.putOff;
    this.busy = false;
  }

  private isWorthIt(): boolean {
    const { space, allocator, catalogue } = this.engine.parts;
    const extents = space.blocksTotal / Group.blocks;
    const empty = space.extentsEmpty;
    if (empty > Math.max(extents / EMPTY_PART, allocator.extentsKept + EMPTY_LEAST)) return false;
    const free = allocator.room - catalogue.promised(null);
    return free - empty * Group.blocks > space.blocksTotal / HOLES_PART;
  }
}
