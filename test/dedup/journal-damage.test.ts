// A damaged entry in the middle of the journal: later ones say that it was durable, so the pool is
// not opened as if it had ended there; where none does it may have been a power cut.

import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { checkPool, Pool, repairPool } from '../../lib/dedup/index.js';
import { native } from '../../lib/native.js';
import { RepairWriter } from '../../lib/dedup/check/repair-writer.js';
import type { SuperblockFacts } from '../../lib/dedup/format/superblock.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import type { Backend, BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { withBadPages } from './bad-pages.js';
import { range, write } from './contents.js';
import { DEVICE, PoolImage } from './pool-image.js';

const PAGE = 4096;
const WORDS = 1024;
const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };

/** Entries 1 to 5 with a flush after each, and 6 without one, over the end of the ring. */
let left: PoolImage;
/** Pages of the entries, the wrap included. */
let pages: number[];

beforeAll(async () => {
  const device = await open(DEVICE);
  await Pool.create(device, { thn: 0 });
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('one', 600 * PAGE);
  const disk = pool.openVolume('one');
  const { journal } = pool.engine.parts;
  while (journal.position < journal.capacity - 2) {
    await write(disk, 0, [1]);
    if (journal.position < journal.capacity - 2) await disk.discard(0, 1);
  }
  await pool.checkpoint();
  expect(journal.position).toBe(journal.capacity - 2);
  for (let i = 0; i < 6; i++) {
    // All but the first have two pages, and one is left after that.
    await write(disk, 0, range(10_000 * (1 + i), i < 1 ? 1 : 256));
    if (i < 5) await disk.flush();
  }
  left = await PoolImage.of(device);
  await disk.close();
  await pool.close();
  await device.close();
  pages = entriesOf(left);
});

function entriesOf(image: PoolImage): number[] {
  const superblock = image.page(image.superblock);
  const [first, count] = [superblock[23]!, superblock[24]!];
  const found: number[] = [];
  for (let at = superblock[18]!, seq = superblock[16]! + 1; ; seq++) {
    const words = image.page(first + at);
    if (words[0] !== image.page(first + superblock[18]!)[0] || words[2] !== seq) return found;
    found.push(first + at);
    at = words[5] === 2 ? 0 : (at + Math.ceil(words[8]! / PAGE)) % count;
  }
}

/** Changes words of an entry, and makes its checksum right. */
function change(image: PoolImage, pbn: number, by: (words: Uint32Array) => unknown): void {
  const words = image.u32.subarray(pbn * WORDS, (pbn + 16) * WORDS);
  by(words);
  words[1] = image.page(image.superblock)[8]!;
  words[1] = native.crc32c(image.u8.subarray(pbn * PAGE, pbn * PAGE + words[8]!), 0);
}

async function damaged(by: (image: PoolImage) => unknown): Promise<BlockDevice> {
  const image = left.copy();
  by(image);
  return image.device();
}

/** What opening the pool applies, and a check before it finds. */
async function applied(by: (image: PoolImage) => unknown): Promise<[number, number]> {
  const device = await damaged(by);
  const { findingsTotal } = await checkPool(device);
  const pool = await Pool.open(device, OPEN);
  const { entries } = pool.recovery!;
  await pool.close();
  await device.close();
  return [entries, findingsTotal];
}

describe('an entry of the journal that is damaged', () => {
  it('is one of seven here, a wrap among them', async () => {
    expect(pages).toHaveLength(7);
    expect(left.page(pages[1]!)[5]).toBe(2);
    expect(await applied(() => {})).toEqual([6, 0]);
  });

  it.each([0, 1, 2, 3, 4])('as number %i, and was durable, keeps the pool closed', async (at) => {
    const device = await damaged((image) => image.flip(pages[at]!, 8 * 40));
    const { findings } = await checkPool(device);
    expect(findings).toMatchObject([{ kind: 'journal', where: { pbn: pages[at] } }]);
    const error = await Pool.open(device, OPEN).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: 'POOL_CORRUPT' });
    expect(String(error)).toContain('journal');
    const kept = await repairPool(device);
    expect(kept).toMatchObject({ done: false, loses: true });
    const report = await repairPool(device, { dropLost: true, data: true });
    expect(report).toMatchObject({ done: true, leftTotal: 0, check: { clean: true } });
    expect(report.recovery?.entries ?? 0).toBe(at - Number(at > 1));
    await (await Pool.open(device, OPEN)).close();
    await device.close();
  });

  it('and that nothing calls durable is the end of it', async () => {
    expect(await applied((image) => image.flip(pages[6]!, 8 * 40))).toEqual([5, 0]);
    expect(
      await applied((image) => {
        image.flip(pages[5]!, 8 * 40);
        // As if it had been written before the flush.
        change(image, pages[6]!, (words) => words[6]!++);
      }),
    ).toEqual([4, 0]);
  });

  it('is the end where those that follow are of another owner, or an earlier lap', async () => {
    for (const to of [-1, 1]) {
      expect(
        await applied((image) => {
          image.flip(pages[1]!, 8 * 40);
          for (const pbn of pages.slice(2)) change(image, pbn, (words) => (words[4]! += to));
        }),
      ).toEqual([1, 0]);
    }
    expect(
      await applied((image) => {
        image.flip(pages[1]!, 8 * 40);
        for (const pbn of pages.slice(2)) change(image, pbn, (words) => (words[2]! -= 100));
      }),
    ).toEqual([1, 0]);
  });
});

