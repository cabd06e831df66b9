// `--vs fio`: the same job by Penstock and by fio in turn, A B A B, so that a machine that slows
// down slows both. The figures are medians over the rounds; the ratios are ratios of medians.
//
// fio gets the option set that is fastest here: all are tried shortly first (after Penstock's first
// run, which checks the device and warms its cache as much as ours), the best two run in every
// round, and the one with the higher median stands against Penstock: A B C A B C, since a short try
// on a busy machine can pick the wrong one.

import { PenstockError } from '../errors.js';
import type { FioOptionSet, FioRunOptions, PeerResult } from './fio.js';
import { fioArguments, fioOptionSets, runFio, startupCpuMs } from './fio.js';
import { median } from './numbers.js';
import type { JobOptions, JobResult } from './types.js';

/**
 * What is compared. Latency runs from submission to completion for both, see PeerResult;
 * percentiles are those of the direction that did more operations.
 */
export interface Figures {
  iops: number;
  bwBytes: number;
  cpuNsPerIo: number;
  latencyP50Ns: number;
  latencyP99Ns: number;
}

export interface Round {
  penstock: Figures;
  fio: Figures;
}

export interface Comparison {
  job: JobOptions;
  /** 'fio-3.33' and the option set that was fastest. */
  version: string;
  optionSet: string;
  rounds: Round[];
  /** Medians over the rounds. */
  penstock: Figures;
  fio: Figures;
  /** Penstock's median over fio's; NaN where fio's is 0. */
  ratio: Figures;
  /** The run of each whose IOPS is nearest to its median: what is printed in full. */
  result: JobResult;
  peer: PeerResult;
}

export interface CompareOptions extends FioRunOptions {
  /** Seconds per try of an option set. */
  trialSeconds?: number;
  /** Told what begins, for the status line. */
  onStep?: (step: string) => void;
}

const TRIAL_SECONDS = 0.5;
/** Each option set is tried this often, and its best counts: one try may meet a busy machine. */
const TRIAL_PASSES = 2;
const FINALISTS = 2;

/** Figures of one run, ours or fio's. */
export function figuresOf(run: Pick<JobResult, 'read' | 'write' | 'cpuNsPerIo'>): Figures {
  const { percentile } = (run.read.ios >= run.write.ios ? run.read : run.write).clatNs;
  return {
    iops: run.read.iops + run.write.iops,
    bwBytes: run.read.bwBytes + run.write.bwBytes,
    cpuNsPerIo: run.cpuNsPerIo,
    latencyP50Ns: percentile['50.000000'] ?? 0,
    latencyP99Ns: percentile['99.000000'] ?? 0,
  };
}

/**
 * Runs `job` by `runOnce` and by fio, `rounds` times each in turn. An interrupted or failed run of
 * ours ends the comparison; without one whole round it throws.
 */
export async function compareWithFio(
  job: JobOptions,
  runOnce: () => Promise<JobResult>,
  rounds: number,
  options: CompareOptions = {},
): Promise<Comparison> {
  const results: JobResult[] = [];
  const peers = new Map<FioOptionSet, PeerResult[]>();
  let run: FioRunOptions = options;
  // Refuses what fio cannot do before the first run of ours.
  for (const candidate of fioOptionSets(job)) fioArguments(job, candidate);
  for (let round = 1; round <= rounds; round++) {
    options.onStep?.(`round ${round} of ${rounds}: penstock`);
    const result = await runOnce();
    if (result.error !== null) {
      const { code, message, hint } = result.error;
      throw new PenstockError(code, message, { hint });
    }
    if (result.interrupted) break;
    try {
      if (peers.size === 0) {
        for (const set of await fastestSets(job, options)) peers.set(set, []);
        const [set] = peers.keys();
        if (set === undefined) throw new PenstockError('PEER_FAILED', 'no option set of fio ran');
        run = { ...options, startupCpuMs: await startupCpuMs(job, set, options) };
      }
      options.onStep?.(`round ${round} of ${rounds}: fio`);
      const runs: [PeerResult[], PeerResult][] = [];
      for (const [set, earlier] of peers) runs.push([earlier, await runFio(job, set, run)]);
      for (const [earlier, peer] of runs) earlier.push(peer);
    } catch (error) {
      // The rounds that are whole still count.
      if (error instanceof PenstockError && error.code === 'ABORTED' && results.length > 0) break;
      throw error;
    }
    results.push(result);
  }
  return summarise(job, results, fastest([...peers.values()]));
}

