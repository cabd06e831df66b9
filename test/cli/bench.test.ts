import {
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeSync,
  closeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { SCHEMES as COMPLETED } from '../../lib/cli/schemes.js';
import { SCHEMES } from '../../lib/open.js';
import { penstock } from './command.js';

const folder = mkdtempSync(join(tmpdir(), 'penstock-bench-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface BenchJson {
  schema: string;
  jobs: {
    jobname: string;
    uri: string;
    read: { iops: number; total_ios: number };
    write: { total_ios: number };
    verify: { checked_blocks: number } | null;
    interrupted: boolean;
  }[];
  error?: { code: string; message: string };
}

function parse(stdout: string): BenchJson {
  return JSON.parse(stdout) as BenchJson;
}

describe('penstock bench', () => {
  it('prints one job per URI as JSON, nothing else on stdout', async () => {
    const ended = await penstock([
      'bench',
      'ram:16MiB',
      'null:16MiB',
      '--rw=randread',
      '--io_size=4M',
      '--json',
    ]);
    expect(ended.exitCode).toBe(0);
    const { schema, jobs } = parse(ended.stdout);
    expect(schema).toBe('penstock.bench/1');
    expect(jobs.map((job) => [job.uri, job.read.total_ios, job.write.total_ios])).toEqual([
      ['ram:16MiB', 1024, 0],
      ['null:16MiB', 1024, 0],
    ]);
  });

  it("prints fio's block for people", async () => {
    const ended = await penstock(['bench', 'ram:16MiB', '--name=mine', '--io-size=1M']);
    expect(ended.exitCode).toBe(0);
    expect(ended.stdout).toMatch(/^mine: \(g=0\): rw=read, bs=\(R\) 4096B-4096B/);
    expect(ended.stdout).toMatch(/^ {2}read: IOPS=.+BW=/m);
    expect(ended.stdout).toContain('Run status group 0');
  });

  it('sweeps depths and writes a report', async () => {
    const report = join(folder, 'report.html');
    const ended = await penstock([
      'bench',
      'ram:16MiB',
      '--io-size=1M',
      '--depths=1,8',
      `--report=${report}`,
      '--json',
    ]);
    expect(ended.exitCode).toBe(0);
    expect(parse(ended.stdout).jobs.map((job) => job.jobname)).toEqual(['job-qd1', 'job-qd8']);
    expect(ended.stderr).toContain(`report written to ${report}`);
    expect(readFileSync(report, 'utf8')).toContain('job-qd8');
  });

  it('ends with partial results and 130 when interrupted', async () => {
    const ended = await penstock(['bench', 'ram:16MiB', '--runtime=120', '--json'], {
      signals: [{ afterMs: 3000, signal: 'SIGINT' }],
    });
    expect(ended.exitCode).toBe(130);
    const { jobs, error } = parse(ended.stdout);
    expect(jobs[0]).toMatchObject({ interrupted: true });
    expect(jobs[0]?.read.total_ios).toBeGreaterThan(0);
    expect(error?.code).toBe('INTERRUPTED');
  });

  it('finds a flipped bit, says where, and exits with 4', async () => {
    const path = join(folder, 'disk.img');
    const job = [`file:${path}?create=4MiB`, '--bs=4k', '--verify', '--seed=9', '--json'];
    const written = await penstock(['bench', ...job, '--rw=write']);
    expect(written.exitCode).toBe(0);
    expect(parse(written.stdout).jobs[0]?.verify?.checked_blocks).toBe(1024);

    const file = openSync(path, 'r+');
    const byte = new Uint8Array(1);
    readSync(file, byte, 0, 1, 17 * 4096 + 1234);
    writeSync(
      file,
      byte.map((value) => value ^ 4),
      0,
      1,
      17 * 4096 + 1234,
    );
    closeSync(file);

    const checked = await penstock(['bench', ...job, '--rw=read']);
    expect(checked.exitCode).toBe(4);
    const { jobs, error } = parse(checked.stdout);
    expect(jobs).toHaveLength(1);
    expect(error?.code).toBe('VERIFY_MISMATCH');
    expect(error?.message).toMatch(/^block 17 at byte \d+ of file:.+ is corrupt/);
    // The offset is that of the damaged block of the device, within the block of the job.
    const offset = Number(/at byte (\d+)/.exec(error?.message ?? '')?.[1]);
    expect(Math.floor(offset / 4096)).toBe(17);
  });

  it.each([
    [['bench'], 'bench wants a URI'],
    [['bench', 'rom:1M'], "the nearest is 'ram:'"],
    [['bench', 'ram:1M?spares=1'], "the nearest is 'sparse'"],
    [['bench', 'ram:1M', '--bs=1x'], '--bs'],
    [['bench', 'ram:1M', '--job=/nonexistent'], '--job'],
    [['bench', 'ram:1M', '--vs=dd'], '--vs'],
    [['bench', 'ram:1M', '--rounds=0'], '--rounds'],
  ])('%j is a usage error', async (args, message) => {
    const ended = await penstock([...args, '--json']);
    expect(ended.exitCode).toBe(2);
    expect(parse(ended.stdout).error?.message).toContain(message);
  });

  it('refuses a report it cannot write before it runs anything', async () => {
    const args = ['bench', 'ram:1M', '--runtime=60', '--report=/nonexistent/report.html'];
    const ended = await penstock(args);
    expect(ended.exitCode).not.toBe(0);
    expect(ended.stdout).toBe('');
    expect(ended.stderr).toContain('/nonexistent/report.html');
  });
});

describe('completion of URIs', () => {
  it('offers the schemes that open knows', () => {
    expect(Object.keys(COMPLETED).sort()).toEqual([...SCHEMES].sort());
  });
});
