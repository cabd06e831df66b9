// `npm test [-- ARGUMENTS OF VITEST]`: makes everything ready that the tests need, then runs them. The
// last line is `N passed, N failed, N skipped` (test/support/reporter.ts). `npm run test:guest [-- PART OF A PATH]`
// runs those below test/guest only.
//
// All of them run in two turns: first those that want the machine for themselves; then the guests, of
// which each takes a processor and a bit, beside those that want nothing of it.

import { spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ensureBuilt, ensureGuest, ensureSystem, root } from './setup.mjs';

/** No run is waited for longer, whatever its tests' own limits come to. */
const LIMIT_MS = 20.5 * 60_000;
const started = performance.now();

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

/** Resolves with vitest's exit code, and with what it printed if that is `kept` back. */
function vitest(args, kept = false) {
  const path = join(root, 'node_modules/vitest/vitest.mjs');
  const child = spawn(process.execPath, [path, 'run', ...args], {
    cwd: root,
    stdio: ['inherit', 'pipe', 'inherit'],
    timeout: Math.max(1, Math.floor(LIMIT_MS - (performance.now() - started))),
    killSignal: 'SIGKILL',
    env: { ...process.env, ...(process.stdout.isTTY ? { FORCE_COLOR: '1' } : {}) },
  });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text) => {
    output += text;
    if (!kept) process.stdout.write(text);
  });
  return new Promise((resolve) => {
    child.once('error', (error) => process.stderr.write(`vitest: ${error.message}\n`));
    child.once('close', (code, signal) => {
      if (kept) process.stdout.write(output);
      if (signal !== null) process.stderr.write(`vitest: ended by ${signal}\n`);
      resolve({ code: code ?? 1, output });
    });
  });
}

/** Adds the last lines up; a run that printed none has failed. */
function summary(runs) {
  const totals = [0, 0, 0];
  for (const { output } of runs) {
    const lines = [...output.matchAll(/^(\d+) passed, (\d+) failed, (\d+) skipped$/gm)];
    const found = lines.at(-1)?.slice(1).map(Number) ?? [0, 1, 0];
    for (const [i, value] of found.entries()) totals[i] += value;
  }
  return `${totals[0]} passed, ${totals[1]} failed, ${totals[2]} skipped`;
}

async function main(args) {
  if (args.length > 0) return (await vitest(chosen(args))).code;
  const alone = await vitest(['--project', 'one at a time']);
  const beside = vitest(['--project', 'beside others', '--maxWorkers', '1'], true);
  const runs = [alone, await vitest(['--project', 'guests']), await beside];
  process.stdout.write(`${summary(runs)}\n`);
  return runs.some(({ code }) => code !== 0) ? 1 : 0;
}

process.exitCode = await main(process.argv.slice(2));
