// The programs of examples/ run as they stand, and print what they should.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { command, type Ended } from './cli/command.js';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-examples-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

function example(name: string, args: string[]): Promise<Ended> {
  return command(process.execPath, [join(root, 'examples', name), ...args], {
    env: { PENSTOCK_QUIET: '1', TMPDIR: folder },
  });
}

describe('examples', () => {
  it('read-block prints what stands in the block', async () => {
    const bytes = Buffer.alloc(1 << 20);
    bytes.fill(0xab, 16 * 512, 16 * 512 + 64);
    writeFileSync(join(folder, 'disk.img'), bytes);
    const disk = `file:${join(folder, 'disk.img')}`;
    const there = await example('read-block.mjs', [disk, '16']);
    expect(there).toMatchObject({ exitCode: 0, stderr: '' });
    expect(there.stdout.replaceAll('\n', '')).toBe('ab'.repeat(64));
    const before = await example('read-block.mjs', [disk, '8']);
    expect(before.stdout.replaceAll('\n', '')).toBe('00'.repeat(64));
  });

  it.each(['ram:16MiB', 'file'])('hot-loop reads every block it was asked for: %s', async (uri) => {
    const disk = uri === 'file' ? `file:${join(folder, 'disk.img')}?create=16MiB` : uri;
    const { stdout, exitCode } = await example('hot-loop.mjs', [disk, '20000']);
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/^20000 reads of 4096 bytes at depth 32: 0 failed, [1-9]\d* IOPS\n$/);
  });

  it('hot-loop counts what fails', async () => {
    const { stdout } = await example('hot-loop.mjs', ['ram:16MiB?fault.errors=1', '2000']);
    expect(stdout).toMatch(/^2000 reads .*: 2000 failed,/);
  });

  it.each(['ram:16MiB', 'file'])('workers share one device: %s', async (uri) => {
    const disk = uri === 'file' ? `file:${join(folder, 'disk.img')}?create=16MiB` : uri;
    const { stdout, exitCode } = await example('workers.mjs', [disk]);
    expect(exitCode).toBe(0);
    const lines = [0, 1, 2, 3].map(
      (n) => `worker ${n}: 64 units verified, first one seen here: true`,
    );
    expect(stdout).toBe(`${lines.join('\n')}\n`);
  });

  it('domains pass buffers through three processes, and leave nothing', async () => {
    const { stdout, stderr, exitCode } = await example('domains.mjs', ['200']);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(stdout).toBe('200 buffers of 65536 bytes by 2 hops, 0 wrong, 0 still lent\n');
    expect(readdirSync(folder)).toEqual([]);
  });

  it('fault-injection fails the same way for the same seed', async () => {
    const first = await example('fault-injection.mjs', ['7']);
    expect(first.exitCode).toBe(0);
    expect(first.stdout).toMatch(/^[1-9]\d* of 500 reads failed, at blocks \d+/);
    expect(first.stdout).toContain('MEDIA_ERROR: read at block');
    expect((await example('fault-injection.mjs', ['7'])).stdout).toBe(first.stdout);
    expect((await example('fault-injection.mjs', ['8'])).stdout).not.toBe(first.stdout);
  });
});

describe('npm run demo', () => {
  const short = (): string[] => ['--seconds', '1', '--report', join(folder, 'report.html')];

  it('runs a verified workload, leaves the report and nothing else', async () => {
    const { stdout, exitCode } = await example('demo.mjs', [...short(), '--no-fio']);
    expect(exitCode).toBe(0);
    expect(stdout).toContain('no comparison with fio: --no-fio was given');
    expect(stdout).toMatch(/^done: +[1-9][\d,]* reads and [1-9][\d,]* writes of 4 KiB/m);
    expect(stdout).toMatch(/^verified: [1-9][\d,]* blocks checked, 0 damaged$/m);
    expect(readdirSync(folder)).toEqual(['report.html']);
    expect(readFileSync(join(folder, 'report.html'), 'utf8')).toContain('npm run demo');
  });

  it('ends with 4, says so and cleans up when blocks are damaged', async () => {
    const args = [...short(), '--no-fio', '--faults', 'seed=3&dropWrites=0.05'];
    const { stdout, stderr, exitCode } = await example('demo.mjs', args);
    expect(exitCode).toBe(4);
    expect(stdout).toMatch(/^verified: .* checked, [1-9][\d,]* damaged$/m);
    expect(stderr).toMatch(/penstock: block \d+ at byte \d+ of file:.* is (stale|unwritten)/);
    expect(readdirSync(folder)).toEqual(['report.html']);
  });

  it.each(['SIGINT', 'SIGTERM'] as const)('cleans up after %s', async (signal) => {
    const script = join(root, 'examples/demo.mjs');
    const args = [script, '--seconds', '50', '--report', join(folder, 'report.html')];
    const child = spawn(process.execPath, args, {
      stdio: ['ignore', 'pipe', 'ignore'],
      env: { ...process.env, PENSTOCK_QUIET: '1', TMPDIR: folder },
    });
    // Its first line says that the workload begins.
    child.stdout.once('data', () => setTimeout(() => child.kill(signal), 500));
    const [exitCode] = (await once(child, 'exit')) as [number | null];
    expect(exitCode).toBe(130);
    expect(readdirSync(folder).filter((name) => name !== 'report.html')).toEqual([]);
  });

  it('refuses options it does not know before it makes anything', async () => {
    const { stderr, exitCode } = await example('demo.mjs', ['--secnds', '1']);
    expect(exitCode).toBe(2);
    expect(stderr).toContain("'--secnds'");
    expect(readdirSync(folder)).toEqual([]);
  });
});
