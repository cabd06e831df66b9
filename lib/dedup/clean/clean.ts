// Cleaning of a pool: which extents are worth it, and what a pass has come to.

import { PenstockError } from '../../errors.js';
import { CLOSED, NO_SPACE } from './cleaner.js';
import type { Engine } from '../engine.js';
import { Group } from '../format/layout.js';
import { failure } from '../pool-open.js';

/** Victims of a pass, and at most; blocks in use of one. */
const VICTIMS = 256;
const VICTIMS_MOST = 4096;
const USED = 126;
/** Of the empty extents a pass takes a part, and leaves some for nodes. */
const ROOM_PART = 2;
const EXTENTS_LEFT = 2;
/** Groups between two turns of the event loop. */
const SLICE = 64;

export interface CleanOptions {
  /** An extent with more blocks in use than that is left as it is (126 of 253). */
  maxUsed?: number;
  /** Extents of one pass at most, those with the fewest blocks first (256). */
  maxVictims?: number;
  /** Called once a second, and at the end. What it throws ends the pass, and is its error. */
  onProgress?: (progress: { copied: number; leaves: number }) => void;
  /** Ends it early, in order. */
  signal?: AbortSignal;
}

export interface CleanReport {
  /** Extents that were to be emptied, and that are. */
  readonly victims: number;
  readonly freed: number;
  /** Blocks that were copied; leaves of maps that name copies; shared nodes that were copied. */
  readonly moved: number;
  readonly leaves: number;
  readonly sharedNodes: number;
  /** Why it ended early; null: it did not. */
  readonly stopped: string | null;
}

/** One pass. Errors: BAD_OPTION, POOL_FAILED. */
export async function cleanPool(engine: Engine, options: CleanOptions): Promise<CleanReport> {
  const maxUsed = limit('maxUsed', options.maxUsed ?? USED, Group.blocks - 1);
  const maxVictims = limit('maxVictims', options.maxVictims ?? VICTIMS, VICTIMS_MOST);
  const { cleaner } = engine;
  // What was freed so far needs not be moved, and makes room.
  await checkpoint(engine);
  const chosen = await choose(engine, maxUsed, maxVictims);
  const victims = chosen.filter((extent) => !engine.parts.allocator.isOpen(extent));
  if (victims.length === 0) {
    const stopped = engine.closing ? CLOSED : null;
    return { victims: 0, freed: 0, moved: 0, leaves: 0, sharedNodes: 0, stopped };
  }
  const stop = (): void => cleaner.urge('it was interrupted');
  const thrown: unknown[] = [];
  const tell = (): void => {
    const { copier, walk } = cleaner;
    try {
      options.onProgress?.({ copied: copier?.copied ?? 0, leaves: walk?.leaves ?? 0 });
    } catch (error) {
      thrown.push(error);
      stop();
    }
  };
  const timer = setInterval(tell, 1000);
  cleaner.mark(victims);
  try {
    // Sets and reads that began before end before it does.
    await checkpoint(engine);
    options.signal?.addEventListener('abort', stop);
    if (options.signal?.aborted === true) stop();
    await cleaner.run(victims);
    const { deleting } = engine.parts.catalogue;
    const isLeft = (): boolean => deleting.some((volume) => cleaner.holders.includes(volume));
    while (!engine.closing && engine.failed === null && isLeft()) {
      engine.run();
      await engine.turn();
    }
    if (engine.failed !== null) throw failure(engine);
    if (!engine.closing) await checkpoint(engine);
    const freed = await emptied(engine, victims);
    const { copier, walk } = cleaner;
    // (The last of it comes free when the pool is opened again.)
    const short = copier?.isShort === true ? NO_SPACE : null;
    const stopped = cleaner.stopped ?? (engine.closing ? CLOSED : short);
    const moved = copier?.copied ?? 0;
    const { leaves = 0, held: sharedNodes = 0 } = walk ?? {};
    tell();
    if (thrown.length > 0) throw thrown[0];
    return { victims: victims.length, freed, moved, leaves, sharedNodes, stopped };
  } finally {
    options.signal?.removeEventListener('abort', stop);
    clearInterval(timer);
    cleaner.end();
  }
}

function limit(name: string, value: number, most: number): number {
  if (Number.isInteger(value) && value >= 1 && value <= most) return value;
  throw new PenstockError('BAD_OPTION', `${name} is from 1 to ${most}, not ${value}`, {
    hint: 'leave it out for a good value',
    exitCode: 2,
  });
}

async function checkpoint(engine: Engine): Promise<void> {
  if (!(await engine.checkpoint())) throw failure(engine);
}

/** The extents of blocks with the fewest in use, by number, as many as there is room for. */
async function choose(engine: Engine, maxUsed: number, most: number): Promise<Float64Array> {
  const { space, allocator, catalogue } = engine.parts;
  let found: { extent: number; used: number }[] = [];
  const best = (): void => {
    found = found.sort((a, b) => a.used - b.used || a.extent - b.extent).slice(0, most);
  };
  for (let group = space.firstGroup; group < space.highWater; group++) {
    if (engine.closing) return new Float64Array(0);
    if (group % SLICE === 0) await new Promise((resolve) => setImmediate(resolve));
    const summary = await engine.answer(() => space.summary(group));
    if (summary < 0) continue; // what cannot be read stays
    for (let k = 0; k < Group.extents; k++) {
      const extent = group * Group.extents + k;
      const used = space.usedIn(summary, extent);
      if (used === 0 || used > maxUsed || space.holdsNodes(summary, extent)) continue;
      if (!allocator.isOpen(extent)) found.push({ extent, used });
    }
    if (found.length > 2 * most) best();
  }
  best();
  const empty = space.extentsEmpty - allocator.extentsKept - EXTENTS_LEFT;
  const room = Math.min(allocator.room - catalogue.promised(null), empty * Group.blocks);
  let blocks = 0;
  let count = 0;
  for (const { used } of found) {
    if ((blocks + used) * ROOM_PART > room) break;
    blocks += used;
    count++;
  }
  // It must be worth it.
  if (count <= Math.ceil(blocks / Group.blocks)) return new Float64Array(0);
  return Float64Array.from(found.slice(0, count), ({ extent }) => extent).sort();
}

async function emptied(engine: Engine, victims: Float64Array): Promise<number> {
  const { space } = engine.parts;
  let freed = 0;
  for (const extent of victims) {
    const group = Math.floor(extent / Group.extents);
    const summary = await engine.answer(() => space.summary(group));
    if (summary >= 0 && space.usedIn(summary, extent) === 0) freed++;
  }
  return freed;
}
