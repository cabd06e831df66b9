// Adapter: takes any request and fits it to the device: splits, bounces, and does in software what
// the device lacks (READ_LOAN, COMPARE, COPY, WRITE_ZEROES, SG lists).
//
// A request that fits is passed on untouched, in runs, so that the ordinary case costs a look at
// each record. Any other becomes a parent (adapter-parent.ts) with children in slots of their own
// (adapter-pieces.ts); children carry bit 31 in their tag.
//
// Invariants
// 1. No part of a request is issued before its whole range and addresses were checked.
// 2. `kept` counts the parents that have not completed and the completions in `done`: while it is
// 0,
//    the device's completions are the caller's as they are.
// 3. `done` never overflows: it holds completions of operations the caller has in flight, and those
//    are at most `depth`.

import type { Memory } from '../memory/index.js';
import { fence } from '../wire/index.js';
import { ParentMaker, type Parent } from './adapter-parent.js';
import { CHILD, Pieces, type ParentOwner } from './adapter-pieces.js';
import { passMasks } from './adapter-table.js';
import { CompletionRing } from './completions.js';
import type { QueueCounters, QueueDriver } from './driver.js';
import type { DeviceInfo } from './info.js';
import { LoanTable } from './loans.js';
import { Cpl, Flag, Req, Status } from './records.js';

const DRAIN_BATCH = 64;

export class Adapter implements QueueDriver, ParentOwner {
  // What every batch touches stands first, together.
  private readonly inner: QueueDriver;
  private readonly slowMask: number;
  private readonly sizedMask: number;
  private readonly transferMask: number;
  private readonly maxBlocks: number;
  private readonly alignMask: number;
  private readonly boundary: number;
  private kept = 0;
  /** A signal was asked for since the last completion was handed out. */
  private armed = false;
  private readonly done: CompletionRing;
  private readonly pieces: Pieces;
  private readonly maker: ParentMaker;
  private readonly loans: LoanTable;
  private readonly memory: Memory;
  /** As the device has it: HPDI waits on eventFd where there is none. */
  readonly park?: (timeoutUs: number) => void;

  /** `source.info` may be replaced while the queue is open: its capacity is looked up. */
  constructor(
    inner: QueueDriver,
    source: { readonly info: DeviceInfo },
    memory: Memory,
    depth: number,
  ) {
    const { info } = source;
    const masks = passMasks(info);
    this.inner = inner;
    this.slowMask = masks.slow;
    this.sizedMask = masks.sized;
    this.transferMask = masks.transfer;
    this.maxBlocks = Math.min(info.maxTransferBlocks, 0xffff_ffff);
    this.alignMask = info.addressAlign - 1;
    this.boundary = info.boundary;
    this.done = new CompletionRing(depth);
    this.pieces = new Pieces(this, inner, info, memory);
    this.loans = new LoanTable(memory, depth * 2);
    this.maker = new ParentMaker(source, this.loans);
    this.memory = memory;
    if (inner.park !== undefined) this.park = (timeoutUs) => inner.park!(timeoutUs);
  }

  get counters(): QueueCounters {
    return this.inner.counters;
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    let at = head;
    while (at !== tail) {
      const end = this.fitting(sq, at, tail);
      if (end !== at) {
        const taken = this.inner.submit(sq, at, end);
        if (taken < ((end - at) | 0)) return (at - head + taken) | 0;
        at = end;
        if (at === tail) break;
      }
      this.begin(sq, (at & ((sq.length >>> 3) - 1)) * Req.words);
      at = (at + 1) | 0;
    }
    return (tail - head) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    if (this.kept === 0) return this.inner.poll(cq, max);
    return this.pollKept(cq, max);
  }

  // hot:begin

  /**
   * Index of the first record from `head` on that the device does not take as it is, or `tail`.
   * What the device must refuse it takes as it is. Nothing is called and nothing stored in here, so
   * that the limits stay in registers.
   */
  private fitting(sq: Uint32Array, head: number, tail: number): number {
    const { slowMask, sizedMask, transferMask, alignMask, boundary } = this;
    const mask = (sq.length >>> 3) - 1;
    const maxBlocks = this.maxBlocks >>> 0;
    for (let i = head; i !== tail; i = (i + 1) | 0) {
      const at = (i & mask) * Req.words;
      const word = sq[at]!;
      if (((word & (Flag.mask & ~Flag.FUA)) | (sq[at + Req.tag]! & CHILD)) !== 0) return i;
      // Masks, not a table: one cache line less in every batch.
      const op = word & 0xff;
      const bit = op < 32 ? 1 << op : 0;
      if ((sizedMask & bit) === 0) {
        if ((slowMask & bit) !== 0) return i;
        continue;
      }
      const blocks = sq[at + Req.blocks]!;
      if (blocks > maxBlocks) return i;
      if ((transferMask & bit) !== 0 && (sq[at + Req.addressLo]! & alignMask) !== 0) return i;
      if (boundary === 0) continue;
      const lba = sq[at + Req.lbaHi]! * 4294967296 + sq[at + Req.lbaLo]!;
      if ((lba % boundary) + blocks > boundary) return i;
    }
    return tail;
  }

