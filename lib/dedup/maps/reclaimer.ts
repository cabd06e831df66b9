// Reclaimer: takes the maps of deleted volumes apart in the background, a part a round, so that
// nobody waits for all of it; beside volumes at work there is a rest after each part, unless space
// is short. A crash loses no more than the parts since the last checkpoint.

import { NodesFor } from '../space/allocator.js';
import { DIRTY_BEGIN } from '../durable/checkpoints.js';
import type { Engine } from '../engine.js';
import { Miss } from '../durable/pages.js';
import { Pace } from '../pace.js';

/** Leaves that a round takes apart. */
const LEAVES = 8;
/** Part of a pool's blocks that are to be free for a rest. */
const SPARE = 1 / 16;

export class Reclaimer {
  private readonly engine: Engine;
  private readonly pace: Pace;

  constructor(engine: Engine) {
    this.engine = engine;
    this.pace = new Pace(engine.numbered);
  }

  step(): void {
    const { catalogue, trees, pages, allocator, space } = this.engine.parts;
    for (let leaf = 0; leaf < LEAVES && catalogue.deleting.length > 0; leaf++) {
      if (this.pace.isResting() && allocator.room > space.blocksTotal * SPARE) return;
      if (!this.engine.mayEnter || pages.dirtyCount > pages.frames * DIRTY_BEGIN) return;
      this.pace.begin();
      const volume = catalogue.deleting[0]!;
      volume.changed = true; // its root may move though the rest has to wait
      allocator.full = false;
      allocator.nodesFor = NodesFor.deleting;
      const result = trees.takeApart(volume);
      allocator.nodesFor = NodesFor.writes;
      if (result === Miss.wait) {
        // Where no node is left, it asks for a checkpoint, which frees some.
        this.engine.checkpoints.isFull();
        return;
      }
      space.settle(); // most of what a part takes
      if (result === 0) catalogue.gone(volume);
      // What of it cannot be read stays where it is, until the pool is opened again.
      if (result === Miss.bad) catalogue.deleting.shift();
    }
  }
}
