// The check of a pool that is written to: what it reads is one checkpoint, and writers go on.

import { describe, expect, test } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock } from '../soak/dedup-model.js';
import { Random } from '../soak/harness.js';

const PAGE = 4096;
const BLOCKS = 4000;
const OPEN = { cacheBytes: 2 ** 20, indexBytes: 2 ** 20 };

/** Writes at random places, and knows what is where. */
class Writer {
  readonly contents = new Uint32Array(BLOCKS);
  writes = 0;
  private readonly disk: BlockDevice;
  private readonly random: Random;
  private next = 1;
  private stopped = false;

  constructor(disk: BlockDevice, seed: number) {
    this.disk = disk;
    this.random = new Random(seed);
  }

  async write(): Promise<void> {
    const count = this.random.between(1, 40);
    const first = this.random.below(BLOCKS - count);
    const base = this.random.chance(0.3) ? this.random.between(1, 200) : (this.next += count);
    const buffer = this.disk.memory.alloc(count * PAGE);
    for (let i = 0; i < count; i++) fillBlock(buffer.u32, i * 1024, base + i);
    if (this.random.chance(0.1)) {
      await this.disk.discard(first, count);
      this.contents.fill(0, first, first + count);
    } else {
      await this.disk.write(first, buffer);
      for (let i = 0; i < count; i++) this.contents[first + i] = base + i;
    }
    buffer.free();
    this.writes++;
  }

  async run(): Promise<void> {
    while (!this.stopped) {
      await this.write();
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  stop(): void {
    this.stopped = true;
  }

  async verify(): Promise<void> {
    const buffer = this.disk.memory.alloc(BLOCKS * PAGE);
    await this.disk.read(0, buffer);
    for (let block = 0; block < BLOCKS; block++) {
      expect(contentOf(buffer.u32, block * 1024)).toBe(this.contents[block]);
    }
    buffer.free();
  }
}

async function withPool(
  run: (pool: Pool, writer: Writer, device: BlockDevice) => Promise<void>,
): Promise<void> {
  const device = await open('ram:96MiB');
  await Pool.create(device, { thn: 4, sampling: 1 });
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('one', BLOCKS * PAGE);
  const disk = pool.openVolume('one');
  const writer = new Writer(disk, 7);
  for (let i = 0; i < 50; i++) await writer.write();
  await run(pool, writer, device);
  await writer.verify();
  await disk.close();
  await pool.close();
  expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
  await device.close();
}

describe('a pool that is written to', () => {
  test('is clean in each check, and holds what was written', async () => {
    await withPool(async (pool, writer) => {
      const running = writer.run();
      let checks = 0;
      for (let i = 0; i < 12; i++) {
        const before = writer.writes;
        const report = await pool.check({ data: i % 2 === 0 }).catch((error: unknown) => {
          expect(error).toMatchObject({ code: 'POOL_BUSY' });
          return null;
        });
        if (report === null) continue;
        checks++;
        expect(report.findings).toEqual([]);
        expect(report.volumes).toBe(1);
        expect(writer.writes).toBeGreaterThan(before);
      }
      writer.stop();
      await running;
      expect(checks).toBeGreaterThan(6);
    });
  });

  test('does not stop for a check that takes long: it begins again', async () => {
    await withPool(async (pool, writer) => {
      const { checkpoint } = pool.engine.parts;
      let tries = 0;
      let done = -1;
      const report = await pool.check({
        onProgress: async ({ phase, done: volumes }) => {
          if (phase !== 'maps' || volumes !== 1) return;
          tries++;
          done = checkpoint.done;
          // Far more than the cache has pages of metadata for.
          for (let i = 0; tries === 1 && checkpoint.done === done; i++) {
            expect(i).toBeLessThan(100_000);
            await writer.write();
          }
        },
      });
      expect(report).toMatchObject({ clean: true });
      expect(tries).toBe(2);
    });
  });

  test('puts checkpoints off while it is checked, and not for ever', async () => {
    await withPool(async (pool) => {
      let tries = 0;
      const checked = pool.check({
        onProgress: async ({ done }) => {
          if (done !== 1) return;
          tries++;
          await pool.createVolume(`new-${tries}`, 2 ** 20);
        },
      });
      await expect(checked).rejects.toMatchObject({ code: 'POOL_BUSY', exitCode: 3 });
      expect(tries).toBe(4);
      expect(pool.engine.holds).toBe(0);
      expect(await pool.check()).toMatchObject({ clean: true, volumes: 5 });
    });
  });

  test('is told which block has changed on its device', async () => {
    await withPool(async (pool, writer, device) => {
      const page = device.memory.alloc(PAGE);
      const lbaOf = (pbn: number): number => (pbn * PAGE) / device.info.blockSize;
      const content = writer.contents.find((each) => each !== 0)!;
      let pbn = pool.info.firstGroup * 1024;
      for (; ; pbn++) {
        await device.read(lbaOf(pbn), page);
        if (contentOf(page.u32, 0) === content) break;
      }
      const flip = async (): Promise<void> => {
        page.u8[1000]! ^= 1;
        await device.write(lbaOf(pbn), page);
      };
      await flip();
      const report = await pool.check({ data: true });
      expect(report.findings).toMatchObject([{ kind: 'fingerprint differs', where: { pbn } }]);
      await flip();
      page.free();
      expect(await pool.check({ data: true })).toMatchObject({ clean: true });
    });
  });
});
