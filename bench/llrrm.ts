// What low-latency memory is worth: random 4 KiB reads of a base image that several volumes share,
// over a data device that answers after 100 µs, without the tier and with one in memory of 5 % of
// the volumes' data. One read at a time, and 16; the first word of every block read is checked.
//
// 20 volumes: the base image is 5 % of their data, so all of it fits. 5 volumes: a quarter fits;
// blocks are then read alike (uniform), or some much more than others (Zipf, 0.99).

import { Pool } from '../lib/dedup/index.js';
import type { BlockDevice } from '../lib/hpdi/index.js';
import { Cpl, Op, Req } from '../lib/hpdi/records.js';
import { open } from '../lib/open.js';
import { Random } from '../lib/bench/random.js';
import {
  atLeast,
  finish,
  median,
  parseOptions,
  program,
  progress,
  progressEnd,
  type Bar,
  type Cell,
} from './report.js';

const DELAY_US = 100;
const BASE_BLOCKS = 2 ** 13;
const PART = 0.05;
const PAGE = 4096;
const UNIT_BLOCKS = 256;
const TWO_32 = 2 ** 32;
const ZIPF = 0.99;
const BAR = 3;
const CHOICES = 2 ** 16;

interface Case {
  readonly name: string;
  readonly volumes: number;
  readonly depth: number;
  readonly zipf: boolean;
  /** It is what the bar is of. */
  readonly judged: boolean;
}

const CASES: readonly Case[] = [
  { name: '20 volumes, depth 1', volumes: 20, depth: 1, zipf: false, judged: true },
  { name: '20 volumes, depth 16', volumes: 20, depth: 16, zipf: false, judged: true },
  { name: '5 volumes, depth 1, uniform', volumes: 5, depth: 1, zipf: false, judged: false },
  { name: '5 volumes, depth 1, Zipf', volumes: 5, depth: 1, zipf: true, judged: false },
];

let runs = 0;

interface Latency {
  readonly mean: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** Blocks to read: alike, or by Zipf's law with ranks that are strewn over the image. */
function choices(random: Random, zipf: boolean): Uint32Array {
  const blocks = new Uint32Array(CHOICES);
  if (!zipf) return blocks.map(() => random.below(BASE_BLOCKS));
  const sums = new Float64Array(BASE_BLOCKS);
  for (let rank = 0, sum = 0; rank < BASE_BLOCKS; rank++) {
    sum += 1 / (rank + 1) ** ZIPF;
    sums[rank] = sum;
  }
  const places = Uint32Array.from({ length: BASE_BLOCKS }, (_, i) => i);
  for (let i = BASE_BLOCKS - 1; i > 0; i--) {
    const other = random.below(i + 1);
    [places[i], places[other]] = [places[other]!, places[i]!];
  }
  const all = sums[BASE_BLOCKS - 1]!;
  return blocks.map(() => {
    const wanted = random.fraction() * all;
    let [low, high] = [0, BASE_BLOCKS - 1];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (sums[middle]! < wanted) low = middle + 1;
      else high = middle;
    }
    return places[low]!;
  });
}

/** Reads for so many seconds; latencies in µs. */
async function measure(
  disks: readonly BlockDevice[],
  { depth, zipf }: Case,
  seconds: number,
): Promise<Latency> {
  // Another series each time: what the last one read is not read again in the same order.
  const random = new Random(3, runs++);
  const blocks = choices(random, zipf);
  const queues = disks.map((disk) => disk.queue({ depth, split: false }));
  const buffer = disks[0]!.memory.alloc(depth * PAGE);
  const times: number[] = [];
  const started = new Float64Array(depth);
  const wanted = new Uint32Array(depth);
  const until = performance.now() + seconds * 1000;
  let at = 0;
  // The volumes in turn, so many reads at a time each.
  while (performance.now() < until) {
    const queue = queues[at % queues.length]!;
    const { sq, cq, mask } = queue;
    const first = queue.tail;
    if (queue.reserve(depth) !== depth) throw new Error('a queue is full');
    for (let i = 0; i < depth; i++, at++) {
      const r = ((first + i) & mask) * Req.words;
      const block = blocks[at & (CHOICES - 1)]!;
      const address = buffer.address + i * PAGE;
      wanted[i] = block;
      sq[r] = Op.READ;
      sq[r + Req.tag] = i;
      sq[r + Req.blocks] = 1;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = block;
      sq[r + Req.lbaHi] = 0;
      sq[r + Req.addressLo] = address >>> 0;
      sq[r + Req.addressHi] = address / TWO_32;
      started[i] = performance.now();
    }
    queue.submit();
    for (let done = 0; done < depth;) {
      let got = queue.poll(depth);
      if (got === 0) got = queue.park(1000);
      const now = performance.now();
      for (let i = 0; i < got; i++) {
        const tag = cq[i * Cpl.words]!;
        if (cq[i * Cpl.words + Cpl.status] !== 0) throw new Error('a read failed');
        if (buffer.u32[tag * 1024] !== wanted[tag]! + 1) throw new Error('another block was read');
        times.push((now - started[tag]!) * 1000);
      }
      done += got;
    }
  }
  for (const queue of queues) await queue.close();
  buffer.free();
  times.sort((a, b) => a - b);
  const mean = times.reduce((sum, time) => sum + time, 0) / times.length;
  const part = (p: number): number => times[Math.floor((times.length - 1) * p)]!;
  return { mean, p50: part(0.5), p99: part(0.99), max: part(1) };
}

