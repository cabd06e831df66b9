// From what the workers of a job counted to the job's result: histograms merged exactly, sums,
// rates.

import type { WorkerOutput } from './messages.js';
import { Histogram, type HistogramState } from './histogram.js';
import type { DirectionResult, JobOptions, JobResult, Sample } from './types.js';

const FAILURES_KEPT = 16;

/** What the main thread knows about a job's run. */
export interface JobFacts {
  readonly options: JobOptions;
  readonly device: Readonly<Record<string, string | number | boolean>>;
  /** CPU microseconds of the process over the measured part, this job's share. */
  readonly userUs: number;
  readonly systemUs: number;
  /** The caller's signal ended the run. */
  readonly aborted: boolean;
  readonly series: Sample[];
  readonly explain: (status: number) => { code: string; message: string; hint: string };
}

function direction(
  states: readonly HistogramState[],
  ios: number,
  bs: number,
  seconds: number,
): DirectionResult {
  const histogram = new Histogram();
  for (const state of states) histogram.merge(state);
  const rate = seconds > 0 ? ios / seconds : 0;
  return {
    ios,
    bytes: ios * bs,
    runtimeMs: ios > 0 ? seconds * 1000 : 0,
    iops: rate,
    bwBytes: rate * bs,
    clatNs: histogram.summary(),
    buckets: histogram.buckets(),
  };
}

function sum(outputs: readonly WorkerOutput[], of: (output: WorkerOutput) => number): number {
  return outputs.reduce((total, output) => total + of(output), 0);
}

export function jobResult(facts: JobFacts, outputs: readonly WorkerOutput[]): JobResult {
  const { options } = facts;
  const seconds = Math.max(0, ...outputs.map((output) => output.measuredSeconds));
  const readIos = sum(outputs, (output) => output.readIos);
  const writeIos = sum(outputs, (output) => output.writeIos);
  const ios = readIos + writeIos;
  const status = outputs.find((output) => output.status !== 0)?.status ?? 0;
  const failures = outputs
    .flatMap((output) => output.failures)
    .sort((a, b) => a.offset - b.offset)
    .slice(0, FAILURES_KEPT);
  const percent = (us: number): number => (seconds > 0 ? us / seconds / 1e4 : 0);
  return {
    options,
    read: direction(
      outputs.map((output) => output.reads),
      readIos,
      options.bs,
      seconds,
    ),
    write: direction(
      outputs.map((output) => output.writes),
      writeIos,
      options.bs,
      seconds,
    ),
    usrCpu: percent(facts.userUs),
    sysCpu: percent(facts.systemUs),
    cpuNsPerIo: ios > 0 ? ((facts.userUs + facts.systemUs) * 1000) / ios : 0,
    errors: sum(outputs, (output) => output.failed),
    error: status === 0 ? null : facts.explain(status),
    verify: options.verify
      ? {
          checkedBlocks: sum(outputs, (output) => output.checkedBlocks),
          failureCount: sum(outputs, (output) => output.failureCount),
          failures,
        }
      : null,
    penstock: {
      device: { ...facts.device },
      seed: options.seed,
      polls: sum(outputs, (output) => output.polls),
      doorbells: sum(outputs, (output) => output.doorbells),
      gcCount: sum(outputs, (output) => output.gcCount),
      gcMs: sum(outputs, (output) => output.gcMs),
      allocatedBytes: sum(outputs, (output) => output.allocatedBytes),
    },
    series: facts.series,
    interrupted: facts.aborted && outputs.some((output) => output.stopped),
  };
}
