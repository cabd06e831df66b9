// `penstock pool grow`: gives a pool what its device has gained.

import type { Command } from 'commander';
import { formatSize } from '../units.js';
import { Exit, printJson, printText } from './output.js';
import { withPool } from './pool-session.js';
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
      if (self.optsWithGlobals<{ json?: boolean }>().json === true) printJson('pool-grow', grown);
      else if (gained === 0) printText(`the pool has ${formatSize(size)}, as its device`);
      else printText(`the pool has ${formatSize(size)}: ${formatSize(gained)} more`);
      finish(Exit.OK);
    });
}
