// The parts that an adapter makes of requests that do not fit: issuing them as children, bouncing,
// and putting their results together.
//
// Invariants
// 1. A parent finishes once, when none of its children is in flight, with the status of the failing
//    child that lies first in the request.
// 2. A bounce buffer belongs to one child from issue to completion.
// 3. A parent that cannot go on for lack of slots or bounce buffers stays in `waiting` and is taken
//    up again by `advance`. Those that wait take turns, piece by piece: none starves behind a long
//    one.
// 4. A slot has at most one record in `sq` that the device has not taken: the ring never overflows.

import type { DmaBuffer, Memory } from '../memory/index.js';
import { BounceBuffers, LOST, SAME } from './adapter-bounce.js';
import type { Parent } from './adapter-parent.js';
import type { QueueDriver } from './driver.js';
import type { DeviceInfo } from './info.js';
import { Flag, Op, Req, Status } from './records.js';

/** Marks a child's tag; the rest of it is the child's slot. */
export const CHILD = 0x80000000;
const CHILDREN = 64;

/** One piece of a parent. */
class Child {
  parent: Parent | null = null;
  start = 0;
  blocks = 0;
  bounce: DmaBuffer | null = null;
  /** COPY: the read is done, the write is under way. */
  writing = false;
}

/** What becomes of a parent that is done. */
export interface ParentOwner {
  finishParent(parent: Parent): void;
}

export class Pieces {
  /** Parents that have not finished. */
  live = 0;
  private readonly owner: ParentOwner;
  private readonly inner: QueueDriver;
  private readonly info: DeviceInfo;
  private readonly bounces: BounceBuffers;
  private readonly children: Child[] = [];
  private readonly freeSlots: number[] = [];
  private readonly sq = new Uint32Array(CHILDREN * Req.words);
  private head = 0;
  private tail = 0;
  /** Parents with more to issue, in turn. */
  private readonly waiting: Parent[] = [];

  constructor(owner: ParentOwner, inner: QueueDriver, info: DeviceInfo, memory: Memory) {
    this.owner = owner;
    this.inner = inner;
    this.info = info;
    this.bounces = new BounceBuffers(memory, info.blockSize);
    for (let i = 0; i < CHILDREN; i++) {
      this.children.push(new Child());
      this.freeSlots.push(CHILDREN - 1 - i);
    }
  }

  /** Takes a parent on; `advance` issues its pieces. */
  begin(parent: Parent): void {
    this.live++;
    parent.listed = true;
    this.waiting.push(parent);
  }

  /** Issues children of waiting parents while there is room, and hands them to the device. */
  advance(): void {
    // How many in a row could issue nothing: once it is all of them, there is no room.
    let idle = 0;
    while (idle < this.waiting.length) {
      const parent = this.waiting.shift()!;
      if (!parent.allIssued) {
        idle = this.issue(parent) ? 0 : idle + 1;
        this.waiting.push(parent);
        continue;
      }
      idle = 0;
      parent.listed = false;
      if (parent.inFlight === 0) this.finish(parent);
    }
    this.push();
  }

  /** A child's completion. `advance` must follow. */
  complete(tag: number, status: number): void {
    const slot = tag & (CHILDREN - 1);
    const child = this.children[slot]!;
    const parent = child.parent!;
    if (status === Status.OK && parent.op === Op.COPY && !child.writing) {
      child.writing = true;
      const word = Op.WRITE | (parent.flags & Flag.FUA);
      this.record(slot, word, parent.lba + child.start, child.blocks, child.bounce!.address);
      return;
    }
    if (status !== Status.OK) parent.fail(child.start, status);
    else if (child.bounce !== null) this.useBounced(parent, child, child.bounce);
    if (child.bounce !== null) this.bounces.give(child.bounce);
    child.bounce = null;
    child.parent = null;
    this.freeSlots.push(slot);
    parent.inFlight--;
    if (parent.inFlight === 0 && !parent.listed) this.finish(parent);
  }

  /** Frees what was held; nothing may be in flight. */
  close(): void {
    this.bounces.close();
  }

  private finish(parent: Parent): void {
    this.live--;
    this.owner.finishParent(parent);
  }

  /** A READ, READ_LOAN or COMPARE whose data came to a bounce buffer. */
  private useBounced(parent: Parent, child: Child, bounce: DmaBuffer): void {
    const { start, blocks } = child;
    if (parent.op === Op.READ || parent.op === Op.READ_LOAN) {
      if (!this.bounces.move(parent, start, blocks, bounce, true)) {
        parent.fail(start, Status.BAD_ADDRESS);
      }
    } else if (parent.op === Op.COMPARE) {
      const difference = this.bounces.firstDifference(parent, start, blocks, bounce);
      if (difference === LOST) parent.fail(start, Status.BAD_ADDRESS);
      else if (difference !== SAME) {
        const offset = start * this.info.blockSize + difference;
        parent.fail(start, Status.MISCOMPARE, offset);
      }
    }
  }

  /** Hands prepared children to the device; what it does not take stays for the next time. */
  private push(): void {
    if (this.head === this.tail) return;
    this.head = (this.head + this.inner.submit(this.sq, this.head, this.tail)) | 0;
  }

