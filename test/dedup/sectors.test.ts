// Volumes with blocks of 512 bytes: parts of pages are read and written, many at a time, and no
// byte of anybody else is lost.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { FaultDevice } from '../../lib/drivers/fault/device.js';
import { faultControl, wrapFault } from '../../lib/drivers/fault/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { PenstockError } from '../../lib/errors.js';
import { BlockDevice, Op, Status } from '../../lib/hpdi/index.js';
import { addressSpace, type DmaBuffer } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { Random } from '../soak/harness.js';
import { collect, one, put, run } from '../support/requests.js';
import { contentOf, fillSector, SECTOR, SectorModel } from './sector-model.js';

const PAGE_SECTORS = 8;
const OPEN = { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 };
/** Answers of the device come late and in another order. */
const UNSTEADY = 'fault.delayUs=200&fault.delayProbability=0.4&fault.reorder=0.4';
const SECTORS_512 = { blockSize: 512 };

interface Made {
  device: BlockDevice;
  pool: Pool;
}

async function poolOn(uri: string, bytes: number, thn = 8): Promise<Made> {
  const device = await open(uri);
  await Pool.create(device, { thn, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('one', bytes);
  return { device, pool };
}

async function closeChecked({ device, pool }: Made): Promise<void> {
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
}

/** From now on so many of the device's reads fail. */
function failReads(device: BlockDevice, part: number): void {
  const backend = device.backend as FaultDevice;
  const errorOps = (1 << Op.READ) | (1 << Op.READ_LOAN);
  // Probabilities are in parts of 2^32 there.
  Object.assign(backend, { options: { ...backend.options, errors: part * 2 ** 32, errorOps } });
}

/** Reads the whole volume, and compares. */
async function compareAll(disk: BlockDevice, model: SectorModel): Promise<void> {
  const buffer = disk.memory.alloc(model.sectors * SECTOR);
  await disk.read(0, buffer);
  model.compare(0, buffer.u32);
  buffer.free();
}

const SECTORS = 4096;
const LANES = 40;
const STEPS = 60;

/** Operations of one lane after the other, none on sectors that another in flight is at. */
class Lanes {
  private readonly random: Random;
  private readonly disks: readonly BlockDevice[];
  private readonly model: SectorModel;
  private readonly flying = new Set<readonly [from: number, to: number]>();
  private next = 1;
  failures = 0;

  constructor(random: Random, disks: readonly BlockDevice[], model: SectorModel) {
    this.random = random;
    this.disks = disks;
    this.model = model;
  }

  async run(): Promise<void> {
    const lane = async (): Promise<void> => {
      for (let step = 0; step < STEPS; step++) await this.step();
    };
    await Promise.all(Array.from({ length: LANES }, lane));
  }

  private async step(): Promise<void> {
    const [from, to] = this.range();
    const claim = [from, to] as const;
    this.flying.add(claim);
    try {
      await this.operation(this.random.pick(this.disks), from, to - from);
    } finally {
      this.flying.delete(claim);
    }
  }

  /** Where many meet on few pages, and now and then over many. */
  private range(): [number, number] {
    const { random } = this;
    for (let tries = 0; ; tries++) {
      const isLarge = tries < 20 && random.chance(0.1);
      let count = isLarge ? random.between(1, 500) : random.between(1, 20);
      if (tries > 50) count = 1;
      let from = random.below(random.chance(0.6) ? 200 : SECTORS - count);
      if (random.chance(0.2)) {
        from -= from % PAGE_SECTORS;
        count = Math.ceil(count / PAGE_SECTORS) * PAGE_SECTORS;
      }
      const to = Math.min(SECTORS, from + count);
      if ([...this.flying].every(([f, t]) => to <= f || from >= t)) return [from, to];
    }
  }

  private async operation(disk: BlockDevice, from: number, count: number): Promise<void> {
    const { random } = this;
    const kind = random.below(10);
    if (kind < 5) {
      const contents = Array.from({ length: count }, () => this.content());
      const buffer = disk.memory.alloc(count * SECTOR);
      contents.forEach((content, i) => fillSector(buffer.u32, i, content));
      const done = disk.write(from, buffer, { fua: random.chance(0.1) });
      await this.settle(done, from, contents);
      buffer.free();
    } else if (kind < 8) {
      const buffer = disk.memory.alloc(count * SECTOR);
      buffer.u8.fill(0xee);
      const isRead = await disk.read(from, buffer).then(
        () => true,
        (error: unknown) => this.failed(error),
      );
      if (isRead) this.model.compare(from, buffer.u32);
      buffer.free();
    } else if (kind === 8) {
      await this.settle(disk.writeZeroes(from, count), from, new Array<number>(count).fill(0));
    } else {
      // Of the pages of which it has only a part nothing changes.
      const first = Math.ceil(from / PAGE_SECTORS) * PAGE_SECTORS;
      const end = Math.floor((from + count) / PAGE_SECTORS) * PAGE_SECTORS;
      const zeros = new Array<number>(Math.max(0, end - first)).fill(0);
      await this.settle(disk.discard(from, count), first, zeros);
      if (random.chance(0.2)) await disk.flush();
    }
  }

  /** Often what was written lately, so that runs are found again. */
  private content(): number {
    return this.random.chance(0.3) ? 1 + this.random.below(this.next) : this.next++;
  }

  private async settle(done: Promise<void>, first: number, contents: number[]): Promise<void> {
    await done.then(
      () => this.model.holds(first, contents),
      (error: unknown) => {
        this.failed(error);
        this.model.mayHold(first, contents);
      },
    );
  }

  private failed(error: unknown): boolean {
    if (!(error instanceof PenstockError) || error.code !== 'MEDIA_ERROR') throw error;
    this.failures++;
    return false;
  }
}

describe('a volume with blocks of 512 bytes', () => {
  it.each([
    [1, 'ram:48MiB', 0],
    [2, `ram:48MiB?${UNSTEADY}`, 0],
    [3, `ram:48MiB?bs=4096&${UNSTEADY}`, 0],
    [4, `ram:48MiB?${UNSTEADY}`, 0.05],
  ])('does as its model does, seed %i on %s, %d of reads failing', async (seed, uri, part) => {
    const made = await poolOn(uri, SECTORS * SECTOR, 2);
    const disks = [
      made.pool.openVolume('one', SECTORS_512),
      made.pool.openVolume('one', SECTORS_512),
    ];
    const model = new SectorModel(SECTORS);
    const lanes = new Lanes(new Random(seed), disks, model);
    if (part > 0) failReads(made.device, part);
    await lanes.run();
    if (part > 0) failReads(made.device, 0);
    expect(lanes.failures > 0).toBe(part > 0);
    await compareAll(disks[1]!, model);
    for (const disk of disks) await disk.close();
    await made.pool.close();
    made.pool = await Pool.open(made.device, OPEN);
    // Also in blocks of 4096.
    const whole = made.pool.openVolume('one');
    await compareAll(whole, model);
    await whole.close();
    await closeChecked(made);
  });

  it('keeps the sectors of all who write to one page', async () => {
    const made = await poolOn(`ram:48MiB?${UNSTEADY}`, 2 ** 20);
    const random = new Random(5);
    const disks = [
      made.pool.openVolume('one', SECTORS_512),
      made.pool.openVolume('one', SECTORS_512),
    ];
    const queues = disks.map((disk) => disk.queue({ depth: 16 }));
    const room = disks[0]!.memory.alloc(32 * 4096);
    let before = new Array<number>(PAGE_SECTORS).fill(0);
    for (let round = 0; round < 150; round++) {
      // By sector: what it may hold in the end.
      const may = before.map(() => [] as number[]);
      const counts = [0, 0];
      const reads: number[] = [];
      const writers = random.between(2, 9);
      for (let w = 0; w < writers; w++) {
        const isWhole = random.chance(0.2);
        const from = isWhole ? 0 : random.below(PAGE_SECTORS);
        const blocks = isWhole ? PAGE_SECTORS : random.between(1, PAGE_SECTORS - from);
        const content = 1 + round * 16 + w;
        for (let i = 0; i < blocks; i++) fillSector(room.u32, w * PAGE_SECTORS + i, content);
        for (let i = from; i < from + blocks; i++) may[i]!.push(content);
        const to = random.below(2);
        const address = room.address + w * 4096;
        put(queues[to]!, { op: Op.WRITE, tag: w, blocks, lba: 80 + from, address });
        counts[to]!++;
        if (random.chance(0.3)) queues[to]!.submit();
        if (random.chance(0.5)) continue;
        const there = { address: room.address + (16 + w) * 4096 };
        put(queues[1 - to]!, { op: Op.READ, blocks: PAGE_SECTORS, lba: 80, ...there });
        counts[1 - to]!++;
        reads.push(16 + w);
      }
      // One queue is not looked at until the other's are done.
      for (const queue of queues) queue.submit();
      for (const q of random.chance(0.5) ? [0, 1] : [1, 0]) {
        for (const done of await collect(queues[q]!, counts[q]!)) expect(done.code).toBe(Status.OK);
      }
      for (const page of reads) {
        for (let i = 0; i < PAGE_SECTORS; i++) {
          const content = contentOf(room.u32, page * PAGE_SECTORS + i);
          expect([before[i], ...may[i]!]).toContain(content);
        }
      }
      const address = room.address + 31 * 4096;
      await one(queues[0]!, { op: Op.READ, blocks: PAGE_SECTORS, lba: 80, address });
      const after = before.map((_, i) => contentOf(room.u32, 31 * PAGE_SECTORS + i));
      after.forEach((content, i) => {
        expect(may[i]!.length === 0 ? [before[i]] : may[i]).toContain(content);
      });
      before = after;
    }
    room.free();
    for (const disk of disks) await disk.close();
    await closeChecked(made);
  });

  it('lets a write of a whole page through while its parts are written all the time', async () => {
    const made = await poolOn('ram:48MiB?fault.delayUs=1000', 2 ** 20);
    const disk = made.pool.openVolume('one', SECTORS_512);
    const buffer = disk.memory.alloc(4096);
    const part = disk.memory.alloc(SECTOR);
    fillSector(part.u32, 0, 1);
    let parts = 0;
    let isDone = false;
    const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
    const lanes = Array.from({ length: 8 }, async (_, lane) => {
      // Not in step: while the page is written with some, others come.
      await new Promise((resolve) => setTimeout(resolve, lane));
      for (; !isDone && parts < 500; parts++) await disk.write(lane, part);
    });
    while (parts < 20) await turn();
    const before = parts;
    await disk.write(0, buffer);
    isDone = true;
    expect(parts - before).toBeLessThan(100);
    await Promise.all(lanes);
    for (const each of [buffer, part]) each.free();
    await disk.close();
    await closeChecked(made);
  });

  it('has more requests in flight than pages in memory, and gives all back', async () => {
    const made = await poolOn(`ram:64MiB?${UNSTEADY}`, 16 * 2 ** 20);
    const segments = addressSpace().list().length;
    const disk = made.pool.openVolume('one', SECTORS_512);
    const queue = disk.queue({ depth: 2048 });
    const count = 1500;
    const buffer = disk.memory.alloc(count * SECTOR);
    for (let i = 0; i < count; i++) fillSector(buffer.u32, i, i + 1);
    const requests = Array.from({ length: count }, (_, i) => ({
      ...{ tag: i, blocks: 1, lba: i * PAGE_SECTORS + (i % PAGE_SECTORS) },
      address: buffer.address + i * SECTOR,
    }));
    const written = await run(queue, ...requests.map((request) => ({ op: Op.WRITE, ...request })));
    expect(written.every(({ code }) => code === Status.OK)).toBe(true);
    buffer.u8.fill(0xee);
    const read = await run(queue, ...requests.map((request) => ({ op: Op.READ, ...request })));
    expect(read.every(({ code }) => code === Status.OK)).toBe(true);
    for (let i = 0; i < count; i++) expect(contentOf(buffer.u32, i)).toBe(i + 1);
    for (const request of requests) put(queue, { op: Op.WRITE, ...request });
    queue.submit();
    await disk.close();
    buffer.free();
    disk.memory.trim();
    expect(addressSpace().list().length).toBeLessThanOrEqual(segments);
    await closeChecked(made);
  });

  it('has a part of a page with FUA, or flushed, after a power cut', async () => {
    const ram = await ramDriver.open('48MiB', new Map(), 'ram:');
    const device = new BlockDevice(wrapFault(ram, new Map([['cache', '48MiB']])));
    await Pool.create(device);
    const before = await Pool.open(device, OPEN);
    await before.createVolume('one', 2 ** 20);
    const disk = before.openVolume('one', SECTORS_512);
    const buffer = disk.memory.alloc(32 * SECTOR);
    for (let i = 0; i < 32; i++) fillSector(buffer.u32, i, i + 1);
    await disk.write(0, buffer);
    await disk.flush();
    const part = disk.memory.alloc(SECTOR);
    const write = (lba: number, fua: boolean): Promise<void> => {
      fillSector(part.u32, 0, 100 + lba);
      return disk.write(lba, part, { fua });
    };
    await write(9, false);
    await disk.flush();
    await write(3, true);
    // With FUA and without, put into one page together.
    await Promise.all([disk.write(20, part, { fua: true }), disk.writeZeroes(17, 2)]);
    await write(10, false);
    const control = faultControl(device.backend)!;
    await control.cut({ survive: 0 });
    await disk.close().catch(() => undefined);
    await before.close().catch(() => undefined);
    control.heal();
    const after = await Pool.open(device, OPEN);
    const again = after.openVolume('one', SECTORS_512);
    await again.read(0, buffer);
    const contents = Array.from({ length: 32 }, (_, i) => contentOf(buffer.u32, i));
    const wanted = Array.from({ length: 32 }, (_, i) => i + 1);
    wanted[3] = 103;
    wanted[9] = 109;
    wanted[17] = wanted[18] = 0;
    wanted[20] = 103;
    expect(contents).toEqual(wanted);
    for (const each of [buffer, part]) each.free();
    await again.close();
    await closeChecked({ device, pool: after });
  });

  it('fails a part of a page whose read fails, and nothing else', async () => {
    const made = await poolOn('ram:48MiB?fault.errors=0', 2 ** 20);
    const disk = made.pool.openVolume('one', SECTORS_512);
    const buffer = disk.memory.alloc(24 * SECTOR);
    for (let i = 0; i < 24; i++) fillSector(buffer.u32, i, i + 1);
    await disk.write(0, buffer);
    failReads(made.device, 1);
    const other = disk.memory.alloc(16 * SECTOR);
    for (let i = 0; i < 16; i++) fillSector(other.u32, i, i + 100);
    await expect(disk.write(4, other)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
    await expect(disk.writeZeroes(23, 1)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
    await expect(disk.read(3, other)).rejects.toMatchObject({ code: 'MEDIA_ERROR' });
    failReads(made.device, 0);
    await disk.read(0, buffer);
    const contents = (from: number, to: number): number[] =>
      Array.from({ length: to - from }, (_, i) => contentOf(buffer.u32, from + i));
    expect(contents(0, 8)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    // The page between needs no read.
    expect(contents(8, 16)).toEqual([104, 105, 106, 107, 108, 109, 110, 111]);
    expect(contents(16, 24)).toEqual([17, 18, 19, 20, 21, 22, 23, 24]);
    await disk.writeZeroes(23, 1);
    await disk.read(0, buffer);
    expect(contents(16, 24)).toEqual([17, 18, 19, 20, 21, 22, 23, 0]);
    for (const each of [buffer, other]) each.free();
    await disk.close();
    await closeChecked(made);
  });

  it('finds no space for a part of a page, and keeps what was there', async () => {
    const made = await poolOn('ram:40MiB', 64 * 2 ** 20);
    const disk = made.pool.openVolume('one', SECTORS_512);
    const model = new SectorModel((64 * 2 ** 20) / SECTOR);
    const chunk = disk.memory.alloc(64 * 4096);
    const page = disk.memory.alloc(4096);
    const part = disk.memory.alloc(SECTOR);
    /** False: there was no space. */
    const write = (lba: number, buffer: DmaBuffer): Promise<boolean> => {
      const contents = Array.from({ length: buffer.bytes / SECTOR }, (_, i) => lba + i + 1);
      contents.forEach((content, i) => fillSector(buffer.u32, i, content));
      return disk.write(lba, buffer).then(
        () => {
          model.holds(lba, contents);
          return true;
        },
        (error: unknown) => {
          expect(error).toMatchObject({ code: 'NO_SPACE' });
          model.mayHold(lba, contents);
          return false;
        },
      );
    };
    let at = 0;
    while (await write(at, chunk)) at += 64 * PAGE_SECTORS;
    at += 64 * PAGE_SECTORS;
    while (await write(at, page)) at += PAGE_SECTORS;
    for (let i = 1; i < 40; i++) expect(await write(at + i * 9, part)).toBe(false);
    await compareAll(disk, model);
    await disk.discard(0, 2048);
    model.holds(0, new Array<number>(2048).fill(0));
    expect(await write(13, part)).toBe(true);
    expect(await write(at + 9, part)).toBe(true);
    await compareAll(disk, model);
    for (const each of [chunk, page, part]) each.free();
    await disk.close();
    await closeChecked(made);
  });

  it('grows while it is open', async () => {
    const made = await poolOn('ram:48MiB', 2 ** 20);
    const disk = made.pool.openVolume('one', SECTORS_512);
    const queue = disk.queue({ depth: 4 });
    const buffer = disk.memory.alloc(SECTOR);
    fillSector(buffer.u32, 0, 9);
    const write = { op: Op.WRITE, blocks: 1, lba: 2051, address: buffer.address };
    expect((await one(queue, write)).code).toBe(Status.BAD_RANGE);
    await made.pool.resizeVolume('one', 2 * 2 ** 20);
    expect((await one(queue, write)).code).toBe(Status.BAD_RANGE);
    expect(await disk.refresh()).toMatchObject({ blockSize: 512, blocks: 4096 });
    expect((await one(queue, write)).code).toBe(Status.OK);
    buffer.u8.fill(0);
    expect((await one(queue, { ...write, op: Op.READ })).code).toBe(Status.OK);
    expect(contentOf(buffer.u32, 0)).toBe(9);
    buffer.free();
    await disk.close();
    await closeChecked(made);
  });

  it('is had by an option and by a key of its URI', async () => {
    const made = await poolOn('ram:48MiB', 2 ** 20);
    expect(() => made.pool.openVolume('one', { blockSize: 1024 })).toThrowError(
      expect.objectContaining({ code: 'BAD_OPTION' }),
    );
    const disk = made.pool.openVolume('one', SECTORS_512);
    expect(disk.info).toMatchObject({ blockSize: 512, blocks: 2048, physicalBlockSize: 4096 });
    expect(() => made.pool.openVolume('one')).toThrowError(
      expect.objectContaining({ code: 'VOLUME_BUSY' }),
    );
    await disk.close();
    const whole = made.pool.openVolume('one');
    expect(() => made.pool.openVolume('one', SECTORS_512)).toThrowError(
      expect.objectContaining({ code: 'VOLUME_BUSY' }),
    );
    await whole.close();
    await closeChecked(made);
    const folder = mkdtempSync(join(tmpdir(), 'penstock-sectors-'));
    const file = `file:${join(folder, 'pool')}`;
    await closeChecked(await poolOn(`${file}?create=48MiB`, 2 ** 20));
    for (const [key, blockSize] of [
      ['dedup.block=512', 512],
      ['dedup.block=4k', 4096],
    ] as const) {
      const opened = await open(`dedup:${file}?${key}#one`);
      expect(opened.info).toMatchObject({ blockSize, blocks: 2 ** 20 / blockSize });
      await opened.close();
    }
    await expect(open(`dedup:${file}?dedup.block=1k#one`)).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
    // Nothing is left open by that.
    await (await open(`dedup:${file}?dedup.block=512#one`)).close();
    rmSync(folder, { recursive: true });
  });
});
