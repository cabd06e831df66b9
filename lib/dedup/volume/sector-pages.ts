// SectorPages: the pages of a volume of which only parts are being written, for all its queues with
// blocks smaller than a page.
//
// To write a part of a page, the page is opened: it is read to memory, the part is put in, and the
// page is written from there. Parts that come meanwhile wait at the open page and are put in
// together. Who covers whole pages is counted by class (page number modulo CLASSES); of two pages
// of one class the one waits for the other in vain now and then, and nothing else.
//
// Invariants
// 1. A page is open once at most, for all queues: no part is put into bytes that lack another.
// 2. No page is open while a write, discard or zeroing of whole pages covers it.
// 3. What cannot begin waits in order, and what comes later to the same pages begins after it.
// 4. What has a place in memory waits for the device only, so that places come free; what waits for
//    one holds nothing.
// 5. The bytes of an open page are as they are while the device writes it.

import { Flag, Op, Status } from '../../hpdi/index.js';
import type { OwnMemory, Reach } from '../reach.js';
import { native } from '../../native.js';
import { Page } from '../format/layout.js';
import type { SectorQueue } from './sector-queue.js';
import { Part, type SectorSlots } from './sector-slots.js';

/** Pages that are in memory at a time. */
const PLACES = 512;
const CLASSES = 4096;
const CLASS_MASK = CLASSES - 1;
const NONE = -1;
/** Of what a part is known by here: its number; the rest is its queue's. */
const PART_BITS = 17;
const PART_MASK = 2 ** PART_BITS - 1;
const TWO_32 = 4294967296;

/** Words of an entry of native.copyList. */
const enum CopyWord {
  to = 0,
  from = 2,
  bytes = 4,
  words = 8,
}

export class SectorPages {
  private readonly segment: OwnMemory;
  /** Words of its address; it is one granule, so the upper one is that of every place. */
  private readonly baseLo: number;
  private readonly addressHi: number;
  private readonly queues: (SectorQueue | null)[] = [];
  private readonly free = Int32Array.from({ length: PLACES }, (_, i) => PLACES - 1 - i);
  private freeCount = PLACES;
  /** By place: its page; the parts that are to be put in, and those of the write under way. */
  private readonly pages = new Float64Array(PLACES);
  private readonly firsts = new Int32Array(PLACES).fill(NONE);
  private readonly lasts = new Int32Array(PLACES);
  private readonly written = new Int32Array(PLACES).fill(NONE);
  /** Place of the next open page of the class. */
  private readonly chains = new Int32Array(PLACES);
  /** By class: an open page; operations on whole pages; whether somebody waits. */
  private readonly opened = new Int32Array(CLASSES).fill(NONE);
  private readonly covers = new Uint32Array(CLASSES);
  private readonly claims = new Uint8Array(CLASSES);
  /** What waits to begin. */
  private first = NONE;
  private last = NONE;
  /** Something came free that others may wait for. */
  private released = false;
  private readonly entry = new Uint32Array(CopyWord.words);

  constructor(reach: Reach) {
    this.segment = reach.alloc(PLACES * Page.bytes);
    this.baseLo = this.segment.address | 0;
    this.addressHi = Math.floor(this.segment.address / TWO_32);
  }

  /** A queue's number here. */
  join(queue: SectorQueue): number {
    const gap = this.queues.indexOf(null);
    const number = gap < 0 ? this.queues.length : gap;
    this.queues[number] = queue;
    return number;
  }

  leave(number: number): void {
    this.queues[number] = null;
  }

  /** All queues have left. */
  close(): void {
    this.segment.close();
  }

  // hot:begin

  /** A part of a queue: an operation that changes whole pages, or a part of a page. */
  arrive(number: number, part: number): void {
    this.arrived((number << PART_BITS) | part);
  }

  /** What waits goes on as far as it can; what all queues ask for is handed on. */
  advance(): void {
    const { queues } = this;
    if (this.released) this.retry();
    for (let i = 0; i < queues.length; i++) queues[i]?.push();
  }

