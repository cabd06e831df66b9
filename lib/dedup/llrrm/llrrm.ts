// Llrrm: the low-latency tier of a pool (SEEDS row 4; US8145843, US7908436): blocks that many refer
// to are copied to a device of low latency, and read from there.
//
// It holds copies only, known by the block that each is of. A copy is checked against its CRC-32C
// whenever it is read; whatever is wrong, the block is read from the data device instead. After
// too many errors the tier is left alone for as long as the pool is open.
//
// Invariants
// 1. A block is copied while it has references, and its copy is dropped before its last reference
//    counts as taken: a block that is written anew is never found here.
// 2. Nothing waits for the tier but reads that asked it, and those go on when it fails.

import { Op, Status, type BlockDevice } from '../../hpdi/index.js';
import { native } from '../../native.js';
import { PoolIo } from '../durable/io.js';
import { Page } from '../format/layout.js';
import type { Reach } from '../reach.js';
import { LlrrmCopier, type CopierParts, type CopierTarget } from './llrrm-copier.js';
import { LLRRM_RUN, LlrrmTable, SlotState } from './llrrm-table.js';
import type { ReferenceWatcher } from '../space/reference-watcher.js';

/** Which blocks are copied once they have references enough. */
export const enum LlrrmPolicy {
  /** All. */
  shared = 0,
  /** Those that are read in short runs. */
  random = 1,
}

const enum Ask {
  read = 1,
  write = 2,
  compare = 3,
}

/** Requests at the device at a time. */
export const LLRRM_DEPTH = 256;
const DEPTH = LLRRM_DEPTH;
/** Errors of the device, and copies that were not what they should be, after which it is left. */
const ERRORS_MOST = 16;
const DAMAGED_MOST = 1024;
const TWO_32 = 4294967296;

export interface LlrrmEvents {
  /** A read for this owner has ended. */
  ended(owner: number, status: number): void;
  /** A read for this owner is to be done by the data device. */
  elsewhere(owner: number, pbn: number, count: number, address: number): void;
  /** A comparison's bytes are at this address until it returns; 0: to be read elsewhere. */
  compared(run: number, loanLo: number, loanHi: number): void;
}

/** Tells the process that a pool goes on without the fast memory that it should have. */
export function warnDegraded(uri: string, why: string): void {
  process.emitWarning(`a pool works without its low-latency memory ${uri}: ${why}`, {
    code: 'PENSTOCK_LLRRM_DEGRADED',
    detail: 'nothing is lost; give it back, or another one or none by `penstock pool set --llrrm`',
  });
}

export class Llrrm implements CopierTarget, ReferenceWatcher {
  readonly table: LlrrmTable;
  readonly io: PoolIo;
  /** Memory that it and the data device reach. */
  readonly reach: Reach;
  readonly copier: LlrrmCopier;
  readonly writeKind: number = Ask.write;
  readonly firstPage: number;
  threshold: number;
  policy: LlrrmPolicy;
  /** Why it is not used any more; null: it is. */
  failed: string | null = null;
  /** Reads that it served, and their blocks; short reads that it could not. */
  reads = 0;
  blocks = 0;
  misses = 0;
  /** Comparisons that it served, and requests that the data device served after all. */
  compared = 0;
  redone = 0;
  /** Errors of the device, and copies that were damaged. */
  errors = 0;
  damaged = 0;
  private readonly parts: CopierParts;
  private readonly events: LlrrmEvents;
  private readonly found = new Int32Array(LLRRM_RUN);
  /** Requests by number: whose, from which slot and block on, how many, where to. */
  private readonly uri: string;
  private readonly owners = new Int32Array(DEPTH);
  private readonly slots = new Int32Array(DEPTH);
  private readonly counts = new Int32Array(DEPTH);
  private readonly pbns = new Float64Array(DEPTH);
  private readonly addresses = new Float64Array(DEPTH);
  private readonly free = Int32Array.from({ length: DEPTH }, (_, i) => i);
  private freeCount = DEPTH;
  /** Reads whose bytes are still to be checked. */
  private readonly toCheck = new Int32Array(DEPTH);
  private checks = 0;
  private readonly ranges = new Uint32Array(DEPTH * LLRRM_RUN * 4);
  private readonly crcs = new Uint32Array(DEPTH * LLRRM_RUN);

