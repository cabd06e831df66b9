// SectorQueue: a queue of a volume with blocks of 512 bytes, before a VolumeQueue, whose blocks are
// pages of 4096.
//
// What covers whole pages goes on as it is. Parts of a page are read through a page in memory, and
// written by reading the page, changing it and writing it (sector-pages.ts). A DISCARD of a part of
// a page does nothing.
//
// Invariants
// 1. A part of a request has one record at a time, in `sq` or in the volume's queue.
// 2. The volume's queue never has more than it has room for the completions of.
// 3. Requests end whoever polls: the engine calls `step` in every round.

import {
  CompletionRing,
  Cpl,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type DeviceInfo,
  type QueueDriver,
} from '../../hpdi/index.js';
import { native } from '../../native.js';
import { admit, refuse } from './admit.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import { SLOT_BITS, type Engine } from '../engine.js';
import { Page } from '../format/layout.js';
import type { SectorPages } from './sector-pages.js';
import { Part, SectorSlots } from './sector-slots.js';
import { TRANSFER_BLOCKS_MAX, VolumeQueue } from './volume-queue.js';
import { park } from '../waiting.js';

export const SECTOR_BYTES = 512;
/** Sectors of a page, as a number and as a shift. */
const SECTORS = Page.bytes / SECTOR_BYTES;
const SECTORS_SHIFT = 3;
const BATCH = 64;
const TWO_32 = 4294967296;

