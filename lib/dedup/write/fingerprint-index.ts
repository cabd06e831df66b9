// The fingerprint index: from a block's fingerprint to the newest places of such blocks, in memory.
//
// It is a cache, and wrong in both directions by design: it forgets entries (full buckets, a fifth
// place, a rate that doubled), and what it gives may belong to another fingerprint or to a block
// that is free by now. A match is a hint where to look; who uses it compares bytes.
//
// Invariants:
// - only sampled fingerprints are in: those whose (word 0 >>> 4) % rate is 0. The rate, a power of
//   two, only ever doubles;
// - while a sweep runs, buckets before its cursor hold nothing that the rate leaves out; insert and
//   probe go by the new rate from the start;
// - `entries` is exact: every way in and out of the table counts.
//
// The table's layout is native's alone (native/fingerprints.cc).

import { addressSpace, SEGMENT_BYTES_MAX, type Segment } from '../../memory/index.js';
import { native } from '../../native.js';

const BYTES_MIN = 4096;
const ENTRY_BYTES = 8;
const BUCKET_BYTES = 64;
const RATE_MAX = 2 ** 16;
/** Beyond this share of its places in use, a table loses entries that it could keep. */
const LOAD_MAX = 0.94;

/** Words of an element of the arrays that callers give. */
export const enum IndexWords {
  fingerprint = 4,
  /** A block's number: lo, hi. */
  block = 2,
  /** What `probe` says of a fingerprint: a count, then as many blocks, the newest first. */
  answer = 9,
}

/** Words that the addon's fingerprintInsert adds to. */
const enum Outcome {
  inserted = 0,
  evicted = 1,
  dropped = 2,
  notSampled = 3,
  renewed = 4,
  words = 5,
}

const enum Count {
  entries = 0,
  probes = 1,
  hits = 2,
  evictions = 3,
  words = 4,
}

export interface FingerprintIndexOptions {
  /** Of the table, from 4 KiB to 2 GiB; rounded down to 4 KiB. */
  bytes: number;
  /** One fingerprint in so many is in: a power of two from 1 (all) to 2^16. */
  rate: number;
}

/** One index, in a private segment of its own. To be closed; of no use after that. */
export class FingerprintIndex {
  readonly bytes: number;
  /** Entries that fit. */
  readonly slots: number;
  private readonly segment: Segment;
  private readonly buckets: number;
  private readonly outcomes = new Uint32Array(Outcome.words);
  private readonly counts = new Float64Array(Count.words);
  private table: Uint32Array;
  private sampleRate: number;
  /** The bucket that the running sweep is at; `buckets` when none runs. */
  private cursor: number;

  /** Throws OUT_OF_MEMORY when the table's segment cannot be had. */
  constructor(options: FingerprintIndexOptions) {
    const { bytes, rate } = options;
    if (!(bytes >= BYTES_MIN && bytes <= SEGMENT_BYTES_MAX)) {
      throw new RangeError(`a fingerprint index has from 4 KiB to 2 GiB, not ${bytes} bytes`);
    }
    if (!(rate >= 1 && rate <= RATE_MAX && Number.isInteger(Math.log2(rate)))) {
      throw new RangeError(`a sampling rate is a power of two from 1 to 2^16, not ${rate}`);
    }
    this.bytes = Math.floor(bytes / BYTES_MIN) * BYTES_MIN;
    this.slots = this.bytes / ENTRY_BYTES;
    this.buckets = this.bytes / BUCKET_BYTES;
    this.cursor = this.buckets;
    this.sampleRate = rate;
    this.segment = addressSpace().create(this.bytes);
    this.table = this.segment.u32.subarray(0, this.bytes / 4);
  }

  /** One fingerprint in so many is sampled. */
  get rate(): number {
    return this.sampleRate;
  }

  /** Entries in the table. */
  get entries(): number {
    return this.counts[Count.entries]!;
  }

  /** Sampled fingerprints that were looked up so far. */
  get probes(): number {
    return this.counts[Count.probes]!;
  }

  /** Those of them for which there was a block. */
  get hits(): number {
    return this.counts[Count.hits]!;
  }

  /** Entries that full buckets lost so far. (A fingerprint's fifth block is no eviction.) */
  get evictions(): number {
    return this.counts[Count.evictions]!;
  }

  /** Whether a doubled rate has not reached all of the table yet. */
  get sweeping(): boolean {
    return this.cursor < this.buckets;
  }

  // hot:begin
  /**
   * Looks `count` fingerprints up (4 words each). Each one's answer goes to 9 words of `out`: how
   * many blocks (0 to 4), then lo and hi of each, the newest first; words beyond them are left
   * alone. Returns for how many there was one.
   */
  probe(fingerprints: Uint32Array, count: number, out: Uint32Array): number {
    const { counts } = this;
    const sampled = native.fingerprintProbe(this.table, this.sampleRate, fingerprints, count, out);
    let hits = 0;
    if (sampled > 0) {
      for (let i = 0; i < count; i++) if (out[i * IndexWords.answer] !== 0) hits++;
    }
    counts[Count.probes] = counts[Count.probes]! + sampled;
    counts[Count.hits] = counts[Count.hits]! + hits;
    return hits;
  }

  /**
   * Makes each block (lo, hi; from 1 to 2^36 - 1) the newest of its fingerprint, in order. Those
   * that are not sampled are passed over.
   */
  insert(fingerprints: Uint32Array, blocks: Uint32Array, count: number): void {
    const { counts, outcomes } = this;
    outcomes.fill(0);
    native.fingerprintInsert(this.table, this.sampleRate, fingerprints, blocks, count, outcomes);
    const evicted = outcomes[Outcome.evicted]!;
    counts[Count.entries] =
      counts[Count.entries]! + outcomes[Outcome.inserted]! - evicted - outcomes[Outcome.dropped]!;
    counts[Count.evictions] = counts[Count.evictions]! + evicted;
  }

  /** Forgets that these blocks have these fingerprints; returns how many entries there were. */
  remove(fingerprints: Uint32Array, blocks: Uint32Array, count: number): number {
    const { counts } = this;
    const removed = native.fingerprintRemove(this.table, fingerprints, blocks, count);
    counts[Count.entries] = counts[Count.entries]! - removed;
    return removed;
  }
  // hot:end

  /**
   * Doubles the rate when the table is full (0.94) and has no place for the sampled ones of so many
   * blocks, and so begins a sweep: call `sweep` until it is done. False when there is no need,
   * while a sweep runs, or at the last rate. (Entries of blocks that are gone are the oldest, and
   * make room so.)
   */
  maybeDouble(blocks = Infinity): boolean {
    const { slots, sampleRate } = this;
    if (this.entries <= LOAD_MAX * slots || blocks / sampleRate <= slots) return false;
    if (this.sweeping || this.sampleRate === RATE_MAX) return false;
    this.sampleRate *= 2;
    this.cursor = 0;
    return true;
  }

  /**
   * Goes on with a running sweep by so many buckets (of 8 entries), dropping what the rate leaves
   * out; returns whether there is more to sweep.
   */
  sweep(buckets: number): boolean {
    const step = Math.min(buckets, this.buckets - this.cursor);
    const { counts } = this;
    const dropped = native.fingerprintSweep(this.table, this.sampleRate, this.cursor, step);
    counts[Count.entries] = counts[Count.entries]! - dropped;
    this.cursor += step;
    return this.sweeping;
  }

  /** Gives the memory back. Anything done after that but `close` throws a RangeError. */
  close(): void {
    this.table = new Uint32Array(0);
    this.segment.close();
  }
}
