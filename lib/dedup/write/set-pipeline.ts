// SetPipeline: sets on their way from their requests to the journal, each in one list at a time.
//
// Invariants
// 1. What a set has looked at stays what it is until the set has ended: a checkpoint waits for the
//    sets that began before it until it frees anything.
// 2. Such a checkpoint waits for the device alone: a set that waits for something else, which may
//    be that very checkpoint, gives up what it has and is planned anew, in the time of the next.

import { Status } from '../../hpdi/index.js';
import { NO_SPACE } from '../clean/cleaner.js';
import { Phase } from '../durable/checkpoint.js';
import { Miss } from '../durable/pages.js';
import type { EngineParts } from '../engine-parts.js';
import { DIRTY_MOST, type Engine } from '../engine.js';
import { Stage } from '../stats/stage-clock.js';
import { Plan } from './planner.js';
import { Fifo, SETS } from './sets.js';

export class SetPipeline {
  private readonly engine: Engine;
  private readonly parts: EngineParts;
  private readonly toCopy = new Fifo(SETS);
  private readonly toHash = new Fifo(SETS);
  private readonly toPlan = new Fifo(SETS);
  private readonly toMend = new Fifo(SETS);
  private readonly toEnter = new Fifo(SETS);
  private readonly toEnd = new Fifo(SETS);

  constructor(engine: Engine) {
    this.engine = engine;
    this.parts = engine.parts;
  }

  /** A set was filled: it is to be written. */
  add(set: number): void {
    if (this.parts.intake === null) this.toHash.push(set);
    else this.toCopy.push(set);
  }

  /** Fingerprints of the first that were added; false: those of all are there. */
  hash(): boolean {
    const { hasher, clock, intake } = this.parts;
    intake?.take(this.toCopy, this.toHash);
    if (this.toHash.length === 0) return false;
    const was = clock.turn(Stage.hash);
    hasher.hash(this.toHash, this.toPlan);
    clock.turn(was);
    return this.toHash.length > 0;
  }

  /** The device, or low-latency memory, has answered a request of a set. */
  answered(set: number, status: number): void {
    const { sets } = this.parts;
    if (status !== Status.OK && sets.statuses[set] === 0) sets.statuses[set] = status;
    sets.atDevice[set] = sets.atDevice[set]! - 1;
    if (sets.atDevice[set] === 0) this.toMend.push(set);
  }

  /** Sets that have nothing at the device: those that were compared may have new blocks. */
  mend(): void {
    const { engine } = this;
    const { sets, planner, space, checkpoint } = this.parts;
    for (let left = this.toMend.length; left > 0; left--) {
      const set = this.toMend.head;
      let plan = Plan.done;
      if (sets.statuses[set] === 0 && engine.failed === null) {
        plan = planner.again(set);
        const isNone = plan === Plan.noSpace;
        if (isNone && (space.discards.inFlight > 0 || engine.cleaner.relieve())) plan = Plan.wait;
        if (plan === Plan.wait && sets.atDevice[set] === 0) return;
        if (plan === Plan.noSpace) sets.statuses[set] = Status.NO_SPACE;
      }
      this.toMend.shift();
      // (What is with the device now comes here again.)
      if (sets.atDevice[set] !== 0) continue;
      if (sets.statuses[set] !== 0 || engine.failed !== null) {
        this.setFailed(set);
      } else if (plan === Plan.checkpoint) {
        // Nor does it hold up the checkpoint which frees what it needs.
        if (checkpoint.phase === Phase.idle) engine.wanted = true;
        sets.unequal[set] = 1;
        this.giveUp(set);
        this.toPlan.push(set);
      } else {
        this.toEnter.push(set);
      }
    }
  }

  /**
   * Looks for what is stored already, and gives the rest its place, in the order of the sets.
   * False: one of them has to wait.
   */
  plan(): boolean {
    const { engine } = this;
    const { sets, planner, checkpoint, pages } = this.parts;
    while (this.toPlan.length > 0) {
      const set = this.toPlan.head;
      if (engine.failed !== null || sets.statuses[set] !== 0) {
        this.toPlan.shift();
        this.begin(set);
        this.setFailed(set);
        continue;
      }
      if (this.holdsUp(set)) this.giveUp(set);
      if (pages.kept + pages.reservedCount > pages.frames * DIRTY_MOST) {
        engine.wanted = true;
        return false;
      }
      // From the first look at stored blocks on, none of them may become another.
      this.begin(set);
      const plan = planner.plan(set);
      if (plan === Plan.wait) return false;
      if (plan === Plan.checkpoint || (plan === Plan.noSpace && this.isFreeing)) {
        // The checkpoint frees what nobody looks at.
        this.giveUp(set);
        if (checkpoint.phase === Phase.idle && plan === Plan.checkpoint) engine.wanted = true;
        return false;
      }
      this.toPlan.shift();
      if (plan === Plan.noSpace) {
        sets.statuses[set] = Status.NO_SPACE;
        this.setFailed(set);
      } else if (sets.atDevice[set] === 0) {
        this.toEnter.push(set);
      }
    }
    return true;
  }

