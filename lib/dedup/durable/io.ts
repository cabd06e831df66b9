// PoolIo: what the pool asks of its data device, in pages, over one queue.
//
// Whoever asks gives a kind and an owner, numbers of its own, and is told by them what became of
// it (`take`). Requests that find no room in the queue wait here in order; nobody has to ask twice.
//
// Invariant: nothing here allocates once the backlog is as long as it ever gets.

import { Cpl, Op, Req, type BlockDevice, type Queue } from '../../hpdi/index.js';
import { native } from '../../native.js';
import { fence } from '../../wire/index.js';
import { Page } from '../format/layout.js';
import { Reach } from '../reach.js';

/** Kinds of requests to the device. */
export const enum Io {
  page = 1,
  write = 2,
  compare = 3,
  journal = 4,
  checkpoint = 5,
  read = 6,
  flush = 7,
  /** Of blocks that are copied to low-latency memory. */
  promote = 8,
  discard = 9,
  /** Of reads that are held against fingerprints. */
  checked = 10,
  /** Of extents that are being emptied. */
  clean = 11,
  /** Comparisons by the device itself. */
  match = 12,
  /** Of requests that read one page: `readPages`. */
  plain = 13,
}

/** Words of a request that waits. */
const enum Wait {
  op = 0,
  pbnLo = 1,
  pbnHi = 2,
  pages = 3,
  addressLo = 4,
  addressHi = 5,
  kind = 6,
  owner = 7,
  words = 8,
}

/** Words of a request that the device has: what it is known by. */
const enum Asked {
  kind = 0,
  owner = 1,
  /** Of a request that `readPages` reads for. */
  tag = 2,
  words = 4,
}

/** Whose requests `readPages` reads for. */
export interface PageReader {
  /**
   * They have ended: records `from` to `to` (exclusive) of `cq` have their tags and statuses;
   * `parity` is as it was given; one that was `timed` comes alone.
   */
  pagesRead(parity: number, timed: boolean, cq: Uint32Array, from: number, to: number): void;
}

/** Of what a reader's requests are known by: its number, this, and the parity. */
const TIMED = 2;
const BACKLOG = 1024;
const TWO_32 = 4294967296;

export class PoolIo {
  readonly queue: Queue;
  readonly reach: Reach;
  /** Of the completion that `take` has just taken. */
  kind = 0;
  owner = 0;
  status = 0;
  /** Requests so far, by direction, and pages that they moved. */
  reads = 0;
  writes = 0;
  pagesRead = 0;
  pagesWritten = 0;
  private readonly letGo: () => void;
  private readonly perPage: number;
  /** perPage is 2 to the power of this. */
  private readonly pageShift: number;
  /** By slot, which is the tag that the device knows. */
  private readonly asked: Int32Array;
  private readonly free: Int32Array;
  private freeCount: number;
  private backlog = new Uint32Array(BACKLOG * Wait.words);
  private first = 0;
  private waiting = 0;
  private at = 0;
  private count = 0;
  private watch = 0;
  private watchedFd = -1;
  private wake: (() => void) | null = null;
  private sleeping: Promise<void> | null = null;
  private readonly parkFds = new Int32Array(1);

  constructor(device: BlockDevice, depth: number) {
    this.queue = device.queue({ depth });
    this.reach = Reach.of(device);
    this.letGo = device.use('a pool that is open');
    this.perPage = Page.bytes / device.info.blockSize;
    this.pageShift = 31 - Math.clz32(this.perPage);
    const size = this.queue.depth;
    this.asked = new Int32Array(size * Asked.words);
    this.free = Int32Array.from({ length: size }, (_, i) => size - 1 - i);
    this.freeCount = size;
  }

  /** Requests that were asked for and not taken yet. */
  get inFlight(): number {
    return this.queue.depth - this.freeCount + this.waiting;
  }

  // hot:begin

  /** Asks for `pages` from page `pbn` on; a FLUSH has none. For what is no hot path. */
  ask(op: Op, pbn: number, pages: number, address: number, kind: number, owner: number): void {
    const pbnHi = (pbn / TWO_32) | 0;
    this.askWords(op, pbn | 0, pbnHi, pages, address | 0, (address / TWO_32) | 0, kind, owner);
  }

  /**
   * The same in words of 32 bits with a sign: a number above 2^31 would be an object of the heap in
   * each call that V8 does not inline.
   */
  askWords(
    op: Op,
    pbnLo: number,
    pbnHi: number,
    pages: number,
    addressLo: number,
    addressHi: number,
    kind: number,
    owner: number,
  ): void {
    const isFirst = this.waiting === 0;
    if (isFirst && this.put(op, pbnLo, pbnHi, pages, addressLo, addressHi, kind, owner)) return;
    this.keep(op, pbnLo, pbnHi, pages, addressLo, addressHi, kind, owner);
  }

