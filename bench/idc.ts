// Records between two processes beside the same rings in C, in turn, on the same two processors.

import { fileURLToPath } from 'node:url';
import { IDC_QUICK, runIdc, type IdcResult } from '../lib/bench/index.js';
import { twoCpus } from '../lib/bench/idc-cpus.js';
import { runBaseline, runMetered } from './baseline.js';
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

const CHILD_FLAG = '--child';
const RESULT_MARK = 'RESULT ';
const RTT_NS_AIM = 1000;
const RATE_AIM = 45e6;
const C_RATIO_MIN = 0.5;

interface Figures {
  rtt_ns: { p50: number; p99: number };
  descriptors_per_s: number;
  disturbed: number;
}

/** A process joins one hub, once: each round is one of its own. */
async function child(runtimeS: number): Promise<void> {
  const result: IdcResult = await runIdc({
    ...IDC_QUICK,
    // The records alone take four times it.
    runtime: runtimeS / 4,
    payloads: [],
    wakes: 0,
    idle: 0,
  });
  const { rtt, rate } = result;
  const figures: Figures = {
    rtt_ns: { p50: rtt.percentile(50), p99: rtt.percentile(99) },
    descriptors_per_s: rate.median,
    disturbed: rate.disturbed,
  };
  console.log(`${RESULT_MARK}${JSON.stringify(figures)}`);
}

async function parent(): Promise<void> {
  const options = parseOptions({ rounds: 5, runtime: 1 });
  const runtime = String(options.runtime);
  const cpus = twoCpus();
  const bound = cpus === null ? [] : ['--cpu', String(cpus[0]), '--other-cpu', String(cpus[1])];
  const rounds: { ours: Figures; c: Figures }[] = [];
  for (let round = 0; round < options.rounds; round++) {
    progress(`idc, round ${round + 1} of ${options.rounds}`);
    const self = fileURLToPath(import.meta.url);
    const { stdout } = await runMetered(process.execPath, [self, CHILD_FLAG, runtime]);
    const at = stdout.indexOf(RESULT_MARK) + RESULT_MARK.length;
    const ours = JSON.parse(stdout.slice(at, stdout.indexOf('\n', at))) as Figures;
    const args = ['--runtime', runtime, '--batch', '128', ...bound];
    rounds.push({ ours, c: await runBaseline<Figures>('idc-loop', args) });
  }
  progressEnd();
  const of = (pick: (figures: Figures) => number): { ours: number; c: number } => ({
    ours: median(rounds.map(({ ours }) => pick(ours))),
    c: median(rounds.map(({ c }) => pick(c))),
  });
  const p50 = of(({ rtt_ns }) => rtt_ns.p50);
  const p99 = of(({ rtt_ns }) => rtt_ns.p99);
  const rate = of(({ descriptors_per_s }) => descriptors_per_s);
  const rows = (['ours', 'c'] as const).map((who) => ({
    rings: who === 'c' ? 'C' : 'TypeScript',
    'round trip p50, ns': p50[who],
    'p99, ns': p99[who],
    'records/s': rate[who],
  }));
  const bars = [
    atMost('round trip, p50, ns', p50.ours, RTT_NS_AIM),
    atLeast('records/s one way', rate.ours, RATE_AIM),
    atLeast('round trip, ratio to C', p50.c / p50.ours, C_RATIO_MIN),
    atLeast('records/s, ratio to C', rate.ours / rate.c, C_RATIO_MIN),
  ];
  finish({ schema: 'penstock.bench.idc/1', rows, bars, rounds }, options);
}

await program(async () => {
  const at = process.argv.indexOf(CHILD_FLAG);
  await (at < 0 ? parent() : child(Number(process.argv[at + 1])));
});
