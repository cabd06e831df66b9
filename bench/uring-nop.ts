// io_uring no-ops a second from TypeScript (lib/uring) against the same loop in C over liburing, in
// turn, at batch 1, 8, 32 and 128. Prints medians and their ratio; the bar is 0.85 at every batch.

import { Cqe, Ring, Sqe } from '../lib/uring/index.js';
import { runBaseline } from './baseline.js';
import {
  atLeast,
  finish,
  median,
  parseOptions,
  program,
  progress,
  progressEnd,
  type Bar,
} from './report.js';

const BATCHES = [1, 8, 32, 128] as const;
const RATIO_MIN = 0.85;
/** Batches between two looks at the clock, as in uring-nop.c. */
const ROUND_BATCHES = 64;

interface NopResult {
  ops_per_s: number;
}

/** Submits and reaps `count` batches; returns the sum of all user data, modulo 2^32. */
function runBatches(ring: Ring, batch: number, count: number, first: number): number {
  const { sqes, rings } = ring;
  let next = first;
  let sum = 0;
  for (let round = 0; round < count; round++) {
    for (let i = 0; i < batch; i++) {
      const at = ring.next();
      sqes[at + Sqe.opcode] = 0;
      sqes[at + Sqe.userDataLo] = next;
      next = (next + 1) | 0;
    }
    if (ring.submit() !== batch) throw new Error('io_uring_enter took fewer no-ops than a batch');
    const done = ring.ready();
    for (let i = 0; i < done; i++) sum = (sum + rings[ring.cqeAt(i) + Cqe.userDataLo]!) | 0;
    ring.advance(done);
    if (done !== batch) throw new Error(`${done} of ${batch} no-ops completed`);
  }
  return sum;
}

/** The sum of `count` consecutive integers from `first` on, modulo 2^32. */
function expectedSum(first: number, count: number): number {
  return Number(BigInt.asIntN(32, (BigInt(count) * (BigInt(2 * first) + BigInt(count - 1))) / 2n));
}

function measure(batch: number, runtimeS: number): number {
  const ring = Ring.open({ entries: batch });
  try {
    let operations = 0;
    let sum = 0;
    const start = performance.now();
    let elapsedMs = 0;
    while (elapsedMs < runtimeS * 1e3) {
      sum = (sum + runBatches(ring, batch, ROUND_BATCHES, operations | 0)) | 0;
      operations += batch * ROUND_BATCHES;
      elapsedMs = performance.now() - start;
    }
    if (sum !== expectedSum(0, operations))
      throw new Error('a completion carried a wrong user data');
    return (operations / elapsedMs) * 1e3;
  } finally {
    ring.close();
  }
}

await program(async () => {
  const options = parseOptions({ rounds: 5, runtime: 1 });
  const rows = [];
  const bars: Bar[] = [];
  const rounds = [];
  for (const batch of BATCHES) measure(batch, 0.2);
  for (const batch of BATCHES) {
    const ours: number[] = [];
    const peers: number[] = [];
    for (let round = 0; round < options.rounds; round++) {
      progress(`batch ${batch}, round ${round + 1} of ${options.rounds}`);
      ours.push(measure(batch, options.runtime));
      const args = ['--batch', String(batch), '--runtime', String(options.runtime)];
      peers.push((await runBaseline<NopResult>('uring-nop', args)).ops_per_s);
    }
    const ratio = median(ours) / median(peers);
    rows.push({ batch, 'TypeScript ops/s': median(ours), 'C ops/s': median(peers), ratio });
    bars.push(atLeast(`no-ops at batch ${batch}, ratio to C`, ratio, RATIO_MIN));
    rounds.push({ batch, ops_per_s: ours, c_ops_per_s: peers });
  }
  progressEnd();
  finish({ schema: 'penstock.bench.uring-nop/1', rows, bars, rounds }, options);
});
