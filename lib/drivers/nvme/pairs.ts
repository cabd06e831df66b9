// Queue pairs as memory that every environment of the process sees: rings, slots, and a header each
// by which a pair is claimed, stopped for a reset, and watched.
//
// The controller's home makes all pairs when the device is opened. Whoever opens a queue, in
// whichever thread, claims one by compare-and-swap: no message, no lock, no admin command.
//
// Invariants
// 1. A header's first line is written by the pair's owner alone (claim: by compare-and-swap), its
//    second by the home alone.
// 2. The owner sets `inside` while it touches rings or doorbells and looks at `epoch` after that.
//    The home makes the epoch odd, has every processor pass a barrier (membarrier), and waits until
//    `inside` is 0: from then on nobody touches the rings until the epoch is even again. So the
//    owner needs no fence.
// 3. A slot's first word is not 0 while its operation is in flight; `serial` differs between lives
//    of a slot, so that the home, which only reads, can tell one that does not end.

import { addressSpace, roundUp, type Segment } from '../../memory/index.js';
import { Cqe, Sqe } from './commands.js';

/** Word indices of a pair's header: 128 bytes, a cache line for each writer. */
export const enum PairWord {
  /** 0 free, else the owner's liveness index + 1. */
  claim = 0,
  inside = 1,
  /** The owner's liveness serial. */
  ownerSerial = 2,
  /** Where the rings stand, while no owner has it in registers of its own. */
  sqTail = 3,
  cqHead = 4,
  phase = 5,
  /** Slots in use. */
  depth = 6,
  /** Completions that asked to look at the error log (status field, More). */
  more = 7,
  /** Completions that no operation had (wrong cid): the controller is to be reset. */
  stray = 8,
  nsid = 9,

  /** Even: the rings are the owner's; odd: nobody's. */
  epoch = 16,
  /** Goes up when the controller was reset: what was in flight will not complete. */
  generation = 17,
  state = 18,
  /** Goes up when namespaces changed. */
  facts = 19,
  words = 32,
}

/** A closed segment shows zeros: 0 says that the home ended. */
export const enum PairState {
  ended = 0,
  ready = 1,
  /** The device is gone, or closed: everything completes with DEVICE_GONE. */
  gone = 2,
}

/** A slot: the request record, kept until it has completed. */
export const enum Slot {
  /** The record's op word; 0 when free. */
  op = 0,
  /** Times it was tried again. */
  tries = 1,
  blocks = 2,
  serial = 3,
  lbaLo = 4,
  lbaHi = 5,
  addressLo = 6,
  addressHi = 7,
  words = 8,
}

/** A namespace as queues see it: written by the home, read at a change of `facts`. */
export const enum NamespaceWord {
  nsid = 0,
  blocksLo = 1,
  blocksHi = 2,
  /** 0 there, 1 removed. */
  removed = 3,
  words = 4,
}

export const NAMESPACES_MAX = 256;
const PAGE = 4096;
const HEADER_BYTES = PairWord.words * 4;
export const ADMIN_ENTRIES = 32;

/** How many pairs, and of what size. */
export interface PairShape {
  readonly pairs: number;
  /** Entries of each ring: a power of two. */
  readonly entries: number;
}

/** Byte offsets into the controller's segment. */
export interface PairOffsets {
  readonly adminSq: number;
  readonly adminCq: number;
  readonly shadow: number;
  readonly eventIndex: number;
  readonly namespaces: number;
  readonly headers: number;
  readonly sq: number;
  readonly cq: number;
  readonly slots: number;
  readonly blame: number;
  readonly bytes: number;
  readonly sqBytes: number;
  readonly cqBytes: number;
}

export function pairOffsets({ pairs, entries }: PairShape): PairOffsets {
  let at = 0;
  const take = (bytes: number): number => {
    const start = at;
    at += roundUp(bytes, PAGE);
    return start;
  };
  const sqBytes = roundUp(entries * Sqe.words * 4, PAGE);
  const cqBytes = roundUp(entries * Cqe.words * 4, PAGE);
  return {
    adminSq: take(ADMIN_ENTRIES * Sqe.words * 4),
    adminCq: take(ADMIN_ENTRIES * Cqe.words * 4),
    shadow: take(PAGE),
    eventIndex: take(PAGE),
    namespaces: take(NAMESPACES_MAX * NamespaceWord.words * 4),
    headers: take(pairs * HEADER_BYTES),
    sq: take(pairs * sqBytes),
    cq: take(pairs * cqBytes),
    slots: take(pairs * entries * Slot.words * 4),
    blame: take(pairs * entries * 4),
    bytes: at,
    sqBytes,
    cqBytes,
  };
}

