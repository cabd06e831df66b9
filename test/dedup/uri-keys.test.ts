// `dedup.*` keys of a volume's URI: each does what it says (docs/uri.md), and one pool has one
// value of each.

import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { DEDUP_KEYS, Pool } from '../../lib/dedup/index.js';
import type { Engine } from '../../lib/dedup/engine.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';

const MIB = 2 ** 20;
const folder = mkdtempSync(join(tmpdir(), 'penstock-keys-'));
const image = `file:${join(folder, 'pool')}`;
const fastImage = `file:${join(folder, 'fast')}`;
const socket = join(folder, 'socket');
afterAll(() => rmSync(folder, { recursive: true }));

const uriOf = (keys: string, name = 'one'): string => `dedup:${image}?${keys}#${name}`;
const engineOf = (disk: BlockDevice): Engine =>
  (disk.backend as unknown as { engine: Engine }).engine;

interface Seen {
  disk: BlockDevice;
  engine: Engine;
  /** Times of the timers that were made meanwhile, in ms. */
  timers: unknown[];
  /** Codes of the warnings. */
  warnings: unknown[];
}

/** Opens the volume, looks, closes it. */
async function look<T>(keys: string, at: (seen: Seen) => T): Promise<T> {
  const warnings: unknown[] = [];
  const listener = (warning: Error & { code?: string }): void => void warnings.push(warning.code);
  process.on('warning', listener);
  const spy = vi.spyOn(globalThis, 'setInterval');
  try {
    const disk = await open(uriOf(keys));
    try {
      await new Promise((resolve) => setImmediate(resolve));
      const timers = spy.mock.calls.map(([, ms]) => ms);
      return at({ disk, engine: engineOf(disk), timers, warnings });
    } finally {
      await disk.close();
    }
  } finally {
    spy.mockRestore();
    process.off('warning', listener);
  }
}

type At = (seen: Seen) => unknown;
/** A key, its value, another one, one that cannot be, where the first is seen, as what. */
type Row = readonly [string, string, string, string | null, At, unknown];

const llrrmOf: At = ({ engine, warnings }) => [engine.llrrm, warnings];
const TABLE: readonly Row[] = [
  ['thn', '4', '5', '300', ({ engine }) => engine.parts.thn.thn, 4],
  ['thn', '0', '4', 'many', ({ engine }) => engine.parts.thn.thn, 0],
  ['cache', '3MiB', '4MiB', '4KiB', ({ engine }) => engine.parts.pages.frames, 768],
  ['index', '3MiB', '1MiB', '5', ({ engine }) => engine.parts.index.bytes, 3 * MIB],
  ['clean', '0', '1m', '1ms', ({ timers }) => timers.includes(60_000), false],
  ['clean', '7s', '0', '30d', ({ timers }) => timers.includes(7000), true],
  ['llrrm', 'none', fastImage, null, llrrmOf, [null, []]],
  ['stats', socket, `${socket}2`, 'x'.repeat(120), () => existsSync(socket), true],
];

beforeAll(async () => {
  const device = await open(`${image}?create=64MiB`);
  const fast = await open(`${fastImage}?create=2MiB`);
  await Pool.create(device, { thn: 8, llrrm: fast });
  const pool = await Pool.open(device, { llrrm: fast });
  for (const name of ['one', 'two']) await pool.createVolume(name, 4 * MIB);
  await pool.close();
  await fast.close();
  await device.close();
});

