// `npm test [-- ARGUMENTS OF VITEST]`: makes everything ready that the tests need, then runs them. The
// last line is `N passed, N failed, N skipped` (test/support/reporter.ts). `npm run test:guest [-- PART OF A PATH]`
// runs those below test/guest only.

import { spawnSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ensureBuilt, ensureGuest, ensureSystem, root } from './setup.mjs';

/** No run is waited for longer, whatever its tests' own limits come to. */
const LIMIT_MS = 20.5 * 60_000;

try {
  ensureSystem();
  ensureBuilt();
  ensureGuest();
} catch (error) {
  process.stderr.write(`setup: ${error.message}\n`);
  process.exit(1);
}

/** Arguments for vitest: its filters add up, so that a filter within the guests' tests is one here. */
function chosen(args) {
  if (args[0] !== '--guest') return args;
  const [, filter, ...rest] = args;
  if (filter === undefined || filter.startsWith('-')) return ['test/guest/', ...args.slice(1)];
  const files = readdirSync(join(root, 'test/guest'), { recursive: true })
    .map((file) => join('test/guest', file))
    .filter((file) => file.endsWith('.test.ts') && file.includes(filter));
  return [...(files.length > 0 ? files : [`test/guest/${filter}`]), ...rest];
}

const vitest = join(root, 'node_modules/vitest/vitest.mjs');
const done = spawnSync(process.execPath, [vitest, 'run', ...chosen(process.argv.slice(2))], {
  cwd: root,
  stdio: 'inherit',
  timeout: LIMIT_MS,
  killSignal: 'SIGKILL',
});
if (done.error !== undefined) process.stderr.write(`vitest: ${done.error.message}\n`);
process.exitCode = done.status ?? 1;
