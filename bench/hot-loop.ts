// The loop of bench/baseline/loop.h in TypeScript, over a Queue: reserve, fill, submit, poll, give
// the tag back, count the latency. One clock read per submission and one per poll.
//
// Nothing is allocated in `run`: state between calls lives in typed arrays, within a call in
// locals. A read's address is the buffer of its tag: a buffer belongs to one operation at a time.

import type { Queue } from '../lib/hpdi/queue.js';
import { Cpl, Op, Req } from '../lib/hpdi/records.js';

const TWO32 = 2 ** 32;
const INTEGER_TICKS = 2 ** 30;
/** How long a loop that got nothing blocks before it looks again. */
const PARK_US = 1000;
const BUCKET_BITS = 6;
const BUCKETS = (64 - BUCKET_BITS) << BUCKET_BITS;

/** A time stamp counter: `read` stores its low and high word to `words`. */
export interface Clock {
  readonly words: Uint32Array;
  readonly read: () => void;
}

export interface HotLoopOptions {
  /** Operations in flight at most; the queue's depth or less. */
  depth: number;
  /** One operation in blocks. */
  unitBlocks: number;
  /** Capacity of the device in blocks. */
  blocks: number;
  /** Address of each tag's buffer, `depth` of them. */
  addresses: readonly number[];
  clock: Clock;
  seed?: number;
}

/** What `run` counts, kept in a Float64Array that the loop updates once per batch. */
const enum Count {
  operations = 0,
  ticks = 1,
  failures = 2,
  words = 3,
}

export class HotLoop {
  /** Operations per bucket; `run` must be called before any bucket passes 2^32. */
  readonly histogram = new Uint32Array(BUCKETS);
  private readonly counts = new Float64Array(Count.words);
  private readonly random = new Int32Array(4);
  private readonly freeTags: Uint32Array;
  private readonly startTicks: Float64Array;
  private readonly addressWords: Uint32Array;
  private readonly unitScale: number;
  private readonly isLarge: boolean;
  private freeCount: number;

  constructor(
    readonly queue: Queue,
    private readonly options: HotLoopOptions,
  ) {
    const { depth, addresses, blocks, unitBlocks } = options;
    if (depth > queue.depth) throw new RangeError(`depth ${depth} is over ${queue.depth}`);
    if (addresses.length < depth) throw new RangeError('every tag needs a buffer');
    this.unitScale = Math.floor(blocks / unitBlocks) / TWO32;
    this.isLarge = blocks > TWO32;
    this.freeCount = depth;
    this.freeTags = Uint32Array.from({ length: depth }, (_, tag) => tag);
    this.startTicks = new Float64Array(depth);
    this.addressWords = new Uint32Array(depth * 2);
    for (let tag = 0; tag < depth; tag++) {
      this.addressWords[tag * 2] = addresses[tag]! % TWO32;
      this.addressWords[tag * 2 + 1] = Math.floor(addresses[tag]! / TWO32);
    }
    seedRandom(this.random, options.seed ?? 1);
  }

  get operations(): number {
    return this.counts[Count.operations]!;
  }

  /** Ticks of the clock spent in `run`. */
  get ticks(): number {
    return this.counts[Count.ticks]!;
  }

  get failures(): number {
    return this.counts[Count.failures]!;
  }

  /** Runs until `operations` more have completed, then polls what is still in flight. */
  run(operations: number): void {
    const { queue, counts } = this;
    const { words, read } = this.options.clock;
    const depth = this.options.depth;
    let done = 0;
    let failures = 0;
    read();
    counts[Count.ticks] = counts[Count.ticks]! - (words[1]! * TWO32 + words[0]!);
    while (done < operations || this.freeCount < depth) {
      if (done < operations) {
        const at = queue.tail;
        const granted = queue.reserve(this.freeCount);
        read();
        this.fill(at, granted);
      }
      queue.submit();
      let completed = queue.poll(depth);
      if (completed === 0) completed = queue.park(PARK_US);
      read();
      failures += this.reap(completed);
      done += completed;
    }
    counts[Count.operations] = counts[Count.operations]! + done;
    counts[Count.ticks] = counts[Count.ticks]! + (words[1]! * TWO32 + words[0]!);
    counts[Count.failures] = counts[Count.failures]! + failures;
  }

