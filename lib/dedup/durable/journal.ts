// Journal: what has happened since the last checkpoint (docs/format.md, "Journal").
//
// Records are gathered in an entry, which is written as a whole; entries may be written at the same
// time, and count as complete in order.
//
// Invariants
// 1. An entry is written only where the last durable checkpoint needs nothing: `room` says so
//    first.
// 2. `completed` is the highest sequence up to which all entries are with the device.

import { Op } from '../../hpdi/index.js';
import { native } from '../../native.js';
import type { PoolIo } from './io.js';
import type { OwnMemory } from '../reach.js';
import { Entry, ENTRY_PAGES, EntryKind, Magic, Page } from '../format/layout.js';
import { setPair } from '../format/numbers.js';
import type { JournalPlace } from './journal-reader.js';
import { Stage, type StageClock } from '../stats/stage-clock.js';

/** Entries that may be on their way to the device at a time. */
const BUFFERS = 32;
/** A buffer has a page more, for a wrap entry before it. */
const BUFFER_PAGES = ENTRY_PAGES + 1;
const ENTRY_WORDS = ENTRY_PAGES * Page.words;

export class Journal {
  /** The sequence of the last entry that was begun. */
  seq: number;
  completed: number;
  /** Up to here entries survive a power cut. */
  durable: number;
  /** The next word of the entry that is being gathered; `words` are the buffers'. */
  at = 0;
  readonly words: Uint32Array;
  /** Status of the first write that failed. */
  broken = 0;
  entries = 0;
  private readonly io: PoolIo;
  private readonly kind: number;
  private readonly place: JournalPlace;
  private readonly clock: StageClock;
  private readonly segment: OwnMemory;
  /** By buffer: sequence of its entry while it is being written. */
  private readonly seqs = new Float64Array(BUFFERS).fill(-1);
  private readonly pending = new Uint8Array(BUFFERS);
  private buffer = -1;
  private records = 0;
  /** Pages written so far, and of them those that a checkpoint needs no more: free-running. */
  private head: number;
  private tail: number;
  private readonly crcEntry = new Uint32Array(4);
  private readonly crcOut = new Uint32Array(1);

  /** Goes on after entry `seq`, at page `at` of the ring. */
  constructor(
    io: PoolIo,
    kind: number,
    place: JournalPlace,
    seq: number,
    at: number,
    clock: StageClock,
  ) {
    this.io = io;
    this.clock = clock;
    this.kind = kind;
    this.place = place;
    this.seq = seq;
    this.completed = seq;
    this.durable = seq;
    this.head = at;
    this.tail = at;
    this.segment = io.reach.alloc(BUFFERS * BUFFER_PAGES * Page.bytes);
    this.words = this.segment.u32;
  }

  close(): void {
    this.segment.close();
  }

  /** Where the next entry goes, as the superblock has it. */
  get position(): number {
    return this.head % this.place.pages;
  }

  /** Free-running position: for `reclaim`. */
  get written(): number {
    return this.head;
  }

  /** Pages of the ring that are needed, of `capacity`. */
  get needed(): number {
    return this.head - this.tail;
  }

  get capacity(): number {
    return this.place.pages;
  }

  /** Whether records are gathered that no entry was written of. */
  get dirty(): boolean {
    return this.records > 0;
  }

  /** No entry of the greatest length fits, after a wrap, till a checkpoint makes room. */
  get isFull(): boolean {
    return this.head - this.tail + 2 * ENTRY_PAGES > this.place.pages;
  }

  /**
   * Whether records of so many words may be added, to this entry or, once it is written, another.
   */
  room(words: number): boolean {
    if (this.broken !== 0) return false;
    if (this.buffer >= 0) {
      if (this.at + words <= this.end) return true;
      this.commit();
    }
    const buffer = this.seqs.indexOf(-1);
    if (buffer < 0 || this.isFull) return false;
    this.buffer = buffer;
    this.at = this.start + Entry.words;
    this.records = 0;
    this.seq++;
    this.seqs[buffer] = this.seq;
    return true;
  }

