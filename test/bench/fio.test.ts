// fio itself runs here, one second at most on a small file; the set-up of the tests installs it.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { compareWithFio } from '../../lib/bench/compare.js';
import {
  fioArguments,
  fioOptionSets,
  parseFioOutput,
  runFio,
  startupCpuMs,
} from '../../lib/bench/fio.js';
import type { FioOptionSet } from '../../lib/bench/fio.js';
import { defaultJob } from '../../lib/bench/option-words.js';
import type { JobOptions } from '../../lib/bench/types.js';
import { PERCENTS, busy, jobResult } from '../support/job-results.js';

const PLAIN: FioOptionSet = { name: 'plain', args: [] };
const BYTES = 4 * 2 ** 20;
let folder = '';

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-fio-'));
  writeFileSync(join(folder, 'data'), Buffer.alloc(BYTES, 7));
});

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function job(options: Partial<JobOptions> = {}): JobOptions {
  const uri = `file:${join(folder, 'data')}`;
  return { ...defaultJob(), uri, rw: 'randread', iodepth: 8, runtime: 0.3, ...options };
}

describe('fioArguments', () => {
  test('says the same job in fio words', () => {
    const options = job({
      name: 'mix',
      uri: 'file:/d/a:b%20c?direct=1',
      rw: 'randrw',
      rwmixread: 70,
      numjobs: 2,
      size: 65536,
      offset: 4096,
      rampTime: 0.25,
      rateIops: 100,
      randomDistribution: 'zipf:1.2',
      dedupePercentage: 10,
    });
    const args = fioArguments(options, PLAIN);
    for (const arg of [
      '--name=mix',
      '--filename=/d/a\\:b c',
      '--rw=randrw',
      '--rwmixread=70',
      '--bs=4096',
      '--iodepth=8',
      '--numjobs=2',
      '--direct=1',
      '--invalidate=0',
      '--size=65536',
      '--offset=4096',
      '--runtime=300ms',
      '--time_based=1',
      '--ramp_time=250ms',
      '--rate_iops=100',
      '--random_distribution=zipf:1.2',
      '--dedupe_percentage=10',
    ]) {
      expect(args).toContain(arg);
    }
    const bounded = fioArguments(job({ ioSize: 4096, runtime: 0 }), PLAIN);
    expect(bounded).toContain('--io_size=4096');
    expect(bounded).toContain('--direct=0');
    expect(bounded.some((arg) => arg.startsWith('--time_based'))).toBe(false);
  });

  test('refuses what fio cannot do', () => {
    const usage = expect.objectContaining({ code: 'PEER_UNSUPPORTED', exitCode: 2 });
    expect(() => fioArguments(job({ uri: 'ram:1GiB' }), PLAIN)).toThrow(usage);
    expect(() => fioArguments(job({ uri: 'file:/x?fault.seed=1' }), PLAIN)).toThrow(usage);
    expect(() => fioArguments(job({ verify: true }), PLAIN)).toThrow(usage);
  });

  test('offers batching only where there is a depth', () => {
    expect(fioOptionSets(job({ iodepth: 1 })).map((set) => set.name)).not.toContain('batch');
    expect(fioOptionSets(job({ iodepth: 32 })).map((set) => set.name)).toContain('batch');
  });
});

describe('parseFioOutput', () => {
  const output = {
    'fio version': 'fio-3.33',
    jobs: [{ jobname: 'j', error: 0, read: { iops: 5, total_ios: 10 }, usr_cpu: 1, sys_cpu: 2 }],
  };

  test('passes over what stands before and after the object', () => {
    const json = JSON.stringify(output, null, 2);
    const text = `fio: a warning {not json}\nnote: x\n${json}\ntrailer\n`;
    const parsed = parseFioOutput(text);
    expect(parsed).toMatchObject({ version: 'fio-3.33', jobname: 'j', usrCpu: 1, sysCpu: 2 });
    expect(parsed.read.ios).toBe(10);
    expect(parsed.write.ios).toBe(0);
  });

  test('refuses what is no result', () => {
    const failed = expect.objectContaining({ code: 'PEER_FAILED' });
    expect(() => parseFioOutput('')).toThrow(failed);
    expect(() => parseFioOutput('fio: engine io_uring not loadable\n')).toThrow(failed);
    expect(() => parseFioOutput('{"jobs": []}')).toThrow(failed);
    const broken = { ...output, jobs: [{ ...output.jobs[0], error: 5 }] };
    expect(() => parseFioOutput(JSON.stringify(broken))).toThrow(/errno 5/);
  });
});