describe('a key of a volume’s URI', () => {
  it('stands in the table, but for the size of blocks, which is the volume’s', () => {
    const tested = new Set([...TABLE.map(([key]) => `dedup.${key}`), 'dedup.block']);
    expect([...tested].sort()).toEqual(Object.keys(DEDUP_KEYS).sort());
  });

  it('that is left out changes nothing', async () => {
    const seen = await look('', ({ engine, timers, warnings }) => ({
      ...{ thn: engine.parts.thn.thn, frames: engine.parts.pages.frames },
      ...{ index: engine.parts.index.bytes, cleans: timers.includes(60_000) },
      ...{ llrrm: engine.llrrm !== null, warnings, listens: existsSync(socket) },
    }));
    expect(seen).toEqual({
      ...{ thn: 8, frames: 8192, index: 2 * MIB, cleans: true },
      ...{ llrrm: true, warnings: [], listens: false },
    });
  });

  it.each(TABLE)('dedup.%s=%s does what it says', async (key, value, _, wrong, at, expected) => {
    expect(await look(`dedup.${key}=${value}`, at)).toEqual(expected);
    if (wrong === null) return;
    await expect(open(uriOf(`dedup.${key}=${wrong}`))).rejects.toMatchObject({
      code: 'BAD_OPTION',
      exitCode: 2,
    });
  });

  it.each(TABLE)('dedup.%s=%s is the same for all of a pool', async (key, value, other) => {
    const keys = `dedup.${key}=${value}`;
    const first = await open(uriOf(keys));
    const disks = [first, await open(uriOf(keys)), await open(uriOf(''))];
    for (const disk of disks) expect(engineOf(disk)).toBe(engineOf(first));
    await expect(open(uriOf(`dedup.${key}=${other}`))).rejects.toMatchObject({
      code: 'BAD_OPTION',
      exitCode: 2,
      message: expect.stringContaining(`is open with another dedup.${key}`) as string,
    });
    for (const disk of disks) await disk.close();
    // Nobody has the pool open any more: it can have the other value.
    await (await open(uriOf(`dedup.${key}=${other}`))).close();
  });

  it('that was left out at first cannot be given later', async () => {
    const first = await open(uriOf(''));
    const later = open(uriOf('dedup.cache=32MiB'));
    await expect(later).rejects.toMatchObject({ code: 'BAD_OPTION', exitCode: 2 });
    await first.close();
  });

  it('dedup.block is of a volume, not of its pool', async () => {
    const one = await open(uriOf(''));
    const two = await open(uriOf('dedup.block=512', 'two'));
    expect([one.info.blockSize, two.info.blockSize]).toEqual([4096, 512]);
    expect(engineOf(two)).toBe(engineOf(one));
    await expect(open(uriOf('dedup.block=512'))).rejects.toMatchObject({ code: 'VOLUME_BUSY' });
    await two.close();
    await expect(open(uriOf('dedup.block=1000', 'two'))).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
    await one.close();
  });
});

describe('a key that is not known', () => {
  it.each([
    [`dedup:${image}?dedup.tnh=4#one`, "'dedup.tnh' is not a key of dedup:", 'dedup.thn'],
    [`dedup:${image}?dedpu.thn=4#one`, "'dedpu.thn' is not a key of file:", 'dedup.thn'],
    [`dedup:${image}?dedu.cache=4MiB#one`, "'dedu.cache' is not a key of file:", 'dedup.cache'],
    [`dedup:${image}?falt.cache=1M#one`, "'falt.cache' is not a key of file:", 'fault.cache'],
  ])('names the nearest: %s', async (uri, message, near) => {
    await expect(open(uri)).rejects.toMatchObject({
      code: 'UNKNOWN_KEY',
      message: `${message}; the nearest is '${near}'`,
    });
  });

  it.each([
    ['file:/x?direct=1&dedup.thn=4', 'dedup:file:/x?direct=1&dedup.thn=4#NAME'],
    ['file:/x?dedup.thn=4&fault.seed=1#v', 'dedup:file:/x?dedup.thn=4&fault.seed=1#v'],
    ['ram:64MiB?dedup.what=4', 'dedup:ram:64MiB?dedup.what=4#NAME'],
  ])('says what to write where the scheme was forgotten: %s', async (uri, right) => {
    await expect(open(uri)).rejects.toMatchObject({
      code: 'UNKNOWN_KEY',
      hint: `for a volume of its pool write ${right}`,
      exitCode: 2,
    });
  });

  it('is not all that shows it: nor has the device a volume', async () => {
    await expect(open('file:/x#v')).rejects.toMatchObject({
      code: 'UNKNOWN_TRANSPORT',
      hint: 'write file:/x, or dedup:file:/x#v for a volume of its pool',
    });
  });
});
