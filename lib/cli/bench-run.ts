// Runs a bench plan and says how it ended. The engine is an argument, so that order, interruption
// and exit codes are tested without devices.

import type { Comparison, JobOptions, JobResult } from '../bench/index.js';
import { PenstockError } from '../errors.js';
import type { BenchPlan } from './bench-plan.js';
import { Exit } from './output.js';

/** The part of lib/bench that runs jobs. */
export type Engine = Pick<typeof import('../bench/index.js'), 'runJobs' | 'compareWithFio'>;

/** Where progress goes: a status line for these jobs. */
export interface Progress {
  update(samples: Parameters<NonNullable<Hooks['onSample']>>[0]): void;
  note(text: string): void;
  clear(): void;
}

type Hooks = NonNullable<Parameters<Engine['runJobs']>[1]>;

export interface RunOptions {
  readonly signal: AbortSignal;
  readonly peer: 'fio' | null;
  readonly rounds: number;
  readonly progress: (jobs: readonly JobOptions[]) => Progress;
}

export interface BenchOutcome {
  readonly results: readonly JobResult[];
  readonly comparisons: readonly Comparison[];
}

/** Runs step after step until the plan is done or the signal fires; results so far are kept. */
export async function runPlan(
  engine: Engine,
  plan: BenchPlan,
  options: RunOptions,
): Promise<BenchOutcome> {
  const results: JobResult[] = [];
  const comparisons: Comparison[] = [];
  for (const step of plan.steps) {
    if (options.signal.aborted) break;
    if (options.peer === null) {
      results.push(...(await runStep(engine, step, options)));
      continue;
    }
    // A fair comparison has the machine to itself: one job at a time.
    for (const job of step) {
      if (options.signal.aborted) break;
      const comparison = await compareJob(engine, job, options);
      comparisons.push(comparison);
      results.push(comparison.result);
    }
  }
  return { results, comparisons };
}

async function runStep(
  engine: Engine,
  jobs: readonly JobOptions[],
  { signal, progress }: RunOptions,
): Promise<JobResult[]> {
  const line = progress(jobs);
  try {
    return await engine.runJobs([...jobs], {
      signal,
      onSample: (samples) => line.update(samples),
    });
  } finally {
    line.clear();
  }
}

async function compareJob(
  engine: Engine,
  job: JobOptions,
  options: RunOptions,
): Promise<Comparison> {
  const line = options.progress([job]);
  const runOnce = async (): Promise<JobResult> => {
    const [result] = await runStep(engine, [job], options);
    if (result === undefined) throw new RangeError('runJobs gave no result for its job');
    return result;
  };
  try {
    return await engine.compareWithFio(job, runOnce, options.rounds, {
      signal: options.signal,
      onStep: (step) => line.note(step),
    });
  } finally {
    line.clear();
  }
}

/**
 * The failure that results amount to, or null: damaged data before an interruption before a failed
 * operation, because that is the order in which they matter.
 */
export function failureOf({ results }: BenchOutcome): PenstockError | null {
  const damaged = results.find((result) => (result.verify?.failures.length ?? 0) > 0);
  const first = damaged?.verify?.failures[0];
  if (damaged !== undefined && first !== undefined) {
    return new PenstockError(
      'VERIFY_MISMATCH',
      `block ${first.block} at byte ${first.offset} of ${damaged.options.uri} is ${first.kind}` +
        (first.detail === '' ? '' : `: ${first.detail}`),
      {
        hint: 'The device does not hold what was written to it, or another run wrote there since.',
        exitCode: Exit.MISMATCH,
      },
    );
  }
  if (results.some((result) => result.interrupted)) {
    return new PenstockError('INTERRUPTED', 'interrupted: the results are partial', {
      exitCode: Exit.INTERRUPTED,
    });
  }
  const failed = results.find((result) => result.errors > 0 || result.error !== null);
  if (failed === undefined) return null;
  const { code, message, hint } = failed.error ?? {
    code: 'IO_ERROR',
    message: `${failed.errors} operations failed`,
    hint: '',
  };
  return new PenstockError(code, `${failed.options.uri}: ${message}`, { hint });
}
