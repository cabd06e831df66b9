// PageCache: pages of metadata in memory, in frames of one segment.
//
// A page is known by its pbn; one with two slots by that of its slot A, and `slots` says which slot
// the durable state is in (docs/format.md, "States").
//
// Invariants
// 1. A frame's page was checked when it came: magic, checksum, place. What fails is never given
//    out.
// 2. Dirty, pinned and staged frames stay; any other may go when a frame is wanted.
// 3. `serials` changes whenever a frame becomes another page: who remembers a frame remembers that.
// 4. A dirty frame is written by checkpoints alone, from a copy (checkpoint.ts).

import { Op } from '../../hpdi/index.js';
import { native } from '../../native.js';
import type { PoolIo } from './io.js';
import type { OwnMemory } from '../reach.js';
import { Head, Magic, Page } from '../format/layout.js';

export const enum Frame {
  free = 0,
  loading = 1,
  valid = 2,
  /** It could not be read, or is not what it should be. */
  bad = 3,
}

/** What `get` gives instead of a frame. */
export const enum Miss {
  /** It is on its way, or no frame is free: ask again. */
  wait = -1,
  /** It cannot be had: `failure` says why. */
  bad = -2,
}

export const enum PageFailure {
  none = 0,
  /** The device could not read it: its status is in `failureStatus`. */
  device = 1,
  /** Magic, checksum or place is wrong. */
  corrupt = 2,
}

const TWO_32 = 4294967296;
const HASH_LOAD = 4;

/** Pages between slots A and B. */
export function slotDistance(magic: number): number {
  switch (magic) {
    case Magic.fingerprint:
    case Magic.root:
      return 1;
    case Magic.count:
    case Magic.summary:
      return 256;
    default:
      return 0;
  }
}

export class PageCache {
  readonly frames: number;
  readonly words: Uint32Array;
  readonly bytes: Uint8Array;
  readonly address: number;
  /** By frame: the page that is in it, -1: none. */
  readonly pbns: Float64Array;
  readonly states: Uint8Array;
  readonly magics: Uint32Array;
  readonly serials: Uint32Array;
  readonly dirty: Uint8Array;
  /** In which checkpoint's time it was last changed. */
  readonly generations: Uint32Array;
  readonly pins: Uint16Array;
  /** A checkpoint that is under way has a copy which is not durable yet. */
  readonly staged: Uint8Array;
  readonly slots: Uint8Array;
  dirtyCount = 0;
  stagedCount = 0;
  /** Written by the last checkpoint, and pinned: by blocks that it freed, till they are free. */
  heldCount = 0;
  /** Pinned by blocks that were given out and not entered (frame-bits.ts). */
  reservedCount = 0;
  /** Loads that ended so far: who waits for a page asks again when it changes. */
  loads = 0;
  loading = 0;
  hits = 0;
  misses = 0;
  failure = PageFailure.none;
  failureStatus = 0;
  failurePbn = 0;
  private readonly io: PoolIo;
  private readonly kind: number;
  private readonly seed: number;
  private readonly segment: OwnMemory;
  private readonly hash: Int32Array;
  private readonly hashMask: number;
  private readonly used: Uint8Array;
  private hand = 0;
  private readonly free: Int32Array;
  private freeCount: number;
  private readonly failures: Uint32Array;
  private readonly crcEntry = new Uint32Array(4);
  private readonly crcOut = new Uint32Array(1);

  /** `kind`: of its requests to the device; `seed`: the pool's (docs/format.md). */
  constructor(io: PoolIo, kind: number, frames: number, seed: number) {
    this.io = io;
    this.kind = kind;
    this.seed = seed;
    this.frames = frames;
    this.segment = io.reach.alloc(frames * Page.bytes);
    this.words = this.segment.u32;
    this.bytes = this.segment.u8;
    this.address = this.segment.address;
    this.pbns = new Float64Array(frames).fill(-1);
    this.states = new Uint8Array(frames);
    this.magics = new Uint32Array(frames);
    this.serials = new Uint32Array(frames);
    this.dirty = new Uint8Array(frames);
    this.generations = new Uint32Array(frames);
    this.pins = new Uint16Array(frames);
    this.staged = new Uint8Array(frames);
    this.slots = new Uint8Array(frames);
    this.used = new Uint8Array(frames);
    this.failures = new Uint32Array(frames);
    this.free = Int32Array.from({ length: frames }, (_, i) => frames - 1 - i);
    this.freeCount = frames;
    let size = 64;
    while (size < frames * HASH_LOAD) size *= 2;
    this.hash = new Int32Array(size).fill(-1);
    this.hashMask = size - 1;
  }

