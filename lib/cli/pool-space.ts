// `penstock pool grow` and `trim`: what a pool and its device give each other; `clean`: extents
// that come free.

import type { Command } from 'commander';
import { formatSize } from '../units.js';
import { Exit, printJson, printText, wantsJson } from './output.js';
import { settled, throwIfInterrupted, withPool } from './pool-session.js';
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
      const bytes = await withPool(uri, async (pool, signal) => {
        // What is being deleted is free afterwards.
        await settled(pool, signal);
        const trimmed = await pool.trim({ signal });
        throwIfInterrupted(signal);
        return trimmed;
      });
      if (wantsJson(self)) {
        printJson('pool-trim', { trimmed_bytes: bytes });
      } else {
        printText(`${formatSize(bytes)} given back`);
      }
      finish(Exit.OK);
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
      const report = await withPool(uri, async (pool, signal) => {
        // What is being deleted needs not be moved.
        await settled(pool, signal);
        const cleaned = await pool.clean({ signal });
        throwIfInterrupted(signal);
        return cleaned;
      });
      const { victims, freed, moved, leaves, sharedNodes, stopped } = report;
      if (wantsJson(self)) {
        printJson('pool-clean', {
          ...{ victims, freed_extents: freed, moved_blocks: moved },
          ...{ changed_leaves: leaves, shared_nodes: sharedNodes, stopped },
        });
      } else if (victims === 0) {
        printText('nothing to be gained: no extents have few blocks in use, or there is no room');
      } else {
        const why = stopped === null ? '' : `; it ended early: ${stopped}`;
        printText(`${freed} of ${victims} extents emptied, ${moved} blocks moved${why}`);
      }
      finish(Exit.OK);
    });
}
