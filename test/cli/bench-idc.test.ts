// `penstock bench idc` between two real processes; its figures are not judged here.

import { readdirSync } from 'node:fs';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { cpuList, twoCpus } from '../../lib/bench/idc-cpus.js';
import type { IdcJson } from '../../lib/bench/index.js';
import { treeOf } from './tree.js';
import { MAIN, command, penstock } from './command.js';

let folder = '';

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-bench-idc-'));
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

const quick = ['bench', 'idc', '--quick', '--runtime', '20ms', '--payloads', '64,4k,1M'];
const env = (): Record<string, string> => ({ TMPDIR: folder, PENSTOCK_QUIET: '1' });

describe('penstock bench idc', () => {
  it('gives the contract of its JSON, and leaves nothing', async () => {
    const ended = await penstock([...quick, '--json'], { env: env() });
    expect(ended).toMatchObject({ stderr: '', exitCode: 0 });
    const result = JSON.parse(ended.stdout) as IdcJson & { schema: string };
    expect(result.schema).toBe('penstock.bench-idc/1');
    expect(result.rtt_ns.count).toBeGreaterThan(0);
    expect(result.rtt_ns.p50).toBeGreaterThan(0);
    expect(result.rtt_ns.p99).toBeGreaterThanOrEqual(result.rtt_ns.p50);
    expect(result.rtt_ns.max).toBeGreaterThanOrEqual(result.rtt_ns.p99);
    expect(result.descriptors_per_s).toBeGreaterThanOrEqual(0);
    expect(result.postmessage_rtt_ns).toBeGreaterThan(0);
    expect(result.by_payload.map(({ bytes }) => bytes)).toEqual([64, 4096, 2 ** 20]);
    for (const payload of result.by_payload) {
      for (const way of ['untouched', 'read', 'loan', 'socket', 'postmessage'] as const) {
        expect(payload[way].rtt_ns.count, `${payload.bytes} ${way}`).toBeGreaterThan(0);
        expect(payload[way].rtt_ns.p50).toBeGreaterThan(0);
      }
    }
    expect(result.wake_us.event_loop.count).toBe(100);
    expect(result.wake_us.park.p50).toBeGreaterThan(0);
    expect(result.idle_cpu_percent).toBeGreaterThanOrEqual(0);
    expect(result.host.node).toBe(process.version);
    expect(readdirSync(folder)).toEqual([]);
  });

  it('prints a table for people', async () => {
    const ended = await penstock(quick, { env: env() });
    expect(ended).toMatchObject({ stderr: '', exitCode: 0 });
    expect(ended.stdout).toMatch(/^ {2}round trip +: p50=\S+ \S+, p99=/m);
    expect(ended.stdout).toMatch(/^4096B +\S+ \S+ \/ \S+ \S+ /m);
  });

  it.each([
    [['--payloads', '63'], 'no multiple of 4'],
    [['--payloads', 'x'], 'is not a size'],
    [['--rounds', '0'], '--rounds'],
    [['--runtime', '0'], '--runtime'],
    [['--bs', '4k'], "unknown option '--bs'"],
  ])('refuses %j', async (words, message) => {
    const ended = await penstock(['bench', 'idc', ...words]);
    expect(ended).toMatchObject({ stdout: '', exitCode: 2 });
    expect(ended.stderr).toContain(message);
  });

  it('refuses options of bench that stand before it', async () => {
    const ended = await penstock(['bench', '--rw', 'read', 'idc']);
    expect(ended).toMatchObject({ stdout: '', exitCode: 2 });
    expect(ended.stderr).toContain('--rw stands before idc');
  });

  it.each(['SIGINT', 'SIGTERM'] as const)('ends at %s, and leaves nothing', async (signal) => {
    const ended = await command(process.execPath, [MAIN, 'bench', 'idc', '--json'], {
      env: env(),
      signals: [{ afterMs: 2500, signal }],
    });
    expect(ended.exitCode).toBe(130);
    expect(JSON.parse(ended.stdout)).toMatchObject({ error: { code: 'INTERRUPTED' } });
    expect(readdirSync(folder)).toEqual([]);
  });
});

describe('two processors', () => {
  const siblings = (cpu: number): string =>
    `/sys/devices/system/cpu/cpu${cpu}/topology/thread_siblings_list`;

  it('are of two cores where there are two', () => {
    const root = treeOf({ [siblings(2)]: '2-3' });
    expect(twoCpus([2, 3, 4, 5], root)).toEqual([2, 4]);
    expect(twoCpus([2, 3], root)).toEqual([2, 3]);
    expect(twoCpus([2], root)).toBeNull();
    expect(twoCpus([0, 1], treeOf({}))).toEqual([0, 1]);
  });

  it('are read from lists as the kernel writes them', () => {
    expect(cpuList('0-2,8\n')).toEqual([0, 1, 2, 8]);
    expect(cpuList('')).toEqual([]);
  });
});