  // hot:end

  arm(): void {
    this.armed = true;
    this.inner.arm();
  }

  eventFd(): number {
    return this.inner.eventFd();
  }

  release(resultLo: number, resultHi: number): boolean {
    return this.loans.release(resultLo, resultHi) || this.inner.release(resultLo, resultHi);
  }

  /** Children complete by polling only; the client's own completions are kept for its poll. */
  async drain(): Promise<void> {
    const scratch = new Uint32Array(Cpl.words * DRAIN_BATCH);
    await this.inner.drain();
    while (this.pieces.live > 0) {
      const count = this.inner.poll(scratch, DRAIN_BATCH);
      for (let i = 0; i < count; i++) {
        const at = i * Cpl.words;
        const tag = scratch[at]!;
        if ((tag & CHILD) !== 0) {
          this.pieces.complete(tag, scratch[at + Cpl.status]!);
          continue;
        }
        this.kept++;
        const resultHi = scratch[at + Cpl.resultHi]!;
        this.done.push(tag, scratch[at + Cpl.status]!, scratch[at + Cpl.resultLo]!, resultHi);
      }
      this.pieces.advance();
      await this.inner.drain();
      if (count === 0) await new Promise((resolve) => setImmediate(resolve));
    }
  }

  async close(): Promise<void> {
    await this.drain();
    try {
      await this.inner.close();
    } finally {
      this.loans.close();
      this.pieces.close();
    }
  }

  /** Completes a parent none of whose parts is in flight. */
  finishParent(parent: Parent): void {
    let lo = parent.difference >>> 0;
    let hi = Math.floor(parent.difference / 2 ** 32);
    if (parent.give !== 0) this.giveBack(parent);
    if (parent.loan >= 0) {
      if (parent.status === Status.OK) {
        lo = this.loans.resultLo(parent.loan);
        hi = this.loans.resultHi(parent.loan);
      } else {
        this.loans.drop(parent.loan);
      }
    }
    this.done.push(parent.tag, parent.status, lo, hi);
  }

  /** Makes a parent of a record that does not fit, and issues what can be issued. */
  private begin(sq: Uint32Array, at: number): void {
    const parent = this.maker.make(sq, at);
    this.kept++;
    if (parent.status !== Status.OK) {
      this.finishParent(parent);
      return;
    }
    this.pieces.begin(parent);
    this.pieces.advance();
  }

  private pollKept(cq: Uint32Array, max: number): number {
    for (;;) {
      const taken = this.inner.poll(cq, max);
      let count = taken;
      if (this.pieces.live > 0) {
        count = this.sortOut(cq, taken);
        this.pieces.advance();
      }
      const own = this.done.drain(cq, count, max - count);
      this.kept -= own;
      count += own;
      if (count > 0) this.armed = false;
      if (count > 0 || !this.armed || taken === 0 || this.inner.eventFd() < 0) return count;
      // Only children completed, and others may have been issued: the caller would sleep on a
      // device that takes its signal for given.
      this.inner.arm();
      fence();
    }
  }

  /** Takes the children out of the first `count` completions; returns how many are left. */
  private sortOut(cq: Uint32Array, count: number): number {
    let left = 0;
    for (let i = 0; i < count; i++) {
      const at = i * Cpl.words;
      const tag = cq[at]!;
      if ((tag & CHILD) !== 0) {
        this.pieces.complete(tag, cq[at + Cpl.status]!);
        continue;
      }
      if (left !== i) cq.copyWithin(left * Cpl.words, at, at + Cpl.words);
      left++;
    }
    return left;
  }

  /** GIVE: the device releases the buffer to its owner. */
  private giveBack(parent: Parent): void {
    try {
      this.memory.freeAddress(parent.give);
    } catch {
      // Not a pool's buffer, or freed meanwhile: its giver had no right to give it.
      if (parent.status === Status.OK) parent.status = Status.BAD_ADDRESS;
    }
  }
}
