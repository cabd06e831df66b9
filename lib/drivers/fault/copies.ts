// Copies between addresses, gathered into one native call, and the SG lists that say where to.
//
// Invariants: an address is read or written only after `reachable` said it may be (so that a
// copy never stops half-way for a caller's mistake); a list is copied to our own memory before
// it is believed.

import { native } from '../../native.js';
import { accessMap, GRANULE_BYTES } from '../../memory/index.js';
import { Sg } from '../../hpdi/index.js';

/** Entries of native.copyList that are gathered before it is called. */
const ENTRIES_MAX = 2048;
const ENTRY_WORDS = 8;
const TWO_32 = 2 ** 32;

const READABLE = 1;
const WRITABLE = 2;

/** Whether every byte of the range lies in a live segment that may be read (and written). */
export class AccessMap {
  private readonly map = accessMap();

  reachable(address: number, bytes: number, writable: boolean): boolean {
    const need = writable ? READABLE | WRITABLE : READABLE;
    const last = Math.floor((address + bytes - 1) / GRANULE_BYTES);
    if (address <= 0 || last >= this.map.length) return false;
    for (let granule = Math.floor(address / GRANULE_BYTES); granule <= last; granule++) {
      if ((this.map[granule]! & need) !== need) return false;
    }
    return true;
  }
}

export class Copies {
  private readonly entries = new Uint32Array(ENTRIES_MAX * ENTRY_WORDS);
  private count = 0;

  add(to: number, from: number, bytes: number): void {
    if (this.count === ENTRIES_MAX) this.run();
    const e = this.count * ENTRY_WORDS;
    const entries = this.entries;
    entries[e] = to >>> 0;
    entries[e + 1] = Math.floor(to / TWO_32);
    entries[e + 2] = from >>> 0;
    entries[e + 3] = Math.floor(from / TWO_32);
    entries[e + 4] = bytes;
    this.count++;
  }

  /**
   * Does all gathered copies in order. False when one met an address that another thread freed
   * after it was checked: that copy is left out, the others are done.
   */
  run(): boolean {
    let good = true;
    while (this.count > 0) {
      const done = native.copyList(this.entries, this.count);
      const rest = done + 1;
      if (done < this.count) good = false;
      if (rest < this.count) {
        this.entries.copyWithin(0, rest * ENTRY_WORDS, this.count * ENTRY_WORDS);
      }
      this.count = Math.max(0, this.count - rest);
    }
    return good;
  }
}

/**
 * The buffer of one operation as pieces: one for a plain buffer, one per entry of an SG list.
 * The list is read into `memory`, which is ours, so that its owner cannot change it between
 * check and use.
 */
export class Pieces {
  count = 0;
  private readonly words: Uint32Array;
  private readonly address: number;
  private readonly capacity: number;
  private readonly copies: Copies;
  private piece = 0;
  private offset = 0;

  /** `words` is a view of the `capacity` × 16 bytes at `address`. */
  constructor(copies: Copies, address: number, words: Uint32Array) {
    this.copies = copies;
    this.address = address;
    this.words = words;
    this.capacity = Math.floor(words.length / Sg.words);
  }

  loadPlain(address: number, bytes: number): void {
    this.words[Sg.addressLo] = address >>> 0;
    this.words[Sg.addressHi] = Math.floor(address / TWO_32);
    this.words[Sg.bytes] = bytes;
    this.begin(1);
  }

  /** Reads `count` entries at `address`; false when the list itself cannot be read. */
  loadList(access: AccessMap, address: number, count: number): boolean {
    if (count < 1 || count > this.capacity) return false;
    const bytes = count * Sg.words * 4;
    if (!access.reachable(address, bytes, false)) return false;
    this.copies.run();
    this.copies.add(this.address, address, bytes);
    this.begin(count);
    return this.copies.run();
  }

  /** Whether the pieces make up exactly `bytes`, each aligned and reachable. */
  fit(
    access: AccessMap,
    bytes: number,
    writable: boolean,
    addressAlign: number,
    segmentAlign: number,
  ): boolean {
    const words = this.words;
    let total = 0;
    for (let i = 0; i < this.count; i++) {
      const w = i * Sg.words;
      const address = words[w + Sg.addressHi]! * TWO_32 + words[w + Sg.addressLo]!;
      const length = words[w + Sg.bytes]!;
      if (length === 0 || length % segmentAlign !== 0 || address % addressAlign !== 0) return false;
      if (!access.reachable(address, length, writable)) return false;
      total += length;
    }
    return total === bytes;
  }

  addressAt(piece: number): number {
    const w = piece * Sg.words;
    return this.words[w + Sg.addressHi]! * TWO_32 + this.words[w + Sg.addressLo]!;
  }

  /** Starts over at the first byte. */
  rewind(): void {
    this.piece = 0;
    this.offset = 0;
  }

  /** Moves on by `bytes` without copying. */
  skip(bytes: number): void {
    this.walk(bytes, 0, 0);
  }

  /** Gathers copies of the next `bytes` to our memory at `to`. */
  copyOut(bytes: number, to: number): void {
    this.walk(bytes, to, 1);
  }

  /** Gathers copies from our memory at `from` over the next `bytes`. */
  copyIn(bytes: number, from: number): void {
    this.walk(bytes, from, 2);
  }

  /**
   * Writes the list cut to its first `bytes` to `out`; returns its entries, 0 when they do not
   * fit.
   */
  prefix(bytes: number, out: Uint32Array): number {
    let left = bytes;
    let entries = 0;
    while (left > 0 && entries < this.count) {
      const w = entries * Sg.words;
      if (w + Sg.words > out.length) return 0;
      const length = Math.min(left, this.words[w + Sg.bytes]!);
      out[w + Sg.addressLo] = this.words[w + Sg.addressLo]!;
      out[w + Sg.addressHi] = this.words[w + Sg.addressHi]!;
      out[w + Sg.bytes] = length;
      out[w + 3] = 0;
      left -= length;
      entries++;
    }
    return left === 0 ? entries : 0;
  }

  private begin(count: number): void {
    this.count = count;
    this.rewind();
  }

  private walk(bytes: number, ours: number, direction: 0 | 1 | 2): void {
    const words = this.words;
    let left = bytes;
    let at = ours;
    while (left > 0 && this.piece < this.count) {
      const w = this.piece * Sg.words;
      const length = Math.min(left, words[w + Sg.bytes]! - this.offset);
      const theirs = words[w + Sg.addressHi]! * TWO_32 + words[w + Sg.addressLo]! + this.offset;
      if (direction === 1) this.copies.add(at, theirs, length);
      else if (direction === 2) this.copies.add(theirs, at, length);
      at += length;
      left -= length;
      this.offset += length;
      if (this.offset === words[w + Sg.bytes]!) {
        this.piece++;
        this.offset = 0;
      }
    }
  }
}
