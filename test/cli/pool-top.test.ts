// `penstock pool top`: the statistics of a pool that another process has open.

import { spawn, type ChildProcess } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { createServer, connect, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { formatSample, pathOf, sampleOf, type PoolSample } from '../../lib/cli/pool-top.js';
import { formatStats } from '../../lib/cli/pool-stats.js';
import { Pool, readStats, type ServedStats } from '../../lib/dedup/index.js';
import { open } from '../../lib/open.js';
import { readText } from '../tidy/files.js';
import { MAIN, penstock } from './command.js';

const MIB = 2 ** 20;
const folder = mkdtempSync(join(tmpdir(), 'penstock-top-'));
const at = (name: string): string => join(folder, name);
const dist = dirname(dirname(MAIN));
const volume = (stats: string): string => `dedup:file:${at('pool.img')}?dedup.stats=${stats}#one`;

/** Opens a volume, says so, reads and writes it until SIGTERM; then closes it. */
const OWNER = `
const [openFile, uri] = process.argv.slice(1);
const { open } = await import(openFile);
const disk = await open(uri);
const buffer = disk.memory.alloc(65536);
let ends = false;
process.on('SIGTERM', () => (ends = true));
console.log('open');
for (let at = 0; !ends; at = (at + 16) % 256) {
  buffer.u8.fill(at + 1);
  await disk.write(at, buffer);
  await disk.read(at, buffer);
  await new Promise((resolve) => setTimeout(resolve, 1));
}
await disk.close();
`;

async function owner(stats: string): Promise<ChildProcess> {
  const args = ['--input-type=module', '-e', OWNER, join(dist, 'open.js'), volume(stats)];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  await lines(child, 1);
  return child;
}

/** Resolves when a process has written so many lines. */
function lines(child: ChildProcess, count: number): Promise<void> {
  let seen = 0;
  return new Promise((resolve, reject) => {
    child.once('exit', (code) => reject(new Error(`it ended with ${code}`)));
    child.stdout!.on('data', (text: Buffer) => {
      seen += text.toString().split('\n').length - 1;
      if (seen >= count) resolve();
    });
  });
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
  const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
  child.kill(signal);
  return ended;
}

/** The error of a command that fails. */
async function failure(...args: string[]): Promise<{ code: string; exitCode: number | null }> {
  const { stdout, exitCode } = await penstock([...args, '--json']);
  const { error } = JSON.parse(stdout) as { error: { code: string } };
  return { code: error.code, exitCode };
}

function listen(path: string, text: string): Promise<Server> {
  return new Promise((resolve) => {
    const server = createServer((socket) => socket.end(text));
    server.listen(path, () => resolve(server));
  });
}

beforeAll(async () => {
  const made = await penstock(['pool', 'create', `file:${at('pool.img')}?create=64MiB`]);
  expect(made).toMatchObject({ exitCode: 0 });
  const volumeMade = ['volume', 'create', `file:${at('pool.img')}`, 'one', '16MiB'];
  expect(await penstock(volumeMade)).toMatchObject({ exitCode: 0 });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('penstock pool top', () => {
  it('shows what a pool does that another process has open', async () => {
    const child = await owner(at('live'));
    try {
      expect(statSync(at('live')).mode & 0o777).toBe(0o600);
      const top = ['pool', 'top', at('live'), '--once', '--interval', '300ms'];
      const { stdout, exitCode } = await penstock([...top, '--json']);
      expect(exitCode).toBe(0);
      const sample = JSON.parse(stdout) as PoolSample;
      expect(sample).toMatchObject({
        ...{ schema: 'penstock.pool-top/1', socket: at('live'), pid: child.pid, volumes: 1 },
        ...{ space: 'ok', llrrm_hit_rate: null, uri: `file:${at('pool.img')}` },
      });
      expect(sample.reads_per_s).toBeGreaterThan(0);
      expect(sample.read_bytes_per_s).toBeGreaterThan(65536);
      expect(sample.writes_per_s).toBeGreaterThan(0);
      expect(sample.seconds).toBeGreaterThan(0.2);
      const text = await penstock(['pool', 'top', volume(at('live')), ...top.slice(3)]);
      expect(text.stdout).toMatch(/^reads +\d+ +\d+\.\d$/m);
      expect(text.stdout).toMatch(/^journal +\d/m);
      const stats = await penstock(['pool', 'stats', at('live')]);
      expect(stats.stdout).toMatch(/^volumes +1$/m);
      expect(stats.stdout).toMatch(/^writes +\d+ requests, \d/m);
      expect(stats.stdout).toMatch(/^device reads +[\d.]+ us, 99 % within [\d.]+ us/m);
      const whole = await penstock(['pool', 'stats', at('live'), '--json']);
      expect(JSON.parse(whole.stdout)).toMatchObject({
        ...{ schema: 'penstock.pool-stats/1', read_extents: null, pid: child.pid },
      });
      // Live: a line for each sample until SIGINT.
      const live = [MAIN, 'pool', 'top', at('live'), '--json', '--interval=100ms'];
      const shown = spawn(process.execPath, live, { stdio: ['ignore', 'pipe', 'inherit'] });
      await lines(shown, 3);
      expect(await end(shown, 'SIGINT')).toBe(0);
    } finally {
      expect(await end(child, 'SIGTERM')).toBe(0);
    }
    expect(existsSync(at('live'))).toBe(false);
    expect(await failure('pool', 'top', at('live'), '--once')).toEqual({
      code: 'NO_STATS',
      exitCode: 3,
    });
  });

  it('ends when the owner does, whose socket the next one replaces', async () => {
    const child = await owner(at('killed'));
    const top = penstock(['pool', 'top', at('killed'), '--json', '--interval', '100ms']);
    await new Promise((resolve) => setTimeout(resolve, 1500));
    await end(child, 'SIGKILL');
    const { stdout, exitCode } = await top;
    expect(exitCode).toBe(3);
    expect(stdout).toContain('"NO_STATS"');
    expect(lstatSync(at('killed')).isSocket()).toBe(true);
    const next = await owner(at('killed'));
    expect((await readStats(at('killed'))).pid).toBe(next.pid);
    expect(await end(next, 'SIGTERM')).toBe(0);
    expect(existsSync(at('killed'))).toBe(false);
  });

  it('says that an owner does not answer', async () => {
    const child = await owner(at('stopped'));
    child.kill('SIGSTOP');
    symlinkSync(at('stopped'), at('way'));
    await expect(readStats(at('way'), 200)).rejects.toMatchObject({ code: 'STATS_SILENT' });
    child.kill('SIGCONT');
    expect((await readStats(at('way'))).pid).toBe(child.pid);
    expect(await end(child, 'SIGTERM')).toBe(0);
  });

  it('says what is wrong with a path', async () => {
    writeFileSync(at('file'), 'text');
    const cases: [string[], string, number][] = [
      [[at('file')], 'NOT_A_SOCKET', 3],
      [[at('nothing')], 'NO_STATS', 3],
      [[at('x'.repeat(120))], 'BAD_OPTION', 2],
      [[`dedup:file:${at('pool.img')}#one`], 'BAD_OPTION', 2],
      [[`file:${at('pool.img')}`], 'BAD_OPTION', 2],
      [[at('nothing'), '--interval', '1ms'], 'BAD_OPTION', 2],
    ];
    for (const [args, code, exitCode] of cases) {
      expect(await failure('pool', 'top', ...args)).toEqual({ code, exitCode });
    }
    const server = await listen(at('other'), '{"schema":"other"}\n');
    await expect(readStats(at('other'))).rejects.toMatchObject({ code: 'NO_STATS' });
    server.close();
    expect(pathOf(volume('/run/x'))).toBe('/run/x');
    expect(pathOf('./odd:name')).toBe('./odd:name');
    for (const uri of ['nvme+vfio-user:/dir/1', 'idc:/run/hub.sock/disk0', 'ram:64MiB']) {
      expect(() => pathOf(uri)).toThrowError(
        expect.objectContaining({ code: 'BAD_OPTION', hint: expect.stringContaining('socket') }),
      );
    }
  });
});

describe('the socket of the statistics', () => {
  const openWith = async (statsSocket: string): Promise<void> => {
    const device = await open(`file:${at('pool.img')}`);
    try {
      const pool = await Pool.open(device, { statsSocket });
      await pool.close();
    } finally {
      await device.close();
    }
  };

  it('takes nobody’s place, and leaves the pool to be opened', async () => {
    writeFileSync(at('mine'), 'text');
    await expect(openWith(at('mine'))).rejects.toMatchObject({ code: 'NOT_A_SOCKET' });
    expect(readFileSync(at('mine'), 'utf8')).toBe('text');
    symlinkSync(at('mine'), at('link'));
    await expect(openWith(at('link'))).rejects.toMatchObject({ code: 'NOT_A_SOCKET' });
    const server = await listen(at('theirs'), '');
    await expect(openWith(at('theirs'))).rejects.toMatchObject({ code: 'STATS_BUSY' });
    expect(server.listening).toBe(true);
    expect(lstatSync(at('theirs')).isSocket()).toBe(true);
    server.close();
    await expect(openWith(at('no/folder'))).rejects.toMatchObject({ code: 'STATS_FAILED' });
    await expect(openWith(at('x'.repeat(120)))).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await expect(openWith('')).rejects.toMatchObject({ code: 'BAD_OPTION' });
    await openWith(at('free'));
    expect(existsSync(at('free'))).toBe(false);
  });

  it('is one pool’s, and not removed by another when its own is gone', async () => {
    const device = await open(`file:${at('pool.img')}`);
    const pool = await Pool.open(device, { statsSocket: at('one') });
    const other = await open('ram:64MiB');
    await Pool.create(other);
    // The same path by another spelling.
    const spelt = join(folder, '.', 'one');
    await expect(Pool.open(other, { statsSocket: spelt })).rejects.toMatchObject({
      code: 'STATS_BUSY',
    });
    rmSync(at('one'));
    const server = await listen(at('one'), '');
    await pool.close();
    expect(lstatSync(at('one')).isSocket()).toBe(true);
    server.close();
    const again = await Pool.open(other, { statsSocket: at('again') });
    await again.close();
    await other.close();
    await device.close();
  });

  it('serves many at a time, who may go without reading', async () => {
    const device = await open(`file:${at('pool.img')}`);
    const pool = await Pool.open(device, { statsSocket: at('many') });
    for (let i = 0; i < 50; i++)
      connect(at('many'))
        .on('error', () => undefined)
        .destroy();
    const all = await Promise.all(Array.from({ length: 100 }, () => readStats(at('many'))));
    for (const stats of all) {
      expect(stats).toMatchObject({ uuid: pool.uuid, pid: process.pid, volumes: 1 });
      expect(stats.physical_blocks).toBe((64 * MIB) / 4096);
    }
    await pool.close();
    await device.close();
  });
});

describe('a sample', () => {
  it('is of a time between two looks, or since the pool was opened anew', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device);
    const pool = await Pool.open(device);
    const stats = pool.stats();
    const before: ServedStats = { ...stats, uri: 'u', uuid: 'x', pid: 1, open_ms: 1000 };
    const later = {
      ...before,
      open_ms: 3000,
      reads: { ...stats.reads, requests: 1000, blocks: 4096, device_reads: 64 },
      writes: { requests: 10, blocks: 1000 },
      savings: { zero: 100, run: 200, short: 0, copied: 7 },
      written: { ...stats.written, fresh: 700 },
    };
    const sample = sampleOf(before, later);
    expect(sample).toMatchObject({
      ...{ seconds: 2, reads_per_s: 500, read_bytes_per_s: 8 * MIB, writes_per_s: 5 },
      ...{ device_reads_per_mib: 4, saved_rate: 0.3, llrrm_hit_rate: null },
    });
    expect(formatSample(sample)).toMatch(/^reads +500 +8\.4$/m);
    expect(formatSample(sample)).toMatch(/^saved +30\.0 % of what was written$/m);
    const other = sampleOf({ ...later, pid: 2 }, { ...later, open_ms: 1000 });
    expect(other).toMatchObject({ seconds: 1, reads_per_s: 1000 });
    await pool.close();
    await device.close();
  });
});

describe('statistics', () => {
  it('count blocks that were checked, and have all their fields in docs/pool.md', async () => {
    const device = await open('ram:64MiB');
    await Pool.create(device, { dataChecksum: true });
    const pool = await Pool.open(device);
    await pool.createVolume('one', MIB);
    const disk = pool.openVolume('one');
    const buffer = disk.memory.alloc(4 * 4096);
    for (let at = 0; at < buffer.bytes; at += 4096) buffer.u8.fill(1 + at / 4096, at, at + 4096);
    await disk.write(0, buffer);
    await disk.read(0, buffer);
    const stats = { ...pool.stats(), read_extents: null };
    expect(stats.checksums).toEqual({ blocks: 4, damaged: 0 });
    expect(formatStats(stats)).toMatch(/^checksums +4 blocks checked, 0 damaged$/m);
    const page = readText('docs/pool.md');
    for (const field of Object.keys(stats)) {
      if (field !== 'schema') expect(page).toContain(`\`${field}\``);
    }
    await disk.close();
    await pool.close();
    await device.close();
  });
});
