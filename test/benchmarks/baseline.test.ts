// The C programs build and say what they should; the account of a process tree is complete.

import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { packageRoot, runBaseline, runMetered } from '../../bench/baseline.js';
import { scratchFolder, writeRandomFile } from '../../bench/scratch.js';

interface Iops {
  iops: number;
  ns_per_io: number;
  depth: number;
}

describe('the C baselines', () => {
  it.each(['null-loop', 'memory-loop'] as const)('%s', async (name) => {
    const args = ['--depth', '16', '--runtime', '0.05'];
    if (name === 'memory-loop') args.push('--bytes', String(4 << 20));
    const result = await runBaseline<Iops>(name, args);
    expect(result.depth).toBe(16);
    expect(result.iops * result.ns_per_io).toBeGreaterThan(0.99e9);
    expect(result.iops * result.ns_per_io).toBeLessThan(1.01e9);
  });

  it('uring-nop', async () => {
    const args = ['--batch', '8', '--runtime', '0.05'];
    const result = await runBaseline<{ ops_per_s: number; batch: number }>('uring-nop', args);
    expect(result.batch).toBe(8);
    expect(result.ops_per_s).toBeGreaterThan(0);
  });

  it('idc-loop', async () => {
    const args = ['--runtime', '0.05', '--batch', '32', '--size', '1024'];
    const result = await runBaseline<{
      rtt_ns: { p50: number; p99: number };
      descriptors_per_s: number;
      disturbed: number;
    }>('idc-loop', args);
    expect(result.rtt_ns.p50).toBeGreaterThan(0);
    expect(result.rtt_ns.p99).toBeGreaterThanOrEqual(result.rtt_ns.p50);
    expect(result.descriptors_per_s).toBeGreaterThanOrEqual(0);
    expect(result.disturbed).toBeLessThanOrEqual(1);
  });

  it.each([[], ['--fixed'], ['--sqpoll', '--fixed'], ['--sequential', '--batch', '4']])(
    'uring-read %s %s %s',
    async (...flags) => {
      const file = join(scratchFolder(), 'data');
      writeRandomFile(file, 3 << 20);
      const args = [file, '--depth', '8', '--runtime', '0.05', ...flags];
      const result = await runBaseline<{ ios: number; cpu_ns_per_io: number }>('uring-read', args);
      expect(result.ios).toBeGreaterThan(0);
      expect(result.cpu_ns_per_io).toBeGreaterThanOrEqual(0);
    },
  );

  it('says what was wrong', async () => {
    const missing = join(scratchFolder(), 'missing');
    const run = runBaseline('uring-read', [missing]);
    await expect(run).rejects.toMatchObject({ code: 'BENCH_CHILD' });
    await expect(run).rejects.toThrow('No such file');
    await expect(runBaseline('null-loop', ['--depth', '3'])).rejects.toThrow('power of two');
  });
});

describe('runMetered', () => {
  it('counts the CPU time of grandchildren', async () => {
    const busy = 'const until = Date.now() + 300; while (Date.now() < until);';
    const args = JSON.stringify(['-e', busy]);
    const child = `require('node:child_process').execFileSync(process.execPath, ${args})`;
    const { usage } = await runMetered(process.execPath, ['-e', child]);
    const idle = (await runMetered(process.execPath, ['-e', ''])).usage;
    const cpuNs = (of: typeof usage): number => of.user_ns + of.sys_ns;
    expect(usage.exit_code).toBe(0);
    expect(cpuNs(usage)).toBeGreaterThan(cpuNs(idle));
    expect(usage.wall_ns).toBeGreaterThanOrEqual(300e6);
    expect(usage.run_delay_ns).toBeGreaterThanOrEqual(0);
  });

  it('passes output on, and a failure with its text', async () => {
    const script = join(packageRoot(), 'package.json');
    const { stdout } = await runMetered('cat', [script]);
    expect(stdout).toContain('"name": "penstock"');
    const failing = runMetered('sh', ['-c', 'echo broken >&2; exit 3']);
    await expect(failing).rejects.toMatchObject({ code: 'BENCH_CHILD' });
    await expect(failing).rejects.toThrow('broken');
  });
});