  /** Sets whose data is with the device go into maps, counts and journal. */
  enter(): void {
    if (this.toEnter.length === 0) return;
    const { clock } = this.parts;
    const was = clock.turn(Stage.enter);
    this.enterSets();
    clock.turn(was);
  }

  /** Sets whose entry is with the device are complete. */
  end(): void {
    const { sets, journal } = this.parts;
    while (this.toEnd.length > 0) {
      const set = this.toEnd.head;
      if (sets.seqs[set]! > journal.completed) {
        if (this.engine.failed === null) return;
        sets.statuses[set] = Status.DEVICE_ERROR;
      }
      this.toEnd.shift();
      this.leave(set);
      this.give(set);
    }
  }

  private enterSets(): void {
    const { engine } = this;
    const { sets, allocator, space, journal } = this.parts;
    while (this.toEnter.length > 0) {
      if (engine.failed === null && !engine.mayEnter) {
        // What waits for its counts goes on by itself.
        if (space.unsettled === 0) this.makeWay(false);
        return;
      }
      const set = this.toEnter.head;
      allocator.full = false; // what it says is of this set, then
      let result = engine.failed === null ? engine.entering.enter(set) : Miss.bad;
      if (result === Miss.wait && engine.checkpoints.isFull()) {
        sets.statuses[set] = Status.NO_SPACE;
        result = Miss.bad;
      }
      if (result === Miss.wait) {
        if (allocator.full || journal.isFull) this.makeWay(allocator.full);
        return;
      }
      this.toEnter.shift();
      if (result === 0) {
        this.toEnd.push(set);
        continue;
      }
      const isOwn = engine.failed === null && sets.statuses[set] === 0;
      if (isOwn) sets.statuses[set] = engine.pageStatus();
      this.setFailed(set);
    }
  }

  /** Whether a checkpoint that has nothing else to do waits for a set. */
  private holdsUp(set: number): boolean {
    const { sets, checkpoint } = this.parts;
    return checkpoint.waitsFor(sets.parities[set]! - 1);
  }

  /**
   * Sets that are to be entered, and cannot be, hold up no checkpoint. Where no node is left they
   * have what it frees; who finds none after that gets NO_SPACE.
   */
  private makeWay(isFull: boolean): void {
    const { sets, checkpoint } = this.parts;
    if (checkpoint.phase !== Phase.releasing) return;
    for (let left = this.toEnter.length; left > 0; left--) {
      const set = this.toEnter.shift();
      if (!this.holdsUp(set)) {
        this.toEnter.push(set);
      } else if (isFull && sets.gaveUp[set] !== 0) {
        sets.statuses[set] = Status.NO_SPACE;
        this.setFailed(set);
      } else {
        if (isFull) sets.gaveUp[set] = 1;
        this.giveUp(set);
        this.toPlan.push(set);
      }
    }
  }

  /** A set holds nothing any more: it is to be planned anew. It has nothing at the device. */
  private giveUp(set: number): void {
    this.parts.planner.forget(set);
    this.leave(set);
  }

  /** What finds no space now may find some in a moment. */
  private get isFreeing(): boolean {
    const { checkpoint, space } = this.parts;
    const { cleaner } = this.engine;
    if (cleaner.held) {
      cleaner.urge(NO_SPACE);
      return true;
    }
    return checkpoint.phase !== Phase.idle || space.discards.inFlight > 0;
  }

  private begin(set: number): void {
    const { sets, checkpoint, space } = this.parts;
    if (sets.parities[set] !== 0) return;
    const parity = space.generation & 1;
    sets.parities[set] = parity + 1;
    checkpoint.readers[parity] = checkpoint.readers[parity]! + 1;
  }

  private leave(set: number): void {
    const { sets, checkpoint } = this.parts;
    const parity = sets.parities[set]! - 1;
    sets.parities[set] = 0;
    checkpoint.readers[parity] = checkpoint.readers[parity]! - 1;
  }

  /** It never ends well: without a reason of its own it fails with the pool. */
  private setFailed(set: number): void {
    const { sets, planner } = this.parts;
    if (sets.statuses[set] === 0) sets.statuses[set] = Status.DEVICE_ERROR;
    planner.undo(set);
    this.leave(set);
    this.give(set);
  }

  private give(set: number): void {
    const { sets, intake } = this.parts;
    sets.queues[set]!.setEnded(set);
    intake?.give(set);
    sets.give(set);
  }
}
