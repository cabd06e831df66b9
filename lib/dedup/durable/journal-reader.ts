// The journal as it is on a device (docs/format.md, "Journal"): for recovery, and for who checks a
// pool without its engine.
//
// The first entry that is not valid ends it, as a power cut does: what follows may have reached the
// device before it. Unless that says otherwise: an owner writes into its entries how far the ones
// before are durable, which it knows from flushes, and from no others than its own. So an entry of
// the same epoch that calls the missing one durable proves damage; the epoch keeps out those that
// earlier owners left beyond a torn end, the sequence those of earlier laps.

import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import { native } from '../../native.js';
import {
  Entry,
  ENTRY_PAGES,
  EntryKind,
  Fingerprint,
  Magic,
  Page,
  Rec,
  RecKind,
  SetMax,
} from '../format/layout.js';
import { pair } from '../format/numbers.js';
import { corruptError } from './errors.js';

export interface JournalPlace {
  /** First page on the device, and how many. */
  readonly page: number;
  readonly pages: number;
  readonly seed: number;
  readonly epoch: number;
}

/** Where what follows a checkpoint begins; of a superblock. */
export interface JournalStart {
  readonly seq: number;
  readonly journalAt: number;
  /** The pool was closed in order: nothing follows. */
  readonly clean: boolean;
}

interface Scanned {
  readonly seq: number;
  readonly page: number;
  readonly bytes: number;
}

/** Pages after the end in which opening a pool looks for entries that call it damaged. */
const LOOK_PAGES = 1024;
/** Pages of one read of that. */
const CHUNK = 256;

/** Reads the journal as it is on a device. */
export class JournalReader {
  readonly entries: Scanned[] = [];
  seq: number;
  at: number;
  durable: number;
  /** The entry after the last one was durable, and is not there. */
  lost = false;
  private epoch: number;
  /** Pages of the ring that the entries have. */
  private taken = 0;
  private readonly device: BlockDevice;
  private readonly place: JournalPlace;
  private readonly isClean: boolean;
  private unread: PenstockError | null = null;
  /** What was read last. */
  private readonly u8 = new Uint8Array(ENTRY_PAGES * Page.bytes);
  private readonly words = new Uint32Array(this.u8.buffer);

  constructor(device: BlockDevice, place: JournalPlace, start: JournalStart) {
    this.device = device;
    this.place = place;
    this.epoch = place.epoch;
    this.seq = start.seq;
    this.at = start.journalAt;
    this.durable = start.seq;
    this.isClean = start.clean;
  }

  /** Finds all entries that are valid, and looks for later ones in so many pages after them. */
  async scan(lookPages = LOOK_PAGES): Promise<void> {
    await this.follow();
    while (await this.isMissed(lookPages)) {
      const { seq } = this;
      // Who has the pool open may have written it since.
      await this.follow();
      if (this.seq !== seq) continue;
      this.lost = true;
      return;
    }
  }

  /** Why it is damaged where it ends. */
  get loss(): string {
    return `entry ${this.seq + 1} is not there, and a later one says that it was durable`;
  }

  private async follow(): Promise<void> {
    // No more than the ring holds: an entry of an earlier lap has an older sequence.
    while (this.taken < this.place.pages) {
      const words = await this.next();
      if (words === null) return;
      this.epoch = words[Entry.epoch]!;
      this.seq++;
      this.durable = Math.max(this.durable, this.seq - words[Entry.durableBack]!);
      const bytes = words[Entry.bytes]!;
      const isWrap = words[Entry.kind] === EntryKind.wrap;
      const used = isWrap ? this.place.pages - this.at : Math.ceil(bytes / Page.bytes);
      if (!isWrap) this.entries.push({ seq: this.seq, page: this.at, bytes });
      this.at = (this.at + used) % this.place.pages;
      this.taken += used;
    }
  }

  /** The entry that is to be there next; null: it is not. */
  private async next(): Promise<Uint32Array | null> {
    const isNext = (words: Uint32Array): boolean =>
      words[Entry.magic] === Magic.entry &&
      pair(words, Entry.seqLo) === this.seq + 1 &&
      words[Entry.epoch]! >= this.epoch;
    try {
      return await this.entryAt(this.at, isNext);
    } catch (error) {
      if (this.isClean && isMediaError(error)) return null;
      throw error;
    }
  }

  /** Whether an entry after the end says that the one which is to be there was durable. */
  private async isMissed(lookPages: number): Promise<boolean> {
    const { pages } = this.place;
    const end = this.at + Math.min(lookPages, pages - this.taken);
    for (let from = this.at; from < end;) {
      const page = from % pages;
      const count = Math.min(CHUNK, end - from, pages - page);
      if (await this.hasClaim(page, count)) return true;
      from += count;
    }
    return false;
  }

