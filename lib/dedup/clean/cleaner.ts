// Cleaner: empties extents with few blocks in use, a part a round (docs/decisions/0014). First the
// blocks of all victims are copied, then all maps are walked.
//
// Invariants
// 1. While a pass is under way nothing is put to its victims, and no set finds their blocks: a
//    block there that has no reference gets none, and its place is nobody else's.
// 2. Every step leaves a state that a checkpoint may take: a crash loses no more than the pass.
// 3. Who is asked to end while blocks are copied, stops: no map names a copy yet. Once maps are
//    walked it goes on without rests, for a while: what only some maps name anew is stored twice.

import { Stream } from '../space/allocator.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import { DIRTY_BEGIN } from '../durable/checkpoints.js';
import { CleanCopier } from './clean-copier.js';
import { CleanWalk } from './clean-walk.js';
import type { Engine } from '../engine.js';
import { Miss } from '../durable/pages.js';
import { Pace } from '../pace.js';

export const CLOSED = 'the pool is being closed';
export const NO_SPACE = 'there is no space';
/** Leaves that a round looks at. */
const LEAVES = 8;
/** How long a walk goes on that is to end. */
const HURRY_MS = 10_000;

export class Cleaner {
  /** A pass is under way, and its steps. */
  held = false;
  active = false;
  /** Why it ended early; null: it did not. */
  stopped: string | null = null;
  copier: CleanCopier | null = null;
  walk: CleanWalk | null = null;
  /** Maps that hold what the pass needs. */
  holders: VolumeRecord[] = [];
  private readonly engine: Engine;
  private copying = false;
  /** Why it is to end, and till when it may go on. */
  private why: string | null = null;
  private tillMs = 0;
  private ended: () => void = () => undefined;
  private readonly pace: Pace;

  constructor(engine: Engine) {
    this.engine = engine;
    this.pace = new Pace(engine.numbered);
  }

  /** From here on nothing is put to these extents. */
  mark(victims: Float64Array): void {
    const { space } = this.engine.parts;
    for (let i = 0; i < victims.length; i++) space.victims.set(victims[i]!, i + 1);
    this.held = true;
    this.stopped = null;
    this.why = null;
  }

  /** Copies and walks; resolves at the end. Sets from before the marks have ended. */
  async run(victims: Float64Array): Promise<void> {
    const { engine } = this;
    const { parts } = engine;
    const holder = parts.catalogue.addHolder(Date.now());
    this.copier = new CleanCopier(parts, victims, holder);
    this.walk = new CleanWalk(parts, this.copier);
    this.holders = [holder];
    this.copying = true;
    this.active = true;
    const end = new Promise<void>((resolve) => (this.ended = resolve));
    engine.kick();
    await end;
  }

  /** Goes on; called once a round. */
  step(): void {
    const { engine, copier, walk } = this;
    const { pages, allocator } = engine.parts;
    if (copier === null || walk === null) return;
    if (copier.inFlight > 0) return;
    if (engine.closing) this.urge(CLOSED);
    const isLate = this.why !== null && (this.copying || performance.now() > this.tillMs);
    if (isLate) this.stopped ??= this.why;
    if (engine.failed !== null) this.stopped ??= 'the pool takes no changes';
    if (this.stopped !== null) return this.finish();
    for (let leaf = 0; leaf < LEAVES; leaf++) {
      if (this.pace.isResting() && this.why === null) return;
      if (!engine.mayEnter || pages.dirtyCount > pages.frames * DIRTY_BEGIN) return;
      this.pace.begin();
      allocator.full = false;
      const result = this.copying ? copier.step() : walk.step();
      if (result === Miss.wait) {
        if (copier.inFlight === 0 && engine.checkpoints.isFull()) this.stopped = NO_SPACE;
        return;
      }
      if (result === Miss.bad) this.stopped = 'a page of a map cannot be used';
      if (result === 0 && !this.copying) return this.finish();
      if (result === 0) this.copying = false;
      if (copier.inFlight > 0 || this.stopped !== null) return;
    }
  }

  /** It is to end soon. */
  urge(why: string): void {
    if (this.why !== null) return;
    this.why = why;
    this.tillMs = performance.now() + HURRY_MS;
  }

  /** Somebody finds no space who waits for it in vain. False: there is no more to be had here. */
  relieve(): boolean {
    if (!this.held || this.stopped !== null) return false;
    this.stopped = NO_SPACE;
    this.engine.parts.space.victims.clear();
    return true;
  }

  /** The pass is over. */
  end(): void {
    this.engine.parts.space.victims.clear();
    this.held = false;
    // Their tables take megabytes.
    this.copier = null;
    this.walk = null;
    this.holders = [];
  }

  private finish(): void {
    const { allocator, catalogue, space } = this.engine.parts;
    this.copier?.close();
    allocator.letGo(Stream.moves);
    if (this.stopped !== null) space.victims.clear();
    if (this.walk !== null) this.holders.push(this.walk.holder);
    // What nobody else names of it is free again.
    catalogue.deleting.push(...this.holders);
    this.active = false;
    this.pace.reset();
    this.ended();
  }
}
