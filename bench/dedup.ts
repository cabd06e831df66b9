// What a dedup pool does on one core, its device in memory that was touched before: unique and
// duplicate data, half and half, random reads beside the device itself, random overwrites; beside
// a plain memcpy of as much data in the same run. THN 8, one fingerprint in eight indexed.

import { setTimeout as sleep } from 'node:timers/promises';
import { Pool } from '../lib/dedup/index.js';
import type { BlockDevice, Queue } from '../lib/hpdi/index.js';
import { Cpl, Op, Req } from '../lib/hpdi/records.js';
import type { DmaBuffer } from '../lib/memory/index.js';
import { native } from '../lib/native.js';
import { open } from '../lib/open.js';
import { collect, HEAP_GROWTH_MAX, heapCost, OPERATIONS, type HeapCost } from './heap.js';
import {
  atLeast,
  atMost,
  finish,
  median,
  parseOptions,
  program,
  progress,
  progressEnd,
  type Bar,
  type Cell,
} from './report.js';

const DATA_BYTES = 2 ** 29;
const DEVICE_BYTES = 5 * DATA_BYTES;
const UNIT_BYTES = 2 ** 20;
/** Of requests whose cost to the heap is taken, and how many of them. */
const REQUEST_BYTES = 2 ** 16;
const REQUESTS = 1e5;
const PAGE = 4096;
const PAGES = DATA_BYTES / PAGE;
const SEQUENTIAL_DEPTH = 8;
const RANDOM_DEPTH = 128;
const RANDOM_OPERATIONS = 400_000;
/** Turns of two devices, of so many operations each, and those before that are not counted. */
const TURNS = 120;
const TURN_OPERATIONS = 10_000;
const WARM_TURNS = 40;
const STRETCHES = 3;
const TWO_32 = 2 ** 32;
const GB = 1e9;
const BARS: Readonly<Record<string, number>> = {
  'unique, GB/s': 2.5,
  'duplicate, GB/s': 2.0,
  'half and half, GB/s': 2.0,
  'read 4 KiB, to the device': 0.8,
  'overwrite 4 KiB, IOPS': 300_000,
};

interface Load {
  readonly op: number;
  readonly bytes: number;
  readonly depth: number;
  readonly operations: number;
  /** Where in `units` it begins; 0 unless said. */
  readonly first?: number;
  /** Unit of each operation, and buffer (lo, hi): both repeat. Their lengths are powers of two. */
  readonly units: Uint32Array;
  readonly buffers: Uint32Array;
}

/** Operations a second. */
async function run(device: BlockDevice, load: Load): Promise<number> {
  const queue = device.queue({ depth: load.depth, split: false });
  const started = performance.now();
  drive(device, queue, load);
  const seconds = (performance.now() - started) / 1000;
  await queue.close();
  return load.operations / seconds;
}

/**
 * Operations a second of two devices, and the second's to the first's: that is the median of many
 * short turns, each of both, since a host's memory is not as fast in one second as in the next.
 */
async function inTurn(
  [one, other]: readonly [BlockDevice, BlockDevice],
  load: Load,
): Promise<[number, number, number]> {
  const queues = [one, other].map((device) => device.queue({ depth: load.depth, split: false }));
  const took: [number[], number[]] = [[], []];
  for (let turn = -WARM_TURNS; turn < TURNS; turn++) {
    for (let step = 0; step < 2; step++) {
      const i = (turn + WARM_TURNS + step) % 2;
      const device = i === 0 ? one : other;
      const first = (turn + WARM_TURNS) * TURN_OPERATIONS;
      const started = performance.now();
      drive(device, queues[i]!, { ...load, first, operations: TURN_OPERATIONS });
      if (turn >= 0) took[i]!.push(performance.now() - started);
    }
  }
  for (const queue of queues) await queue.close();
  const [iops, otherIops] = took.map(
    (times) => (TURN_OPERATIONS * TURNS * 1000) / times.reduce((sum, ms) => sum + ms),
  );
  return [iops!, otherIops!, median(took[0].map((ms, turn) => ms / took[1][turn]!))];
}

/**
 * What so many operations leave on the heap, once V8 has compiled what it means to; several times,
 * of which the median counts: an operation's own allocations are in each of them, those of V8 in
 * one, when it compiles a function anew (some 50 KB) for a branch that is taken for the first time.
 */
