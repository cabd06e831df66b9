// A device that fails now and then, at any read, write or flush of a pool: every operation ends,
// with its result or a typed error; what was acknowledged is there when the device works again, and
// the check finds nothing.

import { describe, expect, it } from 'vitest';
import { Group, Magic } from '../../lib/dedup/format/layout.js';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { faultControl } from '../../lib/drivers/fault/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { PenstockError } from '../../lib/errors.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { contentOf, fillBlock, VolumeModel } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';
import { withBadPages } from './bad-pages.js';
import { range, read, write } from './contents.js';
import { withFaults } from './with-faults.js';

const PAGE = 4096;
const BLOCKS = 800;
const OPEN = { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 };
const TYPED = ['MEDIA_ERROR', 'DEVICE_ERROR', 'POOL_FAILED', 'DEVICE_CLOSED'];

function assertTyped(error: unknown): void {
  if (!(error instanceof PenstockError)) throw error;
  expect(TYPED).toContain(error.code);
  expect(error.hint).not.toBe('');
}

async function writeSome(disk: BlockDevice, model: VolumeModel, random: Random): Promise<void> {
  const count = random.between(1, 64);
  const first = random.below(BLOCKS - count);
  const base = 1 + random.below(500);
  const buffer = disk.memory.alloc(count * PAGE);
  for (let i = 0; i < count; i++) {
    fillBlock(buffer.u32, i * 1024, base + i);
    model.tries(first + i, base + i);
  }
  await disk
    .write(first, buffer)
    .then(() => model.settles(first, count, base))
    .catch(assertTyped)
    .finally(() => buffer.free());
}

async function compare(pool: Pool, model: VolumeModel): Promise<void> {
  const disk = pool.openVolume('one');
  const buffer = disk.memory.alloc(BLOCKS * PAGE);
  await disk.read(0, buffer);
  for (let block = 0; block < BLOCKS; block++) {
    model.adopt(block, contentOf(buffer.u32, block * 1024));
  }
  model.adopted();
  buffer.free();
  await disk.close();
}

describe('a pool on a device that fails', () => {
  it.each([
    ['write', 0.02],
    ['write', 0.1],
    ['flush', 0.2],
    ['read', 0.1],
    ['read,write,flush', 0.03],
  ])(
    'in some %s (%d of all)',
    async (operations, part) => {
      const ram = await ramDriver.open('48MiB', new Map(), 'ram:');
      let errors = 0;
      for (let seed = 1; seed <= 4; seed++) {
        const random = new Random(seed);
        const model = new VolumeModel('one', BLOCKS);
        const sound = withFaults(ram, []);
        await Pool.create(sound, { thn: 4, sampling: 1, force: true });
        const first = await Pool.open(sound, OPEN);
        await first.createVolume('one', BLOCKS * PAGE);
        await first.close();
        for (let life = 0; life < 3; life++) {
          const device = withFaults(ram, [
            ['seed', String(seed * 10 + life)],
            ['errors', String(part)],
            ['errorOps', operations],
          ]);
          try {
            const pool = await Pool.open(device, OPEN);
            try {
              const disk = pool.openVolume('one');
              for (let i = 0; i < 20; i++) {
                await writeSome(disk, model, random);
                if (i % 7 === 0) await disk.flush().catch(assertTyped);
                if (i % 9 === 0) await pool.checkpoint().catch(assertTyped);
              }
              await disk.close();
            } finally {
              await pool.close().catch(assertTyped);
            }
          } catch (error) {
            assertTyped(error);
          }
          errors += faultControl(device.backend)!.counters.errors;
          await device.close();
          const pool = await Pool.open(sound, OPEN);
          await compare(pool, model);
          await pool.close();
          expect(await checkPool(sound, { data: true })).toMatchObject({ clean: true });
        }
        await sound.close();
      }
      expect(errors).toBeGreaterThan(3);
      await ram.close();
    },
    60_000,
  );
});