  /** A record of `words` words from `at` on is there. */
  added(words: number): void {
    this.at += words;
    this.records++;
  }

  /** Writes the entry that was gathered, if there is one. */
  commit(): void {
    const { buffer } = this;
    if (buffer < 0) return;
    if (this.records === 0) {
      this.seqs[buffer] = -1;
      this.seq--;
      this.buffer = -1;
      return;
    }
    const was = this.clock.turn(Stage.journal);
    this.writeEntry(buffer);
    this.clock.turn(was);
  }

  private writeEntry(buffer: number): void {
    const { place } = this;
    const bytes = (this.at - this.start) * 4;
    const pages = Math.ceil(bytes / Page.bytes);
    this.clear(this.at, this.start + pages * Page.words);
    const left = place.pages - this.position;
    this.pending[buffer] = 1;
    if (pages > left) {
      // The wrap takes this sequence, the entry the next one.
      this.pending[buffer] = 2;
      const wrap = this.start + ENTRY_WORDS;
      this.clear(wrap, wrap + Page.words);
      this.seal(wrap, EntryKind.wrap, Entry.words * 4, 0);
      this.write(wrap, 1);
      this.head += left;
      // Until both are with the device, nothing from the wrap on is complete.
      this.seq++;
    }
    this.seal(this.start, EntryKind.records, bytes, this.records);
    this.write(this.start, pages);
    this.head += pages;
    this.entries++;
    this.buffer = -1;
    this.records = 0;
  }

  /** The device has answered a write of buffer `owner`. */
  answered(owner: number, status: number): void {
    if (status !== 0 && this.broken === 0) this.broken = status;
    this.pending[owner] = this.pending[owner]! - 1;
    if (this.pending[owner] !== 0) return;
    if (this.broken !== 0) return;
    this.seqs[owner] = -1;
    let oldest = this.seq + 1;
    for (let i = 0; i < BUFFERS; i++) {
      const seq = this.seqs[i]!;
      // A wrap before it has the sequence before.
      if (seq >= 0 && seq < oldest) oldest = seq;
    }
    if (oldest - 1 > this.completed) this.completed = oldest - 1;
  }

  /** A checkpoint that was taken when `written` was `position` is durable. */
  reclaim(position: number): void {
    this.tail = position;
  }

  private get start(): number {
    return this.buffer * BUFFER_PAGES * Page.words;
  }

  private get end(): number {
    return this.start + ENTRY_WORDS;
  }

  /** `fill` takes its arguments as objects of the heap. */
  private clear(from: number, to: number): void {
    const { words } = this;
    for (let i = from; i < to; i++) words[i] = 0;
  }

  private seal(at: number, kind: EntryKind, bytes: number, records: number): void {
    const { words, crcEntry, place } = this;
    words[at] = Magic.entry;
    words[at + Entry.crc] = place.seed;
    setPair(words, at + Entry.seqLo, this.seq);
    words[at + Entry.epoch] = place.epoch;
    words[at + Entry.kind] = kind;
    words[at + Entry.durableBack] = Math.min(0xffffffff, this.seq - this.durable);
    words[at + Entry.records] = records;
    words[at + Entry.bytes] = bytes;
    for (let i = Entry.bytes + 1; i < Entry.words; i++) words[at + i] = 0;
    const address = this.segment.address + at * 4;
    crcEntry[0] = address >>> 0;
    crcEntry[1] = address / 4294967296;
    crcEntry[2] = bytes;
    native.crc32cList(crcEntry, 1, this.crcOut);
    words[at + Entry.crc] = this.crcOut[0]!;
  }

  private write(at: number, pages: number): void {
    const pbn = this.place.page + this.position;
    const address = this.segment.address + at * 4;
    const hi = (address / 4294967296) | 0;
    this.io.askWords(Op.WRITE, pbn, 0, pages, address | 0, hi, this.kind, this.buffer);
  }
}
