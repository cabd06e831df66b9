// Reads of single blocks, which a volume's queue asks for and ends many at a time: each ends once,
// whatever a poll takes, whatever else ends in between, and by itself where it fails.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { Pool } from '../../lib/dedup/index.js';
import { Cpl, Op, Req, Status, type BlockDevice, type Queue } from '../../lib/hpdi/index.js';
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

/** Statuses by tag of all that is in flight; each tag comes once. */
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

/** A volume whose block `i` has content `i + 1`, and its client's queue and memory. */
async function onDevice(
  uri: string,
  test: (disk: BlockDevice, queue: Queue, memory: DmaBuffer) => void,
): Promise<void> {
  const device = await open(uri === DRIBBLES ? 'ram:64MiB' : uri);
  await Pool.create(device, { thn: 4, force: true });
  if (uri === DRIBBLES) dribble(device);
  const pool = await Pool.open(device, OPEN);
  await pool.createVolume('a', BLOCKS * PAGE);
  const disk = pool.openVolume('a');
  const memory = disk.memory.alloc(BLOCKS * PAGE);
  for (let i = 0; i < BLOCKS; i++) fillBlock(memory.u32, i * 1024, i + 1);
  await disk.write(0, memory);
  memory.u8.fill(0);
  const queue = disk.queue({ depth: DEPTH });
  test(disk, queue, memory);
  await queue.close();
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
    await onDevice(uri, (_disk, queue, memory) => {
      for (let i = 0; i < DEPTH; i++) {
        put(queue, Op.READ, 1000 + i, (i * 37) % BLOCKS, memory.address + i * PAGE);
      }
      const ended = endAll(queue, most);
      expect(ended.size).toBe(DEPTH);
      for (let i = 0; i < DEPTH; i++) {
        expect(ended.get(1000 + i)).toBe(Status.OK);
        expect(contentOf(memory.u32, i * 1024)).toBe(((i * 37) % BLOCKS) + 1);
      }
    });
  });

  it('fail by themselves where their address is no memory', async () => {
    await onDevice(uri, (_disk, queue, memory) => {
      for (let round = 0; round < 4; round++) {
        for (let i = 0; i < DEPTH; i++) {
          const isBad = i % 16 === round;
          const address = isBad ? 2 ** 43 + i * PAGE : memory.address + i * PAGE;
          put(queue, Op.READ, i, i, address);
        }
        const ended = endAll(queue, 8);
        for (let i = 0; i < DEPTH; i++) {
          const isBad = i % 16 === round;
          expect(ended.get(i)).toBe(isBad ? Status.BAD_ADDRESS : Status.OK);
          if (!isBad) expect(contentOf(memory.u32, i * 1024)).toBe(i + 1);
        }
      }
    });
  });

  it('end once each among writes, flushes and what is refused', async () => {
    await onDevice(uri, (disk, queue, memory) => {
      for (let round = 0; round < 40; round++) {
        const wanted = new Map<number, number>();
        for (let i = 0; i < DEPTH; i++) {
          const tag = round * DEPTH + i;
          const kind = (i * 7 + round) % 10;
          const address = memory.address + i * PAGE;
          // What is written was read from there in the round before: the volume stays as it is.
          if (kind === 0) put(queue, Op.FLUSH, tag, 0, 0);
          else if (kind === 1) put(queue, Op.READ, tag, disk.info.blocks, address);
          else if (kind === 2 && round > 0) put(queue, Op.WRITE, tag, i, address);
          else put(queue, Op.READ, tag, i, address);
          wanted.set(tag, kind === 1 ? Status.BAD_RANGE : Status.OK);
        }
        expect(endAll(queue, 1 + (round % 9))).toEqual(wanted);
        for (let i = 0; i < DEPTH; i++) put(queue, Op.READ, i, i, memory.address + i * PAGE);
        endAll(queue, DEPTH);
        for (let i = 0; i < DEPTH; i++) expect(contentOf(memory.u32, i * 1024)).toBe(i + 1);
      }
    });
  });
});
