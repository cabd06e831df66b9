// Reads of single blocks, which a volume's queue asks for and ends many at a time: each ends once,
// whatever a poll takes, whatever else ends in between, and by itself where it fails.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { PoolIo } from '../../lib/dedup/durable/io.js';
import { Pool } from '../../lib/dedup/index.js';
import { Cpl, Flag, Op, Req, Status, type BlockDevice, type Queue } from '../../lib/hpdi/index.js';
import { Space } from '../../lib/dedup/space/space.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { contentOf, fillBlock } from '../soak/dedup-model.js';
import { PAGE } from './contents.js';

const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const BLOCKS = 256;
const DEPTH = 64;
const TWO_32 = 2 ** 32;
const LATE = 'fault.delayUs=20&fault.delayProbability=0.5&fault.reorder=0.3&fault.seed=1';
const DRIBBLES = 'dribbles';
const folder = mkdtempSync(join(tmpdir(), 'penstock-reads-'));
afterAll(() => rmSync(folder, { recursive: true }));

function put(queue: Queue, op: number, tag: number, lba: number, address: number): void {
  const at = (queue.tail & queue.mask) * Req.words;
  expect(queue.reserve(1)).toBe(1);
  const blocks = op === Op.FLUSH ? 0 : 1;
  queue.sq.set([op, tag, blocks, 0, lba, 0, address >>> 0, address / TWO_32], at);
}

/** Statuses by tag of all that is in flight in a queue; each tag comes once. */
function endAll(queue: Queue, most: number): Map<number, number> {
  const ended = new Map<number, number>();
  const until = performance.now() + 20_000;
  queue.submit();
  while (queue.inFlight + ((queue.tail - queue.head) | 0) > 0) {
    if (queue.tail !== queue.head) queue.submit();
    if (performance.now() > until) throw new Error(`${queue.inFlight} never end`);
    let count = queue.poll(most);
    if (count === 0) count = queue.park(10_000);
    for (let i = 0; i < count; i++) {
      const tag = queue.cq[i * Cpl.words]!;
      expect(ended.has(tag)).toBe(false);
      ended.set(tag, queue.cq[i * Cpl.words + Cpl.status]! & 0xff);
    }
  }
  return ended;
}

/** The device's queues answer every second poll, with one completion. */
function dribble(device: BlockDevice): void {
  const open = device.queue.bind(device);
  device.queue = (options) => {
    const queue = open(options);
    const { driver } = queue;
    const poll = driver.poll.bind(driver);
    let polls = 0;
    driver.poll = (cq, max) => (++polls % 2 === 1 ? 0 : poll(cq, Math.min(max, 1)));
    return queue;
  };
}

/** A volume whose block `i` has content `i + 1`, its pool, and memory of a client of it. */
async function onDevice(
  uri: string,
  test: (disk: BlockDevice, memory: DmaBuffer, pool: Pool) => Promise<void>,
): Promise<void> {
  const device = await open(uri === DRIBBLES ? 'ram:64MiB' : uri);
  await Pool.create(device, { thn: 4, force: true });
  if (uri === DRIBBLES) dribble(device);
  // Fewer requests of the device than a client has at a time: some wait.
  const pool = await Pool.open(device, { ...OPEN, depth: DEPTH / 2 });
  await pool.createVolume('a', (BLOCKS + 1) * PAGE);
  const disk = pool.openVolume('a');
  const memory = disk.memory.alloc(BLOCKS * PAGE);
  for (let i = 0; i < BLOCKS; i++) fillBlock(memory.u32, i * 1024, i + 1);
  await disk.write(0, memory);
  memory.u8.fill(0);
  await test(disk, memory, pool);
  memory.free();
  await disk.close();
  await pool.close();
  await device.close();
}

const devices = [
  ['ram', 'ram:64MiB'],
  ['what answers late', `ram:64MiB?${LATE}`],
  ['what answers one poll in two, once', DRIBBLES],
  ['file', `file:${join(folder, 'pool')}?create=64MiB`],
] as const;