export class SectorQueue implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  readonly slots: SectorSlots;
  readonly check: RequestCheck;
  private readonly engine: Engine;
  private readonly pages: SectorPages;
  private readonly inner: VolumeQueue;
  private readonly innerDepth: number;
  private readonly number: number;
  private readonly readOnly: boolean;
  private readonly done: CompletionRing;
  /** Records for the volume's queue, and what it has completed. */
  private readonly sq: Uint32Array;
  private readonly sqMask: number;
  private readonly cq = new Uint32Array(BATCH * Cpl.words);
  private head = 0;
  private tail = 0;
  /** Records that the volume's queue has taken, and whose completions were not. */
  private inFlight = 0;
  private pushing = false;
  private armed = false;
  private signalled = false;
  private closed = false;

  constructor(
    engine: Engine,
    volume: VolumeRecord,
    depth: number,
    info: DeviceInfo,
    pages: SectorPages,
  ) {
    this.engine = engine;
    this.readOnly = info.readOnly;
    this.pages = pages;
    this.check = new RequestCheck(info);
    this.slots = new SectorSlots(depth);
    this.done = new CompletionRing(depth);
    // Four, not three: a power of two.
    this.sqMask = depth * 4 - 1;
    this.sq = new Uint32Array(depth * 4 * Req.words);
    this.innerDepth = Math.min(depth * 4, 1 << SLOT_BITS);
    const blocks = info.blocks / SECTORS;
    const maxTransferBlocks = TRANSFER_BLOCKS_MAX;
    const whole = { ...info, blockSize: Page.bytes, blocks, maxTransferBlocks };
    this.inner = new VolumeQueue(engine, volume, this.innerDepth, whole);
    this.number = pages.join(this);
    this.inner.layer = this;
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    const wanted = (tail - head) | 0;
    let taken = 0;
    if (this.engine.over) return this.refuse(sq, head, wanted);
    for (; taken < wanted && this.slots.free > 0; taken++) {
      this.accept(sq, ((head + taken) & mask) * Req.words);
    }
    this.counters.doorbells++;
    this.push();
    return taken;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    if (this.signalled) this.unsignal();
    if (this.done.length === 0) {
      this.engine.run();
      this.step();
    }
    const count = this.done.drain(cq, 0, max);
    // Who polls in vain after it armed goes to sleep now, and is to be woken.
    if (count > 0) this.armed = false;
    return count;
  }

  /** Takes what the volume's queue has completed, and goes on with it. */
  step(): void {
    const { cq, inner } = this;
    let count = 0;
    let total = 0;
    do {
      count = inner.take(cq, BATCH);
      total += count;
      this.inFlight -= count;
      for (let i = 0; i < count; i++) {
        const at = i * Cpl.words;
        this.answered(cq[at]!, cq[at + Cpl.status]!);
      }
    } while (count === BATCH);
    // Also the other queues': what one waits for may be another's.
    if (total > 0) this.pages.advance();
    else this.push();
  }

  /**
   * Asks the volume's queue for whole pages from a part's page on. Addresses in words of 32 bits
   * with a sign: a larger number would be an object of the heap.
   */
  ask(part: number, op: number, count: number, addressLo: number, addressHi: number): void {
    const at = (this.tail & this.sqMask) * Req.words;
    const { sq } = this;
    const page = this.slots.pages[part]!;
    sq[at] = op;
    sq[at + Req.tag] = part;
    sq[at + Req.blocks] = count;
    sq[at + Req.aux] = 0;
    sq[at + Req.lbaLo] = page >>> 0;
    sq[at + Req.lbaHi] = page / TWO_32;
    sq[at + Req.addressLo] = addressLo;
    sq[at + Req.addressHi] = addressHi;
    this.tail = (this.tail + 1) | 0;
  }

  /** A request has ended with its last part. */
  partEnded(part: number, status: number): void {
    const { slots } = this;
    const slot = (part / Part.count) | 0;
    slots.statuses[part] = status;
    const left = slots.left[slot]! - 1;
    slots.left[slot] = left;
    if (left > 0) return;
    slots.give(slot);
    this.done.push(slots.tags[slot]!, slots.status(slot), 0, 0);
    if (this.armed) this.signal();
  }

  private accept(sq: Uint32Array, at: number): void {
    const tag = sq[at + Req.tag]!;
    const status = admit(this.engine, this.check, this.readOnly, sq, at);
    if (status !== Status.OK) {
      this.done.push(tag, status, 0, 0);
      return;
    }
    const { slots } = this;
    const op = sq[at]! & 0xff;
    const slot = slots.take();
    const parts = slot * Part.count;
    slots.ops[slot] = op | (sq[at]! & Flag.FUA);
    slots.tags[slot] = tag;
    slots.statuses[parts] = 0;
    slots.statuses[parts + Part.whole] = 0;
    slots.statuses[parts + Part.tail] = 0;
    if (op === Op.FLUSH) {
      slots.left[slot] = 1;
      slots.pages[parts + Part.whole] = 0;
      this.ask(parts + Part.whole, Op.FLUSH, 0, 0, 0);
      return;
    }
    // Where it begins in its first page, and its sectors in first, whole and last pages.
    const skipped = sq[at + Req.lbaLo]! & (SECTORS - 1);
    const blocks = sq[at + Req.blocks]!;
    const first = skipped === 0 ? 0 : Math.min(SECTORS - skipped, blocks);
    const count = (blocks - first) >>> SECTORS_SHIFT;
    const last = (blocks - first) & (SECTORS - 1);
    const lba = sq[at + Req.lbaHi]! * TWO_32 + sq[at + Req.lbaLo]!;
    let page = Math.floor(lba / SECTORS);
    let address = sq[at + Req.addressHi]! * TWO_32 + sq[at + Req.addressLo]!;
    const isDiscard = op === Op.DISCARD;
    const edges = isDiscard ? 0 : (first === 0 ? 0 : 1) + (last === 0 ? 0 : 1);
    slots.left[slot] = edges + (count === 0 ? 0 : 1);
    if (slots.left[slot] === 0) {
      slots.give(slot);
      this.done.push(tag, Status.OK, 0, 0);
      return;
    }
    if (first > 0) {
      const head = parts + Part.head;
      slots.pages[head] = page;
      slots.addresses[head] = address;
      if (!isDiscard) this.edge(head, skipped, first);
      page++;
      address += first * SECTOR_BYTES;
    }
    if (count > 0) {
      const whole = parts + Part.whole;
      slots.pages[whole] = page;
      slots.counts[whole] = count;
      slots.addresses[whole] = address;
      if (op === Op.READ) this.ask(whole, op, count, address | 0, (address / TWO_32) | 0);
      else this.pages.arrive(this.number, whole);
      page += count;
      address += count * Page.bytes;
    }
    if (last > 0 && !isDiscard) {
      const tail = parts + Part.tail;
      slots.pages[tail] = page;
      slots.addresses[tail] = address;
      this.edge(tail, 0, last);
    }
  }

  private edge(part: number, from: number, sectors: number): void {
    const { slots } = this;
    slots.froms[part] = from * SECTOR_BYTES;
    slots.bytes[part] = sectors * SECTOR_BYTES;
    this.pages.arrive(this.number, part);
  }

  /** The volume's queue has done what a part asked for. */
  private answered(part: number, status: number): void {
    const { slots, pages } = this;
    const op = slots.opOf(part) & 0xff;
    if (part % Part.count === Part.whole) {
      if (op !== Op.READ && op !== Op.FLUSH) pages.uncover(slots.pages[part]!, slots.counts[part]!);
      this.partEnded(part, status);
    } else if (op === Op.READ) {
      this.partEnded(part, pages.readAnswered(this, part, status));
    } else {
      pages.pageAnswered(slots.places[part]!, status);
    }
  }

  /** Hands records to the volume's queue. That may call `step`, and so this. */
  push(): void {
    if (this.pushing) return;
    this.pushing = true;
    let taken = 1;
    while (this.head !== this.tail && taken > 0) {
      const room = this.innerDepth - this.inFlight;
      const count = Math.min((this.tail - this.head) | 0, room);
      taken = count > 0 ? this.inner.submit(this.sq, this.head, (this.head + count) | 0) : 0;
      this.head = (this.head + taken) | 0;
      this.inFlight += taken;
    }
    this.pushing = false;
  }

  // hot:end

  private refuse(sq: Uint32Array, head: number, count: number): number {
    const refused = refuse(this.done, this.slots.depth, sq, head, count);
    if (this.armed) this.signal();
    return refused;
  }

  /** Requests were taken that are not complete. */
  get busy(): boolean {
    return this.slots.free < this.slots.depth;
  }

  arm(): void {
    this.armed = true;
    if (this.done.length > 0) this.signal();
    this.engine.kick();
  }

  /** The volume's queue is never armed itself. */
  eventFd(): number {
    return this.inner.eventFd();
  }

  /** Blocks this thread until something may be complete. */
  park(timeoutUs: number): void {
    const { engine } = this;
    engine.run();
    this.step();
    if (this.done.length > 0) return;
    park(engine.parts.io, engine.llrrm?.io, timeoutUs);
    engine.run();
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    while (this.busy) {
      this.engine.run();
      this.step();
      if (!this.busy) break;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async close(): Promise<void> {
    if (this.closed) return;
    await this.drain();
    this.closed = true;
    this.pages.leave(this.number);
    this.inner.layer = null;
    await this.inner.close();
  }

  private signal(): void {
    this.armed = false;
    this.signalled = true;
    native.eventfdSignal(this.eventFd());
  }

  private unsignal(): void {
    this.signalled = false;
    native.eventfdDrain(this.eventFd());
  }
}