  close(): void {
    this.segment.close();
  }

  // hot:begin

  /** The frame of a page, whatever its state; -1 when it has none. */
  frameOf(pbn: number): number {
    const { hash, hashMask, pbns } = this;
    for (let at = this.place(pbn); ; at = (at + 1) & hashMask) {
      const frame = hash[at]!;
      if (frame < 0 || pbns[frame] === pbn) return frame;
    }
  }

  /** The frame of a page that is here; or a Miss, and it is asked for. `slot`: see `slots`. */
  get(pbn: number, magic: number, slot: number): number {
    const frame = this.frameOf(pbn);
    if (frame < 0) {
      this.misses++;
      return this.load(pbn, magic, slot);
    }
    if (this.states[frame] === Frame.valid) {
      this.used[frame] = 1;
      this.hits++;
      return this.magics[frame] === magic ? frame : this.mismatch(pbn);
    }
    return this.states[frame] === Frame.loading ? Miss.wait : this.giveUp(frame);
  }

  /** A frame was used again: others go before it. */
  keep(frame: number): void {
    this.used[frame] = 1;
    this.hits++;
  }

  private place(pbn: number): number {
    const mixed = Math.imul((pbn >>> 0) ^ Math.imul((pbn / TWO_32) >>> 0, 0x85ebca6b), 0x9e3779b1);
    return (mixed ^ (mixed >>> 15)) & this.hashMask;
  }

  // hot:end

  /** A frame for a page that is new: all zeros but for what the caller writes. Miss.wait: none. */
  make(pbn: number, magic: number, slot: number, generation: number): number {
    // Of a page that was here before and was freed.
    const known = this.frameOf(pbn);
    if (known >= 0) this.drop(known);
    const frame = this.claim();
    if (frame < 0) return Miss.wait;
    this.enter(frame, pbn, magic, slot);
    this.words.fill(0, frame << Page.shift, (frame + 1) << Page.shift);
    this.states[frame] = Frame.valid;
    this.used[frame] = 1;
    this.touch(frame, generation);
    return frame;
  }

  /** Marks a frame as changed. */
  touch(frame: number, generation: number): void {
    this.generations[frame] = generation;
    if (this.dirty[frame] !== 0) return;
    this.dirty[frame] = 1;
    this.dirtyCount++;
  }

  /** The same page, from now on elsewhere on the device. */
  move(frame: number, pbn: number): void {
    const known = this.frameOf(pbn);
    if (known >= 0) this.drop(known);
    this.unhash(frame);
    this.pbns[frame] = pbn;
    this.rehash(frame);
  }

  /** A frame without a page. Its changes are lost: it was freed. */
  drop(frame: number): void {
    if (this.dirty[frame] !== 0) this.dirtyCount--;
    this.dirty[frame] = 0;
    this.unhash(frame);
    this.pbns[frame] = -1;
    this.states[frame] = Frame.free;
    this.serials[frame] = this.serials[frame]! + 1;
    this.pins[frame] = 0;
    this.free[this.freeCount++] = frame;
  }

  /** The device has answered a load. */
  loaded(frame: number, status: number): void {
    this.loads++;
    this.loading--;
    if (status !== 0) {
      this.failures[frame] = status;
      this.states[frame] = Frame.bad;
      return;
    }
    this.failures[frame] = 0;
    this.states[frame] = this.isSound(frame) ? Frame.valid : Frame.bad;
  }

  /** Where on the device the durable state of a frame's page is. */
  devicePbn(frame: number): number {
    return this.pbns[frame]! + this.slots[frame]! * slotDistance(this.magics[frame]!);
  }

  /** Frames that stay till a checkpoint is over. */
  get kept(): number {
    return this.dirtyCount + this.stagedCount + this.heldCount;
  }

