// `npm run demo`: builds what is missing, runs a mixed verified workload on a temporary file through
// HPDI, compares with fio where fio is installed, writes the report, removes what else it made.
//
//   --seconds N      length of the workload (10)
//   --report FILE    where the report goes (./penstock-report.html)
//   --no-fio         leaves the comparison out
//   --faults KEYS    keys of the fault wrapper, to see damage found: --faults dropWrites=0.01
//
// Exit codes are the command line's: 0 fine, 4 verification failed, 130 interrupted.
//
// It begins with modules of Node alone: the others are there once ensureBuilt has returned.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';

const MIB = 2 ** 20;
const ROUNDS = 2;
const COMPILERS = ['/usr/bin/g++', '/usr/bin/make', '/usr/bin/python3'];

let values;
try {
  ({ values } = parseArgs({
    options: {
      seconds: { type: 'string', default: '10' },
      report: { type: 'string', default: 'penstock-report.html' },
      'no-fio': { type: 'boolean', default: false },
      faults: { type: 'string', default: '' },
    },
  }));
  if (!(Number(values.seconds) > 0)) throw new Error(`--seconds ${values.seconds}: give a number`);
} catch (error) {
  console.error(`demo: ${error.message}`);
  process.exit(2);
}

const setup = await import('../.ci/setup.mjs');
try {
  if (!COMPILERS.every((file) => existsSync(file))) setup.ensureSystem();
  setup.ensureBuilt();
} catch (error) {
  console.error(`demo: not ready: ${error.message}`);
  process.exit(3);
}
process.env.PENSTOCK_QUIET = '1'; // hugepages are `doctor`'s subject: nothing here needs them
const bench = await import('../dist/lib/bench/index.js');
const { failureOf, runPlan } = await import('../dist/lib/cli/bench-run.js');
const { catchInterrupts } = await import('../dist/lib/cli/interrupts.js');
const { printFailure } = await import('../dist/lib/cli/output.js');

// Before anything is made, so that a signal at any time still leads to its removal.
const interrupts = catchInterrupts();
const folder = mkdtempSync(join(tmpdir(), 'penstock-demo-'));
const remove = () => rmSync(folder, { recursive: true, force: true });
process.on('exit', remove);
try {
  process.exitCode = await demo(folder, resolve(values.report), interrupts.signal);
} catch (error) {
  process.exitCode = interrupts.signal.aborted ? 130 : printFailure(error, false);
} finally {
  remove();
  interrupts.release();
}

async function demo(folder, report, signal) {
  bench.checkReportPath(report);
  const bytes = fileBytes(folder);
  const file = join(folder, 'disk.img');
  const keys = values.faults === '' ? '' : `&fault.${values.faults.replaceAll('&', '&fault.')}`;
  const job = {
    ...bench.defaultJob(),
    name: 'demo',
    uri: `file:${file}?create=${bytes}${keys}`,
    rw: 'randrw',
    bs: 4096,
    iodepth: 32,
    size: bytes,
    runtime: Number(values.seconds),
    verify: true,
  };
  console.log(
    `demo: ${job.rw}, 4 KiB, depth ${job.iodepth}, verified, for ${job.runtime} s ` +
      `on a file of ${bytes / MIB} MiB (${file})\n`,
  );
  const main = await run([job], { signal, peer: null });
  const comparisons = failureOf(main) === null ? await compare(job, file, signal) : [];
  const host = bench.readHost();
  console.log(bench.benchText(main.results, host, comparisons));

  const results = [...main.results, ...comparisons.map((comparison) => comparison.result)];
  bench.writeReport(report, { results, host, comparisons, commandLine: 'npm run demo' });
  for (const line of summary(main.results[0], comparisons)) console.log(line);
  console.log(`report:   ${report}`);
  const failure = failureOf(main);
  if (failure !== null) return printFailure(failure, false);
  return signal.aborted ? 130 : 0;
}

function run(jobs, options) {
  return runPlan(
    bench,
    { steps: [jobs], warnings: [] },
    { rounds: ROUNDS, progress: (some) => new bench.StatusLine(some), ...options },
  );
}

/** Reads of the same file, now in the page cache, by Penstock and fio in turn. */
async function compare(job, file, signal) {
  const leftOut = (why) => console.log(`demo: no comparison with fio: ${why}\n`);
  if (values['no-fio']) return leftOut('--no-fio was given') ?? [];
  if (signal.aborted) return [];
  if (spawnSync('fio', ['--version']).status !== 0) return leftOut('it is not installed') ?? [];
  const reads = { ...job, uri: `file:${file}`, rw: 'randread', runtime: 1, verify: false };
  try {
    const warm = { ...reads, name: 'warm', rw: 'read', bs: MIB, runtime: 0 };
    await bench.runJobs([warm], { signal });
    const { comparisons } = await run([{ ...reads, name: 'reads' }], { signal, peer: 'fio' });
    return comparisons;
  } catch (error) {
    // The workload's result stands; the comparison was an extra.
    return leftOut(error.message) ?? [];
  }
}

/** What was done, measured and verified, in three lines. */
function summary(result, [comparison]) {
  const { read, write, options, verify } = result;
  const count = (value) => Math.round(value).toLocaleString('en-US');
  const micros = (ns) => `${(ns / 1000).toFixed(1)} µs`;
  const p99 = Math.max(...[read, write].map((side) => side.clatNs.percentile['99.000000'] ?? 0));
  const iops = `${count(read.iops)} reads/s and ${count(write.iops)} writes/s`;
  const against =
    comparison === undefined
      ? ''
      : `; page-cache reads at ${comparison.ratio.iops.toFixed(2)} × the IOPS of fio`;
  const checked = verify?.checkedBlocks ?? 0;
  const damaged = verify?.failureCount ?? 0;
  return [
    `done:     ${count(read.ios)} reads and ${count(write.ios)} writes of 4 KiB, ` +
      `${options.iodepth} in flight${result.interrupted ? ', interrupted' : ''}`,
    `measured: ${iops}, 99 % within ${micros(p99)}${against}`,
    `verified: ${count(checked)} blocks checked, ${count(damaged)} damaged`,
  ];
}

/** 256 MiB, or less where the temporary folder has little room. */
function fileBytes(folder) {
  const { bavail, bsize } = statfsSync(folder);
  const fits = Math.floor((bavail * bsize) / 4 / MIB) * MIB;
  return Math.min(256 * MIB, Math.max(16 * MIB, fits));
}
