// Reads: the reads of a volume's queue, from its map to the devices.
//
// The reads of one submit are looked up together: their entries of the map lie far apart, and the
// processor fetches them at the same time when nothing stands between.
//
// Invariant: between looking up and asking nothing changes the map, or what is in memory of it.

import { Access, Op, Req, Status, type RequestCheck } from '../../hpdi/index.js';
import { native } from '../../native.js';
import type { VolumeRecord } from '../maps/catalogue.js';
import { SLOT_BITS, type Engine } from '../engine.js';
import { Io } from '../durable/io.js';
import { Node, Page } from '../format/layout.js';
import { LLRRM_DEPTH } from '../llrrm/llrrm.js';
import { LLRRM_RUN } from '../llrrm/llrrm-table.js';
import { Miss } from '../durable/pages.js';
import type { RequestSlots } from './request-slots.js';
import { Fifo } from '../write/sets.js';
import { ReadSample, Tier } from '../stats/traffic.js';
import { HOLE } from '../maps/trees.js';

const TWO_32 = 4294967296;
/** Series of zeros that are written in one call. */
const FILLS = 256;

export interface ReadsOwner {
  partEnded(slot: number): void;
}

export class Reads {
  private readonly engine: Engine;
  private readonly volume: VolumeRecord;
  private readonly slots: RequestSlots;
  private readonly check: RequestCheck;
  private readonly owner: ReadsOwner;
  /** Of a request's owner, as the devices give it back: the queue's number. */
  private readonly number: number;
  /** Reads of this submit: where in `sq` their records are; and of those that need a slot. */
  private readonly records: Int32Array;
  private readonly others: Int32Array;
  private addedCount = 0;
  /** Where the map has their first blocks. */
  private readonly pbns: Int32Array;
  private readonly pbnsHi: Int32Array;
  /** Those whose map is on its way. */
  private readonly parked: Fifo;
  /** The read whose time is taken. */
  readonly sample: ReadSample;
  private readonly fills = new Uint32Array(FILLS * 4);
  /** By series of zeros: whose it is. */
  private readonly fillSlots = new Int32Array(FILLS);
  private fillCount = 0;

  constructor(
    engine: Engine,
    volume: VolumeRecord,
    slots: RequestSlots,
    check: RequestCheck,
    number: number,
    owner: ReadsOwner,
  ) {
    this.engine = engine;
    this.volume = volume;
    this.slots = slots;
    this.check = check;
    this.number = number;
    this.owner = owner;
    this.records = new Int32Array(slots.depth);
    this.others = new Int32Array(slots.depth);
    this.pbns = new Int32Array(slots.depth);
    this.pbnsHi = new Int32Array(slots.depth);
    this.parked = new Fifo(slots.depth);
    this.sample = new ReadSample(engine.traffic);
  }

  // hot:begin

  /**
   * Takes the reads that stand in `sq` from record `head` on, at most `wanted`, up to the first
   * other request, or one to be refused: `go` begins them. They have no slots yet.
   */
  take(sq: Uint32Array, head: number, wanted: number): number {
    const { records, check, slots, isPlain } = this;
    const mask = (sq.length >>> 3) - 1;
    const most = wanted < slots.free ? wanted : slots.free;
    let added = this.addedCount;
    let taken = 0;
    for (; taken < most; taken++) {
      const at = ((head + taken) & mask) * Req.words;
      if (sq[at] !== Op.READ) break;
      // Where one page is wanted, who writes it checks the address, and nothing is written before.
      const isOne = isPlain && sq[at + Req.blocks] === 1;
      const status = isOne ? check.range(sq, at) : check.transfer(sq, at, Access.write);
      if (status !== Status.OK) break;
      records[added++] = at;
    }
    this.addedCount = added;
    slots.free -= taken;
    return taken;
  }

  /** The same of one, whose record is at word `at` of `sq` and was checked. */
  add(at: number): void {
    this.records[this.addedCount++] = at;
    this.slots.free--;
  }

  /** Begins the reads that were taken; `sq` is as it was then. */
  go(sq: Uint32Array): void {
    const { records, addedCount, pbns, pbnsHi, others, sample, isPlain } = this;
    if (addedCount === 0) return;
    this.addedCount = 0;
    const { trees, space, io, checkpoint, traffic } = this.engine.parts;
    const parity = space.generation & 1;
    checkpoint.readers[parity] = checkpoint.readers[parity]! + addedCount;
    traffic.reads += addedCount;
    const timed = sample.due(addedCount);
    if (timed >= 0) sample.begin();
    trees.lookUp(this.volume, sq, records, addedCount, pbns, pbnsHi);
    // To the front, with their pbns, come those that one request reads.
    let plain = 0;
    let other = 0;
    let timedPlain = -1;
    let timedOther = -1;
    for (let i = 0; i < addedCount; i++) {
      const at = records[i]!;
      const lo = pbns[i]!;
      const hi = pbnsHi[i]!;
      if (isPlain && sq[at + Req.blocks] === 1 && space.holdsBlocks(lo, hi, 1)) {
        if (i === timed) timedPlain = plain;
        records[plain] = at;
        pbns[plain] = lo;
        pbnsHi[plain++] = hi;
      } else {
        if (i === timed) timedOther = other;
        others[other++] = at;
      }
    }
    const { number } = this;
    const asked = io.readPages(sq, records, pbns, pbnsHi, plain, number, parity, timedPlain);
    if (timedPlain >= 0 && timedPlain < asked) sample.waitFor(Tier.device);
    traffic.blocksRead += asked;
    traffic.deviceReads += asked;
    for (let i = asked; i < plain; i++) this.enter(sq, records[i]!, parity, i === timedPlain);
    for (let i = 0; i < other; i++) this.enter(sq, others[i]!, parity, i === timedOther);
    this.fill();
  }