  /** The same, of the entries that begin in these pages. What cannot be read says nothing. */
  private async hasClaim(page: number, count: number): Promise<boolean> {
    const most = Math.min(count + ENTRY_PAGES - 1, this.place.pages - page);
    const buffer = this.device.memory.alloc(most * Page.bytes);
    try {
      await this.device.read(this.lba(page), buffer);
      for (let i = 0; i < count; i++) {
        const words = buffer.u32.subarray(i * Page.words);
        if (!this.isClaim(words)) continue;
        if (isWhole(buffer.u8.subarray(i * Page.bytes), words, this.place.seed)) return true;
      }
      return false;
    } catch (error) {
      if (!isMediaError(error)) throw error;
    } finally {
      buffer.free();
    }
    if (count === 1) return this.isClaimAt(page);
    const half = count >>> 1;
    return (await this.hasClaim(page, half)) || this.hasClaim(page + half, count - half);
  }

  /** The same of a page among others that cannot be read. */
  private async isClaimAt(page: number): Promise<boolean> {
    if (!(await this.readPages(page, 1))) return false;
    return (await this.entryAt(page, (words) => this.isClaim(words))) !== null;
  }

  private isClaim(words: Uint32Array): boolean {
    if (words[Entry.magic] !== Magic.entry || words[Entry.epoch] !== this.epoch) return false;
    return pair(words, Entry.seqLo) - words[Entry.durableBack]! > this.seq;
  }

  /** The words of an entry that `scan` has found. */
  async load(entry: Scanned): Promise<Uint32Array> {
    const buffer = this.device.memory.alloc(Math.ceil(entry.bytes / Page.bytes) * Page.bytes);
    try {
      await this.device.read(this.lba(entry.page), buffer);
      return buffer.u32.slice(0, entry.bytes / 4);
    } finally {
      buffer.free();
    }
  }

  private lba(page: number): number {
    return ((this.place.page + page) * Page.bytes) / this.device.info.blockSize;
  }

  /**
   * The entry at a page of the ring, if it is one that is wanted, and whole; till the next look.
   * Pages that it has not got may be unreadable: they are of an earlier lap.
   */
  private async entryAt(
    page: number,
    isWanted: (words: Uint32Array) => boolean,
  ): Promise<Uint32Array | null> {
    const { u8, words } = this;
    const most = Math.min(ENTRY_PAGES, this.place.pages - page);
    let count = most;
    if (!(await this.readPages(page, most))) {
      if (!(await this.readPages(page, 1))) throw this.unread!;
      if (!isWanted(words)) return null;
      count = Math.ceil(words[Entry.bytes]! / Page.bytes);
      if (count === 0 || count > most) return null;
      if (!(await this.readPages(page, count))) throw this.unread!;
    }
    if (!isWanted(words)) return null;
    return isWhole(u8.subarray(0, count * Page.bytes), words, this.place.seed) ? words : null;
  }

  /** Reads pages to `u8`. False: they cannot be read, `unread` says why. */
  private async readPages(page: number, count: number): Promise<boolean> {
    const buffer = this.device.memory.alloc(count * Page.bytes);
    try {
      await this.device.read(this.lba(page), buffer);
      this.u8.set(buffer.u8);
      return true;
    } catch (error) {
      if (!isMediaError(error)) throw error;
      this.unread = error;
      return false;
    } finally {
      buffer.free();
    }
  }
}

function isMediaError(error: unknown): error is PenstockError {
  return error instanceof PenstockError && error.code === 'MEDIA_ERROR';
}

/** Whether the bytes of an entry are there, and those that were written. */
function isWhole(u8: Uint8Array, words: Uint32Array, seed: number): boolean {
  const bytes = words[Entry.bytes]!;
  const most = Math.min(ENTRY_PAGES * Page.bytes, u8.length);
  if (bytes < Entry.words * 4 || bytes > most || bytes % 4 !== 0) return false;
  const crc = words[Entry.crc]!;
  words[Entry.crc] = seed;
  return native.crc32c(u8.subarray(0, bytes), 0) === crc;
}

/** Words at which the records of an entry begin. */
export function recordsOf(words: Uint32Array): number[] {
  const found: number[] = [];
  let at: number = Entry.words;
  if (words[Entry.kind] !== EntryKind.records) throw corruptError('an entry is damaged');
  for (let i = 0; i < words[Entry.records]!; i++) {
    if (at + Rec.words > words.length) throw corruptError('a record is damaged');
    found.push(at);
    const kind = words[at]! & 0xff;
    const isWrite = kind === RecKind.write;
    if (!isWrite && kind !== RecKind.unmap) throw corruptError('a record is damaged');
    const count = words[at]! >>> 8;
    if (isWrite && (count === 0 || count > SetMax.blocks))
      throw corruptError('a record is damaged');
    at += Rec.words + (isWrite ? count * Fingerprint.words : 0);
    if (at > words.length) throw corruptError('a record is damaged');
  }
  return found;
}
