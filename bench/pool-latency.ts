// What work in the background of a dedup pool costs who writes: random 4 KiB writes to a volume,
// one and 16 at a time, alone (checkpoints come as they come), and while the same pool is cleaned,
// a large volume of it is deleted, it is trimmed. The pool is on a device in memory, and made anew
// for each of these.
//
// A latency is from the record to the completion that is seen. The event loop turns once a
// millisecond while writes are under way, so that what the pool does there counts, too. A phase
// ends when its work does, if that is before the time is over.

import { Histogram } from '../lib/bench/histogram.js';
import { Random } from '../lib/bench/random.js';
import { Pool } from '../lib/dedup/index.js';
import type { BlockDevice } from '../lib/hpdi/index.js';
import { Cpl, Op, Req } from '../lib/hpdi/records.js';
import type { DmaBuffer } from '../lib/memory/index.js';
import { open } from '../lib/open.js';
import {
  atLeast,
  atMost,
  finish,
  median,
  parseOptions,
  program,
  progress,
  progressEnd,
  short,
  type Bar,
  type Cell,
} from './report.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const DEPTHS = [1, 16];
const DEVICE_BYTES = 5120 * MIB;
/** The volume that is written, the one with holes, and the one that is deleted. */
const WORK_BYTES = 128 * MIB;
const HOLES_BYTES = 1024 * MIB;
const GONE_BYTES = 1536 * MIB;
/** Of every so many blocks of the volume with holes so many stay. */
const STRIDE = 16;
const STAYING = 4;
/** Extents of a pass: all of that volume. */
const VICTIMS = 4096;
const UNIT_BYTES = MIB;
const TURN_MS = 1;
const TWO_32 = 2 ** 32;

let runs = 0;
let content = 1;

/** Throughput beside other work, to that alone. */
const RATE_BAR = 0.4;
/** p99 beside other work: so many times that alone, or this, whichever is larger. */
const P99_BAR = 10;
const P99_BAR_US = 2000;

/** What the pool does beside the writes, once it has begun. */
interface Work {
  isUnderWay(): boolean;
  /** Ends it, where somebody can, and waits for that; how much of it was done. */
  end(): Promise<number>;
}

interface Phase {
  readonly name: string;
  /** What is counted of its work. */
  readonly unit: string;
  begin(pool: Pool): Promise<Work>;
}

/** Latencies in µs. */
interface Figures {
  readonly iops: number;
  readonly p50: number;
  readonly p99: number;
  readonly p999: number;
  readonly p9999: number;
  readonly max: number;
  readonly seconds: number;
  readonly checkpoints: number;
  /** What of the work was done meanwhile. */
  readonly done: number;
}

const PHASES: readonly Phase[] = [
  {
    name: 'alone',
    unit: '',
    begin: async () => ({ isUnderWay: () => true, end: async () => 0 }),
  },
  {
    name: 'cleaning',
    unit: 'blocks moved',
    begin: async (pool) => {
      const { cleaner } = pool.engine;
      const stop = new AbortController();
      const pass = pool.clean({ maxVictims: VICTIMS, signal: stop.signal });
      const isOver = watch(pass);
      // It begins with checkpoints.
      while (!cleaner.active && !isOver()) await turn();
      const before = cleaner.copier?.copied ?? 0;
      const end = async (): Promise<number> => {
        stop.abort();
        return (await pass).moved - before;
      };
      return { isUnderWay: () => cleaner.active, end };
    },
  },
  {
    name: 'deleting',
    unit: 'blocks freed',
    begin: async (pool) => {
      const { catalogue, space } = pool.engine.parts;
      const before = space.used;
      const deletion = pool.deleteVolume('gone');
      watch(deletion);
      const end = async (): Promise<number> => {
        const freed = before - space.used;
        await deletion;
        return freed;
      };
      return { isUnderWay: () => catalogue.deleting.length > 0, end };
    },
  },
  {
    name: 'trimming',
    unit: 'MiB discarded',
    begin: async (pool) => {
      await pool.deleteVolume('gone');
      await pool.settle();
      const stop = new AbortController();
      let discarded = 0;
      const onProgress = ({ bytes }: { bytes: number }): void => void (discarded = bytes);
      const pass = pool.trim({ signal: stop.signal, onProgress });
      const isOver = watch(pass);
      // The first discards are of a pool at rest: how soon it begins is not what is measured.
      while (discarded === 0 && !isOver()) await turn();
      const before = discarded;
      const end = async (): Promise<number> => {
        stop.abort();
        return ((await pass) - before) / MIB;
      };
      return { isUnderWay: () => !isOver(), end };
    },
  },
];

