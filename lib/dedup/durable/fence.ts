// Fence: whether the pool is still this owner's. Locks keep a second opener away where the kernel
// has them; a device that two hosts reach, or that is reached by two ways, has none. There the
// owner epoch decides: who opens the pool later writes a superblock with a higher one, and whoever
// had it before finds that, before it writes metadata and again before it names it.
//
// It is no arbiter: what a fenced owner writes between two looks lands where the device lets it.

import { Op } from '../../hpdi/index.js';
import { addressSpace, type Segment } from '../../memory/index.js';
import { native } from '../../native.js';
import { Head, Magic, Page, Place, Super } from '../format/layout.js';
import type { PoolIo } from './io.js';

const SLOTS = 2;
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
  private readonly segment: Segment;
  private readonly hashes = new Uint32Array(4);
  private readonly crcs = new Uint32Array(1);
  /** Checksum of the superblock that this owner has written last; 0: none yet. */
  private written = 0;

  constructor(io: PoolIo, facts: FenceFacts) {
    this.io = io;
    this.facts = facts;
    this.segment = addressSpace().create(SLOTS * Page.bytes);
  }

  close(): void {
    this.segment.close();
  }

  /** Asks for both superblocks; the number of answers that come. One that fails says nothing. */
  ask(kind: number, owner: number): number {
    this.segment.u32.fill(0);
    for (let slot = 0; slot < SLOTS; slot++) {
      const address = this.segment.address + slot * Page.bytes;
      this.io.ask(Op.READ, Place.superblockA + slot, 1, address, kind, owner);
    }
    return SLOTS;
  }

  /** Looks at the answers, as the owner who is about to write checkpoint `number`. */
  judge(number: number): void {
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.isForeign(slot, number)) this.fenced = true;
    }
  }

  /** What this owner has written, durably. */
  wrote(superblock: Uint32Array): void {
    this.written = superblock[Head.crc]!;
  }

  private isForeign(slot: number, number: number): boolean {
    const { facts } = this;
    const words = this.segment.u32;
    const at = slot << Page.shift;
    if (words[at] !== Magic.superblock || words[at + Head.pbnLo] !== slot) return false;
    const crc = words[at + Head.crc]!;
    if (crc !== this.checksum(slot)) return false; // a torn one is the other's business
    for (let i = 0; i < facts.uuid.length; i++) {
      if (words[at + Super.uuid + i] !== facts.uuid[i]) return true;
    }
    const checkpoint = words[at + Head.checkpoint]!;
    if (words[at + Super.epoch]! > facts.epoch || checkpoint >= number) return true;
    return checkpoint === number - 1 && this.written !== 0 && crc !== this.written;
  }

  /** As `checksum` of superblock.ts, with the seed that the page itself has; allocates nothing. */
  private checksum(slot: number): number {
    const { segment, hashes, crcs } = this;
    const at = slot << Page.shift;
    const address = segment.address + slot * Page.bytes;
    segment.u32[at + Head.crc] = segment.u32[at + Super.uuid]!;
    hashes[0] = address >>> 0;
    hashes[1] = address / TWO_32;
    hashes[2] = Page.bytes;
    native.crc32cList(hashes, 1, crcs);
    return crcs[0]!;
  }
}