  /**
   * Slots begin at page `firstPage` of the device. Throws BAD_OPTION: it reaches no memory that the
   * data device reaches.
   */
  constructor(
    device: BlockDevice,
    place: { firstPage: number; slots: number },
    options: { threshold: number; policy: LlrrmPolicy },
    parts: CopierParts,
    events: LlrrmEvents,
  ) {
    this.uri = device.uri;
    this.table = new LlrrmTable(place.slots);
    this.firstPage = place.firstPage;
    this.threshold = options.threshold;
    this.policy = options.policy;
    this.parts = parts;
    this.events = events;
    this.reach = parts.io.reach.with(device);
    this.copier = new LlrrmCopier(parts, this, this.reach);
    try {
      this.io = new PoolIo(device, DEPTH);
    } catch (error) {
      this.copier.close();
      throw error;
    }
  }

  /** Nothing is under way, or waits to be copied. */
  get idle(): boolean {
    return this.io.inFlight === 0 && this.copier.idle;
  }

  // hot:begin

  /**
   * Asks for a run if all of it is here: returns into how many requests, each of which ends with
   * `ended`; 0: it is not. Numbers in words of 32 bits with a sign.
   */
  read(
    pbnLo: number,
    pbnHi: number,
    count: number,
    addressLo: number,
    addressHi: number,
    owner: number,
  ): number {
    if (this.freeCount < count || !this.holds(pbnLo, pbnHi, count)) {
      this.misses++;
      return 0;
    }
    const { found, table } = this;
    const pbn = pbnHi * TWO_32 + (pbnLo >>> 0);
    const address = addressHi * TWO_32 + (addressLo >>> 0);
    let requests = 0;
    for (let b = 0; b < count; requests++) {
      const slot = found[b]!;
      let length = 1;
      table.warm(slot);
      while (b + length < count && found[b + length] === slot + length) {
        table.warm(slot + length);
        length++;
      }
      const id = this.free[--this.freeCount]!;
      this.owners[id] = owner;
      this.slots[id] = slot;
      this.counts[id] = length;
      this.pbns[id] = pbn + b;
      const to = address + b * Page.bytes;
      this.addresses[id] = to;
      this.use(slot, length, 1);
      const page = this.firstPage + slot;
      const toHi = (to / TWO_32) | 0;
      this.io.askWords(Op.READ, page | 0, 0, length, to | 0, toHi, Ask.read, id);
      b += length;
    }
    this.reads++;
    this.blocks += count;
    return requests;
  }

  /** Whether all of a run is here; its slots are in `found` then. */
  private holds(pbnLo: number, pbnHi: number, count: number): boolean {
    if (this.failed !== null || count > LLRRM_RUN) return false;
    const { table, found } = this;
    for (let b = 0; b < count; b++) {
      // Blocks of a run are of one extent: the low word does not overflow.
      const slot = table.slotOf((pbnLo + b) | 0, pbnHi);
      if (slot < 0 || table.states[slot] !== SlotState.valid) return false;
      found[b] = slot;
    }
    return true;
  }

  /** What the device has answered is dealt with. */
  takeAnswers(): void {
    const { io } = this;
    while (io.take()) {
      const { owner, status } = io;
      if (io.kind === Ask.write) this.copier.stored(owner, status);
      else if (io.kind === Ask.compare) this.compareEnded(owner, status, io.loanLo, io.loanHi);
      else if (status === Status.OK) this.toCheck[this.checks++] = owner;
      else {
        this.erred(status);
        this.elsewhere(owner);
      }
    }
    if (this.checks > 0) this.check();
  }

  private use(slot: number, count: number, by: number): void {
    const { users } = this.table;
    for (let b = 0; b < count; b++) users[slot + b] = users[slot + b]! + by;
  }

  /** Compares what was read with its checksums. */
  private check(): void {
    const { toCheck, checks, crcs } = this;
    let blocks = 0;
    for (let i = 0; i < checks; i++) {
      const id = toCheck[i]!;
      blocks = this.range(blocks, this.addresses[id]!, this.counts[id]!);
    }
    this.checks = 0;
    const isReadable = this.checksum(blocks);
    let at = 0;
    for (let i = 0; i < checks; i++) {
      const id = toCheck[i]!;
      const slot = this.slots[id]!;
      const count = this.counts[id]!;
      let good = isReadable;
      for (let b = 0; b < count; b++) {
        if (!good || crcs[at + b] === this.table.crcs[slot + b]) continue;
        this.spoiled(slot + b);
        good = false;
      }
      at += count;
      if (good) this.finish(id, Status.OK);
      else this.elsewhere(id);
    }
  }

  private range(blocks: number, address: number, count: number): number {
    const { ranges } = this;
    for (let b = 0; b < count; b++) {
      const at = (blocks + b) * 4;
      const from = address + b * Page.bytes;
      ranges[at] = from >>> 0;
      ranges[at + 1] = from / TWO_32;
      ranges[at + 2] = Page.bytes;
    }
    return blocks + count;
  }