/** The runs of the set with the highest median. */
function fastest(bySet: readonly PeerResult[][]): PeerResult[] {
  const medianOf = (peers: PeerResult[]): number =>
    median(peers.map((peer) => figuresOf(peer).iops));
  return bySet.reduce((best, peers) => (medianOf(peers) >= medianOf(best) ? peers : best), []);
}

/** The option sets with the most IOPS in short runs of the same job. */
async function fastestSets(job: JobOptions, options: CompareOptions): Promise<FioOptionSet[]> {
  const sets = fioOptionSets(job);
  // At a given rate all sets do that rate; registered files and buffers cost the least.
  if (job.rateIops > 0) return sets.filter((set) => set.name === 'registered');
  const trial = { ...job, runtime: options.trialSeconds ?? TRIAL_SECONDS, rampTime: 0, ioSize: 0 };
  const best = new Map<FioOptionSet, number>();
  for (let pass = 0; pass < TRIAL_PASSES; pass++) {
    for (const set of sets) {
      options.onStep?.(`trying fio's options: ${set.name}`);
      const { iops } = figuresOf(await runFio(trial, set, options));
      best.set(set, Math.max(iops, best.get(set) ?? 0));
    }
  }
  const ranked = [...best].sort(([, a], [, b]) => b - a);
  return ranked.slice(0, FINALISTS).map(([set]) => set);
}

/** Medians and ratios of runs that stand in pairs. */
export function summarise(
  job: JobOptions,
  results: readonly JobResult[],
  peers: readonly PeerResult[],
): Comparison {
  const rounds = results.map((result, index) => {
    const peer = peers[index];
    if (peer === undefined) throw new RangeError('summarise: a run of fio is missing');
    return { penstock: figuresOf(result), fio: figuresOf(peer) };
  });
  const ours = medians(rounds.map((round) => round.penstock));
  const theirs = medians(rounds.map((round) => round.fio));
  const result = nearestTo(ours.iops, results);
  const peer = nearestTo(theirs.iops, peers);
  if (result === null || peer === null) {
    throw new PenstockError('ABORTED', 'the comparison ended before its first round was over', {
      exitCode: 130,
    });
  }
  return {
    job,
    version: peer.version,
    optionSet: peer.optionSet,
    rounds,
    penstock: ours,
    fio: theirs,
    ratio: combine((key) => (theirs[key] > 0 ? ours[key] / theirs[key] : NaN)),
    result,
    peer,
  };
}

function medians(figures: readonly Figures[]): Figures {
  return combine((key) => median(figures.map((figure) => figure[key])));
}

function combine(value: (key: keyof Figures) => number): Figures {
  return {
    iops: value('iops'),
    bwBytes: value('bwBytes'),
    cpuNsPerIo: value('cpuNsPerIo'),
    latencyP50Ns: value('latencyP50Ns'),
    latencyP99Ns: value('latencyP99Ns'),
  };
}

function nearestTo<T extends Pick<JobResult, 'read' | 'write' | 'cpuNsPerIo'>>(
  iops: number,
  runs: readonly T[],
): T | null {
  let best: T | null = null;
  let bestDistance = Infinity;
  for (const run of runs) {
    const distance = Math.abs(figuresOf(run).iops - iops);
    if (distance < bestDistance) [best, bestDistance] = [run, distance];
  }
  return best;
}