/** One pair's memory as typed arrays of this environment. */
export interface PairViews {
  readonly index: number;
  readonly header: Uint32Array;
  readonly sq: Uint32Array;
  readonly cq: Uint32Array;
  readonly slots: Uint32Array;
  /** Per slot the serial that the home has called timed out. Home's. */
  readonly blame: Uint32Array;
}

/** The controller's segment, seen from one environment. */
export class PairTable {
  readonly segment: Segment;
  readonly shape: PairShape;
  readonly offsets: PairOffsets;
  readonly namespaces: Uint32Array;
  /** Pairs that the controller granted; those above are never claimed. */
  usable: number;
  private readonly headers: Int32Array;

  constructor(segment: Segment, shape: PairShape, usable: number) {
    this.segment = segment;
    this.shape = shape;
    this.usable = usable;
    this.offsets = pairOffsets(shape);
    this.namespaces = this.words(this.offsets.namespaces, NAMESPACES_MAX * NamespaceWord.words);
    const { buffer, byteOffset } = segment.u8;
    this.headers = new Int32Array(
      buffer,
      byteOffset + this.offsets.headers,
      shape.pairs * PairWord.words,
    );
  }

  /** A segment for a controller with these pairs; zeroed. */
  static create(shape: PairShape, kind: 'private' | 'device'): PairTable {
    const segment = addressSpace().create(pairOffsets(shape).bytes, { kind });
    return new PairTable(segment, shape, shape.pairs);
  }

  /** The address of a byte offset. */
  address(offset: number): number {
    return this.segment.address + offset;
  }

  words(offset: number, count: number): Uint32Array {
    const { buffer, byteOffset } = this.segment.u8;
    return new Uint32Array(buffer, byteOffset + offset, count);
  }

  /** Addresses of a pair's rings. */
  rings(index: number): { sq: number; cq: number } {
    const { sq, cq, sqBytes, cqBytes } = this.offsets;
    return { sq: this.address(sq + index * sqBytes), cq: this.address(cq + index * cqBytes) };
  }

  views(index: number): PairViews {
    const { entries } = this.shape;
    const { headers, sq, cq, slots, blame, sqBytes, cqBytes } = this.offsets;
    return {
      index,
      header: this.words(headers + index * HEADER_BYTES, PairWord.words),
      sq: this.words(sq + index * sqBytes, entries * Sqe.words),
      cq: this.words(cq + index * cqBytes, entries * Cqe.words),
      slots: this.words(slots + index * entries * Slot.words * 4, entries * Slot.words),
      blame: this.words(blame + index * entries * 4, entries),
    };
  }

  /** Claims a free pair for the owner of a liveness word; -1 when all are taken. */
  claim(livenessIndex: number, livenessSerial: number): number {
    for (let index = 0; index < this.usable; index++) {
      const at = index * PairWord.words;
      const owner = livenessIndex + 1;
      if (Atomics.compareExchange(this.headers, at + PairWord.claim, 0, owner) !== 0) continue;
      this.headers[at + PairWord.ownerSerial] = livenessSerial;
      return index;
    }
    return -1;
  }

  /** Gives a pair back; nothing is in flight on it. */
  giveBack(index: number): void {
    Atomics.store(this.headers, index * PairWord.words + PairWord.claim, 0);
  }

  /** Claim word and owner's liveness serial of a pair. */
  owner(index: number): { claim: number; serial: number } {
    const at = index * PairWord.words;
    return {
      claim: Atomics.load(this.headers, at + PairWord.claim),
      serial: this.headers[at + PairWord.ownerSerial]! >>> 0,
    };
  }

  get claimed(): number {
    let count = 0;
    for (let index = 0; index < this.shape.pairs; index++) {
      if (this.headers[index * PairWord.words + PairWord.claim] !== 0) count++;
    }
    return count;
  }
}
