// The null device at depth 128 through the hot loop, after five drivers have gone through the same
// call sites, against the same loop in C (baseline/null-loop.c), in turn. Bars: 0.9 of C, no
// garbage and no deoptimisation over 10^7 operations. 17 M IOPS is the aim in absolute figures.
//
// Every TypeScript round is a process of its own, so that none depends on how an earlier one was
// compiled. V8's deoptimisation lines stand in the child's output.

import { fileURLToPath } from 'node:url';
import { runBaseline, runMetered } from './baseline.js';
import { measureIops, openLoop, tscClock, warmUp } from './five-drivers.js';
import {
  collect,
  deoptimised,
  heapCost,
  HEAP_GROWTH_MAX,
  OPERATIONS,
  traceDeoptimisations,
  type HeapCost,
} from './heap.js';
import {
  atLeast,
  atMost,
  finish,
  median,
  parseOptions,
  program,
  progress,
  progressEnd,
} from './report.js';

const DEPTH = 128;
const RATIO_MIN = 0.9;
const IOPS_AIM = 17e6;
const CHILD_FLAG = '--child';
const RESULT_MARK = 'RESULT ';

interface ChildResult extends HeapCost {
  iops: number;
}

async function child(runtimeS: number): Promise<void> {
  const clock = tscClock();
  await warmUp(clock, DEPTH);
  const { loop, close } = await openLoop('null:1GiB', DEPTH, clock);
  try {
    measureIops(loop, 0.3);
    collect();
    traceDeoptimisations(true);
    const cost = await heapCost(() => loop.run(OPERATIONS));
    const iops = measureIops(loop, runtimeS);
    traceDeoptimisations(false);
    const result: ChildResult = { ...cost, iops };
    console.log(`${RESULT_MARK}${JSON.stringify(result)}`);
  } finally {
    await close();
  }
}

async function parent(): Promise<void> {
  const options = parseOptions({ rounds: 5, runtime: 1 });
  const runtime = String(options.runtime);
  const rounds = [];
  for (let round = 0; round < options.rounds; round++) {
    progress(`null:, round ${round + 1} of ${options.rounds}`);
    const self = fileURLToPath(import.meta.url);
    const { stdout } = await runMetered(process.execPath, [self, CHILD_FLAG, runtime]);
    const at = stdout.indexOf(RESULT_MARK) + RESULT_MARK.length;
    const ours = JSON.parse(stdout.slice(at, stdout.indexOf('\n', at))) as ChildResult;
    const args = ['--depth', String(DEPTH), '--runtime', runtime];
    const peer = await runBaseline<{ iops: number }>('null-loop', args);
    rounds.push({ ...ours, c_iops: peer.iops, deoptimised: deoptimised(stdout) });
  }
  progressEnd();
  const iops = median(rounds.map((round) => round.iops));
  const cIops = median(rounds.map((round) => round.c_iops));
  const growth = median(rounds.map((round) => round.heapGrowthBytes));
  const collections = median(rounds.map((round) => round.gcCount));
  const deopts = Math.max(...rounds.map((round) => round.deoptimised.length));
  const rows = [
    { loop: 'TypeScript', IOPS: iops, 'ns/IO': 1e9 / iops },
    { loop: 'C', IOPS: cIops, 'ns/IO': 1e9 / cIops },
  ];
  const bars = [
    atLeast('null: at depth 128, ratio to C', iops / cIops, RATIO_MIN),
    atLeast('null: at depth 128, IOPS', iops, IOPS_AIM),
    atMost('heap growth over 10^7 operations, bytes', growth, HEAP_GROWTH_MAX),
    atMost('garbage collections over 10^7 operations', collections, 0),
    atMost('deoptimisations after warm-up, worst round', deopts, 0),
  ];
  finish({ schema: 'penstock.bench.null/1', rows, bars, rounds }, options);
}

await program(async () => {
  const at = process.argv.indexOf(CHILD_FLAG);
  await (at < 0 ? parent() : child(Number(process.argv[at + 1])));
});