describe('reads that fail while a pool with a journal is opened', () => {
  it('are told as such, and are no damage', async () => {
    const ram = await ramDriver.open('64MiB', new Map(), 'ram:');
    const first = withFaults(ram, [['cache', '16MiB']]);
    await Pool.create(first, { sampling: 1 });
    const pool = await Pool.open(first, OPEN);
    const blocks = 250;
    await pool.createVolume('one', 16 * blocks * PAGE);
    const disk = pool.openVolume('one');
    const buffer = disk.memory.alloc(blocks * PAGE);
    const write = async (at: number, content: number): Promise<void> => {
      for (let i = 0; i < blocks; i++) fillBlock(buffer.u32, i * 1024, content + i);
      await disk.write(at * blocks, buffer);
    };
    for (let at = 0; at < 16; at++) await write(at, 1 + at * blocks);
    await pool.checkpoint();
    // What is written over lies in groups that nothing else of the journal is in.
    for (const at of [0, 6]) await write(at, 100_000 + at * blocks);
    await disk.flush();
    await faultControl(first.backend)!.cut({ survive: 1 });
    buffer.free();
    await disk.close();
    await pool.close().catch(assertTyped);
    await first.close();

    let opened: Pool | null = null;
    // None of those that fail has written anything.
    for (let at = 1; opened === null; at++) {
      const device = withFaults(ram, [
        ['errorFrom', String(at)],
        ['errorOps', 'read'],
      ]);
      opened = await Pool.open(device, OPEN).catch((error: unknown) => {
        assertTyped(error);
        return null;
      });
      if (opened !== null) expect(at).toBeGreaterThan(20);
      await opened?.close();
      await device.close();
    }
    expect(opened.recovery).toMatchObject({ entries: 2, blocksLost: 0 });
    await ram.close();
  });

  it('of blocks that may have been flushed: those are MEDIA_ERROR, the rest is there', async () => {
    const ram = await ramDriver.open('64MiB', new Map(), 'ram:');
    const first = withFaults(ram, [['cache', '16MiB']]);
    await Pool.create(first, { thn: 0 });
    const pool = await Pool.open(first, OPEN);
    await pool.createVolume('one', 64 * PAGE);
    const disk = pool.openVolume('one');
    await write(disk, 0, range(1, 64));
    await pool.checkpoint();
    await write(disk, 16, range(100, 32));
    await disk.flush();
    await faultControl(first.backend)!.cut({ survive: 1 });
    await disk.close();
    await pool.close().catch(assertTyped);
    await first.close();
    const bad = new Set<number>();
    const device = withBadPages(ram, bad);
    const page = device.memory.alloc(PAGE);
    for (let pbn = 0; pbn < 2 ** 14; pbn++) {
      await device.read((pbn * PAGE) / device.info.blockSize, page);
      if ([103, 120].includes(contentOf(page.u32, 0))) bad.add(pbn);
    }
    page.free();
    expect(bad.size).toBe(2);
    expect(await checkPool(device)).toMatchObject({ clean: true, journalEntries: 1 });
    const opened = await Pool.open(device, OPEN);
    expect(opened.recovery).toMatchObject({ entries: 1, blocksLost: 0 });
    const again = opened.openVolume('one');
    for (const lbn of [19, 36]) {
      await expect(read(again, lbn, 1)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
      await write(again, lbn, [100 + lbn - 16]);
    }
    expect(await read(again, 0, 64)).toEqual([
      ...range(1, 16),
      ...range(100, 32),
      ...range(49, 16),
    ]);
    await again.close();
    await opened.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
    await ram.close();
  });

  it('at the fingerprints of blocks that are written again: they are stored as new', async () => {
    const ram = await ramDriver.open('64MiB', new Map(), 'ram:');
    const bad = new Set<number>();
    const device = withBadPages(ram, bad);
    await Pool.create(device, { thn: 8, sampling: 1 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 24);
    const disk = pool.openVolume('one');
    const first = range(1, 600);
    await write(disk, 0, first);
    await pool.checkpoint();
    const { pages, trees, catalogue } = pool.engine.parts;
    const leaf = trees.leaf(catalogue.get('one'), 0, Magic.node);
    const extents = [0, 400].map((e) => Math.floor(trees.entry(leaf, e) / Group.extentPages));
    expect(extents[0]).not.toBe(extents[1]);
    for (const extent of extents) {
      const pbn = extent * Group.extentPages;
      pages.drop(pages.frameOf(pbn));
      for (const slot of [0, 1]) bad.add(pbn + slot);
    }
    const { fresh } = pool.stats().written;
    await write(disk, 1000, first);
    expect(pool.stats().written.fresh - fresh).toBeGreaterThan(400);
    expect(await read(disk, 1000, 600)).toEqual(first);
    bad.clear();
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
    await ram.close();
  });

  it('for good, while a write looks for what is stored: it ends with an error', async () => {
    const ram = await ramDriver.open('64MiB', new Map(), 'ram:');
    const device = withFaults(ram, [['cache', '16MiB']]);
    await Pool.create(device, { thn: 8, sampling: 1 });
    const pool = await Pool.open(device, OPEN);
    await pool.createVolume('one', 2 ** 24);
    const disk = pool.openVolume('one');
    await write(disk, 0, range(1, 600));
    await pool.checkpoint();
    const { pages } = pool.engine.parts;
    for (let frame = 0; frame < pages.frames; frame++) {
      const isOther = pages.magics[frame] !== Magic.fingerprint || pages.pins[frame] !== 0;
      if (!isOther && pages.pbns[frame]! >= 0) pages.drop(frame);
    }
    await faultControl(device.backend)!.cut({ survive: 1 });
    const gone = write(disk, 1000, range(1, 600));
    await expect(gone).rejects.toMatchObject({
      code: expect.stringMatching(/^(DEVICE_GONE|DEVICE_ERROR|POOL_FAILED)$/) as string,
    });
    await expect(pool.checkpoint()).rejects.toMatchObject({ code: 'POOL_FAILED' });
    await disk.close();
    await pool.close().catch(assertTyped);
    await device.close();
    await ram.close();
  });

  it('while a write is at the device: what has no record is not acknowledged', async () => {
    const ram = await ramDriver.open('48MiB', new Map(), 'ram:');
    const device = withFaults(ram, []);
    await Pool.create(device);
    const first = await Pool.open(device, OPEN);
    await first.createVolume('one', BLOCKS * PAGE);
    await first.close();
    const slow = withFaults(ram, [['delayUs', '50000']]);
    const pool = await Pool.open(slow, OPEN);
    const disk = pool.openVolume('one');
    const buffer = disk.memory.alloc(PAGE);
    fillBlock(buffer.u32, 0, 1);
    const { journal, space } = pool.engine.parts;
    const { seq } = journal;
    const write = disk.write(7, buffer);
    const refused = expect(write).rejects.toMatchObject({ code: 'DEVICE_ERROR' });
    await expect.poll(() => space.reserved, { timeout: 5000 }).toBeGreaterThan(0);
    pool.engine.fail('the test says so');
    await refused;
    expect(journal.seq).toBe(seq);
    buffer.free();
    await disk.close();
    await pool.close();
    await slow.close();
    await ram.close();
  });

  it('at the fingerprints of an extent with room: what is written goes elsewhere', async () => {
    const ram = await ramDriver.open('48MiB', new Map(), 'ram:');
    const device = withFaults(ram, []);
    await Pool.create(device, { thn: 0 });
    const first = await Pool.open(device, OPEN);
    await first.createVolume('one', 2 ** 28);
    const fill = async (pool: Pool, from: number): Promise<number> => {
      const disk = pool.openVolume('one');
      const buffer = disk.memory.alloc(64 * PAGE);
      for (let i = 0; i < buffer.u32.length; i++) buffer.u32[i] = Math.imul(from + i, 0x9e3779b1);
      let at = from;
      const isFull = (error: unknown): boolean => {
        expect(error).toMatchObject({ code: 'NO_SPACE' });
        return true;
      };
      while (!(await disk.write(at, buffer).then(() => false, isFull))) at += 64;
      buffer.free();
      await disk.close();
      return at;
    };
    const end = await fill(first, 0);
    const disk = first.openVolume('one');
    for (const at of [1024, 4096]) await disk.discard(at, 200);
    await disk.close();
    await first.checkpoint();
    const { space } = first.engine.parts;
    let extent = space.firstGroup * Group.extents;
    const room = (): number => {
      const summary = space.summary(Math.floor(extent / Group.extents));
      return space.holdsNodes(summary, extent) ? 0 : Group.blocks - space.usedIn(summary, extent);
    };
    while (room() < 100 || room() > 210) extent++;
    await first.close();
    const damage = device.memory.alloc(2 * PAGE);
    damage.u8.fill(0xa5);
    await device.write((extent * Group.extentPages * PAGE) / device.info.blockSize, damage);
    damage.free();
    const pool = await Pool.open(device, OPEN);
    expect(await fill(pool, end)).toBeGreaterThan(end);
    await pool.close();
    await ram.close();
  });
});
