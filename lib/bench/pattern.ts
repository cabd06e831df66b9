// What is written: verified blocks that say which write they belong to, and plain contents that no
// deduplicating device finds twice unless the job asks for it.
//
// A verified unit (one operation, `bs` bytes) carries this header in every device block, then
// payload:
//
//   word 0  CRC-32C of the rest of the block      word 4  seed of the job, folded to 32 bits
//   word 1  magic                                 word 5  sequence: 1, 2, … per unit
//   word 2  LBA, low word                         word 6  payload key
//   word 3  LBA, high word                        word 7  index of the block within its unit
//
// Invariant: key and payload follow from (seed, lba, sequence, dedupe percentage), so that a reader
// can tell which older write a torn block's rest came from.

import { hash32, Random } from './random.js';

export const enum Header {
  crc = 0,
  magic = 1,
  lbaLo = 2,
  lbaHi = 3,
  seed = 4,
  sequence = 5,
  key = 6,
  index = 7,
  words = 8,
}

/** 'PnS1', little endian. */
export const MAGIC = 0x31536e50;
/** Different payloads that repeated blocks draw from. */
const REPEATED_PAYLOADS = 64;
const SECTOR_WORDS = 128;
const TWO32 = 2 ** 32;

/** The 32 bits of a seed that stand in a header. */
export function seedWord(seed: number): number {
  return hash32(seed, Math.floor(seed / TWO32), 0x5eed);
}

/** Contents of verified blocks for one job. */
export class Pattern {
  private readonly base: Uint32Array;
  readonly seed: number;

  constructor(
    seed: number,
    readonly blockWords: number,
    private readonly dedupePercentage: number,
  ) {
    this.seed = seedWord(seed);
    this.base = new Uint32Array(blockWords);
    const random = new Random(0x9a7701, 0);
    for (let i = 0; i < blockWords; i++) this.base[i] = random.next();
  }

  /** Payload key of one block of one write. */
  key(lbaLo: number, lbaHi: number, sequence: number): number {
    const own = hash32(lbaLo ^ Math.imul(lbaHi, 0x85ebca6b), sequence, this.seed);
    if (this.dedupePercentage === 0 || own % 100 >= this.dedupePercentage) return own;
    return hash32((own >>> 8) % REPEATED_PAYLOADS, 0xd0d0, this.seed);
  }

  /** Word `word` (from Header.words on) of a payload. */
  payload(key: number, word: number): number {
    return (this.base[word]! ^ key) >>> 0;
  }

  /** Writes one block at words[at …), all but its checksum. */
  fill(
    words: Uint32Array,
    at: number,
    lbaLo: number,
    lbaHi: number,
    sequence: number,
    index: number,
  ): void {
    const key = this.key(lbaLo, lbaHi, sequence);
    const base = this.base;
    const count = this.blockWords;
    words[at + Header.magic] = MAGIC;
    words[at + Header.lbaLo] = lbaLo;
    words[at + Header.lbaHi] = lbaHi;
    words[at + Header.seed] = this.seed;
    words[at + Header.sequence] = sequence;
    words[at + Header.key] = key;
    words[at + Header.index] = index;
    for (let i = Header.words; i < count; i++) words[at + i] = base[i]! ^ key;
  }
}

/**
 * Contents of writes that are not verified: the same random bytes in every buffer, and in each 512
 * bytes two words that no other write of the job has. A repeated write takes the words of an
 * earlier one, and so is equal to it byte for byte.
 */
export class Contents {
  private readonly random: Random;
  /** The next write's number; a typed array so that it is never boxed. */
  private readonly next = new Uint32Array(2);
  private readonly threshold: number;

  constructor(
    private readonly seed: number,
    private readonly worker: number,
    dedupePercentage: number,
  ) {
    this.random = new Random(seed, 0x10000 + worker);
    this.threshold = (dedupePercentage / 100) * TWO32;
  }

  /** Fills a buffer once, before the run. */
  prepare(words: Uint32Array): void {
    const random = new Random(this.seed, 0xc0ffee);
    for (let i = 0; i < words.length; i++) words[i] = random.next();
  }

  /** Makes the buffer's next contents. */
  stamp(words: Uint32Array): void {
    const next = this.next;
    let id = next[0]!;
    let generation = next[1]!;
    const repeats = this.threshold > 0 && this.random.next() < this.threshold;
    if (repeats && id > 0) {
      id = this.random.below(id);
    } else {
      next[0] = id + 1;
      if (next[0] === 0) next[1] = generation + 1;
    }
    generation = Math.imul(generation + 1, 0x9e3779b1) ^ Math.imul(this.worker + 1, 0x85ebca6b);
    const end = words.length;
    for (let at = 0; at < end; at += SECTOR_WORDS) {
      words[at] = id;
      words[at + 1] = generation;
    }
  }
}