async function costsOf(
  device: BlockDevice,
  load: Load,
  operations = OPERATIONS,
): Promise<HeapCost[]> {
  const queue = device.queue({ depth: load.depth, split: false });
  // (The end of the journal's ring must have come by several times.)
  for (let i = 0; i < 4; i++) {
    drive(device, queue, { ...load, operations: operations / 4 });
    await sleep(100);
  }
  const costs: HeapCost[] = [];
  // Once: it drops what code of the loop refers to weakly, and V8 compiles that anew, too.
  collect();
  for (let i = 0; i < STRETCHES; i++) {
    costs.push(await heapCost(() => drive(device, queue, { ...load, operations })));
  }
  await queue.close();
  return costs;
}

function drive(device: BlockDevice, queue: Queue, load: Load): void {
  const { op, bytes, depth, operations, first = 0, units, buffers } = load;
  const { sq, cq } = queue;
  const unitsMask = units.length - 1;
  const buffersMask = buffers.length / 2 - 1;
  const blocks = bytes / device.info.blockSize;
  for (let sent = 0, done = 0; done < operations;) {
    const at = queue.tail;
    const count = queue.reserve(Math.min(depth, operations - sent));
    for (let i = 0; i < count; i++, sent++) {
      const r = ((at + i) & queue.mask) * Req.words;
      const buffer = (sent & buffersMask) * 2;
      sq[r] = op;
      sq[r + Req.tag] = 0;
      sq[r + Req.blocks] = blocks;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = units[(first + sent) & unitsMask]! * blocks;
      sq[r + Req.lbaHi] = 0;
      sq[r + Req.addressLo] = buffers[buffer]!;
      sq[r + Req.addressHi] = buffers[buffer + 1]!;
    }
    queue.submit();
    let got = queue.poll(depth);
    if (got === 0) got = queue.park(1000);
    for (let i = 0; i < got; i++) {
      const status = cq[i * Cpl.words + Cpl.status]!;
      if (status !== 0) throw new Error(device.explain(status).message);
    }
    done += got;
  }
}

function randomize(words: Uint32Array, seed: number): void {
  let x = seed;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
}

