import { describe, expect, it } from 'vitest';
import {
  type Comparison,
  type JobOptions,
  type JobResult,
  type VerifyFailure,
  defaultJob,
} from '../../lib/bench/index.js';
import { type Engine, type RunOptions, failureOf, runPlan } from '../../lib/cli/bench-run.js';

function job(name: string): JobOptions {
  return { ...defaultJob(), name, uri: 'null:1M' };
}

function result(options: JobOptions, change: Partial<JobResult> = {}): JobResult {
  return {
    options,
    errors: 0,
    error: null,
    verify: null,
    interrupted: false,
    ...change,
  } as JobResult;
}

/** An engine that notes what it is asked for, in order. */
function engineThatNotes(notes: string[], onRun: (jobs: readonly JobOptions[]) => void): Engine {
  return {
    runJobs: (jobs) => {
      notes.push(`run ${jobs.map(({ name }) => name).join('+')}`);
      onRun(jobs);
      return Promise.resolve(jobs.map((options) => result(options)));
    },
    compareWithFio: async (options, runOnce, rounds) => {
      notes.push(`compare ${options.name} in ${rounds}`);
      return { result: await runOnce() } as Comparison;
    },
  };
}

function options(notes: string[], change: Partial<RunOptions> = {}): RunOptions {
  return {
    signal: new AbortController().signal,
    peer: null,
    rounds: 3,
    progress: () => ({
      update: () => undefined,
      note: () => undefined,
      clear: () => notes.push('clear'),
    }),
    ...change,
  };
}

describe('a plan', () => {
  const steps = [[job('a'), job('b')], [job('c')]];
  const plan = { steps, warnings: [] };

  it('runs step after step, the jobs of a step together', async () => {
    const notes: string[] = [];
    const { results } = await runPlan(
      engineThatNotes(notes, () => undefined),
      plan,
      options(notes),
    );
    expect(notes).toEqual(['run a+b', 'clear', 'run c', 'clear']);
    expect(results.map((each) => each.options.name)).toEqual(['a', 'b', 'c']);
  });

  it('begins no further step once interrupted, and keeps what there is', async () => {
    const notes: string[] = [];
    const controller = new AbortController();
    const engine = engineThatNotes(notes, () => controller.abort());
    const { results } = await runPlan(engine, plan, options(notes, { signal: controller.signal }));
    expect(notes).toEqual(['run a+b', 'clear']);
    expect(results).toHaveLength(2);
  });

  it('takes its status line away when a job throws', async () => {
    const notes: string[] = [];
    const engine = engineThatNotes(notes, () => {
      throw new Error('no device');
    });
    await expect(runPlan(engine, plan, options(notes))).rejects.toThrow('no device');
    expect(notes).toEqual(['run a+b', 'clear']);
  });

  it('against a peer gives each job the machine to itself', async () => {
    const notes: string[] = [];
    const engine = engineThatNotes(notes, () => undefined);
    const { comparisons } = await runPlan(engine, plan, options(notes, { peer: 'fio' }));
    expect(notes.filter((note) => note !== 'clear')).toEqual([
      'compare a in 3',
      'run a',
      'compare b in 3',
      'run b',
      'compare c in 3',
      'run c',
    ]);
    expect(comparisons).toHaveLength(3);
  });
});

describe('the exit code', () => {
  const failure: VerifyFailure = { kind: 'corrupt', block: 7, offset: 28672, detail: 'checksum' };
  const verify = { checkedBlocks: 10, failureCount: 1, failures: [failure] };
  const error = { code: 'MEDIA_ERROR', message: 'read failed', hint: 'replace it' };
  const of = (...results: JobResult[]) => failureOf({ results, comparisons: [] });

  it('is 0 without a failure', () => {
    expect(
      of(result(job('a'), { verify: { checkedBlocks: 10, failureCount: 0, failures: [] } })),
    ).toBeNull();
  });

  it('is 4 for damaged data and names the block and the kind', () => {
    const found = of(result(job('a')), result(job('b'), { verify, interrupted: true, error }));
    expect(found).toMatchObject({ code: 'VERIFY_MISMATCH', exitCode: 4 });
    expect(found?.message).toBe('block 7 at byte 28672 of null:1M is corrupt: checksum');
  });

  it('is 130 when interrupted, 1 for failed operations', () => {
    expect(of(result(job('a'), { interrupted: true, errors: 2 }))?.exitCode).toBe(130);
    expect(of(result(job('a'), { errors: 2, error }))).toMatchObject({
      code: 'MEDIA_ERROR',
      message: 'null:1M: read failed',
      hint: 'replace it',
      exitCode: 1,
    });
    expect(of(result(job('a'), { errors: 2 }))).toMatchObject({ code: 'IO_ERROR', exitCode: 1 });
  });
});
