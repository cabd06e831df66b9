// A pool on a device that has become larger.
//
// Invariant: nothing is put beyond the old end before the superblock with the new one is durable:
// records of the journal that name such blocks could not be applied otherwise.

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import { formatSize } from '../../units.js';
import type { Engine } from '../engine.js';
import { Group, Page, PBN_END, Span } from '../format/layout.js';
import { failure, framesNeeded } from '../pool-open.js';
import type { SuperblockFacts } from '../format/superblock.js';

const GROUP_BYTES = Group.pages * Page.bytes;

/**
 * Looks at the device's size again, and uses what it has gained; resolves with how many bytes that
 * are. Errors: POOL_TRUNCATED, POOL_TOO_LARGE, BAD_OPTION, the device's.
 */
export async function growPool(
  engine: Engine,
  device: BlockDevice,
  facts: SuperblockFacts,
): Promise<number> {
  const { space, trees } = engine.parts;
  const { blocks, blockSize } = await device.refresh();
  const endGroup = Math.floor((blocks * blockSize) / GROUP_BYTES);
  const gained = endGroup * Group.pages - facts.pages;
  if (gained < 0) {
    const lost = -gained * Page.bytes;
    throw new PenstockError('POOL_TRUNCATED', `${device.uri} has lost ${lost} bytes of its pool`, {
      hint: 'close the pool, and give the device its size again; a pool cannot become smaller',
      exitCode: 3,
    });
  }
  const most = Math.min(facts.roots * Span.perRoot * Span.groups, PBN_END / Group.pages);
  if (endGroup > most) {
    const limit = formatSize(most * GROUP_BYTES);
    throw new PenstockError(
      'POOL_TOO_LARGE',
      `the pool of ${device.uri} cannot grow beyond ${limit}`,
      { hint: 'it was made with root pages for so much; make another pool on what is beyond' },
    );
  }
  if (gained === 0) return 0;
  if (engine.parts.pages.frames < framesNeeded(endGroup)) {
    const needed = formatSize(framesNeeded(endGroup) * Page.bytes);
    throw new PenstockError('BAD_OPTION', `a pool so large needs a cache of ${needed}`, {
      hint: 'open it without a cache of its own, or with a larger one: dedup.cache=32MiB',
      exitCode: 2,
    });
  }
  facts.pages += gained;
  if (!(await engine.checkpoint())) throw failure(engine);
  trees.spans(endGroup);
  space.endGroup = endGroup;
  return gained * Page.bytes;
}
