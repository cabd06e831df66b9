// SetTable: the sets of blocks that are being written, and what is known of each.
//
// A set is a series of blocks that follow each other in a volume, from one batch of requests. It
// goes through these states; each has a place in one list only:
//
//   taken → (planned) → writing → (written) → entered → (its entry is with the device) → free
//
// Everything is in typed arrays: nothing is allocated while sets come and go.

import type { VolumeRecord } from '../maps/catalogue.js';
import { Fingerprint, SetMax } from '../format/layout.js';
import type { VolumeQueue } from '../volume/volume-queue.js';

/** What becomes of a block of a set. */
export const enum Fate {
  /** To be stored; its place is known from the plan on. */
  fresh = 0,
  /** All zeros: the map has a hole. */
  zero = 1,
  /** As a stored block, once their bytes were compared. */
  same = 2,
}

export const SETS = 512;

export class SetTable {
  readonly volumes: (VolumeRecord | null)[] = new Array<VolumeRecord | null>(SETS).fill(null);
  readonly queues: (VolumeQueue | null)[] = new Array<VolumeQueue | null>(SETS).fill(null);
  readonly lbns = new Float64Array(SETS);
  readonly counts = new Int32Array(SETS);
  /** Blocks that the plan has a place for. */
  readonly planned = new Int32Array(SETS);
  /** Requests of the set that are at the device. */
  readonly atDevice = new Int32Array(SETS);
  readonly statuses = new Uint32Array(SETS);
  /** Sequence of the entry that it is in. */
  readonly seqs = new Float64Array(SETS);
  /** Parity of the checkpoint in whose time it was planned, + 1; 0: not yet. */
  readonly parities = new Uint8Array(SETS);
  /** Whether it was planned anew already because no node was left. */
  readonly gaveUp = new Uint8Array(SETS);
  /** It is planned anew because it did not equal what it was found to equal: all of it is new. */
  readonly unequal = new Uint8Array(SETS);
  /** By set and block. */
  readonly fingerprints = new Uint32Array(SETS * SetMax.blocks * Fingerprint.words);
  /** By set: its fingerprints. */
  readonly views = Array.from({ length: SETS }, (_, set) =>
    this.fingerprints.subarray(
      set * SetMax.blocks * Fingerprint.words,
      (set + 1) * SetMax.blocks * Fingerprint.words,
    ),
  );
  readonly addresses = new Float64Array(SETS * SetMax.blocks);
  readonly pbns = new Float64Array(SETS * SetMax.blocks);
  readonly fates = new Uint8Array(SETS * SetMax.blocks);
  /** The request that begins at a block; -1: none. */
  readonly requests = new Int32Array(SETS * SetMax.blocks);
  private readonly free = Int32Array.from({ length: SETS }, (_, i) => SETS - 1 - i);
  private freeCount = SETS;

  get freeSets(): number {
    return this.freeCount;
  }

  take(volume: VolumeRecord, queue: VolumeQueue, lbn: number): number {
    const set = this.free[--this.freeCount]!;
    this.volumes[set] = volume;
    this.queues[set] = queue;
    this.lbns[set] = lbn;
    this.counts[set] = 0;
    this.planned[set] = 0;
    this.atDevice[set] = 0;
    this.statuses[set] = 0;
    this.parities[set] = 0;
    this.gaveUp[set] = 0;
    this.unequal[set] = 0;
    return set;
  }

  give(set: number): void {
    this.volumes[set] = null;
    this.queues[set] = null;
    this.free[this.freeCount++] = set;
  }
}

/** A list of numbers, first in first out, of at most `size`. */
export class Fifo {
  private readonly items: Int32Array;
  private first = 0;
  length = 0;

  constructor(size: number) {
    this.items = new Int32Array(size);
  }

  push(item: number): void {
    const at = this.first + this.length;
    this.items[at < this.items.length ? at : at - this.items.length] = item;
    this.length++;
  }

  get head(): number {
    return this.items[this.first]!;
  }

  shift(): number {
    const item = this.items[this.first]!;
    this.first = this.first + 1 === this.items.length ? 0 : this.first + 1;
    this.length--;
    return item;
  }
}
