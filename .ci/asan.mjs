// `npm run test:asan [-- ARGUMENTS OF VITEST]`: the addon built under AddressSanitizer and UBSan, and
// the tests that use it most run with it, once. The first report of a sanitizer ends the process that
// caused it, and so fails its test.
//
// Leaks stay off because Node itself leaves some behind. SIGSEGV and SIGBUS stay with Node's and the
// addon's own handlers: the addon survives SIGBUS, and tests count on it. Code that V8 compiles is not
// checked; what it hands to the addon is.

import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ensureBuilt, root, run } from './setup.mjs';

// Suites of drivers are TypeScript on both sides of the addon, and long under ASan: of NVMe what
// stops, resets and ends is here, of the others what the addon's own suites do.
const TESTS = [
  'native',
  'memory',
  'uring',
  'pci',
  'drivers/nvme/recovery.test.ts',
  'dedup/fingerprint-index.test.ts',
];
// What breaks in is a program of its own, which no sanitizer sees, and processes that end by signals
// write no report of a sanitizer either.
// Servers that lie or fall silent are waited for, mostly.
const LEFT_OUT = [
  'memory/isolation',
  'memory/fault-report',
  'pci/vfio-user-faults',
  'pci/vfio-user-attach',
].map((name) => `test/${name}.test.ts`);
const LIMIT_MS = 540_000;

/** Where the compiler keeps a sanitizer's library; it must be loaded before anything else is. */
function sanitizerLibrary(name) {
  const asked = spawnSync('gcc', [`-print-file-name=${name}`], { encoding: 'utf8' });
  const path = (asked.stdout ?? '').trim();
  if (asked.status !== 0 || !existsSync(path)) throw new Error(`gcc has no ${name}`);
  return path;
}

/** The test files of a folder of the tests, or a file of them. */
function filesOf(name) {
  const path = join('test', name);
  if (name.endsWith('.ts')) return [path];
  return readdirSync(join(root, path), { recursive: true })
    .filter((file) => file.endsWith('.test.ts'))
    .map((file) => join(path, file));
}

function main() {
  ensureBuilt();
  run('npm', ['run', '--silent', 'build:asan']);
  const addon = join(root, 'build-asan/Release/penstock.node');
  const given = process.argv.slice(2);
  const tests = TESTS.flatMap(filesOf).filter((path) => !LEFT_OUT.includes(path));
  const vitest = join(root, 'node_modules/vitest/vitest.mjs');
  const started = performance.now();
  const done = spawnSync(process.execPath, [vitest, 'run', ...(given.length > 0 ? given : tests)], {
    cwd: root,
    stdio: 'inherit',
    timeout: LIMIT_MS,
    env: {
      ...process.env,
      PENSTOCK_ADDON: addon,
      LD_PRELOAD: sanitizerLibrary('libasan.so'),
      ASAN_OPTIONS: 'detect_leaks=0:handle_segv=0:handle_sigbus=0:halt_on_error=1',
      UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
    },
  });
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  let outcome = done.status === 0 ? 'clean' : 'FAILED';
  if (done.error !== undefined) outcome = `FAILED (${done.error.message})`;
  process.stdout.write(`asan, ubsan: ${outcome}, ${seconds} s\n`);
  return done.status ?? 1;
}

process.exitCode = main();