  /** Hands what was asked for to the device. */
  submit(): void {
    while (this.waiting > 0) {
      const { backlog } = this;
      const at = this.first * Wait.words;
      const put = this.put(
        backlog[at]!,
        backlog[at + Wait.pbnLo]! | 0,
        backlog[at + Wait.pbnHi]!,
        backlog[at + Wait.pages]!,
        backlog[at + Wait.addressLo]! | 0,
        backlog[at + Wait.addressHi]!,
        backlog[at + Wait.kind]!,
        backlog[at + Wait.owner]!,
      );
      if (!put) break;
      this.first = (this.first + 1) % (backlog.length / Wait.words);
      this.waiting--;
    }
    const { queue } = this;
    if (queue.tail !== queue.head) queue.submit();
  }

  /** Takes the next completion; false when there is none for now. */
  take(): boolean {
    if (!this.more()) return false;
    const { cq } = this.queue;
    const { asked } = this;
    const at = this.at * Cpl.words;
    this.at++;
    const slot = cq[at]!;
    this.kind = asked[slot * Asked.words]!;
    this.owner = asked[slot * Asked.words + Asked.owner]!;
    this.status = cq[at + Cpl.status]!;
    this.free[this.freeCount++] = slot;
    return true;
  }

  /**
   * Tells who waits for pages that were read, up to the first completion of another kind: true, and
   * `take` takes that one. False: there is no other for now.
   */
  endReads(readers: readonly (PageReader | null)[]): boolean {
    while (this.more()) {
      const { asked, free, count } = this;
      const { cq } = this.queue;
      let { at, freeCount } = this;
      const from = at;
      const owner = asked[cq[at * Cpl.words]! * Asked.words + Asked.owner]!;
      for (; at < count; at++) {
        const slot = cq[at * Cpl.words]!;
        const known = slot * Asked.words;
        if (asked[known] !== Io.plain || asked[known + Asked.owner] !== owner) break;
        cq[at * Cpl.words] = asked[known + Asked.tag]!;
        free[freeCount++] = slot;
      }
      if (at === from) return true;
      this.at = at;
      this.freeCount = freeCount;
      readers[owner >>> 2]?.pagesRead(owner & 1, (owner & TIMED) !== 0, cq, from, at);
    }
    return false;
  }

  /** Whether there is a completion to be taken. */
  private more(): boolean {
    if (this.at < this.count) return true;
    const { queue } = this;
    this.at = 0;
    this.count = queue.inFlight > 0 ? queue.poll(queue.depth) : 0;
    return this.count > 0;
  }

  /** Of the completion just taken: address of a READ_LOAN's bytes, its result words. */
  get loanLo(): number {
    return this.queue.cq[(this.at - 1) * Cpl.words + Cpl.resultLo]!;
  }

  get loanHi(): number {
    return this.queue.cq[(this.at - 1) * Cpl.words + Cpl.resultHi]!;
  }

  /**
   * Reads a page for each of `count` requests, whose records are at words `from` of `records`, to
   * their buffers: the pages are `pbns`, in two words. Reader `number` is told, with `parity`, and
   * of the one at `timed` (-1: none) by itself. Returns how many are asked for; for the others
   * there is no room now.
   */
  readPages(
    records: Uint32Array,
    from: Int32Array,
    pbns: Int32Array,
    pbnsHi: Int32Array,
    count: number,
    number: number,
    parity: number,
    timed: number,
  ): number {
    if (this.waiting !== 0) return 0;
    const { queue, asked, free, perPage, pageShift } = this;
    const { sq, mask, tail } = queue;
    const owner = (number << 2) | parity;
    const granted = queue.reserve(count < this.freeCount ? count : this.freeCount);
    let { freeCount } = this;
    for (let i = 0; i < granted; i++) {
      const record = from[i]!;
      const slot = free[--freeCount]!;
      asked[slot * Asked.words] = Io.plain;
      asked[slot * Asked.words + Asked.owner] = owner;
      asked[slot * Asked.words + Asked.tag] = records[record + Req.tag]!;
      const at = ((tail + i) & mask) * Req.words;
      const lo = pbns[i]!;
      sq[at] = Op.READ;
      sq[at + Req.tag] = slot;
      sq[at + Req.blocks] = perPage;
      sq[at + Req.aux] = 0;
      sq[at + Req.lbaLo] = lo << pageShift;
      sq[at + Req.lbaHi] = (pbnsHi[i]! << pageShift) | ((lo >>> 1) >>> (31 - pageShift));
      sq[at + Req.addressLo] = records[record + Req.addressLo]!;
      sq[at + Req.addressHi] = records[record + Req.addressHi]!;
    }
    if (timed >= 0 && timed < granted) {
      const slot = sq[((tail + timed) & mask) * Req.words + Req.tag]!;
      asked[slot * Asked.words + Asked.owner] = owner | TIMED;
    }
    this.freeCount = freeCount;
    this.reads += granted;
    this.pagesRead += granted;
    return granted;
  }