  private retry(): void {
    this.released = false;
    let id = this.first;
    if (id === NONE) return;
    this.first = NONE;
    this.claims.fill(0);
    while (id !== NONE) {
      const next = this.queueOf(id).slots.nexts[id & PART_MASK]!;
      this.arrived(id);
      id = next;
    }
  }

  /** An operation on whole pages has ended. */
  uncover(page: number, count: number): void {
    const { covers } = this;
    const classes = Math.min(count, CLASSES);
    for (let i = 0; i < classes; i++) {
      const c = (page + i) & CLASS_MASK;
      covers[c] = covers[c]! - 1;
    }
    this.released = true;
  }

  /** The device has answered for a part that is to be read. Returns the part's status. */
  readAnswered(queue: SectorQueue, part: number, status: number): number {
    const { slots } = queue;
    const isLost = status === Status.OK && !this.copy(slots, part, CopyWord.from, CopyWord.to);
    this.give(slots.places[part]!);
    return isLost ? Status.BAD_ADDRESS : status;
  }

  /** The device has answered for an open page: it is read, or written. */
  pageAnswered(place: number, status: number): void {
    const written = this.written[place]!;
    if (written === NONE) {
      if (status === Status.OK) this.put(place);
      else {
        this.end(this.firsts[place]!, status);
        this.shut(place);
      }
      return;
    }
    this.written[place] = NONE;
    this.end(written, status);
    if (this.firsts[place] === NONE) this.shut(place);
    else if (status === Status.OK) this.put(place);
    else this.load(place); // what is in memory is not what is stored
  }

  private arrived(id: number): void {
    if (this.begin(id)) return;
    this.queueOf(id).slots.nexts[id & PART_MASK] = NONE;
    if (this.first === NONE) this.first = id;
    else this.queueOf(this.last).slots.nexts[this.last & PART_MASK] = id;
    this.last = id;
  }

  /** False: it must wait. */
  private begin(id: number): boolean {
    const queue = this.queueOf(id);
    const part = id & PART_MASK;
    const { slots } = queue;
    const page = slots.pages[part]!;
    if (part % Part.count === Part.whole) return this.cover(queue, part, page);
    if ((slots.opOf(part) & 0xff) === Op.READ) {
      if (this.freeCount === 0) return false;
      const place = this.take();
      slots.places[part] = place;
      queue.ask(part, Op.READ, 1, this.addressLo(place), this.addressHi);
      return true;
    }
    const c = page & CLASS_MASK;
    if (this.claims[c] === 0 && this.open(id, page, c)) return true;
    this.claims[c] = 1;
    return false;
  }

  private cover(queue: SectorQueue, part: number, page: number): boolean {
    const { covers, claims, opened } = this;
    const { slots } = queue;
    const count = slots.counts[part]!;
    const classes = Math.min(count, CLASSES);
    let isFree = true;
    for (let i = 0; i < classes; i++) {
      const c = (page + i) & CLASS_MASK;
      if (claims[c] !== 0 || opened[c] !== NONE) isFree = false;
    }
    for (let i = 0; i < classes; i++) {
      const c = (page + i) & CLASS_MASK;
      if (isFree) covers[c] = covers[c]! + 1;
      else claims[c] = 1;
    }
    const address = slots.addresses[part]!;
    const addressHi = (address / TWO_32) | 0;
    if (isFree) queue.ask(part, slots.opOf(part), count, address | 0, addressHi);
    return isFree;
  }

