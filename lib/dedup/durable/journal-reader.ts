// The journal as it is on a device (docs/format.md, "Journal"): for recovery, and for who checks a
// pool without its engine.

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

interface Scanned {
  readonly seq: number;
  readonly page: number;
  readonly bytes: number;
}

/** Reads the journal as it is on a device. */
export class JournalReader {
  readonly entries: Scanned[] = [];
  seq: number;
  at: number;
  durable: number;
  private readonly device: BlockDevice;
  private readonly place: JournalPlace;

  constructor(device: BlockDevice, place: JournalPlace, seq: number, at: number) {
    this.device = device;
    this.place = place;
    this.seq = seq;
    this.at = at;
    this.durable = seq;
  }

  /** Finds all entries that are valid. */
  async scan(): Promise<void> {
    const buffer = this.device.memory.alloc(ENTRY_PAGES * Page.bytes);
    let { epoch } = this.place;
    try {
      // No more than the ring holds: an entry of an earlier lap has an older sequence.
      for (let pages = 0; pages < this.place.pages;) {
        const words = await this.read(this.at, buffer);
        if (words === null || words[Entry.epoch]! < epoch) break;
        epoch = words[Entry.epoch]!;
        this.seq++;
        this.durable = Math.max(this.durable, this.seq - words[Entry.durableBack]!);
        const bytes = words[Entry.bytes]!;
        const isWrap = words[Entry.kind] === EntryKind.wrap;
        const used = isWrap ? this.place.pages - this.at : Math.ceil(bytes / Page.bytes);
        if (!isWrap) this.entries.push({ seq: this.seq, page: this.at, bytes });
        this.at = (this.at + used) % this.place.pages;
        pages += used;
      }
    } finally {
      buffer.free();
    }
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

  /** The entry at a page of the ring, if the next one is there. */
  private async read(
    page: number,
    buffer: ReturnType<BlockDevice['memory']['alloc']>,
  ): Promise<Uint32Array | null> {
    const most = Math.min(ENTRY_PAGES, this.place.pages - page);
    const part = this.device.memory.alloc(most * Page.bytes);
    try {
      await this.device.read(this.lba(page), part);
      buffer.u8.set(part.u8);
    } finally {
      part.free();
    }
    const words = buffer.u32;
    if (words[Entry.magic] !== Magic.entry || pair(words, Entry.seqLo) !== this.seq + 1)
      return null;
    const bytes = words[Entry.bytes]!;
    if (bytes < Entry.words * 4 || bytes > most * Page.bytes || bytes % 4 !== 0) return null;
    const crc = words[Entry.crc]!;
    words[Entry.crc] = this.place.seed;
    return native.crc32c(buffer.u8.subarray(0, bytes), 0) === crc ? words : null;
  }
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
