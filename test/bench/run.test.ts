// Jobs from end to end: devices, workers, results. Through the built dist/, since workers are
// loaded from files that Node can run.

import {
  mkdtempSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  writeSync,
  closeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { JobOptions, JobResult, Sample } from '../../lib/bench/types.js';
import { testJob } from '../support/bench-session.js';

const MIB = 2 ** 20;
const BS = 4096;

const { runJobs } = (await import(
  new URL('../../dist/lib/bench/index.js', import.meta.url).href
)) as typeof import('../../lib/bench/index.js');

async function run(changes: Partial<JobOptions>): Promise<JobResult> {
  const [result] = await runJobs([testJob(changes)]);
  return result!;
}

let folder = '';
let path = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-bench-'));
  path = join(folder, 'disk');
});
afterEach(() => rmSync(folder, { recursive: true }));

/** Reads or replaces bytes of the file under test. */
function edit(offset: number, bytes: number, change: (data: Buffer) => void): void {
  const fd = openSync(path, 'r+');
  try {
    const data = Buffer.alloc(bytes);
    readSync(fd, data, 0, bytes, offset);
    change(data);
    writeSync(fd, data, 0, bytes, offset);
  } finally {
    closeSync(fd);
  }
}

function bytesAt(offset: number, bytes: number): Buffer {
  let copy = Buffer.alloc(0);
  edit(offset, bytes, (data) => (copy = Buffer.from(data)));
  return copy;
}

function put(offset: number, bytes: Buffer): void {
  edit(offset, bytes.length, (data) => bytes.copy(data));
}

function openFiles(): number {
  return readdirSync('/proc/self/fd').length;
}

describe('runJobs', () => {
  it('merges four workers: counts, histograms, bytes', async () => {
    const result = await run({ uri: 'ram:16MiB', numjobs: 4, iodepth: 16 });
    expect(result.error).toBeNull();
    expect(result.read.ios).toBe(4 * 4096);
    expect(result.read.bytes).toBe(4 * 16 * MIB);
    expect(result.read.buckets.reduce((sum, [, count]) => sum + count, 0)).toBe(4 * 4096);
    expect(result.read.iops).toBeCloseTo(result.read.ios / (result.read.runtimeMs / 1000), 3);
    const { min, max, mean, percentile } = result.read.clatNs;
    expect(min).toBeGreaterThan(0);
    expect(mean).toBeGreaterThanOrEqual(min);
    expect(max).toBeGreaterThanOrEqual(percentile['99.990000']!);
    expect(result.write.ios).toBe(0);
    expect(result.verify).toBeNull();
    expect(result.penstock.doorbells).toBeGreaterThan(0);
  });

  it('runs jobs side by side and samples their progress', async () => {
    const samples: Sample[][] = [];
    const results = await runJobs(
      [
        testJob({ uri: 'ram:16MiB', runtime: 1, rampTime: 0.2 }),
        testJob({ uri: 'null:1GiB', runtime: 1, rw: 'randrw', rwmixread: 25 }),
      ],
      { onSample: (perJob) => samples.push(perJob) },
    );
    expect(samples.length).toBeGreaterThanOrEqual(2);
    expect(samples.every((perJob) => perJob.length === 2)).toBe(true);
    for (const { series, read, write, cpuNsPerIo, usrCpu } of results) {
      expect(series.length).toBeGreaterThanOrEqual(2);
      expect(series.at(-1)).toMatchObject({ readIos: read.ios, writeIos: write.ios });
      const times = series.map(({ timeMs }) => timeMs);
      const counts = series.map(({ readIos, writeIos }) => readIos + writeIos);
      expect(times).toEqual([...times].sort((a, b) => a - b));
      expect(counts).toEqual([...counts].sort((a, b) => a - b));
      expect(cpuNsPerIo).toBeGreaterThan(0);
      expect(usrCpu).toBeGreaterThan(0);
    }
    expect(results[1]!.write.ios).toBeGreaterThan(results[1]!.read.ios);
  });

  it('gives partial results when it is aborted', async () => {
    const abort = new AbortController();
    const [result] = await runJobs([testJob({ uri: 'ram:16MiB', runtime: 600 })], {
      signal: abort.signal,
      onSample: () => abort.abort(),
    });
    expect(result!.interrupted).toBe(true);
    expect(result!.error).toBeNull();
    expect(result!.read.ios).toBeGreaterThan(0);
  });

  it('aborted before it begins: no operation', async () => {
    const [result] = await runJobs([testJob({ uri: 'ram:16MiB', runtime: 600 })], {
      signal: AbortSignal.abort(),
    });
    expect(result!.interrupted).toBe(true);
    expect(result!.read.ios).toBe(0);
  });

  it('open loop: issues the rate it was asked for', async () => {
    const { read } = await run({ uri: 'ram:16MiB', rateIops: 500, ioSize: 100 * BS, numjobs: 2 });
    expect(read.ios).toBe(200);
    expect(read.runtimeMs).toBeGreaterThanOrEqual(198);
  });

  it('explains the first I/O error and ends', async () => {
    const uri = 'ram:16MiB?fault.errors=0.01&fault.seed=5';
    const result = await run({ uri, runtime: 600, numjobs: 2 });
    expect(result.errors).toBeGreaterThan(0);
    expect(result.error).toMatchObject({ code: 'MEDIA_ERROR' });
    expect(result.error!.hint).not.toBe('');
    expect(result.interrupted).toBe(false);
  });

  it.each<[Partial<JobOptions>, string]>([
    [{ bs: 4095 }, 'BAD_OPTION'],
    [{ offset: 100 }, 'BAD_OPTION'],
    [{ size: 32 * MIB }, 'BAD_OPTION'],
    [{ iodepth: 0 }, 'BAD_OPTION'],
    [{ numjobs: 1.5 }, 'BAD_OPTION'],
    [{ runtime: NaN }, 'BAD_OPTION'],
    [{ randomDistribution: 'zipf:1' }, 'BAD_OPTION'],
    [{ verify: true, size: 8192, numjobs: 3 }, 'BAD_OPTION'],
    [{ uri: 'file:/nonexistent/file' }, 'NO_SUCH_FILE'],
  ])('refuses %j', async (changes, code) => {
    const before = openFiles();
    const job = run({ uri: 'ram:16MiB', ...changes });
    await expect(job).rejects.toMatchObject({ name: 'PenstockError', code });
    expect(openFiles()).toBe(before);
  });

  it('leaves no descriptor open after a run', async () => {
    const job = { uri: `file:${path}?create=8MiB`, numjobs: 2 };
    await run(job);
    const before = openFiles();
    await run(job);
    expect(openFiles()).toBe(before);
  });
});

