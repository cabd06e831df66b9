// How the volumes of a pool lie on its device, as who reads each of them from its start to its end
// meets it: the price of sharing blocks (SEEDS, the THN page).

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { VolumeRecord } from './catalogue.js';
import type { Engine } from '../engine.js';
import { Group, Magic, Node } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import { pageError } from '../durable/errors.js';

/** Leaves between two turns of the event loop. */
const SLICE = 64;

export interface ReadExtents {
  /** Blocks that volumes map. */
  readonly blocks: number;
  /** Series of blocks that follow each other on the device; holes between them end none. */
  readonly extents: number;
  /** Of those, the ones that only the pages of metadata of an extent part from the one before. */
  readonly seams: number;
}

/** Counts the read extents of one volume after the other. */
export class ExtentCounter {
  blocks = 0;
  extents = 0;
  seams = 0;
  private last = -1;

  /** The next blocks are another volume's. */
  begin(): void {
    this.last = -1;
  }

  /** The next block of the volume that is no hole. */
  add(pbn: number): void {
    this.blocks++;
    if (pbn !== this.last + 1 || this.last < 0) {
      this.extents++;
      if (this.last >= 0 && pbn === this.last + 1 + Group.metaPages && startsExtent(pbn)) {
        this.seams++;
      }
    }
    this.last = pbn;
  }

  get result(): ReadExtents {
    const { blocks, extents, seams } = this;
    return { blocks, extents, seams };
  }
}

function startsExtent(pbn: number): boolean {
  return pbn % Group.extentPages === Group.metaPages;
}

/**
 * Calls `block` for each block that a volume maps, in order, from its map as it is when a leaf is
 * looked at. Throws POOL_CORRUPT, DEVICE_CLOSED when the pool is closed meanwhile, the device's.
 */
export async function eachBlock(
  engine: Engine,
  device: BlockDevice,
  volume: VolumeRecord,
  block: (lbn: number, pbn: number) => void,
): Promise<void> {
  const { trees, pages } = engine.parts;
  volume.users++; // nobody deletes it meanwhile
  try {
    for (let leaf = 0, seen = 0; ;) {
      if (engine.closing) throw closedError();
      const next = trees.nextLeaf(volume, leaf);
      if (next === -1) return;
      // Below -1 stands a Miss.
      const frame = next < 0 ? next + 1 : trees.leaf(volume, next, Magic.node);
      if (frame === (Miss.bad as number)) throw pageError(pages, device);
      if (frame < 0) {
        await engine.turn();
        continue;
      }
      for (let e = 0; e < Node.entries; e++) {
        const pbn = trees.entry(frame, e);
        if (pbn !== 0) block(next * Node.entries + e, pbn);
      }
      leaf = next + 1;
      if (++seen % SLICE === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  } finally {
    volume.users--;
  }
}

/** Of all volumes, snapshots among them. */
export async function readExtents(engine: Engine, device: BlockDevice): Promise<ReadExtents> {
  const counter = new ExtentCounter();
  const { catalogue } = engine.parts;
  for (const volume of catalogue.list) {
    if (!catalogue.list.includes(volume)) continue; // deleted meanwhile
    counter.begin();
    await eachBlock(engine, device, volume, (_, pbn) => counter.add(pbn));
  }
  return counter.result;
}

function closedError(): PenstockError {
  return new PenstockError('DEVICE_CLOSED', 'the pool was closed while its maps were read', {
    hint: 'let it end before the pool is closed',
  });
}