await program(async () => {
  const options = parseOptions({ rounds: 3, runtime: 1 });
  progress('making data');
  const device = await open(`ram:${DEVICE_BYTES}`);
  const data: DmaBuffer = device.memory.alloc(DATA_BYTES);
  const copy = device.memory.alloc(2 ** 26);
  randomize(data.u32, 1);
  copy.u8.fill(1);
  for (let at = 0; at < DEVICE_BYTES; at += copy.bytes) {
    await device.write(at / device.info.blockSize, copy);
  }
  const figures = new Map<string, number[]>();
  const note = (name: string, value: number): void => {
    figures.set(name, [...(figures.get(name) ?? []), value]);
  };
  const costs: [string, string, HeapCost[]][] = [];
  const shuffled = new Uint32Array(2 ** 20);
  randomize(shuffled, 1);
  for (let i = 0; i < shuffled.length; i++) shuffled[i] = shuffled[i]! % PAGES;
  const inOrder = Uint32Array.from({ length: DATA_BYTES / UNIT_BYTES }, (_, i) => i);
  /** Places of buffers that follow each other in the data. */
  const buffersOf = (bytes: number, count: number): Uint32Array => {
    const words = new Uint32Array(count * 2);
    for (let i = 0; i < count; i++) {
      const address = data.address + i * bytes;
      words.set([address >>> 0, address / TWO_32], i * 2);
    }
    return words;
  };
  const sequential = (op: number): Load => ({
    op,
    bytes: UNIT_BYTES,
    depth: SEQUENTIAL_DEPTH,
    operations: DATA_BYTES / UNIT_BYTES,
    units: inOrder,
    buffers: buffersOf(UNIT_BYTES, DATA_BYTES / UNIT_BYTES),
  });
  /** The same in smaller requests. */
  const inRequests = {
    bytes: REQUEST_BYTES,
    units: Uint32Array.from({ length: DATA_BYTES / REQUEST_BYTES }, (_, i) => i),
    buffers: buffersOf(REQUEST_BYTES, DATA_BYTES / REQUEST_BYTES),
  };
  const scattered = (op: number): Load => ({
    op,
    bytes: PAGE,
    depth: RANDOM_DEPTH,
    operations: RANDOM_OPERATIONS,
    units: shuffled,
    buffers: buffersOf(PAGE, RANDOM_DEPTH),
  });

  /** A copy of as much data, as other systems make it. */
  function plainCopy(): number {
    const entry = new Uint32Array(8);
    const started = performance.now();
    for (let at = 0; at < DATA_BYTES; at += UNIT_BYTES) {
      const [to, from] = [copy.address + (at % copy.bytes), data.address + at];
      entry.set([to >>> 0, to / TWO_32, from >>> 0, from / TWO_32, UNIT_BYTES]);
      native.copyList(entry, 1);
    }
    return DATA_BYTES / GB / ((performance.now() - started) / 1000);
  }

  // One round more: the first is warm-up, of V8 and of memory that is touched first.
  for (let round = 0; round <= options.rounds; round++) {
    progress(`round ${round} of ${options.rounds}`);
    await Pool.create(device, { force: true });
    const pool = await Pool.open(device);
    for (const name of ['a', 'b', 'c']) await pool.createVolume(name, DATA_BYTES);
    const [a, b, c] = ['a', 'b', 'c'].map((name) => pool.openVolume(name)) as BlockDevice[];
    const measured: [string, number][] = [];
    const ofBytes = (iops: number): number => (iops * UNIT_BYTES) / GB;
    measured.push(['unique, GB/s', ofBytes(await run(a!, sequential(Op.WRITE)))]);
    measured.push(['duplicate, GB/s', ofBytes(await run(b!, sequential(Op.WRITE)))]);
    // Every second MiB is new.
    for (let at = UNIT_BYTES; at < DATA_BYTES; at += 2 * UNIT_BYTES) {
      randomize(data.u32.subarray(at / 4, (at + UNIT_BYTES) / 4), at + round);
    }
    measured.push(['half and half, GB/s', ofBytes(await run(c!, sequential(Op.WRITE)))]);
    const copied = plainCopy();
    for (const [name, value] of [...measured]) {
      measured.push([name.replace('GB/s', 'to memcpy'), value / copied]);
    }
    measured.push(['memcpy, GB/s', copied]);
    const [raw, read, ratio] = await inTurn([device, a!], scattered(Op.READ));
    measured.push(['read 4 KiB of the device, IOPS', raw], ['read 4 KiB, IOPS', read]);
    measured.push(['read 4 KiB, to the device', ratio]);
    measured.push(['overwrite 4 KiB, IOPS', await run(a!, scattered(Op.WRITE))]);
    if (round === options.rounds) {
      progress('heap');
      const again = { ...sequential(Op.WRITE), ...inRequests };
      costs.push(['duplicate 64 KiB', '10^5', await costsOf(c!, again, REQUESTS)]);
      costs.push(['read 4 KiB', '10^7', await costsOf(a!, scattered(Op.READ))]);
      costs.push(['overwrite 4 KiB', '10^7', await costsOf(a!, scattered(Op.WRITE))]);
    }
    if (round > 0) for (const [name, value] of measured) note(name, value);
    for (const disk of [a!, b!, c!]) await disk.close();
    await pool.close();
  }
  progressEnd();
  data.free();
  copy.free();
  await device.close();

  const rows: Record<string, Cell>[] = [];
  const bars: Bar[] = [];
  for (const [name, values] of figures) {
    rows.push({ what: name, median: median(values), least: Math.min(...values) });
    const bar = BARS[name];
    if (bar !== undefined) bars.push(atLeast(name, median(values), bar));
  }
  for (const [name, many, stretches] of costs) {
    const bytes = stretches.map(({ heapGrowthBytes }) => heapGrowthBytes);
    const collections = stretches.map(({ gcCount }) => gcCount);
    figures.set(`${name}, heap after ${many}, bytes`, bytes);
    bars.push(atMost(`${name}, heap after ${many}, bytes`, median(bytes), HEAP_GROWTH_MAX));
    bars.push(atMost(`${name}, garbage collections`, Math.max(...collections), 0));
  }
  const rounds = Object.fromEntries(figures);
  finish({ schema: 'penstock.bench.dedup/1', rows, bars, rounds }, options);
});
