// Free space is given back to the device: holes in a file, beside other work, and only what is
// free.

import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it, vi } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { wrapFault } from '../../lib/drivers/fault/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { BlockDevice, Op, type Backend } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock, VolumeModel } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const folder = mkdtempSync(join(tmpdir(), 'penstock-trim-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const held = (path: string): number => statSync(path).blocks * 512;

async function writeRandom(disk: BlockDevice, mib: number): Promise<void> {
  const buffer = disk.memory.alloc(MIB);
  for (let i = 0; i < mib; i++) {
    buffer.u8.set(randomBytes(MIB));
    await disk.write(i * 256, buffer);
  }
  buffer.free();
}

it('makes holes in a file', async () => {
  const path = join(folder, 'pool.img');
  const device = await open(`file:${path}?create=128MiB`);
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  expect(held(path)).toBeGreaterThanOrEqual(128 * MIB);
  // What was never used; journal and superblocks stay.
  expect(await pool.trim()).toBeGreaterThan(110 * MIB);
  expect(held(path)).toBeLessThan(12 * MIB);
  await pool.createVolume('kept', 2 ** 30);
  await pool.createVolume('gone', 2 ** 30);
  for (const name of ['kept', 'gone']) {
    const disk = pool.openVolume(name);
    await writeRandom(disk, 40);
    await disk.close();
  }
  expect(held(path)).toBeGreaterThan(80 * MIB);
  await pool.deleteVolume('gone');
  await pool.settle();
  const progress: number[] = [];
  await pool.trim({ onProgress: ({ done, total }) => progress.push(done / total) });
  expect(progress.at(-1)).toBe(1);
  expect(held(path)).toBeGreaterThan(40 * MIB);
  expect(held(path)).toBeLessThan(56 * MIB);
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it.each([1, 2])(
  'takes nothing that is used, beside writes in a full pool, seed %i',
  async (seed) => {
    const random = new Random(seed);
    const ram = await ramDriver.open(String(40 * MIB), new Map(), 'ram:40MiB');
    // Operations take their time, so that others come between.
    const slow = { delayUs: '1000', delayProbability: '0.3', reorder: '0.3', seed: String(seed) };
    const device = new BlockDevice(wrapFault(ram, new Map(Object.entries(slow))));
    await Pool.create(device, { thn: 2, sampling: 1 });
    const pool = await Pool.open(device, OPEN);
    // With room for one write more than all of them: no step finds the pool full.
    const blocks = 7000;
    await pool.createVolume('one', blocks * PAGE);
    const disk = pool.openVolume('one');
    const model = new VolumeModel('one', blocks);
    let content = 1;
    let trimmed = 0;
    let done = false;
    const trims = (async () => {
      while (!done) trimmed += await pool.trim();
    })();
    // How many trims come between depends on what else the machine does: on, until there were some.
    const isEnough = (): boolean => trimmed > 100 * MIB;
    for (let step = 0; step < 400 || (!isEnough() && step < 4000); step++) {
      const count = random.between(16, 256);
      const first = random.below(blocks - count);
      const isDiscard = random.chance(0.15);
      const base = isDiscard ? 0 : content;
      const buffer = disk.memory.alloc(count * PAGE);
      for (let b = 0; b < count; b++) {
        fillBlock(buffer.u32, b * 1024, base === 0 ? 0 : base + b);
        model.tries(first + b, base === 0 ? 0 : base + b);
      }
      if (isDiscard) await disk.discard(first, count);
      else await disk.write(first, buffer);
      model.settles(first, count, base);
      if (!isDiscard) content += count;
      buffer.free();
    }
    done = true;
    await trims;
    expect(trimmed).toBeGreaterThan(100 * MIB);
    const { space } = pool.engine.parts;
    expect(space.highWater).toBe(space.endGroup);
    const buffer = disk.memory.alloc(blocks * PAGE);
    await disk.read(0, buffer);
    for (let block = 0; block < blocks; block++) {
      model.adopt(block, contentOf(buffer.u32, block * 1024));
    }
    buffer.free();
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
  },
);

it('takes nothing of what writers take while it looks who has the pool', async () => {
  const ram = await ramDriver.open('96MiB', new Map(), 'ram:96MiB');
  // A checkpoint takes many operations after each other, a write two: writers are ahead.
  const device = new BlockDevice(wrapFault(ram, new Map([['delayUs', '1000']])));
  await Pool.create(device, { thn: 2, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  const [blocks, piece] = [16_000, 4000];
  await pool.createVolume('one', blocks * PAGE);
  const disk = pool.openVolume('one');
  const buffer = disk.memory.alloc(piece * PAGE);
  let writing: Promise<void> | null = null;
  const writes = async (): Promise<void> => {
    for (let first = 0; first < blocks; first += piece) {
      for (let b = 0; b < piece; b++) fillBlock(buffer.u32, b * 1024, 1 + first + b);
      await disk.write(first, buffer);
    }
  };
  const { space } = pool.engine.parts;
  const used = space.highWater - space.firstGroup;
  const onProgress = ({ done }: { done: number }): void => {
    // What was never used comes next.
    if (done === used) writing ??= writes();
  };
  await pool.trim({ onProgress, lookMs: 0 });
  expect(writing).not.toBeNull();
  await writing;
  for (let first = 0; first < blocks; first += piece) {
    await disk.read(first, buffer);
    const found = Array.from({ length: piece }, (_, b) => contentOf(buffer.u32, b * 1024));
    expect(found.findIndex((content, b) => content !== 1 + first + b)).toBe(-1);
  }
  buffer.free();
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
});

it('does not rest before its first discard, however long the process runs', async () => {
  const now = performance.now.bind(performance);
  const device = await open('ram:64MiB');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('one', MIB);
  const disk = pool.openVolume('one');
  await writeRandom(disk, 1);
  const queue = pool.engine.numbered.find((each) => each !== null)!;
  const busy = vi.spyOn(queue, 'busy', 'get').mockReturnValue(true);
  const clock = vi.spyOn(performance, 'now').mockImplementation(() => now() + 1e8);
  const trimmed = await pool.trim({ signal: AbortSignal.timeout(5000) });
  clock.mockRestore();
  busy.mockRestore();
  expect(trimmed).toBeGreaterThan(32 * MIB);
  await disk.close();
  await pool.close();
  await device.close();
});

it('fails with the pool', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device);
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('one', MIB);
  const onProgress = (): void => pool.engine.fail('its device is at fault');
  await expect(pool.trim({ onProgress })).rejects.toMatchObject({ code: 'POOL_FAILED' });
  await pool.close();
  await device.close();
});

it('is joined by who asks meanwhile, whatever the options', async () => {
  const device = await open('ram:64MiB');
  await Pool.create(device);
  const pool = await Pool.open(device);
  const under = pool.trim();
  const joined = pool.trim({ signal: new AbortController().signal });
  expect(await under).toBeGreaterThan(2 ** 25);
  expect(await joined).toBe(await under);
  // Each of them may end it.
  const ended = pool.trim();
  expect(await pool.trim({ signal: AbortSignal.abort() })).toBe(0);
  expect(await ended).toBe(0);
  await pool.close();
  await device.close();
});

it('says where it cannot be, and goes on after a device that failed', async () => {
  const ram = await ramDriver.open(String(40 * MIB), new Map(), 'ram:40MiB');
  const info = { ...ram.info, operations: ram.info.operations & ~(1 << Op.DISCARD) };
  let device = new BlockDevice(
    Object.create(ram, { info: { value: info }, close: { value: async () => {} } }) as Backend,
  );
  await Pool.create(device);
  let pool = await Pool.open(device, OPEN);
  await expect(pool.trim()).rejects.toMatchObject({ code: 'UNSUPPORTED' });
  await pool.close();
  await device.close();
  device = new BlockDevice(
    wrapFault(
      ram,
      new Map([
        ['errors', '1'],
        ['errorOps', 'DISCARD'],
      ]),
    ),
  );
  pool = await Pool.open(device, OPEN);
  await expect(pool.trim()).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
  await pool.createVolume('one', MIB);
  await pool.close();
  expect(await checkPool(device)).toMatchObject({ clean: true, volumes: 1 });
  await device.close();
});