describe('verified jobs', () => {
  it.each<Partial<JobOptions>>([
    { uri: 'ram:16MiB', rw: 'randwrite', numjobs: 4 },
    { uri: 'ram:16MiB', rw: 'randrw', ioSize: 32 * MIB, dedupePercentage: 40 },
    { uri: 'FILE', rw: 'write', bs: 65536 },
    { uri: 'FILE', rw: 'randrw', ioSize: 32 * MIB, numjobs: 2, randomDistribution: 'zipf:1.1' },
  ])('find nothing on a sound device: %j', async (changes) => {
    const uri = changes.uri === 'FILE' ? `file:${path}?create=16MiB` : changes.uri!;
    const { verify, error } = await run({ ...changes, uri, verify: true, iodepth: 32 });
    expect(error).toBeNull();
    expect(verify!.failures).toEqual([]);
    expect(verify!.checkedBlocks).toBeGreaterThan(0);
  });

  it('a read job with the same seed finds each kind of damage at its place', async () => {
    const uri = `file:${path}?create=8MiB`;
    const job = { uri, rw: 'write', verify: true, seed: 77 } as const;
    const written = await run(job);
    expect(written.verify).toEqual({ checkedBlocks: 2048, failureCount: 0, failures: [] });
    const old = bytesAt(0, 8 * MIB);
    // A second pass in the same run makes sequence 2 the newest.
    await run({ ...job, ioSize: 16 * MIB });
    const newest = bytesAt(0, 8 * MIB);
    expect(newest.equals(old)).toBe(false);

    edit(1234 * BS + 2000, 1, (data) => (data[0]! ^= 0x10));
    put(300 * BS, newest.subarray(301 * BS, 302 * BS));
    put(301 * BS, newest.subarray(300 * BS, 301 * BS));
    put(500 * BS + 2048, old.subarray(500 * BS + 2048, 501 * BS));
    put(700 * BS, Buffer.alloc(BS));

    const { verify } = await run({ uri, rw: 'read', verify: true, seed: 77, numjobs: 2 });
    expect(verify!.failureCount).toBe(5);
    expect(verify!.checkedBlocks).toBe(2048);
    expect(verify!.failures.map(({ kind, block }) => [kind, block])).toEqual([
      ['misplaced', 300],
      ['misplaced', 301],
      ['torn', 500],
      ['unwritten', 700],
      ['corrupt', 1234],
    ]);
    expect(verify!.failures[4]!.offset).toBe(1234 * BS + 1536);
    expect(verify!.failures[4]!.detail).toContain('bit 4');
  });

  it('a read job with another seed calls the blocks stale', async () => {
    const uri = `file:${path}?create=1MiB`;
    await run({ uri, rw: 'write', verify: true, seed: 1 });
    const { verify } = await run({ uri, rw: 'read', verify: true, seed: 2 });
    expect(verify!.failureCount).toBe(256);
    expect(verify!.failures[0]!.kind).toBe('stale');
  });

  it('a write job finds acknowledged writes that were lost (stale) or torn', async () => {
    const job = { rw: 'write', verify: true, iodepth: 4, bs: 16384, ioSize: 16 * MIB } as const;
    const lost = await run({ ...job, uri: 'ram:8MiB?fault.dropWrites=0.01&fault.seed=3' });
    expect(lost.verify!.failureCount).toBeGreaterThan(0);
    expect(lost.verify!.failures.map(({ kind }) => kind)).toContain('stale');
    const torn = await run({ ...job, uri: 'ram:8MiB?fault.torn=0.01&fault.tornAck=1' });
    expect(torn.verify!.failureCount).toBeGreaterThan(0);
    expect(torn.verify!.failures.every(({ kind }) => kind === 'torn')).toBe(true);
  });

  it('survives a device that delays and reorders', async () => {
    const uri = 'ram:4MiB?fault.reorder=0.5&fault.delayUs=20&fault.delayProbability=0.2';
    const job = { rw: 'randrw', verify: true, iodepth: 32, ioSize: 16 * MIB } as const;
    const { verify, error } = await run({ ...job, uri });
    expect(error).toBeNull();
    expect(verify!.failures).toEqual([]);
  });
});