  /** Reads go to the data device, and as they are. */
  private get isPlain(): boolean {
    return this.engine.llrrm === null && this.engine.parts.checks === null;
  }

  /** A read that may take several requests has a slot. */
  private enter(sq: Uint32Array, at: number, parity: number, isTimed: boolean): void {
    const { slots, sample } = this;
    const slot = slots.next;
    slots.name();
    slots.tags[slot] = sq[at + Req.tag]!;
    slots.parities[slot] = parity + 1;
    slots.statuses[slot] = 0;
    slots.parts[slot] = 1;
    slots.flushes[slot] = 0;
    slots.progress[slot] = 0;
    slots.lbns[slot] = sq[at + Req.lbaHi]! * TWO_32 + sq[at + Req.lbaLo]!;
    slots.counts[slot] = sq[at + Req.blocks]!;
    slots.addresses[slot] = sq[at + Req.addressHi]! * TWO_32 + sq[at + Req.addressLo]!;
    this.engine.traffic.blocksRead += slots.counts[slot]!;
    if (isTimed) sample.slot = slot;
    if (this.read(slot)) return;
    if (isTimed) sample.forget();
    this.parked.push(slot);
  }

  /** Goes on with a read; false: pages of the map are on their way. */
  private read(slot: number): boolean {
    const { trees, space, checks } = this.engine.parts;
    const { volume, slots } = this;
    const lbn = slots.lbns[slot]!;
    const count = slots.counts[slot]!;
    const address = slots.addresses[slot]!;
    for (let b = slots.progress[slot]!; b < count;) {
      const leaf = Math.floor((lbn + b) / Node.entries);
      const frame = trees.mapLeaf(volume, leaf);
      if (frame === Miss.wait || (checks !== null && checks.free <= LLRRM_DEPTH)) {
        slots.progress[slot] = b;
        return false;
      }
      const e = (lbn + b) & (Node.entries - 1);
      const here = Math.min(count - b, Node.entries - e);
      const to = address + b * Page.bytes;
      if (frame === Miss.bad) {
        slots.fail(slot, this.engine.pageStatus());
        break;
      }
      if (frame === HOLE) {
        this.zero(slot, to | 0, (to / TWO_32) | 0, here);
        b += here;
        continue;
      }
      const pbn = trees.entry(frame, e);
      let length = 1;
      while (length < here && trees.entry(frame, e + length) === (pbn === 0 ? 0 : pbn + length)) {
        length++;
      }
      const toHi = (to / TWO_32) | 0;
      const lo = pbn | 0;
      const hi = (pbn / TWO_32) | 0;
      if (pbn === 0) this.zero(slot, to | 0, toHi, length);
      else if (!space.holdsBlocks(lo, hi, length)) slots.fail(slot, Status.MEDIA_ERROR);
      else this.ask(slot, leaf, lo, hi, length, to | 0, toHi);
      b += length;
    }
    slots.progress[slot] = count;
    this.owner.partEnded(slot);
    return true;
  }

  /** Asks for a run: low-latency memory if it has all of it, or the data device. */
  private ask(
    slot: number,
    leaf: number,
    pbnLo: number,
    pbnHi: number,
    count: number,
    toLo: number,
    toHi: number,
  ): void {
    const { llrrm, parts, traffic } = this.engine;
    const { sample } = this;
    const owner = (this.number << SLOT_BITS) | slot;
    let asked = 0;
    if (llrrm !== null && count <= LLRRM_RUN) {
      asked = llrrm.read(pbnLo, pbnHi, count, toLo, toHi, owner);
      if (asked === 0) llrrm.copier.noticed(this.volume.index, leaf, pbnLo, pbnHi, count);
      else if (slot === sample.slot) sample.tier |= Tier.llrrm;
    }
    if (asked === 0) {
      asked = 1;
      traffic.deviceReads++;
      if (slot === sample.slot) sample.tier |= Tier.device;
      if (parts.checks !== null) parts.checks.read(pbnLo, pbnHi, count, toLo, toHi, owner);
      else parts.io.askWords(Op.READ, pbnLo, pbnHi, count, toLo, toHi, Io.read, owner);
    }
    this.slots.parts[slot] = this.slots.parts[slot]! + asked;
  }

  /** A part of a read is zeros: it ends when they are written. */
  private zero(slot: number, addressLo: number, addressHi: number, blocks: number): void {
    if (this.fillCount === FILLS) this.fill();
    this.slots.parts[slot] = this.slots.parts[slot]! + 1;
    this.fillSlots[this.fillCount] = slot;
    const at = this.fillCount++ * 4;
    this.fills[at] = addressLo;
    this.fills[at + 1] = addressHi;
    this.fills[at + 2] = blocks * Page.bytes;
    this.fills[at + 3] = 0;
  }

  /** Writes the zeros. A buffer that is no memory any more fails its own read. */
  private fill(): void {
    const { fills, fillSlots, owner } = this;
    while (this.fillCount > 0) {
      const count = this.fillCount;
      const done = native.fillList(fills, count);
      if (done < count) this.slots.fail(fillSlots[done]!, Status.BAD_ADDRESS);
      const ended = done < count ? done + 1 : count;
      for (let i = 0; i < ended; i++) owner.partEnded(fillSlots[i]!);
      fills.copyWithin(0, ended * 4, count * 4);
      fillSlots.copyWithin(0, ended, count);
      this.fillCount = count - ended;
    }
  }

  // hot:end

  /** What waited for pages goes on; called once a round. */
  step(): void {
    for (let left = this.parked.length; left > 0; left--) {
      const slot = this.parked.shift();
      if (!this.read(slot)) this.parked.push(slot);
    }
    this.fill();
  }
}