  /** What a checkpoint has staged is durable. */
  unstage(): void {
    const { staged, pins, frames } = this;
    let held = 0;
    for (let frame = 0; frame < frames; frame++) {
      if (staged[frame] !== 0 && pins[frame] !== 0) held++;
      staged[frame] = 0;
    }
    this.stagedCount = 0;
    this.heldCount = held;
  }

  get freeFrames(): number {
    return this.freeCount;
  }

  private load(pbn: number, magic: number, slot: number): number {
    const frame = this.claim();
    if (frame < 0) return Miss.wait;
    this.enter(frame, pbn, magic, slot);
    this.states[frame] = Frame.loading;
    this.used[frame] = 1;
    this.loading++;
    const address = this.address + frame * Page.bytes;
    this.io.ask(Op.READ, this.devicePbn(frame), 1, address, this.kind, frame);
    return Miss.wait;
  }

  /** Tells of a frame that is bad, once: who asks again, has it read again. */
  private giveUp(frame: number): number {
    const status = this.failures[frame]!;
    this.failure = status === 0 ? PageFailure.corrupt : PageFailure.device;
    this.failureStatus = status;
    this.failurePbn = this.devicePbn(frame);
    if (this.pins[frame] === 0) this.drop(frame);
    return Miss.bad;
  }

  /** Somewhere a page is named as what it is not. */
  mismatch(pbn: number): number {
    this.failure = PageFailure.corrupt;
    this.failureStatus = 0;
    this.failurePbn = pbn;
    return Miss.bad;
  }

  private isSound(frame: number): boolean {
    const { words, crcEntry } = this;
    const at = frame << Page.shift;
    const pbn = this.devicePbn(frame);
    if (words[at] !== this.magics[frame]) return false;
    if (words[at + Head.pbnHi]! * TWO_32 + words[at + Head.pbnLo]! !== pbn) return false;
    const crc = words[at + Head.crc]!;
    words[at + Head.crc] = this.seed;
    const address = this.address + frame * Page.bytes;
    crcEntry[0] = address >>> 0;
    crcEntry[1] = address / TWO_32;
    crcEntry[2] = Page.bytes;
    native.crc32cList(crcEntry, 1, this.crcOut);
    return this.crcOut[0] === crc;
  }

  /** A frame with nothing in it, taken from a page that is not needed if there is no other. */
  private claim(): number {
    if (this.freeCount > 0) return this.free[--this.freeCount]!;
    const { states, used, dirty, pins, staged, frames } = this;
    for (let looked = 0; looked < frames * 2; looked++) {
      const frame = this.hand;
      this.hand = frame + 1 === frames ? 0 : frame + 1;
      if (states[frame] === Frame.loading || dirty[frame] !== 0) continue;
      if (pins[frame] !== 0 || staged[frame] !== 0) continue;
      if (used[frame] !== 0) {
        used[frame] = 0;
        continue;
      }
      this.drop(frame);
      return this.free[--this.freeCount]!;
    }
    return -1;
  }

  private enter(frame: number, pbn: number, magic: number, slot: number): void {
    this.pbns[frame] = pbn;
    this.magics[frame] = magic;
    this.slots[frame] = slot;
    this.pins[frame] = 0;
    this.staged[frame] = 0;
    this.generations[frame] = 0; // as it is on the device, until it is touched
    this.serials[frame] = this.serials[frame]! + 1;
    this.rehash(frame);
  }

  private rehash(frame: number): void {
    const { hash, hashMask } = this;
    let at = this.place(this.pbns[frame]!);
    while (hash[at]! >= 0) at = (at + 1) & hashMask;
    hash[at] = frame;
  }

  /** Takes a frame out of the hash; what came after it by collision moves up. */
  private unhash(frame: number): void {
    const { hash, hashMask, pbns } = this;
    let at = this.place(pbns[frame]!);
    while (hash[at] !== frame) at = (at + 1) & hashMask;
    for (let next = (at + 1) & hashMask; hash[next]! >= 0; next = (next + 1) & hashMask) {
      const home = this.place(pbns[hash[next]!]!);
      // It may move to `at` unless its own place lies between the two.
      if (((next - home) & hashMask) < ((next - at) & hashMask)) continue;
      hash[at] = hash[next]!;
      at = next;
    }
    hash[at] = -1;
  }
}
