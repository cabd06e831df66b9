// Volumes of other sizes.
//
// Invariants
// 1. A size counts from the checkpoint that has it on: nobody writes beyond the old end before it
//    is durable, so the journal's records lie within the sizes of the checkpoint before them.
// 2. A volume that becomes smaller is cut in one step: what its map named beyond the end is then a
//    map of its own, of a volume that is being deleted.

import { PenstockError } from '../../errors.js';
import { explainStatus, Status, statusError } from '../../hpdi/index.js';
import { assertBytes, LEAF_BYTES, type VolumeRecord } from './catalogue.js';
import type { Engine } from '../engine.js';
import { Magic, Node, Page, VolumeState } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import { failure } from '../pool-open.js';
import { levelOf } from './trees.js';

/** Errors: NO_SUCH_VOLUME, VOLUME_BUSY, BAD_SIZE, READ_ONLY, WOULD_SHRINK, NO_SPACE. */
export async function resizeVolume(
  engine: Engine,
  name: string,
  bytes: number,
  shrink: boolean,
): Promise<void> {
  const { catalogue } = engine.parts;
  assertBytes(bytes);
  const volume = catalogue.get(name);
  if (volume.state === VolumeState.snapshot) {
    throw new PenstockError('READ_ONLY', `'${name}' is a snapshot`, {
      hint: 'a snapshot keeps its size; change that of a clone of it',
      exitCode: 3,
    });
  }
  if (bytes < volume.bytes) assertMayShrink(volume, bytes, shrink);
  if (engine.copies.some(({ from }) => from === volume)) throw busy(volume, 'is being copied');
  catalogue.resizing.add(volume);
  try {
    const level = levelOf(Math.ceil(bytes / LEAF_BYTES));
    if (bytes < volume.bytes) await cut(engine, volume, bytes, level);
    else await raise(engine, volume, bytes, level);
    if (!(await engine.checkpoint())) throw failure(engine);
  } finally {
    catalogue.resizing.delete(volume);
    engine.kick();
  }
}

function assertMayShrink(volume: VolumeRecord, bytes: number, shrink: boolean): void {
  if (!shrink) {
    const lost = volume.bytes - bytes;
    throw new PenstockError('WOULD_SHRINK', `the last ${lost} bytes of '${volume.name}' would go`, {
      hint: '--shrink cuts them off for good; a snapshot before keeps them',
      exitCode: 2,
    });
  }
  if (volume.users > 0) throw busy(volume, 'is open');
}

function busy(volume: VolumeRecord, why: string): PenstockError {
  return new PenstockError('VOLUME_BUSY', `the volume '${volume.name}' ${why}`, {
    hint: 'close it first, or wait for that',
    exitCode: 3,
  });
}

/** In one step: a checkpoint between would have a root that no volume names, or too high a one. */
async function raise(
  engine: Engine,
  volume: VolumeRecord,
  bytes: number,
  level: number,
): Promise<void> {
  const { trees, allocator, checkpoint } = engine.parts;
  const { level: before } = volume;
  /** Checkpoints that are to be done before no room counts; 0: there was some. */
  let fullTill = 0;
  await until(engine, () => {
    while (volume.level < level && trees.raise(volume));
    if (volume.level >= level) {
      volume.bytes = bytes;
      volume.changed = true;
      return 0;
    }
    trees.lower(volume, before);
    if (!allocator.full) return Miss.wait;
    // What was taken back makes room with a checkpoint, but no more than there was.
    if (fullTill === 0) fullTill = checkpoint.done + 2;
    if (checkpoint.done >= fullTill) throw mapError(Status.NO_SPACE);
    return Miss.wait;
  });
}

async function cut(
  engine: Engine,
  volume: VolumeRecord,
  bytes: number,
  level: number,
): Promise<void> {
  const { catalogue, trees } = engine.parts;
  const block = bytes / Page.bytes;
  const lost = await mappedFrom(engine, volume, block);
  const tail = catalogue.addTail(volume, Date.now());
  try {
    await until(engine, () => {
      tail.changed = true;
      volume.changed = true;
      const result = trees.cut(volume, tail, block);
      if (result < 0) return result;
      trees.lower(volume, level);
      volume.bytes = bytes;
      volume.mapped -= lost;
      catalogue.reserve(volume, Math.min(volume.reserved, block));
      return 0;
    });
  } finally {
    trees.forget(volume);
    catalogue.deleting.push(tail);
  }
}

/** Blocks that a map has from one on; nobody writes to the volume meanwhile. */
async function mappedFrom(engine: Engine, volume: VolumeRecord, block: number): Promise<number> {
  const { trees } = engine.parts;
  let mapped = 0;
  for (let leaf = Math.floor(block / Node.entries); ; leaf++) {
    // -1 says that there is none, and Misses are one less.
    const found = (await look(engine, () => trees.nextLeaf(volume, leaf) + 1)) - 1;
    if (found < 0) return mapped;
    leaf = found;
    const frame = await look(engine, () => trees.leaf(volume, leaf, Magic.node));
    const first = leaf * Node.entries;
    for (let e = Math.max(0, block - first); e < Node.entries; e++) {
      if (trees.entry(frame, e) !== 0) mapped++;
    }
  }
}

/** Asks until the answer is no Miss.wait, while others go on. Throws what stands in the way. */
async function look(engine: Engine, ask: () => number): Promise<number> {
  for (;;) {
    const answer = ask();
    if (engine.failed !== null) throw failure(engine);
    if (answer === Miss.bad) throw mapError(engine.pageStatus());
    if (answer !== Miss.wait) return answer;
    await engine.turn();
  }
}

/** As `look`, of what changes maps: it has its turn between checkpoints, and may find no space. */
async function until(engine: Engine, change: () => number): Promise<void> {
  const { allocator } = engine.parts;
  for (;;) {
    if (engine.failed !== null) throw failure(engine);
    if (engine.mayEnter) {
      allocator.full = false;
      const result = change();
      if (result === Miss.bad) throw mapError(engine.pageStatus());
      if (result !== Miss.wait) return;
      if (engine.checkpoints.isFull()) throw mapError(Status.NO_SPACE);
    }
    engine.run();
    await engine.turn();
  }
}

function mapError(status: number): PenstockError {
  return statusError('the map of the volume', explainStatus(status));
}
