// `npm test [-- ARGUMENTS OF VITEST]`: makes everything ready that the tests need, then runs them. The
// last line is `N passed, N failed, N skipped` (test/support/reporter.ts).

import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { ensureBuilt, ensureSystem, root } from './setup.mjs';

try {
  ensureSystem();
  ensureBuilt();
} catch (error) {
  process.stderr.write(`setup: ${error.message}\n`);
  process.exit(1);
}
const vitest = join(root, 'node_modules/vitest/vitest.mjs');
const done = spawnSync(process.execPath, [vitest, 'run', ...process.argv.slice(2)], {
  cwd: root,
  stdio: 'inherit',
});
process.exitCode = done.status ?? 1;