describe('running fio', () => {
  test('gives its figures and the CPU time of its process tree', async () => {
    const result = await runFio(job({ numjobs: 2 }), PLAIN);
    expect(result.version).toMatch(/^fio-\d/);
    expect(result.read.ios).toBeGreaterThan(100);
    expect(result.read.bytes).toBe(result.read.ios * 4096);
    expect(result.read.iops).toBeGreaterThan(0);
    expect(result.write.ios).toBe(0);
    expect(Object.keys(result.read.clatNs.percentile).sort()).toEqual(
      PERCENTS.map((percent) => percent.toFixed(6)).sort(),
    );
    const counted = result.read.buckets.reduce((sum, [, count]) => sum + count, 0);
    expect(counted).toBe(result.read.ios);
    expect(result.cpuNsPerIo).toBeGreaterThan(0);
    // Two threads for the runtime cannot use more than the machine has, and its start.
    expect(result.cpuNsPerIo * result.read.ios).toBeLessThan(60e9);
  });

  test('ends by itself when a job without runtime is through', async () => {
    const result = await runFio(job({ runtime: 0, rw: 'write', size: BYTES }), PLAIN);
    expect(result.write.bytes).toBe(BYTES);
    expect(result.read.ios).toBe(0);
  });

  test('every option set runs', async () => {
    for (const set of fioOptionSets(job())) {
      const result = await runFio(job({ runtime: 0.1 }), set);
      expect([set.name, result.read.ios > 0]).toEqual([set.name, true]);
    }
  });

  test('its start costs CPU time that is told apart', async () => {
    const startMs = await startupCpuMs(job(), PLAIN);
    expect(startMs).toBeGreaterThan(0);
    const result = await runFio(job({ runtime: 0, ioSize: 4096 }), PLAIN, { startupCpuMs: 1e9 });
    expect(result.cpuNsPerIo).toBe(0);
  });

  test('a missing fio says how to get it', async () => {
    await expect(runFio(job(), PLAIN, { program: '/nonexistent/fio' })).rejects.toMatchObject({
      code: 'PEER_MISSING',
      exitCode: 3,
      hint: 'apt-get install fio',
    });
  });

  test('a run that fails says why', async () => {
    const bad: FioOptionSet = { name: 'bad', args: ['--nonsense=1'] };
    await expect(runFio(job(), bad)).rejects.toMatchObject({
      code: 'PEER_FAILED',
      message: expect.stringContaining('nonsense'),
    });
  });

  test('a file that fio would enlarge is refused, as is one that is not there', async () => {
    await expect(runFio(job({ size: BYTES * 2 }), PLAIN)).rejects.toMatchObject({
      code: 'PEER_UNSUPPORTED',
    });
    const gone = job({ uri: `file:${join(folder, 'gone')}` });
    await expect(runFio(gone, PLAIN)).rejects.toMatchObject({ code: 'PEER_FAILED' });
  });

  test('is bounded in time and stops on request, leaving no process', async () => {
    const long = job({ runtime: 60 });
    await expect(runFio(long, PLAIN, { timeoutMs: 500 })).rejects.toMatchObject({
      code: 'PEER_TIMEOUT',
    });
    const stop = new AbortController();
    const run = runFio(long, PLAIN, { signal: stop.signal });
    setTimeout(() => stop.abort(), 400);
    await expect(run).rejects.toMatchObject({ code: 'ABORTED', exitCode: 130 });
    await expect(runFio(long, PLAIN, { signal: stop.signal })).rejects.toMatchObject({
      code: 'ABORTED',
    });
  });
});

describe('compareWithFio', () => {
  test('runs both in turn and keeps every round', async () => {
    const steps: string[] = [];
    let runs = 0;
    const comparison = await compareWithFio(
      job({ runtime: 0.2 }),
      () => Promise.resolve(jobResult({}, busy(1000 * ++runs, 100))),
      2,
      { trialSeconds: 0.1, onStep: (step) => steps.push(step) },
    );
    expect(runs).toBe(2);
    expect(steps.filter((step) => step.startsWith('round'))).toEqual([
      'round 1 of 2: penstock',
      'round 1 of 2: fio',
      'round 2 of 2: penstock',
      'round 2 of 2: fio',
    ]);
    expect(comparison.rounds.map((round) => round.penstock.iops)).toEqual([1000, 2000]);
    expect(comparison.penstock.iops).toBe(1500);
    expect(comparison.fio.iops).toBeGreaterThan(0);
    expect(comparison.ratio.iops).toBeCloseTo(1500 / comparison.fio.iops, 9);
    expect(fioOptionSets(job()).map((set) => set.name)).toContain(comparison.optionSet);
  }, 60_000);

  test("a failed run of ours ends it with that run's error", async () => {
    const failing = jobResult({}, busy(1, 1));
    failing.error = { code: 'MEDIA_ERROR', message: 'm', hint: 'h' };
    await expect(compareWithFio(job(), () => Promise.resolve(failing), 3)).rejects.toMatchObject({
      code: 'MEDIA_ERROR',
      hint: 'h',
    });
  });

  test('an interrupted run ends it', async () => {
    const interrupted = { ...jobResult({}, busy(1, 1)), interrupted: true };
    await expect(
      compareWithFio(job(), () => Promise.resolve(interrupted), 3),
    ).rejects.toMatchObject({ code: 'ABORTED', exitCode: 130 });
  });
});