/** Whether a promise is settled. What it failed with is told to who awaits it. */
function watch(promise: Promise<unknown>): () => boolean {
  let isSettled = false;
  const settle = (): void => void (isSettled = true);
  promise.then(settle, settle);
  return () => isSettled;
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Writes blocks at random while the work is under way, for so many seconds at most. */
async function measure(
  pool: Pool,
  disk: BlockDevice,
  data: DmaBuffer,
  depth: number,
  seconds: number,
  phase: Phase,
): Promise<Figures> {
  const random = new Random(7, runs++);
  const histogram = new Histogram();
  const started = new Float64Array(depth);
  const free = Array.from({ length: depth }, (_, tag) => tag);
  const queue = disk.queue({ depth, split: false });
  const { sq, cq, mask } = queue;
  const before = pool.stats().checkpoints.done;
  const work = await phase.begin(pool);
  if (!work.isUnderWay()) throw new Error(`${phase.name} was over before it was measured`);
  const begun = performance.now();
  const until = begun + seconds * 1000;
  let now = begun;
  let turned = begun;
  for (let goesOn = true; goesOn || free.length < depth;) {
    const at = queue.tail;
    const count = goesOn ? queue.reserve(free.length) : 0;
    for (let i = 0; i < count; i++) {
      const tag = free.pop()!;
      const r = ((at + i) & mask) * Req.words;
      const address = data.address + tag * PAGE;
      // What is written was never there before.
      data.u32[(tag * PAGE) / 4] = content % TWO_32;
      data.u32[(tag * PAGE) / 4 + 1] = content++ / TWO_32;
      sq[r] = Op.WRITE;
      sq[r + Req.tag] = tag;
      sq[r + Req.blocks] = 1;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = random.below(WORK_BYTES / PAGE);
      sq[r + Req.lbaHi] = 0;
      sq[r + Req.addressLo] = address >>> 0;
      sq[r + Req.addressHi] = address / TWO_32;
      started[tag] = performance.now();
    }
    queue.submit();
    if (now - turned >= TURN_MS) {
      await turn();
      turned = performance.now();
      goesOn &&= work.isUnderWay();
    }
    let got = queue.poll(depth);
    if (got === 0) got = queue.park(1000);
    now = performance.now();
    for (let i = 0; i < got; i++) {
      const tag = cq[i * Cpl.words]!;
      const status = cq[i * Cpl.words + Cpl.status]!;
      if (status !== 0) throw new Error(disk.explain(status).message);
      histogram.record(Math.round((now - started[tag]!) * 1e6), 1);
      free.push(tag);
    }
    if (now >= until) goesOn = false;
  }
  const checkpoints = pool.stats().checkpoints.done - before;
  const took = (performance.now() - begun) / 1000;
  const done = await work.end();
  if (phase.unit !== '' && !(done > 0)) throw new Error(`${phase.name}: 0 ${phase.unit}`);
  const at = (percent: number): number => histogram.percentile(percent) / 1000;
  await queue.close();
  return {
    iops: histogram.count / took,
    ...{ p50: at(50), p99: at(99), p999: at(99.9), p9999: at(99.99), max: at(100) },
    ...{ seconds: took, checkpoints, done },
  };
}

/** A volume of data that occurs once. */
async function fill(pool: Pool, name: string, bytes: number, unit: DmaBuffer): Promise<void> {
  await pool.createVolume(name, bytes);
  const disk = pool.openVolume(name);
  for (let at = 0; at < bytes; at += unit.bytes) {
    for (let word = 0; word < unit.bytes / 4; word += PAGE / 4) {
      unit.u32[word] = content % TWO_32;
      unit.u32[word + 1] = content++ / TWO_32;
    }
    await disk.write(at / PAGE, unit);
  }
  await disk.close();
}

/** Of every stride of a volume some blocks stay. */
async function punch(pool: Pool, name: string): Promise<void> {
  const disk = pool.openVolume(name);
  for (let at = 0; at < disk.info.blocks; at += UNIT_BYTES / PAGE) {
    const discards: Promise<void>[] = [];
    for (let i = STAYING; i < UNIT_BYTES / PAGE; i += STRIDE) {
      discards.push(disk.discard(at + i, STRIDE - STAYING));
    }
    await Promise.all(discards);
  }
  await disk.close();
}

/** A pool with all that is written, cleaned, deleted and trimmed in it. */
async function prepare(device: BlockDevice, unit: DmaBuffer): Promise<Pool> {
  await Pool.create(device, { force: true });
  const pool = await Pool.open(device, { cleanEveryMs: 0 });
  await fill(pool, 'work', WORK_BYTES, unit);
  await fill(pool, 'holes', HOLES_BYTES, unit);
  await fill(pool, 'gone', GONE_BYTES, unit);
  await punch(pool, 'holes');
  await pool.settle();
  await pool.checkpoint();
  return pool;
}

await program(async () => {
  const options = parseOptions({ rounds: 3, runtime: 2 });
  const device = await open(`ram:${DEVICE_BYTES}`);
  const data = device.memory.alloc(UNIT_BYTES);
  const random = new Random(1, 0);
  for (let i = 0; i < data.u32.length; i++) data.u32[i] = random.next();
  // What is touched first is slow.
  progress('touching the device');
  for (let at = 0; at < DEVICE_BYTES; at += UNIT_BYTES) {
    await device.write(at / device.info.blockSize, data);
  }
  const seen = new Map<string, Figures[]>();
  const key = (depth: number, { name }: Phase): string => `depth ${depth}, ${name}`;
  // One round more: the first is warm-up.
  for (let round = 0; round <= options.rounds; round++) {
    for (const depth of DEPTHS) {
      for (const phase of PHASES) {
        const name = key(depth, phase);
        progress(`${name}, round ${round} of ${options.rounds}`);
        const pool = await prepare(device, data);
        const disk = pool.openVolume('work');
        const figures = await measure(pool, disk, data, depth, options.runtime, phase);
        if (round > 0) seen.set(name, [...(seen.get(name) ?? []), figures]);
        await disk.close();
        await pool.close();
      }
    }
  }
  progressEnd();
  data.free();
  await device.close();

  const rows: Record<string, Cell>[] = [];
  const bars: Bar[] = [];
  for (const depth of DEPTHS) {
    const alone = seen.get(key(depth, PHASES[0]!))!;
    for (const phase of PHASES) {
      const all = seen.get(key(depth, phase))!;
      const of = (figure: keyof Figures): number => median(all.map((one) => one[figure]));
      const to = (figure: keyof Figures): number =>
        median(all.map((one, i) => one[figure] / alone[i]![figure]));
      const row = (what: string, figure: (name: keyof Figures) => number) => ({
        what,
        IOPS: figure('iops'),
        'p50, µs': figure('p50'),
        'p99, µs': figure('p99'),
        'p99.9, µs': figure('p999'),
        'p99.99, µs': figure('p9999'),
        'max, µs': figure('max'),
      });
      const name = key(depth, phase);
      const done = `${short(of('done'))} ${phase.unit}`;
      const more = { seconds: of('seconds'), checkpoints: of('checkpoints') };
      rows.push({ ...row(name, of), ...more, done: phase.unit === '' ? '' : done });
      if (phase.unit === '') continue;
      rows.push({ ...row('  to alone', to), seconds: '', checkpoints: '', done: '' });
      const bar = Math.max(P99_BAR * median(alone.map(({ p99 }) => p99)), P99_BAR_US);
      bars.push(atLeast(`${name}: throughput to alone`, to('iops'), RATE_BAR));
      bars.push(atMost(`${name}: p99, µs`, of('p99'), bar));
    }
  }
  const rounds = Object.fromEntries(seen);
  finish({ schema: 'penstock.bench.pool-latency/1', rows, bars, rounds }, options);
});