/** Writes the base image to every volume. */
async function fill(disks: readonly BlockDevice[]): Promise<void> {
  const buffer = disks[0]!.memory.alloc(UNIT_BLOCKS * PAGE);
  for (const disk of disks) {
    for (let at = 0; at < BASE_BLOCKS; at += UNIT_BLOCKS) {
      const random = new Random(at + 1, 0);
      for (let i = 0; i < UNIT_BLOCKS * 1024; i++) {
        buffer.u32[i] = i % 1024 === 0 ? at + i / 1024 + 1 : random.next();
      }
      await disk.write(at, buffer);
    }
  }
  buffer.free();
}

await program(async () => {
  const options = parseOptions({ rounds: 3, runtime: 1 });
  const rows: Record<string, Cell>[] = [];
  const bars: Bar[] = [];
  for (const kind of CASES) {
    const ratios: number[] = [];
    const seen: Latency[][] = [[], []];
    let hits = 0;
    for (let round = 0; round <= options.rounds; round++) {
      for (const withTier of [false, true]) {
        progress(`${kind.name}, round ${round} of ${options.rounds}`);
        const device = await open(`ram:256MiB?fault.seed=1&fault.delayUs=${DELAY_US}`);
        const bytes = Math.ceil((kind.volumes * BASE_BLOCKS * PART * PAGE) / 2 ** 20) * 2 ** 20;
        const llrrm = withTier ? await open(`ram:${bytes}`) : null;
        await Pool.create(device, { llrrm });
        const pool = await Pool.open(device, { llrrm });
        const disks: BlockDevice[] = [];
        for (let i = 0; i < kind.volumes; i++) {
          await pool.createVolume(`v${i}`, BASE_BLOCKS * PAGE);
          disks.push(pool.openVolume(`v${i}`));
        }
        await fill(disks);
        await pool.settle();
        await measure(disks, kind, options.runtime / 2);
        const before = pool.stats().llrrm;
        const latency = await measure(disks, kind, options.runtime);
        const after = pool.stats().llrrm;
        if (round > 0) seen[withTier ? 1 : 0]!.push(latency);
        if (before !== null && after !== null) {
          const reads = after.reads - before.reads;
          hits = reads / (reads + after.misses - before.misses);
        }
        for (const disk of disks) await disk.close();
        await pool.close();
        await device.close();
        await llrrm?.close();
      }
    }
    const of = (side: number, figure: keyof Latency): number =>
      median(seen[side]!.map((latency) => latency[figure]));
    for (let i = 0; i < options.rounds; i++) ratios.push(seen[0]![i]!.mean / seen[1]![i]!.mean);
    const ratio = median(ratios);
    for (const side of [0, 1]) {
      rows.push({
        what: `${kind.name}, ${side === 0 ? 'without' : 'with'}`,
        'mean, µs': of(side, 'mean'),
        'p50, µs': of(side, 'p50'),
        'p99, µs': of(side, 'p99'),
        'max, µs': of(side, 'max'),
        'served there, %': side === 0 ? 0 : hits * 100,
        'times better': side === 0 ? 1 : ratio,
      });
    }
    if (kind.judged) bars.push(atLeast(`${kind.name}: mean latency, times better`, ratio, BAR));
  }
  progressEnd();
  finish({ schema: 'penstock.bench.llrrm/1', rows, bars, rounds: {} }, options);
});