  private put(
    op: number,
    pbnLo: number,
    pbnHi: number,
    pages: number,
    addressLo: number,
    addressHi: number,
    kind: number,
    owner: number,
  ): boolean {
    const { queue, perPage } = this;
    if (this.freeCount === 0) return false;
    const index = queue.tail;
    if (queue.reserve(1) === 0) return false;
    const slot = this.free[--this.freeCount]!;
    this.asked[slot * Asked.words] = kind;
    this.asked[slot * Asked.words + Asked.owner] = owner;
    const { sq } = queue;
    const at = (index & queue.mask) * Req.words;
    const lba = (pbnHi * TWO_32 + (pbnLo >>> 0)) * perPage;
    sq[at] = op;
    sq[at + Req.tag] = slot;
    sq[at + Req.blocks] = pages * perPage;
    sq[at + Req.aux] = 0;
    sq[at + Req.lbaLo] = lba >>> 0;
    sq[at + Req.lbaHi] = lba / TWO_32;
    sq[at + Req.addressLo] = addressLo;
    sq[at + Req.addressHi] = addressHi;
    if (op === Op.WRITE) {
      this.writes++;
      this.pagesWritten += pages;
    } else if (op === Op.READ || op === Op.READ_LOAN || op === Op.COMPARE) {
      this.reads++;
      this.pagesRead += pages;
    }
    return true;
  }

  private keep(
    op: number,
    pbnLo: number,
    pbnHi: number,
    pages: number,
    addressLo: number,
    addressHi: number,
    kind: number,
    owner: number,
  ): void {
    if (this.waiting === this.backlog.length / Wait.words) this.grow();
    const { backlog } = this;
    const at = ((this.first + this.waiting) % (backlog.length / Wait.words)) * Wait.words;
    this.waiting++;
    backlog[at] = op;
    backlog[at + Wait.pbnLo] = pbnLo;
    backlog[at + Wait.pbnHi] = pbnHi;
    backlog[at + Wait.pages] = pages;
    backlog[at + Wait.addressLo] = addressLo;
    backlog[at + Wait.addressHi] = addressHi;
    backlog[at + Wait.kind] = kind;
    backlog[at + Wait.owner] = owner;
  }

  // hot:end

  private grow(): void {
    const old = this.backlog;
    const fresh = new Uint32Array(old.length * 2);
    const cut = this.first * Wait.words;
    fresh.set(old.subarray(cut));
    fresh.set(old.subarray(0, cut), old.length - cut);
    this.first = 0;
    this.backlog = fresh;
  }

  /** Gives a loan back by its completion's words. */
  release(lo: number, hi: number): void {
    this.queue.release(lo, hi);
  }

  /** Blocks this thread until something may have completed, at most `timeoutUs`. */
  park(timeoutUs: number): void {
    const { driver } = this.queue;
    if (this.arrived) return;
    if (driver.park !== undefined) {
      driver.park(timeoutUs);
      return;
    }
    const fd = driver.eventFd();
    driver.arm();
    fence();
    if (this.more() || fd < 0 || driver.eventFd() !== fd) return;
    this.parkFds[0] = fd;
    native.park(this.parkFds, timeoutUs);
  }

  /** Resolves when something may have completed, or after `mostMs`; for several at a time. */
  sleep(mostMs: number): Promise<void> {
    this.sleeping ??= this.sleepOnce(mostMs).finally(() => (this.sleeping = null));
    return this.sleeping;
  }

  private async sleepOnce(mostMs: number): Promise<void> {
    const { driver } = this.queue;
    const fd = driver.eventFd();
    driver.arm();
    fence();
    // Also where something has arrived: timers and other descriptors have their turn.
    if (this.more() || fd < 0 || driver.eventFd() !== fd) {
      await new Promise((resolve) => setImmediate(resolve));
      return;
    }
    if (this.watch === 0 || this.watchedFd !== fd) {
      if (this.watch !== 0) native.watchClose(this.watch);
      this.watch = native.watchOpen(fd, () => this.wake?.());
      this.watchedFd = fd;
    }
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => this.wake?.(), mostMs);
      this.wake = () => {
        this.wake = null;
        clearTimeout(timer);
        native.watchSet(this.watch, false);
        resolve();
      };
      native.watchSet(this.watch, true);
    });
  }

  /** Ends a sleep. */
  rouse(): void {
    this.wake?.();
  }

  async close(): Promise<void> {
    this.rouse();
    if (this.watch !== 0) native.watchClose(this.watch);
    this.watch = 0;
    try {
      await this.queue.close();
    } finally {
      this.letGo();
    }
  }

  /** Completions were polled that are not taken yet. */
  private get arrived(): boolean {
    return this.at < this.count;
  }
}