describe('pages of an earlier lap that cannot be read', () => {
  let ram: Backend;
  let device: BlockDevice;
  let bad: Set<number>;

  beforeEach(async () => {
    ram = await ramDriver.open('256MiB', new Map(), DEVICE);
    bad = new Set();
    device = withBadPages(ram, bad);
    await left.put(device);
  });

  afterEach(async () => {
    await device.close();
    await ram.close();
  });

  it.each([0, 1, 5, 15])('are of no harm %i after the end of a closed pool', async (by) => {
    await (await Pool.open(device, OPEN)).close();
    const image = await PoolImage.of(device);
    const superblock = image.page(image.superblock);
    bad.add(superblock[23]! + superblock[18]! + by);
    expect(await checkPool(device)).toMatchObject({ clean: true });
    await (await Pool.open(device, OPEN)).close();
  });

  it('are of no harm after the entries of one that was not closed', async () => {
    bad.add(pages[6]! + 3).add(pages[6]! + 7);
    expect(await checkPool(device)).toMatchObject({ clean: true });
    const pool = await Pool.open(device, OPEN);
    expect(pool.recovery).toMatchObject({ entries: 6 });
    await pool.close();
  });

  it('do not hide that a damaged entry before them was durable', async () => {
    const image = left.copy();
    image.flip(pages[2]!, 8 * 40);
    await image.put(device);
    for (const page of pages.slice(3)) for (let by = 2; by < 16; by++) bad.add(page + by);
    for (const page of pages) for (let by = 0; by < 2; by++) bad.delete(page + by);
    expect(bad.size).toBeGreaterThan(0);
    await expect(Pool.open(device, OPEN)).rejects.toMatchObject({ code: 'POOL_CORRUPT' });
    expect((await checkPool(device)).findings).toMatchObject([{ kind: 'journal' }]);
  });

  it('are of no harm in what an earlier owner left beyond the end', async () => {
    const image = left.copy();
    for (const pbn of pages.slice(3)) change(image, pbn, (words) => (words[4]! -= 1));
    await image.put(device);
    bad.add(pages[3]! + 1);
    const pool = await Pool.open(device, OPEN);
    expect(pool.recovery).toMatchObject({ entries: 2 });
    await pool.close();
  });

  it.each([0, 1, 2])('keep a pool closed where an entry is, or may be: %i', async (by) => {
    bad.add(pages[6]! + by);
    await expect(Pool.open(device, OPEN)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
    expect((await checkPool(device)).findings).toMatchObject([{ kind: 'journal' }]);
  });
});

it('is cut where it is damaged, and not before, also in a ring that is full', async () => {
  const image = left.copy();
  const device = await image.device();
  const superblock = image.page(image.superblock);
  const [journalPage, journalPages] = [superblock[23]!, superblock[24]!];
  const [journalAt, seq] = [100, 1000];
  const facts = { journalPage, journalPages, journalAt, seq, checkpoint: 1 } as SuperblockFacts;
  // An entry a page, from the checkpoint's place round to five pages before it.
  const buffer = device.memory.alloc(journalPages * PAGE);
  for (let i = 0; i < journalPages - 5; i++) {
    const at = ((journalAt + i) % journalPages) * WORDS;
    buffer.u32[at] = image.page(pages[0]!)[0]!;
    buffer.u32[at + 2] = seq + 1 + i;
  }
  const { blockSize } = device.info;
  await device.write((journalPage * PAGE) / blockSize, buffer);
  await new RepairWriter(device, facts, true).cutJournal(journalPage + journalAt - 8);
  buffer.u8.fill(0xee);
  await device.read((journalPage * PAGE) / blockSize, buffer);
  const seqs = Array.from({ length: journalPages }, (_, page) => buffer.u32[page * WORDS + 2]!);
  buffer.free();
  await device.close();
  const found = [...seqs.slice(journalAt), ...seqs.slice(0, journalAt)];
  expect(found).toEqual(found.map((_, i) => (i < journalPages - 8 ? seq + 1 + i : 0)));
});
