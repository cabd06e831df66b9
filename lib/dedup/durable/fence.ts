// Fence: whether the pool is still this owner's. Locks keep a second opener away where the kernel
// has them; a device that two hosts reach, or that is reached by two ways, has none. There the
// owner epoch decides: who opens the pool later writes a superblock with a higher one, and whoever
// had it before finds that, before it writes metadata and again before it names it.
//
// It is no arbiter: what a fenced owner writes between two looks lands where the device lets it.

import { Op } from '../../hpdi/index.js';
import { native } from '../../native.js';
import { Head, Magic, Page, Place, Super } from '../format/layout.js';
import type { PoolIo } from './io.js';
import type { OwnMemory } from '../reach.js';

const SLOTS = 2;
/** Of an entry of crc32cList. */
const HASH_WORDS = 4;
const TWO_32 = 4294967296;

export interface FenceFacts {
  readonly uuid: Uint32Array;
  readonly epoch: number;
}

export class Fence {
  /** Another owner has written a superblock: nothing may be written any more. */
  fenced = false;
  private readonly io: PoolIo;
  private readonly facts: FenceFacts;
  private readonly segment: OwnMemory;
  /** Both pages, in words with a sign: those above 2^31 would be objects of the heap. */
  private readonly words: Int32Array;
  private readonly uuid: Int32Array;
  /** Entries of crc32cList for both pages. */
  private readonly hashes = new Uint32Array(SLOTS * HASH_WORDS);
  private readonly crcs = new Uint32Array(SLOTS);
  private readonly signed = new Int32Array(this.crcs.buffer);
  /** What the pages say of themselves. */
  private readonly claimed = new Int32Array(SLOTS);
  /** Checksum of the superblock that this owner has written last; 0: none yet. */
  private written = 0;

  constructor(io: PoolIo, facts: FenceFacts) {
    this.io = io;
    this.facts = facts;
    this.segment = io.reach.alloc(SLOTS * Page.bytes);
    const { buffer, byteOffset } = this.segment.u32;
    this.words = new Int32Array(buffer, byteOffset, SLOTS * Page.words);
    this.uuid = Int32Array.from(facts.uuid);
    for (let slot = 0; slot < SLOTS; slot++) {
      const address = this.segment.address + slot * Page.bytes;
      this.hashes.set([address >>> 0, address / TWO_32, Page.bytes], slot * HASH_WORDS);
    }
  }

  close(): void {
    this.segment.close();
  }

  /** Asks for both superblocks; the number of answers that come. One that fails says nothing. */
  ask(kind: number, owner: number): number {
    this.words.fill(0);
    for (let slot = 0; slot < SLOTS; slot++) {
      const lo = this.hashes[slot * HASH_WORDS]! | 0;
      const hi = this.hashes[slot * HASH_WORDS + 1]! | 0;
      this.io.askWords(Op.READ, Place.superblockA + slot, 0, 1, lo, hi, kind, owner);
    }
    return SLOTS;
  }

  /** Looks at the answers, as the owner who is about to write checkpoint `number`. */
  judge(number: number): void {
    const { words, hashes, crcs, signed, claimed } = this;
    for (let slot = 0; slot < SLOTS; slot++) {
      const at = (slot << Page.shift) + Head.crc;
      claimed[slot] = words[at]!;
      // As `checksum` of superblock.ts, with the seed that the page itself has.
      words[at] = words[(slot << Page.shift) + Super.uuid]!;
    }
    native.crc32cList(hashes, SLOTS, crcs);
    for (let slot = 0; slot < SLOTS; slot++) {
      // A torn one is the other's business.
      const crc = claimed[slot]!;
      if (signed[slot] === crc && this.isForeign(slot, crc, number)) this.fenced = true;
    }
  }

  /** What this owner has written, durably. */
  wrote(superblock: Uint32Array): void {
    this.written = superblock[Head.crc]! | 0;
  }

  private isForeign(slot: number, crc: number, number: number): boolean {
    const { facts, uuid, words } = this;
    const at = slot << Page.shift;
    if (words[at] !== (Magic.superblock | 0) || words[at + Head.pbnLo] !== slot) return false;
    for (let i = 0; i < uuid.length; i++) {
      if (words[at + Super.uuid + i] !== uuid[i]) return true;
    }
    const checkpoint = words[at + Head.checkpoint]! >>> 0;
    if (words[at + Super.epoch]! >>> 0 > facts.epoch || checkpoint >= number) return true;
    return checkpoint === number - 1 && this.written !== 0 && crc !== this.written;
  }
}