describe.each(devices)('reads of single blocks over %s', (_, uri) => {
  it.each([1, 3, DEPTH])('end once each with polls of %i', async (most) => {
    await onDevice(uri, async (disk, memory) => {
      const queue = disk.queue({ depth: DEPTH });
      for (let i = 0; i < DEPTH; i++) {
        put(queue, Op.READ, 1000 + i, (i * 37) % BLOCKS, memory.address + i * PAGE);
      }
      const ended = endAll(queue, most);
      expect(ended.size).toBe(DEPTH);
      for (let i = 0; i < DEPTH; i++) {
        expect(ended.get(1000 + i)).toBe(Status.OK);
        expect(contentOf(memory.u32, i * 1024)).toBe(((i * 37) % BLOCKS) + 1);
      }
      await queue.close();
    });
  });

  it('end with their own queue, of several', async () => {
    await onDevice(uri, async (disk, memory, pool) => {
      const other = pool.openVolume('a');
      const queues = [disk, disk, other].map((of) => of.queue({ depth: DEPTH / 4 }));
      for (let round = 0; round < 20; round++) {
        memory.u8.fill(0);
        for (let i = 0; i < (DEPTH / 4) * queues.length; i++) {
          const tag = round * DEPTH + i;
          const lba = (i * 5 + round) % BLOCKS;
          put(queues[i % queues.length]!, Op.READ, tag, lba, memory.address + i * PAGE);
        }
        for (const queue of queues) queue.submit();
        for (const [q, queue] of queues.entries()) {
          const ended = endAll(queue, 1 + round);
          const tags = Array.from({ length: DEPTH / 4 }, (__, i) => round * DEPTH + i * 3 + q);
          expect([...ended.keys()].sort((one, two) => one - two)).toEqual(tags);
          expect([...ended.values()].every((status) => status === Status.OK)).toBe(true);
        }
        for (let i = 0; i < (DEPTH / 4) * queues.length; i++) {
          expect(contentOf(memory.u32, i * 1024)).toBe(((i * 5 + round) % BLOCKS) + 1);
        }
      }
      for (const queue of queues) await queue.close();
      await other.close();
    });
  });

  it('fail by themselves where their address is no memory', async () => {
    await onDevice(uri, async (disk, memory) => {
      const queue = disk.queue({ depth: DEPTH });
      for (let round = 0; round < 4; round++) {
        memory.u8.fill(0);
        const isBad = (i: number): boolean => i % 16 === round;
        for (let i = 0; i < DEPTH; i++) {
          const address = isBad(i) ? 2 ** 43 + i * PAGE : memory.address + i * PAGE;
          // Of the bad ones every second reads what was never written.
          put(queue, Op.READ, i, isBad(i) && i % 32 === round ? BLOCKS : i, address);
        }
        const ended = endAll(queue, 8);
        expect(ended.size).toBe(DEPTH);
        for (let i = 0; i < DEPTH; i++) {
          expect(ended.get(i)).toBe(isBad(i) ? Status.BAD_ADDRESS : Status.OK);
          expect(contentOf(memory.u32, i * 1024)).toBe(isBad(i) ? 0 : i + 1);
        }
      }
      await queue.close();
    });
  });

  it('end once each among writes, flushes and what is refused', async () => {
    await onDevice(uri, async (disk, memory) => {
      const queue = disk.queue({ depth: DEPTH });
      for (let round = 0; round < 40; round++) {
        memory.u8.fill(0);
        const wanted = new Map<number, number>();
        for (let i = 0; i < DEPTH; i++) {
          const tag = round * DEPTH + i;
          const kind = (i * 7 + round) % 10;
          const address = memory.address + i * PAGE;
          if (kind === 0) put(queue, Op.FLUSH, tag, 0, 0);
          else if (kind === 1) put(queue, Op.READ, tag, disk.info.blocks, address);
          else if (kind === 2) {
            fillBlock(memory.u32, i * 1024, i + 1);
            put(queue, Op.WRITE, tag, i, address);
          } else put(queue, kind === 3 ? Op.READ | Flag.FUA : Op.READ, tag, i, address);
          wanted.set(tag, kind === 1 ? Status.BAD_RANGE : Status.OK);
        }
        expect(endAll(queue, 1 + (round % 9))).toEqual(wanted);
        for (let i = 0; i < DEPTH; i++) {
          const isMoved = (i * 7 + round) % 10 > 1;
          expect(contentOf(memory.u32, i * 1024)).toBe(isMoved ? i + 1 : 0);
        }
        memory.u8.fill(0);
        for (let i = 0; i < DEPTH; i++) put(queue, Op.READ, i, i, memory.address + i * PAGE);
        endAll(queue, DEPTH);
        for (let i = 0; i < DEPTH; i++) expect(contentOf(memory.u32, i * 1024)).toBe(i + 1);
      }
      await queue.close();
    });
  });
});

