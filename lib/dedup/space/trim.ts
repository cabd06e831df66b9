// Trim: free space is given back to the data device.
//
// Invariant: only what may be given out for new data is discarded: blocks without references whose
// freeing is durable, and groups that were never used. So neither the checkpoint nor a record of
// the journal after it names any of it (DEDUP, invariant 2). Writers go on at every await: what is
// free is asked for anew after each, and nothing comes between that and the discard.

import { Op, Status, statusError, type BlockDevice } from '../../hpdi/index.js';
import { DISCARDS_MOST } from './discards.js';
import type { Engine } from '../engine.js';
import { Group, Page } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import { Pace } from '../pace.js';
import { failure } from '../pool-open.js';

/** Shortest run that is discarded, in blocks. */
const RUN_MIN = 16;
/** Groups of one discard where nothing was ever used. */
const GROUPS_MOST = 16;
/** Groups between two turns of the event loop where nothing is to be done. */
const SLICE = 64;
/** As `lookMs`. */
const LOOK_MS = 1000;

export interface TrimOptions {
  onProgress?: (progress: { done: number; total: number; bytes: number }) => void;
  /** Ends it early, in order. */
  signal?: AbortSignal;
  /** Time between two looks at who has the pool (1000). */
  lookMs?: number;
}

/**
 * Discards all free space that there is; resolves with how many bytes. Errors: UNSUPPORTED,
 * POOL_FAILED, POOL_BUSY, the device's.
 */
export async function trimPool(
  engine: Engine,
  device: BlockDevice,
  options: TrimOptions,
): Promise<number> {
  if ((device.info.operations & (1 << Op.DISCARD)) === 0) {
    throw statusError(`a trim of ${device.uri}`, device.explain(Status.UNSUPPORTED));
  }
  // What was freed so far is free for good after it.
  if (!(await engine.checkpoint())) throw failure(engine);
  const { discards } = engine.parts.space;
  discards.broken = 0;
  const run = new Trim(engine, options);
  try {
    await run.used();
    await run.unused();
  } finally {
    while (discards.inFlight > 0) await engine.turn();
  }
  // It ended early, and what it looked at may be another's by now.
  if (engine.failed !== null) throw failure(engine);
  if (discards.broken !== 0) {
    throw statusError(`a discard on ${device.uri}`, device.explain(discards.broken));
  }
  return run.bytes;
}

class Trim {
  bytes = 0;
  private readonly engine: Engine;
  private readonly options: TrimOptions;
  private lookedMs = performance.now();
  private readonly pace: Pace;

  constructor(engine: Engine, options: TrimOptions) {
    this.engine = engine;
    this.pace = new Pace(engine.numbered);
    this.options = options;
  }

  /** Free runs of the groups that are in use. */
  async used(): Promise<void> {
    const { space } = this.engine.parts;
    for (let group = space.firstGroup; group < space.highWater && !this.ended; group++) {
      if (group % SLICE === 0) await new Promise((resolve) => setImmediate(resolve));
      for (let page = 0; page < Group.pages && !this.ended;) {
        if (this.isLookDue) await this.look();
        const isBusy = this.isBusy;
        const counts = this.isFull(group) ? Miss.bad : space.count(group);
        // What cannot be read is left as it is.
        if (counts === Miss.bad) break;
        if (counts === Miss.wait || isBusy) {
          await this.engine.turn();
          continue;
        }
        if (this.ended) return; // a look may have found another owner
        const pbn = group * Group.pages + page;
        const length = this.runAt(counts, pbn);
        if (length >= RUN_MIN) this.begin(pbn, length);
        page += Math.max(1, length);
      }
      this.tell(group + 1);
    }
  }

  /** Groups that were never used: they may hold what was there before the pool. */
  async unused(): Promise<void> {
    const { space } = this.engine.parts;
    let group = space.highWater;
    while (!this.ended) {
      if (this.isBusy) {
        await this.engine.turn();
        continue;
      }
      if (this.isLookDue) {
        await this.look();
        if (this.ended) return;
      }
      // Some may be in use by now: writers went on meanwhile.
      group = Math.max(group, space.highWater);
      if (group >= space.endGroup) return;
      const groups = Math.min(GROUPS_MOST, space.endGroup - group);
      this.begin(group * Group.pages, groups * Group.pages);
      group += groups;
      this.tell(group);
    }
  }

  private get isLookDue(): boolean {
    return performance.now() - this.lookedMs >= (this.options.lookMs ?? LOOK_MS);
  }

  /**
   * Looks whether the pool is this owner's still, which a checkpoint does: what is free here may be
   * what another one has filled.
   */
  private async look(): Promise<void> {
    await this.engine.checkpoint();
    // A slow one is no reason for the next.
    this.lookedMs = performance.now();
  }

  /** Free blocks from one on that follow each other, in its extent. */
  private runAt(counts: number, pbn: number): number {
    const { space, allocator } = this.engine.parts;
    const page = pbn % Group.extentPages;
    if (page < Group.metaPages || allocator.isOpen(Math.floor(pbn / Group.extentPages))) return 0;
    let length = 0;
    while (page + length < Group.extentPages && space.isFree(counts, pbn + length)) length++;
    return length;
  }

  private begin(pbn: number, pages: number): void {
    const { space, io } = this.engine.parts;
    space.discards.begin(io, pbn, pages);
    this.pace.reset(); // the rest is after this one alone
    this.pace.begin();
    this.bytes += pages * Page.bytes;
  }

  private isFull(group: number): boolean {
    const { space } = this.engine.parts;
    const summary = space.summary(group);
    if (summary < 0) return false;
    for (let k = 0; k < Group.extents; k++) {
      if (space.usedIn(summary, group * Group.extents + k) < Group.blocks) return false;
    }
    return true;
  }

  /** No discard is to begin now: while volumes are at work there is one at a time. */
  private get isBusy(): boolean {
    const { inFlight } = this.engine.parts.space.discards;
    if (inFlight === 0) return this.pace.isResting();
    return inFlight >= DISCARDS_MOST || this.pace.atWork(performance.now());
  }

  private get ended(): boolean {
    const { engine, options } = this;
    if (engine.closing || engine.failed !== null || options.signal?.aborted === true) return true;
    return engine.parts.space.discards.broken !== 0;
  }

  private tell(group: number): void {
    const { firstGroup, endGroup } = this.engine.parts.space;
    const { bytes } = this;
    this.options.onProgress?.({ done: group - firstGroup, total: endGroup - firstGroup, bytes });
  }
}
