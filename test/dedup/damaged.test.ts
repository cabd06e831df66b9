// A damaged pool in use: what can be read is right, what cannot is an error, and nothing hangs.

import { beforeAll, describe, expect, test, vi } from 'vitest';
import { PenstockError } from '../../lib/errors.js';
import { PoolIo } from '../../lib/dedup/durable/io.js';
import { Pool } from '../../lib/dedup/index.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { isRight, RANGES, sound, VOLUMES, type PoolImage } from './pool-image.js';

const BLOCK = 4096;
/** Far more than anything here takes: what is slower hangs. */
const LIMIT_MS = 10_000;

let whole: PoolImage;

beforeAll(async () => {
  whole = await sound();
});

/** The code of a promise's error, or 'ok'. */
async function outcome(of: Promise<unknown>): Promise<string> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<string>((resolve) => {
    timer = setTimeout(() => resolve('HANGS'), LIMIT_MS);
  });
  const ended = of.then(
    () => 'ok',
    (error: unknown) => {
      if (error instanceof PenstockError) return error.code;
      throw error;
    },
  );
  return Promise.race([ended, limit]).finally(() => clearTimeout(timer));
}

/** Reads all that was written; returns the errors. What is read is right. */
async function readAll(disks: Map<string, BlockDevice>): Promise<Set<string>> {
  const errors = new Set<string>();
  for (const [name, first, blocks] of RANGES) {
    const disk = disks.get(name)!;
    const buffer = disk.memory.alloc(blocks * BLOCK);
    const how = await outcome(disk.read(first, buffer));
    if (how === 'ok') expect(isRight(name, first, buffer.u32), `${name} from ${first}`).toBe(true);
    else errors.add(how);
    if (how !== 'HANGS') buffer.free();
  }
  return errors;
}

/** Writes, reads back, flushes and discards; returns the errors. What is read back is right. */
async function changeAll(disks: Map<string, BlockDevice>): Promise<Set<string>> {
  const hows: string[] = [];
  for (const disk of disks.values()) {
    const buffer = disk.memory.alloc(32 * BLOCK);
    const back = disk.memory.alloc(32 * BLOCK);
    for (let i = 0; i < buffer.u32.length; i++) buffer.u32[i] = Math.imul(i + 7, 0x9e3779b1);
    const how = await outcome(disk.write(120, buffer));
    hows.push(how);
    if (how === 'ok') {
      hows.push(await outcome(disk.read(120, back)));
      if (hows.at(-1) === 'ok') expect(Buffer.compare(buffer.u8, back.u8)).toBe(0);
    }
    hows.push(await outcome(disk.flush()), await outcome(disk.discard(0, 200)));
    buffer.free();
    back.free();
  }
  return new Set(hows.filter((how) => how !== 'ok'));
}

interface Seen {
  open: string;
  reads: Set<string>;
  changes: Set<string>;
  close: string;
}

/** Uses a copy of the pool that was damaged. */
async function use(damage: (image: PoolImage) => void): Promise<Seen> {
  const image = whole.copy();
  damage(image);
  const device = await image.device();
  const seen: Seen = { open: '', reads: new Set(), changes: new Set(), close: 'ok' };
  try {
    let pool: Pool | null = null;
    seen.open = await outcome(Pool.open(device).then((opened) => (pool = opened)));
    if (pool === null) return seen;
    const { indexed } = pool as Pool;
    expect(await outcome(indexed)).toBe('ok');
    const disks = new Map(
      Object.keys(VOLUMES).map((name) => [name, (pool as unknown as Pool).openVolume(name)]),
    );
    seen.reads = await readAll(disks);
    seen.changes = await changeAll(disks);
    for (const disk of disks.values()) await disk.close();
    seen.close = await outcome((pool as Pool).close());
    return seen;
  } finally {
    await device.close();
  }
}

describe('a pool with a flipped bit', () => {
  const nothing = new Set<string>();

  test('in none: all is right', async () => {
    const seen = await use(() => {});
    expect(seen).toEqual({ open: 'ok', reads: nothing, changes: nothing, close: 'ok' });
  });

  test('in one superblock: it is as it was, by the other and the journal', async () => {
    for (const slot of [0, 1]) {
      const seen = await use((image) => image.flip(slot));
      expect(seen).toEqual({ open: 'ok', reads: nothing, changes: nothing, close: 'ok' });
    }
  });

  test('in both superblocks, a root, the catalogue: it does not open', async () => {
    const open = async (damage: (image: PoolImage) => void): Promise<string> =>
      (await use(damage)).open;
    expect(await open((image) => [0, 1].forEach((slot) => image.flip(slot)))).toBe('NOT_A_POOL');
    expect(await open((image) => image.flip(image.root))).toBe('POOL_CORRUPT');
    expect(await open((image) => image.flip(image.catalogue))).toBe('POOL_CORRUPT');
  });

  test('in a node: what is below it is MEDIA_ERROR, and the rest is right', async () => {
    const seen = await use((image) => image.flip(image.rootOf(1)));
    const errors = new Set(['MEDIA_ERROR']);
    expect(seen).toEqual({ open: 'ok', reads: errors, changes: errors, close: 'ok' });
  });

  test('in fingerprints: nothing is wrong for readers and writers', async () => {
    const seen = await use((image) => image.flip(image.fingerprint(image.extents(false)[0]!)));
    expect(seen).toMatchObject({ open: 'ok', reads: nothing, close: 'ok' });
    expect([...seen.changes].filter((code) => code !== 'MEDIA_ERROR')).toEqual([]);
  });
});

describe('a pool with counts that are wrong', () => {
  /** Sets the counts of the blocks of an extent. */
  const counts = (extent: number, to: number) => (image: PoolImage) =>
    image.change(image.count(extent >>> 2), (words) => {
      for (const at of image.set(image.count(extent >>> 2), 8 + 253 * (extent % 4), 253)) {
        words[at] = to;
      }
    });

  test('reads what is right, and changes nothing once it has noticed', async () => {
    for (const nodes of [false, true]) {
      const seen = await use(counts(whole.extents(nodes)[0]!, 0));
      expect(seen.open).toBe('ok');
      expect([...seen.reads]).toEqual([]);
      expect([...seen.changes]).toEqual(['DEVICE_ERROR']);
      expect(['ok', 'POOL_FAILED']).toContain(seen.close);
    }
  });
});

describe('what cannot be given back', () => {
  test('does not keep the device, nor the reason for which the pool did not open', async () => {
    const image = whole.copy();
    image.flip(image.root);
    const device = await image.device();
    const close = PoolIo.prototype.close;
    const failing = vi.spyOn(PoolIo.prototype, 'close').mockImplementation(async function (
      this: PoolIo,
    ) {
      await close.call(this);
      throw new Error('it does not close');
    });
    expect(await outcome(Pool.open(device))).toBe('POOL_CORRUPT');
    await whole.put(device);
    const pool = await Pool.open(device);
    await expect(pool.close()).rejects.toThrowError('it does not close');
    failing.mockRestore();
    await (await Pool.open(device)).close();
    await device.close();
  });
});