describe('what a map names', () => {
  it('is refused where no blocks can be, whatever its high word is', () => {
    const [firstGroup, highWater] = [3, 2 ** 24 - 5];
    const space = Object.assign(Object.create(Space.prototype) as Space, { firstGroup, highWater });
    const groups = [0, 2, 3, 2 ** 22 - 1, 2 ** 22, 2 ** 23, highWater - 1, highWater, 2 ** 26];
    for (const group of groups) {
      for (const page of [0, 2, 3, 255, 256, 258, 259, 1023]) {
        for (const count of [1, 2, 253]) {
          const pbn = group * 1024 + page;
          const isIn = group >= firstGroup && group < highWater;
          const fits = page % 256 > 2 && (page % 256) + count <= 256;
          const holds = space.holdsBlocks(pbn | 0, Math.floor(pbn / TWO_32), count);
          expect([pbn, count, holds]).toEqual([pbn, count, isIn && fits]);
        }
      }
    }
  });
});

describe('what is asked of the device for a block', () => {
  it.each([512, 1024, 2048, 4096])('lies at its place in blocks of %i bytes', async (bs) => {
    const pbns = [3, 2 ** 29, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32 + 5, 2 ** 34 - 1];
    const device = await open(`null:64TiB?bs=${bs}`);
    const io = new PoolIo(device, DEPTH);
    const records = new Uint32Array(DEPTH * Req.words);
    const at = Int32Array.from(pbns, (__, i) => i * Req.words);
    for (const [i, place] of at.entries()) records.set([Op.READ, 70 + i, 1, 0, 0, 0, i, 9], place);
    const lo = Int32Array.from(pbns, (pbn) => pbn | 0);
    const hi = Int32Array.from(pbns, (pbn) => Math.floor(pbn / TWO_32));
    expect(io.readPages(records, at, lo, hi, pbns.length, 5, 1, 2)).toBe(pbns.length);
    const { sq } = io.queue;
    for (const [i, pbn] of pbns.entries()) {
      const r = i * Req.words;
      const lba = sq[r + Req.lbaHi]! * TWO_32 + sq[r + Req.lbaLo]!;
      expect(lba).toBe((pbn * PAGE) / bs);
      expect(sq[r + Req.blocks]).toBe(PAGE / bs);
      expect([sq[r + Req.addressLo], sq[r + Req.addressHi]]).toEqual([i, 9]);
    }
    io.submit();
    const told: [number, boolean, number][] = [];
    const reader = {
      pagesRead(parity: number, timed: boolean, cq: Uint32Array, from: number, to: number): void {
        for (let i = from; i < to; i++) told.push([parity, timed, cq[i * Cpl.words]!]);
      },
    };
    expect(io.endReads([null, null, null, null, null, reader])).toBe(false);
    expect(told).toEqual(pbns.map((__, i) => [1, i === 2, 70 + i]));
    await io.close();
    await device.close();
  });
});
