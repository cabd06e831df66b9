// Hasher: the fingerprints of the blocks of new sets, of many sets in one native call, and which of
// them are all zeros.
//
// A call takes no more than what stays in a core's own cache (1 to 2 MiB of it), so that what is
// written or compared next does not come from memory again: pieces of 8 MiB cost a fifth of the
// throughput.

import { Status } from '../../hpdi/index.js';
import { native } from '../../native.js';
import { Fingerprint, Page, SetMax } from '../format/layout.js';
import { Fate, type Fifo, type SetTable } from './sets.js';

/** Blocks of one call: a set's, at least. */
const BLOCKS = SetMax.blocks;
const RANGE_WORDS = 4;
/** Of a block's place: its set. */
const SET_SHIFT = 8;
/** An entry of compareList: word 5 is its result, word 6 free for who asks. */
export const enum Compare {
  result = 5,
  own = 6,
  words = 8,
}

export const EQUAL = 0xffffffff;
const TWO_32 = 4294967296;

/** An entry of compareList for two blocks. */
export function compareBlocks(list: Uint32Array, i: number, a: number, b: number): void {
  const at = i * Compare.words;
  list[at] = a >>> 0;
  list[at + 1] = a / TWO_32;
  list[at + 2] = b >>> 0;
  list[at + 3] = b / TWO_32;
  list[at + 4] = Page.bytes;
}

export class Hasher {
  private readonly sets: SetTable;
  private readonly zeros: number;
  private readonly ranges = new Uint32Array(BLOCKS * RANGE_WORDS);
  private readonly prints = new Uint32Array(BLOCKS * Fingerprint.words);
  /** Of each range: set * 256 + block. */
  private readonly places = new Int32Array(BLOCKS);
  private readonly compares = new Uint32Array(BLOCKS * Compare.words);
  /** The fingerprint of zeros. */
  private readonly zeroPrint = new Uint32Array(Fingerprint.words);
  private count = 0;

  /** `zeros`: address of a page of zeros. */
  constructor(sets: SetTable, zeros: number) {
    this.sets = sets;
    this.zeros = zeros;
    sets.addresses[0] = zeros;
    this.add(0);
    native.xxh3List(this.ranges, 1, this.zeroPrint);
    this.count = 0;
  }

  // hot:begin

  /** Hashes the first sets of a list, as many as one call takes, and hands them on. */
  hash(from: Fifo, to: Fifo): void {
    const { sets } = this;
    while (from.length > 0) {
      const set = from.head;
      const blocks = sets.counts[set]!;
      if (this.count + blocks > BLOCKS) break;
      from.shift();
      const base = set * SetMax.blocks;
      for (let b = 0; b < blocks; b++) this.add(base + b);
      to.push(set);
    }
    this.finish();
  }

  /** `place`: set * 256 + block. */
  private add(place: number): void {
    const { ranges } = this;
    const address = this.sets.addresses[place]!;
    const at = this.count * RANGE_WORDS;
    ranges[at] = address >>> 0;
    ranges[at + 1] = address / TWO_32;
    ranges[at + 2] = Page.bytes;
    ranges[at + 3] = 0;
    this.places[this.count++] = place;
  }

  private finish(): void {
    const { count, prints, zeroPrint, places, compares, sets } = this;
    this.count = 0;
    if (count === 0) return;
    this.print(count);
    const { fingerprints, fates, pbns } = sets;
    let zeros = 0;
    for (let i = 0; i < count; i++) {
      const place = places[i]!;
      if (sets.statuses[place >>> SET_SHIFT] !== 0) continue;
      const from = i * Fingerprint.words;
      const to = place * Fingerprint.words;
      fingerprints[to] = prints[from]!;
      fingerprints[to + 1] = prints[from + 1]!;
      fingerprints[to + 2] = prints[from + 2]!;
      fingerprints[to + 3] = prints[from + 3]!;
      fates[place] = Fate.fresh;
      if (prints[from] !== zeroPrint[0] || prints[from + 1] !== zeroPrint[1]) continue;
      if (prints[from + 2] !== zeroPrint[2] || prints[from + 3] !== zeroPrint[3]) continue;
      compareBlocks(compares, zeros, sets.addresses[place]!, this.zeros);
      compares[zeros * Compare.words + Compare.own] = place;
      zeros++;
    }
    if (zeros === 0) return;
    // Somebody may have made other bytes with this fingerprint.
    const done = native.compareList(compares, zeros);
    for (let i = 0; i < done; i++) {
      const at = i * Compare.words;
      if (compares[at + Compare.result] !== EQUAL) continue;
      const place = compares[at + Compare.own]!;
      fates[place] = Fate.zero;
      pbns[place] = 0;
    }
  }

  // hot:end

  /** Fingerprints of what was added. A buffer that is closed meanwhile fails its set. */
  private print(count: number): void {
    const { ranges, prints } = this;
    try {
      native.xxh3List(ranges, count, prints);
      return;
    } catch {
      // One of them is no memory any more: which?
    }
    for (let i = 0; i < count; i++) {
      const set = this.places[i]! >>> SET_SHIFT;
      try {
        native.xxh3List(
          ranges.subarray(i * RANGE_WORDS, (i + 1) * RANGE_WORDS),
          1,
          prints.subarray(i * Fingerprint.words, (i + 1) * Fingerprint.words),
        );
      } catch {
        this.sets.statuses[set] = Status.BAD_ADDRESS;
      }
    }
  }
}