  /** Issues the parent's next piece, or fails it; false when it must wait. */
  private issue(parent: Parent): boolean {
    if (this.freeSlots.length === 0 || (parent.inTurn && parent.inFlight > 0)) return false;
    switch (parent.op) {
      case Op.READ:
      case Op.READ_LOAN:
        return this.issueTransfer(parent, Op.READ);
      case Op.WRITE:
        return this.issueTransfer(parent, Op.WRITE);
      case Op.COMPARE:
        return this.issueBounced(parent, Op.READ, parent.lba);
      case Op.COPY:
        return this.issueBounced(parent, Op.READ, parent.source);
      case Op.WRITE_ZEROES:
        return this.issueZeroes(parent);
      default:
        this.issueChild(parent, parent.op, parent.lba, this.pieceBlocks(parent), 0, null);
        return true;
    }
  }

  /**
   * From or to the caller's memory where that is contiguous and aligned, else by a bounce buffer.
   */
  private issueTransfer(parent: Parent, op: number): boolean {
    const offset = parent.issued * this.info.blockSize;
    let before = 0;
    for (let i = 0; i < parent.lengths.length; i++) {
      const end = before + parent.lengths[i]!;
      if (offset >= end) {
        before = end;
        continue;
      }
      const address = parent.addresses[i]! + (offset - before);
      const contiguous = Math.floor((end - offset) / this.info.blockSize);
      if (contiguous === 0 || address % this.info.addressAlign !== 0) break;
      const blocks = Math.min(this.pieceBlocks(parent), contiguous);
      this.issueChild(parent, op, parent.lba, blocks, address, null);
      return true;
    }
    return this.issueBounced(parent, op, parent.lba);
  }

  private issueBounced(parent: Parent, op: number, lba: number): boolean {
    const bounce = this.bounces.take();
    if (bounce === null) {
      if (!this.bounces.noneOut) return false;
      parent.fail(parent.issued, Status.NO_MEMORY);
      return true;
    }
    const blocks = Math.min(this.pieceBlocks(parent), this.bounces.blocks);
    if (op === Op.WRITE && !this.bounces.move(parent, parent.issued, blocks, bounce, false)) {
      this.bounces.give(bounce);
      parent.fail(parent.issued, Status.BAD_ADDRESS);
      return true;
    }
    this.issueChild(parent, op, lba, blocks, bounce.address, bounce);
    return true;
  }

  private issueZeroes(parent: Parent): boolean {
    const blocks = this.pieceBlocks(parent);
    if ((this.info.operations & (1 << Op.WRITE_ZEROES)) !== 0) {
      this.issueChild(parent, Op.WRITE_ZEROES, parent.lba, blocks, 0, null);
      return true;
    }
    const zeroes = this.bounces.zeroes();
    if (zeroes === null) {
      parent.fail(parent.issued, Status.NO_MEMORY);
      return true;
    }
    const most = Math.min(blocks, this.bounces.blocks);
    this.issueChild(parent, Op.WRITE, parent.lba, most, zeroes.address, null);
    return true;
  }

  /** Takes a slot for the parent's next `blocks` blocks; `lba` is that of its block 0. */
  private issueChild(
    parent: Parent,
    op: number,
    lba: number,
    blocks: number,
    address: number,
    bounce: DmaBuffer | null,
  ): void {
    const slot = this.freeSlots.pop()!;
    const child = this.children[slot]!;
    child.parent = parent;
    child.start = backwards(parent) ? parent.blocks - parent.issued - blocks : parent.issued;
    child.blocks = blocks;
    child.bounce = bounce;
    child.writing = false;
    parent.issued += blocks;
    parent.inFlight++;
    // A COPY is durable by its writes.
    const flags = parent.op === Op.COPY ? 0 : parent.flags & Flag.FUA;
    this.record(slot, op | flags, lba + child.start, blocks, address);
  }

  private record(slot: number, word: number, lba: number, blocks: number, address: number): void {
    const at = (this.tail & (CHILDREN - 1)) * Req.words;
    const { sq } = this;
    sq[at] = word;
    sq[at + Req.tag] = (slot | CHILD) >>> 0;
    sq[at + Req.blocks] = blocks;
    sq[at + Req.aux] = 0;
    sq[at + Req.lbaLo] = lba >>> 0;
    sq[at + Req.lbaHi] = Math.floor(lba / 2 ** 32);
    sq[at + Req.addressLo] = address >>> 0;
    sq[at + Req.addressHi] = Math.floor(address / 2 ** 32);
    this.tail = (this.tail + 1) | 0;
  }

  /** Blocks of the next piece by the device's limits alone. */
  private pieceBlocks(parent: Parent): number {
    const left = parent.blocks - parent.issued;
    const blocks = Math.min(left, this.info.maxTransferBlocks);
    const here = this.toBoundary(parent, parent.lba, blocks);
    return parent.op === Op.COPY ? this.toBoundary(parent, parent.source, here) : here;
  }

  /** How many of the parent's next `blocks` do not cross a boundary when its block 0 is `lba`. */
  private toBoundary(parent: Parent, lba: number, blocks: number): number {
    const { boundary } = this.info;
    if (boundary === 0) return blocks;
    if (!backwards(parent)) {
      return Math.min(blocks, boundary - ((lba + parent.issued) % boundary));
    }
    const last = lba + parent.blocks - parent.issued - 1;
    return Math.min(blocks, (last % boundary) + 1);
  }
}

/** A COPY to higher blocks of what it reads: its last piece goes first. */
function backwards(parent: Parent): boolean {
  return parent.inTurn && parent.source < parent.lba;
}
