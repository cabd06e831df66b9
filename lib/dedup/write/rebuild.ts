// Rebuilds the fingerprint index from the fingerprint pages, after a pool was opened: in the
// background, extent by extent.

import type { Engine } from '../engine.js';
import { Fingerprint, Group, Head, Page } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import { setPair } from '../format/numbers.js';

/** Extents between two turns of the event loop. */
const SLICE = 16;

export async function rebuildIndex(engine: Engine, stopped: () => boolean): Promise<void> {
  const { space, pages, index } = engine.parts;
  const prints = new Uint32Array(Group.blocks * Fingerprint.words);
  const blocks = new Uint32Array(Group.blocks * 2);
  const end = space.highWater * Group.extents;
  for (let extent = space.firstGroup * Group.extents; extent < end; extent++) {
    if (stopped() || engine.failed !== null) return;
    if (extent % SLICE === 0) await new Promise((resolve) => setImmediate(resolve));
    const group = Math.floor(extent / Group.extents);
    for (;;) {
      const summary = space.summary(group);
      if (summary >= 0) {
        if (space.usedIn(summary, extent) === 0 || space.holdsNodes(summary, extent)) break;
      }
      const counts = space.count(group);
      const frame = summary < 0 || counts < 0 ? Miss.wait : space.fingerprints(extent);
      if (summary === Miss.bad || counts === Miss.bad || frame === Miss.bad) break;
      if (frame >= 0) {
        const count = gather(frame, counts);
        index.insert(prints, blocks, count);
        break;
      }
      if (stopped()) return;
      await engine.turn();
    }

    /** The fingerprints of the extent's blocks that are in use. */
    function gather(frame: number, counts: number): number {
      let count = 0;
      for (let page: number = Group.metaPages; page < Group.extentPages; page++) {
        const pbn = extent * Group.extentPages + page;
        if (space.countIn(counts, pbn) === 0) continue;
        const at = (frame << Page.shift) + Head.words + (page - Group.metaPages) * 4;
        prints.set(pages.words.subarray(at, at + Fingerprint.words), count * 4);
        setPair(blocks, count * 2, pbn);
        count++;
      }
      return count;
    }
  }
}