  private finish(id: number, status: number): void {
    const owner = this.owners[id]!;
    this.giveBack(id);
    this.events.ended(owner, status);
  }

  private giveBack(id: number): void {
    const slot = this.slots[id]!;
    const count = this.counts[id]!;
    this.use(slot, count, -1);
    for (let b = 0; b < count; b++) this.table.letGo(slot + b);
    this.free[this.freeCount++] = id;
  }

  // hot:end

  /** False: somebody closed the memory that it read to. */
  private checksum(blocks: number): boolean {
    try {
      native.crc32cList(this.ranges, blocks, this.crcs);
      return true;
    } catch {
      return false;
    }
  }

  /** Reads from the data device what could not be had here. */
  private elsewhere(id: number): void {
    const owner = this.owners[id]!;
    this.giveBack(id);
    this.redone++;
    this.events.elsewhere(owner, this.pbns[id]!, this.counts[id]!, this.addresses[id]!);
  }

  /** Asks for a run's bytes, to be compared; false: it is not here, or not in a series of slots. */
  compare(pbn: number, count: number, run: number): boolean {
    if (this.freeCount === 0 || !this.holds(pbn | 0, (pbn / TWO_32) | 0, count)) return false;
    const slot = this.found[0]!;
    for (let b = 1; b < count; b++) if (this.found[b] !== slot + b) return false;
    const id = this.free[--this.freeCount]!;
    this.owners[id] = run;
    this.slots[id] = slot;
    this.counts[id] = count;
    this.use(slot, count, 1);
    this.io.ask(Op.READ_LOAN, this.firstPage + slot, count, 0, Ask.compare, id);
    return true;
  }

  /**
   * Whether a short run is to be shared all the same: it is here, or one reference more makes it
   * worth being here.
   */
  isWorth(counts: number, pbn: number, count: number): boolean {
    if (this.failed !== null || count > LLRRM_RUN) return false;
    const { space } = this.parts;
    const { table } = this;
    const hi = (pbn / TWO_32) | 0;
    for (let b = 0; b < count; b++) {
      const references = space.countIn(counts, pbn + b);
      if (references === 0) return false;
      if (references + 1 >= this.threshold) continue;
      const slot = table.slotOf((pbn + b) | 0, hi);
      if (slot < 0 || table.states[slot] !== SlotState.valid) return false;
    }
    return true;
  }

  /** A block has got a reference, and this many now. */
  referred(pbn: number, references: number): void {
    if (references !== this.threshold || this.policy !== LlrrmPolicy.shared) return;
    this.copier.worth(pbn);
  }

  /** A block has lost its last reference. */
  freed(pbn: number): void {
    const slot = this.table.slotOf(pbn | 0, (pbn / TWO_32) | 0);
    if (slot < 0) return;
    this.table.freed++;
    this.table.drop(slot);
  }

  /** Begins copies; called once a round. */
  step(): void {
    this.takeAnswers();
    if (this.failed === null) this.copier.step();
    this.io.submit();
  }

  /** Nothing of it is used any more. */
  private fail(why: string): void {
    if (this.failed !== null) return;
    this.failed = why;
    this.copier.stop();
    warnDegraded(this.uri, why);
  }

  async close(): Promise<void> {
    await this.io.close();
    this.copier.close();
  }

  private compareEnded(id: number, status: number, loanLo: number, loanHi: number): void {
    const run = this.owners[id]!;
    const slot = this.slots[id]!;
    const count = this.counts[id]!;
    let good = status === Status.OK;
    if (good) {
      this.range(0, (loanHi & 0xfff) * TWO_32 + loanLo, count);
      good = this.checksum(count);
      for (let b = 0; good && b < count; b++) {
        if (this.crcs[b] === this.table.crcs[slot + b]) continue;
        this.spoiled(slot + b);
        good = false;
      }
    } else {
      this.erred(status);
    }
    this.giveBack(id);
    if (good) this.compared++;
    this.events.compared(run, good ? loanLo : 0, good ? loanHi : 0);
    if (status === Status.OK) this.io.release(loanLo, loanHi);
  }

  /** A copy is not what was written. */
  private spoiled(slot: number): void {
    this.damaged++;
    if (this.table.states[slot] === SlotState.valid) this.table.drop(slot);
    if (this.damaged >= DAMAGED_MOST) this.fail(`${this.damaged} copies came back damaged`);
  }

  erred(status: number): void {
    this.errors++;
    const isGone = (status & 0xff) === Status.DEVICE_GONE;
    if (isGone) this.fail('the device is gone');
    else if (this.errors >= ERRORS_MOST) this.fail(`${this.errors} requests failed`);
  }
}
