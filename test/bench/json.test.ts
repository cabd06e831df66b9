import { expect, test } from 'vitest';
import { summarise } from '../../lib/bench/compare.js';
import { benchJson } from '../../lib/bench/json.js';
import type { PeerResult } from '../../lib/bench/fio.js';
import { HOST, PERCENTS, busy, idle, jobResult } from '../support/job-results.js';

function peer(ios: number): PeerResult {
  return {
    version: 'fio-3.33',
    jobname: 'j',
    optionSet: 'plain',
    command: ['fio', '--name=j'],
    read: busy(ios, 200),
    write: idle(),
    clatNs: { read: idle().clatNs, write: idle().clatNs },
    usrCpu: 1,
    sysCpu: 2,
    cpuNsPerIo: 2500,
  };
}

test("a job has fio's keys, with units", () => {
  const json = benchJson([jobResult({ name: 'j', rampTime: 1, bs: 8192 }, busy(1000, 100))], HOST);
  expect(json.schema).toBe('penstock.bench/1');
  const [job] = json.jobs;
  expect(job).toMatchObject({
    jobname: 'j',
    uri: 'file:/data/x',
    usr_cpu: 21.4,
    sys_cpu: 78.25,
    error: 0,
    error_detail: null,
    verify: null,
    interrupted: false,
    penstock: {
      device: { driver: 'file', direct: false },
      seed: 7,
      polls: 1000,
      doorbells: 500,
      gc_count: 1,
      gc_ms: 0.25,
      allocated_bytes: 12288,
      cpu_ns_per_io: 1250,
    },
  });
  expect(job?.options).toMatchObject({ bs: 8192, ramp_time: 1, randseed: 1 });
  expect(job?.read).toMatchObject({ iops: 1000, bw_bytes: 4_096_000, total_ios: 1000 });
  expect(Object.keys(job?.read.clat_ns.percentile ?? {})).toEqual(
    PERCENTS.map((percent) => percent.toFixed(6)),
  );
  expect(job?.read.clat_ns.percentile['50.000000']).toBe(600);
  expect(json.host.memory_bytes).toBe(8 * 2 ** 30);
  expect(json).not.toHaveProperty('peer');
  expect(JSON.parse(JSON.stringify(json))).toEqual(json);
});

test('failures of verify and of operations are told', () => {
  const result = jobResult({ verify: true }, busy(10, 100));
  result.errors = 1;
  result.error = { code: 'MEDIA_ERROR', message: 'm', hint: 'h' };
  result.verify = {
    checkedBlocks: 10,
    failureCount: 1,
    failures: [{ kind: 'stale', block: 3, offset: 12288, detail: 'd' }],
  };
  const [job] = benchJson([result], HOST).jobs;
  expect(job?.error).toBe(1);
  expect(job?.error_detail?.code).toBe('MEDIA_ERROR');
  expect(job?.verify).toEqual({
    checked_blocks: 10,
    failure_count: 1,
    failures: [{ kind: 'stale', block: 3, offset: 12288, detail: 'd' }],
  });
});

test('an idle direction with an infinite least latency stays valid JSON', () => {
  const result = jobResult({}, busy(10, 100));
  result.write.clatNs.min = Infinity;
  result.write.clatNs.mean = NaN;
  const text = JSON.stringify(benchJson([result], HOST));
  expect(text).not.toContain('null,"max"');
  expect(JSON.parse(text).jobs[0].write.clat_ns).toMatchObject({ min: 0, mean: 0 });
});

test('--vs fio adds peer and ratio; several jobs give the geometric mean', () => {
  const one = summarise(
    jobResult({ name: 'a' }, idle()).options,
    [jobResult({}, busy(200, 100))],
    [peer(100)],
  );
  const two = summarise(
    jobResult({ name: 'b' }, idle()).options,
    [jobResult({}, busy(800, 100))],
    [peer(100)],
  );
  const json = benchJson([one.result, two.result], HOST, [one, two]);
  expect(json.peer).toMatchObject({ name: 'fio', version: 'fio-3.33' });
  expect(json.peer?.jobs).toHaveLength(2);
  expect(json.peer?.jobs[0]).toMatchObject({
    jobname: 'j',
    command: ['fio', '--name=j'],
    cpu_ns_per_io: 2500,
    rounds: [{ penstock: { iops: 200 }, fio: { iops: 100 } }],
  });
  expect(json.ratio?.iops).toBeCloseTo(4, 9);
  expect(json.ratio?.cpu_ns_per_io).toBeCloseTo(0.5, 9);
  expect(json.ratio?.jobs.map(({ jobname, iops }) => [jobname, iops])).toEqual([
    ['a', 2],
    ['b', 8],
  ]);
});

test('a ratio to nothing is null', () => {
  const nothing = { ...peer(100), cpuNsPerIo: 0 };
  const comparison = summarise(
    jobResult({}, idle()).options,
    [jobResult({}, busy(1, 1))],
    [nothing],
  );
  expect(benchJson([comparison.result], HOST, [comparison]).ratio?.cpu_ns_per_io).toBeNull();
});

test('a comparison without one whole round is an interruption', () => {
  expect(() => summarise(jobResult({}, idle()).options, [], [])).toThrow(
    expect.objectContaining({ code: 'ABORTED', exitCode: 130 }),
  );
});