  /** Adds a part to its page, which is opened unless it is open. */
  private open(id: number, page: number, c: number): boolean {
    const { opened, chains, pages, firsts, lasts } = this;
    const queue = this.queueOf(id);
    const part = id & PART_MASK;
    let place = opened[c]!;
    while (place !== NONE && pages[place] !== page) place = chains[place]!;
    const isOpen = place !== NONE;
    if (!isOpen) {
      if (this.covers[c] !== 0 || this.freeCount === 0) return false;
      place = this.take();
      pages[place] = page;
      chains[place] = opened[c]!;
      opened[c] = place;
    }
    queue.slots.places[part] = place;
    queue.slots.nexts[part] = NONE;
    const last = lasts[place]!;
    if (firsts[place] === NONE) firsts[place] = id;
    else this.queueOf(last).slots.nexts[last & PART_MASK] = id;
    lasts[place] = id;
    if (!isOpen) this.load(place);
    return true;
  }

  /** Reads an open page, for the first part that waits for it. */
  private load(place: number): void {
    const id = this.firsts[place]!;
    const addressLo = this.addressLo(place);
    this.queueOf(id).ask(id & PART_MASK, Op.READ, 1, addressLo, this.addressHi);
  }

  /** Puts in what waits for it, and writes the page. */
  private put(place: number): void {
    let id = this.firsts[place]!;
    let lead = NONE;
    let last = NONE;
    let fua = 0;
    this.firsts[place] = NONE;
    while (id !== NONE) {
      const queue = this.queueOf(id);
      const { slots } = queue;
      const part = id & PART_MASK;
      const next = slots.nexts[part]!;
      slots.nexts[part] = NONE;
      if (this.putIn(slots, part)) {
        fua |= slots.opOf(part) & Flag.FUA;
        if (lead === NONE) lead = id;
        else this.queueOf(last).slots.nexts[last & PART_MASK] = id;
        last = id;
      } else {
        queue.partEnded(part, Status.BAD_ADDRESS);
      }
      id = next;
    }
    this.written[place] = lead;
    if (lead === NONE) {
      this.shut(place);
      return;
    }
    const addressLo = this.addressLo(place);
    this.queueOf(lead).ask(lead & PART_MASK, Op.WRITE | fua, 1, addressLo, this.addressHi);
  }

  /** False: the client's memory went away. */
  private putIn(slots: SectorSlots, part: number): boolean {
    if ((slots.opOf(part) & 0xff) === Op.WRITE) {
      return this.copy(slots, part, CopyWord.to, CopyWord.from);
    }
    const at = slots.places[part]! * Page.bytes + slots.froms[part]!;
    this.segment.u8.fill(0, at, at + slots.bytes[part]!);
    return true;
  }

  /** Copies a part between its page and its client; `here` and `there` say from which to which. */
  private copy(slots: SectorSlots, part: number, here: number, there: number): boolean {
    const { entry } = this;
    const address = slots.addresses[part]!;
    entry[here] = this.addressLo(slots.places[part]!) + slots.froms[part]!;
    entry[here + 1] = this.addressHi;
    entry[there] = address;
    entry[there + 1] = address / TWO_32;
    entry[CopyWord.bytes] = slots.bytes[part]!;
    return native.copyList(entry, 1) === 1;
  }

  /** The parts of a list have ended. */
  private end(list: number, status: number): void {
    let id = list;
    while (id !== NONE) {
      const queue = this.queueOf(id);
      const part = id & PART_MASK;
      id = queue.slots.nexts[part]!;
      queue.partEnded(part, status);
    }
  }

  /** A page is not open any more. */
  private shut(place: number): void {
    const { opened, chains } = this;
    const c = this.pages[place]! & CLASS_MASK;
    this.firsts[place] = NONE;
    if (opened[c] === place) opened[c] = chains[place]!;
    else {
      let before = opened[c]!;
      while (chains[before] !== place) before = chains[before]!;
      chains[before] = chains[place]!;
    }
    this.give(place);
  }

  private take(): number {
    return this.free[--this.freeCount]!;
  }

  private give(place: number): void {
    this.free[this.freeCount++] = place;
    this.released = true;
  }

  /** With a sign. */
  private addressLo(place: number): number {
    return (this.baseLo + place * Page.bytes) | 0;
  }

  private queueOf(id: number): SectorQueue {
    return this.queues[id >>> PART_BITS]!;
  }

  // hot:end
}
