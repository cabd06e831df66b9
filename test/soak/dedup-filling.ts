// What fills a pool, so that places are given out again, to nodes and to blocks, as soon as they
// come free. Nobody watches it but the check.

import type { Pool } from '../../lib/dedup/index.js';
import { PenstockError } from '../../lib/errors.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import type { Memory } from '../../lib/memory/index.js';
import { fillBlock } from './dedup-model.js';
import type { Random } from './harness.js';

const PAGE = 4096;
/** Blocks of one write. */
const RUN = 64;
/** A volume whose blocks have a leaf of the map each. */
const WIDE_BYTES = 2 ** 40;
const LEAF = 512;
/** Above all contents of others; blocks have them in order first. */
const FIRST = 2 ** 31;

/** What finds no space is not done, or in part. */
export async function spared(work: Promise<void>): Promise<void> {
  await work.catch((error: unknown) => {
    if (!(error instanceof PenstockError) || error.code !== 'NO_SPACE') throw error;
  });
}

export class Filling {
  private readonly random: Random;
  private readonly memory: Memory;
  private blocks = 0;
  private content = FIRST;

  constructor(random: Random, memory: Memory) {
    this.random = random;
    this.memory = memory;
  }

  /** Until there is no space. */
  async fill(pool: Pool, bytes: number): Promise<void> {
    await pool.createVolume('filling', bytes);
    await pool.createVolume('wide', WIDE_BYTES);
    const disk = pool.openVolume('filling');
    let filled = 0;
    const fillUp = async (): Promise<void> => {
      for (let at = 0; ; at += RUN) {
        await this.write(disk, at, RUN);
        filled = at + RUN;
      }
    };
    await spared(fillUp()).finally(() => disk.close());
    this.blocks = filled;
  }

  /** Gives some of it back, or takes some; and has nodes made. */
  async churn(pool: Pool): Promise<void> {
    const { random } = this;
    // The power may have gone before both were made.
    if (this.blocks === 0 || !pool.volumes.some(({ name }) => name === 'wide')) return;
    const [filling, wide] = [pool.openVolume('filling'), pool.openVolume('wide')];
    try {
      const count = Math.min(this.blocks - 1, random.between(1, 1200));
      const first = random.below(this.blocks - count);
      if (random.chance(0.4)) await spared(filling.discard(first, count));
      if (random.chance(0.3)) await spared(this.write(filling, first, Math.min(count, RUN)));
      const leaves = random.chance(0.3) ? random.between(1, 80) : 0;
      const works = Array.from({ length: leaves }, () => {
        return spared(this.write(wide, random.below(2 ** 18) * LEAF, 1));
      });
      for (const end of await Promise.allSettled(works)) {
        if (end.status === 'rejected') throw end.reason;
      }
    } finally {
      await filling.close();
      await wide.close();
    }
  }

  /** New contents, or what was there at first, elsewhere: it may be stored, or have been freed. */
  private async write(disk: BlockDevice, first: number, count: number): Promise<void> {
    const { random, blocks } = this;
    const isOld = blocks > count && random.chance(0.4);
    const from = isOld ? FIRST + random.below(blocks - count) : this.content;
    if (!isOld) this.content += count;
    const buffer = this.memory.alloc(count * PAGE);
    try {
      for (let i = 0; i < count; i++) fillBlock(buffer.u32, (i * PAGE) / 4, from + i);
      await disk.write(first, buffer);
    } finally {
      buffer.free();
    }
  }
}
