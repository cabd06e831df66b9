import { Command } from 'commander';
import { describe, expect, it } from 'vitest';
import * as bench from '../../lib/bench/index.js';
import { type BenchPlan, type Flags, addWordOptions, planJobs } from '../../lib/cli/bench-plan.js';

/** The plan of these arguments, by way of commander as in the program. */
function plan(args: readonly string[], jobFile: string | null = null): BenchPlan {
  const command = new Command('bench')
    .argument('[uri...]')
    .option('--depths <list>')
    .exitOverride();
  addWordOptions(command, bench);
  command.parse([...args], { from: 'user' });
  const file = jobFile === null ? null : { path: 'jobs.fio', text: jobFile };
  return planJobs(bench, command.args, command.opts<Flags>(), file);
}

describe('flags', () => {
  it('are the words of the table, in its units', () => {
    const { steps } = plan([
      'ram:1GiB',
      '--rw=randrw',
      '--rwmixread=70',
      '--bs',
      '8k',
      '--iodepth=32',
      '--numjobs=2',
      '--runtime=500ms',
      '--ramp-time=1',
      '--rate-iops=1000',
      '--random-distribution=zipf:1.2',
      '--seed=7',
      '--io-size=1M',
      '--dedupe-percentage=25',
      '--verify',
    ]);
    expect(steps).toEqual([
      [
        {
          ...bench.defaultJob(),
          uri: 'ram:1GiB',
          rw: 'randrw',
          rwmixread: 70,
          bs: 8192,
          iodepth: 32,
          numjobs: 2,
          runtime: 0.5,
          rampTime: 1,
          rateIops: 1000,
          randomDistribution: 'zipf:1.2',
          seed: 7,
          ioSize: 2 ** 20,
          dedupePercentage: 25,
          verify: true,
        },
      ],
    ]);
  });

  it("may be spelled as fio spells them, whose other spellings help doesn't list", () => {
    const [[job] = []] = plan(['ram:1M', '--blocksize=16k', '--readwrite=write']).steps;
    expect(job).toMatchObject({ bs: 16384, rw: 'write' });
    const command = new Command('bench');
    addWordOptions(command, bench);
    expect(command.helpInformation()).not.toContain('--blocksize');
    for (const word of bench.OPTION_WORDS) {
      expect(command.helpInformation()).toContain(`--${word.flag}`);
    }
  });

  it.each([
    [['--bs', 'big'], '--bs'],
    [['--rw', 'sideways'], '--rw'],
    [['--iodepth', '0'], '--iodepth'],
    [['--depths', '1,x'], '--depths'],
  ])('%j is a usage error that names the flag', (flags, named) => {
    expect(() => plan(['ram:1M', ...flags])).toThrow(
      expect.objectContaining({
        code: 'BAD_OPTION',
        exitCode: 2,
        message: expect.stringContaining(named) as string,
      }),
    );
  });

  it('want something to run on', () => {
    expect(() => plan([])).toThrow(expect.objectContaining({ code: 'USAGE', exitCode: 2 }));
  });
});

describe('jobs', () => {
  it('are one per URI, with names of their own, together in one step', () => {
    const { steps } = plan(['ram:1M', 'null:1M', '--bs=8k']);
    expect(steps).toHaveLength(1);
    expect(steps[0]?.map((job) => [job.name, job.uri, job.bs])).toEqual([
      ['job1', 'ram:1M', 8192],
      ['job2', 'null:1M', 8192],
    ]);
  });

  it('of a sweep run depth after depth', () => {
    const { steps } = plan(['ram:1M', '--depths=1,32,128', '--iodepth=7']);
    expect(steps.map((step) => step.map((job) => [job.name, job.iodepth]))).toEqual([
      [['job-qd1', 1]],
      [['job-qd32', 32]],
      [['job-qd128', 128]],
    ]);
  });

  it('come from a job file, and flags win over it', () => {
    const text = '[global]\nbs=16k\nioengine=libaio\n[a]\nuri=ram:1M\n[b]\nrw=write\n';
    const { steps, warnings } = plan(['null:1M', '--bs=8k'], text);
    expect(steps[0]?.map((job) => [job.name, job.uri, job.rw, job.bs])).toEqual([
      ['a', 'ram:1M', 'read', 8192],
      ['b', 'null:1M', 'write', 8192],
    ]);
    expect(warnings.join('\n')).toContain('jobs.fio: line 3: ioengine');
    expect(() => plan(['ram:1M', 'ram:2M'], text)).toThrow(
      expect.objectContaining({ code: 'USAGE', exitCode: 2 }),
    );
  });
});
