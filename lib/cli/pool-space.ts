// `penstock pool grow` and `trim`: what a pool and its device give each other; `clean`: extents
// that come free.

import type { Command } from 'commander';
import type { CleanReport } from '../dedup/index.js';
import { formatSize } from '../units.js';
import { Exit, printJson, printOutcome, printText, wantsJson } from './output.js';
import { interrupted, settled, withPool } from './pool-session.js';
import type { Finish } from './program.js';

export function configureGrow(command: Command, finish: Finish): void {
  command
    .description('use what the device of a pool has gained: `truncate -s 2GiB pool.img` before')
    .argument('<uri>', 'the device of the pool')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      const grown = await withPool(uri, async (pool) => {
        const gained = await pool.grow();
        const { physical_blocks: blocks, block_size: block } = pool.stats();
        return { size_bytes: blocks * block, gained_bytes: gained };
      });
      const { size_bytes: size, gained_bytes: gained } = grown;
      if (wantsJson(self)) printJson('pool-grow', grown);
      else if (gained === 0) printText(`the pool has ${formatSize(size)}, as its device`);
      else printText(`the pool has ${formatSize(size)}: ${formatSize(gained)} more`);
      finish(Exit.OK);
    });
}

export function configureTrim(command: Command, finish: Finish): void {
  command
    .description(
      'give free space of a pool back to its device: holes of a file, discards of a drive',
    )
    .argument('<uri>', 'the device of the pool')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      const { bytes, failure } = await withPool(uri, async (pool, signal) => {
        // What is being deleted is free afterwards.
        await settled(pool, signal);
        const trimmed = await pool.trim({ signal });
        return { bytes: trimmed, failure: signal.aborted ? interrupted() : null };
      });
      const text = `${formatSize(bytes)} given back`;
      finish(printOutcome(wantsJson(self), 'pool-trim', { trimmed_bytes: bytes }, text, failure));
    });
}

export function configureClean(command: Command, finish: Finish): void {
  command
    .description(
      'empty extents of a pool with few blocks in use, so that new data lies in sequence',
    )
    .argument('<uri>', 'the device of the pool')
    .option('--json', 'print JSON alone on stdout')
    .action(async (uri: string, _: object, self: Command) => {
      const { report, failure } = await withPool(uri, async (pool, signal) => {
        // What is being deleted needs not be moved.
        await settled(pool, signal);
        const cleaned = await pool.clean({ signal });
        return { report: cleaned, failure: signal.aborted ? interrupted() : null };
      });
      const { victims, freed, moved, leaves, sharedNodes, stopped } = report;
      const facts = {
        ...{ victims, freed_extents: freed, moved_blocks: moved },
        ...{ changed_leaves: leaves, shared_nodes: sharedNodes, stopped },
      };
      finish(printOutcome(wantsJson(self), 'pool-clean', facts, formatCleaned(report), failure));
    });
}

function formatCleaned({ victims, freed, moved, stopped }: CleanReport): string {
  if (victims === 0) {
    return 'nothing to be gained: no extents have few blocks in use, or there is no room';
  }
  const why = stopped === null ? '' : `; it ended early: ${stopped}`;
  return `${freed} of ${victims} extents emptied, ${moved} blocks moved${why}`;
}
