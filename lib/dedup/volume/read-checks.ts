// ReadChecks: holds what reads bring against the fingerprints of their blocks, for pools with data
// checksums. A block that is not what was written ends its read with MEDIA_ERROR.
//
// Invariant: a read is complete after its blocks were compared, so that none of them may have been
// given out anew before.

import { Op, Status } from '../../hpdi/index.js';
import { native } from '../../native.js';
import { Io, type PoolIo } from '../durable/io.js';
import { Fingerprint, Group, Head, Page, SetMax } from '../format/layout.js';
import { Miss } from '../durable/pages.js';
import { Fifo } from '../write/sets.js';
import type { Space } from '../space/space.js';

/** Reads of the device at a time. */
const READS = 2048;
const RANGE_WORDS = 4;
const TWO_32 = 4294967296;

export class ReadChecks {
  /** Blocks that were not what was written, and the last of them; -1: none. */
  damaged = 0;
  damagedPbn = -1;
  blocks = 0;
  private readonly io: PoolIo;
  private readonly space: Space;
  private readonly ended: (owner: number, status: number) => void;
  // One place more than reads: for `isWhole`.
  private readonly owners = new Int32Array(READS + 1);
  private readonly pbns = new Float64Array(READS + 1);
  private readonly addresses = new Float64Array(READS + 1);
  private readonly counts = new Int32Array(READS + 1);
  private readonly list = Int32Array.from({ length: READS }, (_, i) => i);
  private readonly arrived = new Fifo(READS);
  private readonly ranges = new Uint32Array(SetMax.blocks * RANGE_WORDS);
  private readonly prints = new Uint32Array(SetMax.blocks * Fingerprint.words);
  free = READS;

  /** `ended` is told what became of a read, by its owner. */
  constructor(io: PoolIo, space: Space, ended: (owner: number, status: number) => void) {
    this.io = io;
    this.space = space;
    this.ended = ended;
  }

  // hot:begin

  /** Asks for a run, which lies in one extent; there is a free place. */
  read(
    pbnLo: number,
    pbnHi: number,
    count: number,
    toLo: number,
    toHi: number,
    owner: number,
  ): void {
    const id = this.list[--this.free]!;
    this.owners[id] = owner;
    this.pbns[id] = pbnHi * TWO_32 + (pbnLo >>> 0);
    this.addresses[id] = toHi * TWO_32 + (toLo >>> 0);
    this.counts[id] = count;
    this.io.askWords(Op.READ, pbnLo, pbnHi, count, toLo, toHi, Io.checked, id);
  }

  /** The device has answered. */
  answered(id: number, status: number): void {
    if (status === Status.OK) this.arrived.push(id);
    else this.finish(id, status);
  }

  /** Compares what has arrived, in order, as far as pages are here; called once a round. */
  step(): void {
    while (this.arrived.length > 0) {
      const id = this.arrived.head;
      const result = this.compare(id);
      if (result < 0) return;
      this.arrived.shift();
      this.finish(id, result);
    }
  }

  private finish(id: number, status: number): void {
    this.list[this.free++] = id;
    this.ended(this.owners[id]!, status);
  }

  /** Whether a run is what was written, as far as its fingerprints are here; in one extent. */
  isWhole(pbn: number, count: number, address: number): boolean {
    this.pbns[READS] = pbn;
    this.counts[READS] = count;
    this.addresses[READS] = address;
    return this.compare(READS) === (Status.OK as number);
  }

  /** A status; or Miss.wait: the fingerprints are on their way. */
  private compare(id: number): number {
    const { ranges, prints } = this;
    // By its place, not as arguments: an address as such would be an object of the heap.
    const pbn = this.pbns[id]!;
    const count = this.counts[id]!;
    const address = this.addresses[id]!;
    const extent = Math.floor(pbn / Group.extentPages);
    const frame = this.space.fingerprints(extent);
    if (frame === Miss.wait) return frame;
    if (frame < 0) return Status.MEDIA_ERROR;
    for (let b = 0; b < count; b++) {
      const from = address + b * Page.bytes;
      ranges[b * RANGE_WORDS] = from >>> 0;
      ranges[b * RANGE_WORDS + 1] = from / TWO_32;
      ranges[b * RANGE_WORDS + 2] = Page.bytes;
    }
    if (!this.hash(count)) return Status.BAD_ADDRESS;
    const { words } = this.space.pages;
    const page = pbn - extent * Group.extentPages - Group.metaPages;
    const at = (frame << Page.shift) + Head.words + page * Fingerprint.words;
    this.blocks += count;
    for (let word = 0; word < count * Fingerprint.words; word++) {
      if (words[at + word] === prints[word]) continue;
      this.damaged++;
      this.damagedPbn = pbn + Math.floor(word / Fingerprint.words);
      return Status.MEDIA_ERROR;
    }
    return Status.OK;
  }

  // hot:end

  /** False: somebody closed the memory that was read to. */
  private hash(count: number): boolean {
    try {
      native.xxh3List(this.ranges, count, this.prints);
      return true;
    } catch {
      return false;
    }
  }
}