  /**
   * Fills `count` records from ring index `at` on with reads of random units (xoshiro128**),
   * stamped with the clock's words. (A stamp passed as an argument would be boxed once per batch.)
   */
  private fill(at: number, count: number): void {
    const { words } = this.options.clock;
    const stamp = words[1]! * TWO32 + words[0]!;
    const { startTicks, freeTags, addressWords, random } = this;
    const { sq, mask } = this.queue;
    const unitBlocks = this.options.unitBlocks;
    const unitScale = this.unitScale;
    const isLarge = this.isLarge;
    let freeCount = this.freeCount;
    let s0 = random[0]!;
    let s1 = random[1]!;
    let s2 = random[2]!;
    let s3 = random[3]!;
    for (let i = 0; i < count; i++) {
      const r = ((at + i) & mask) * Req.words;
      const tag = freeTags[--freeCount]!;
      const scrambled = Math.imul(s1, 5);
      const drawn = Math.imul((scrambled << 7) | (scrambled >>> 25), 9) >>> 0;
      const t = s1 << 9;
      s2 ^= s0;
      s3 ^= s1;
      s1 ^= s2;
      s0 ^= s3;
      s2 ^= t;
      s3 = (s3 << 11) | (s3 >>> 21);
      const lba = Math.floor(drawn * unitScale) * unitBlocks;
      sq[r + Req.op] = Op.READ;
      sq[r + Req.tag] = tag;
      sq[r + Req.blocks] = unitBlocks;
      sq[r + Req.aux] = 0;
      sq[r + Req.lbaLo] = lba;
      sq[r + Req.lbaHi] = isLarge ? lba / TWO32 : 0;
      sq[r + Req.addressLo] = addressWords[tag * 2]!;
      sq[r + Req.addressHi] = addressWords[tag * 2 + 1]!;
      startTicks[tag] = stamp;
    }
    random[0] = s0;
    random[1] = s1;
    random[2] = s2;
    random[3] = s3;
    this.freeCount = freeCount;
  }

  /** Counts `count` completions of the cq as of the clock's words; returns how many failed. */
  private reap(count: number): number {
    const { words } = this.options.clock;
    const now = words[1]! * TWO32 + words[0]!;
    const { startTicks, freeTags, histogram } = this;
    const cq = this.queue.cq;
    let freeCount = this.freeCount;
    let failures = 0;
    for (let i = 0; i < count; i++) {
      const c = i * Cpl.words;
      const tag = cq[c + Cpl.tag]!;
      if (cq[c + Cpl.status]! !== 0) failures++;
      const ticks = now - startTicks[tag]!;
      const bucket = ticks < INTEGER_TICKS ? smallBucket(ticks | 0) : largeBucket(ticks);
      histogram[bucket] = histogram[bucket]! + 1;
      freeTags[freeCount++] = tag;
    }
    this.freeCount = freeCount;
    return failures;
  }

  /** Upper bound in ticks of the bucket that holds the fraction. */
  percentile(fraction: number): number {
    let total = 0;
    for (const count of this.histogram) total += count;
    let seen = 0;
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      seen += this.histogram[bucket]!;
      if (seen > fraction * total) return bucketEnd(bucket);
    }
    return 0;
  }

  /** Forgets what was counted: the measured part begins. */
  reset(): void {
    this.histogram.fill(0);
    this.counts.fill(0);
  }
}

/** Below 2^30 ticks: 64 buckets per power of two by shifts alone. */
function smallBucket(ticks: number): number {
  const shift = 31 - BUCKET_BITS - Math.clz32(ticks);
  return shift <= 0 ? ticks : (shift << BUCKET_BITS) + (ticks >>> shift);
}

function largeBucket(ticks: number): number {
  const shift = Math.floor(Math.log2(ticks)) - BUCKET_BITS;
  return (shift << BUCKET_BITS) + Math.floor(ticks / 2 ** shift);
}

function bucketEnd(bucket: number): number {
  if (bucket < 2 << BUCKET_BITS) return bucket;
  const shift = (bucket >>> BUCKET_BITS) - 1;
  return (bucket - (shift << BUCKET_BITS) + 1) * 2 ** shift;
}

function seedRandom(words: Int32Array, seed: number): void {
  let state = seed | 0;
  for (let i = 0; i < 4; i++) {
    state = (state + 0x9e3779b9) | 0;
    let z = Math.imul(state ^ (state >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    words[i] = z ^ (z >>> 16);
  }
}
