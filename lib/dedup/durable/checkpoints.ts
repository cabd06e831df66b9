// Checkpoints: when one begins, what is brought up to date before it, whether space waits for it.

import { NodesFor } from '../space/allocator.js';
import { Phase } from './checkpoint.js';
import type { Engine } from '../engine.js';
import { Miss } from './pages.js';
import { Stage } from '../stats/stage-clock.js';

/** Parts of cache and journal at which one begins. */
export const DIRTY_BEGIN = 0.3;
const JOURNAL_BEGIN = 0.4;
/** The same while somebody reads the last one: what is beyond would stop writers. */
const DIRTY_HELD = 0.45;
const JOURNAL_HELD = 0.7;

export class Checkpoints {
  /** Blocks that snapshots and clones have mapped. */
  copied = 0;
  private readonly engine: Engine;

  constructor(engine: Engine) {
    this.engine = engine;
  }

  /** Goes on with the one that is under way, or begins one that is due; called once a round. */
  step(): void {
    const { engine } = this;
    const { checkpoint, pages, journal, index, space, clock } = engine.parts;
    if (engine.failed !== null) {
      engine.wanted = false;
      return;
    }
    checkpoint.step();
    if (checkpoint.phase !== Phase.idle) return;
    const isHeld = engine.holds > 0;
    if (
      engine.next !== null ||
      pages.dirtyCount > pages.frames * (isHeld ? DIRTY_HELD : DIRTY_BEGIN) ||
      journal.needed > journal.capacity * (isHeld ? JOURNAL_HELD : JOURNAL_BEGIN)
    ) {
      engine.wanted = true;
    }
    if (!engine.wanted || !this.prepare()) return;
    engine.wanted = false;
    engine.next = null;
    // From here on their common root is of a checkpoint that is past, and nobody's alone.
    engine.copies.length = 0;
    const was = clock.turn(Stage.checkpoint);
    checkpoint.begin();
    clock.turn(was);
    index.maybeDouble(space.used);
  }

  /** No place is left for a node of a map, and no checkpoint would free one. */
  isFull(): boolean {
    const { engine } = this;
    const { allocator, space, checkpoint } = engine.parts;
    if (!allocator.full || space.discards.inFlight > 0) return false;
    if (checkpoint.phase !== Phase.idle || engine.wanted) return false;
    if (space.pending[0]! + space.pending[1]! === 0) return !engine.cleaner.relieve();
    engine.wanted = true;
    return false;
  }

  /** Brings catalogue and counts up to date; false: pages are on their way. */
  private prepare(): boolean {
    const { engine } = this;
    const { catalogue, trees, space, journal, allocator } = engine.parts;
    journal.commit();
    const { copies } = engine;
    for (let i = 0; i < copies.length; i++) {
      const copy = copies[i]!;
      if (copy.taken) continue;
      const { from, to } = copy;
      if (from.root !== 0) space.addRef(from.root);
      to.root = from.root;
      to.level = from.level;
      to.mapped = from.mapped;
      copy.taken = true;
      this.copied += to.mapped;
    }
    allocator.cataloguePages = catalogue.pages;
    allocator.nodesFor = NodesFor.catalogue;
    const written = catalogue.write(trees);
    allocator.nodesFor = NodesFor.writes;
    if (written === Miss.bad) engine.fail('a page of the catalogue cannot be used');
    if (written < 0) return false;
    return space.settle();
  }
}
