// A namespace's queue: requests become entries of a claimed queue pair; no system call, one
// doorbell a batch (NVM Express Base 2.0, section 3.3; NVM Command Set 1.0).
//
// Invariants
// 1. A slot is a command identifier. It belongs to one operation from submit to its completion, and
//    keeps the request, so that the operation can be tried again.
// 2. An entry carries addresses that the device was allowed to reach (Reach) and nothing else of
//    the caller's but numbers that were checked.
// 3. A completion counts when its identifier is in flight; any other is a stray, and the controller
//    is reset (queue-recovery.ts).
// 4. Rings and doorbells are touched only between `inside = 1` and `inside = 0`, after a look at
//    the epoch (pairs.ts).

import { Access, Cpl, Flag, Op, Req, Status, type QueueDriver } from '../../hpdi/index.js';
import { native } from '../../native.js';
import { fence } from '../../wire/index.js';
import { buildOther, checkOther, type CheckContext } from './commands-io.js';
import { Cdw12, Cqe, IoOp, Sqe } from './commands.js';
import { DataPointer } from './data-pointer.js';
import { Doorbells } from './doorbells.js';
import type { Injector } from './inject.js';
import { PairWord, Slot, type PairViews } from './pairs.js';
import type { NvmeCounters, NvmeQueueOptions } from './queue-options.js';
import { Count, QueueRecovery } from './queue-recovery.js';
import { QueueSleep } from './queue-sleep.js';
import { QueueSlots } from './queue-slots.js';
import { Reach, REACH_LATER } from './reach.js';

const PHASE = 1 << 16;
/** Polls without a completion between two looks at what else there is to do. */
const IDLE_POLLS = 4096;
const SPINS = 8192;
/** No epoch of running rings: the next call looks at what the home did. */
const NO_EPOCH = 1;

export class NvmeQueue implements QueueDriver {
  // What every batch touches stands first, together.
  private readonly header: Uint32Array;
  private readonly sq: Uint32Array;
  private readonly sqPairs: Float64Array;
  private readonly cq: Uint32Array;
  private readonly slots: QueueSlots;
  private sqTail: number;
  private rung: number;
  private cqHead: number;
  private phase: number;
  private epoch: number;
  private readonly entryMask: number;
  private readonly nsid: number;
  private readonly shift: number;
  private readonly maxBlocks: number;
  private readonly readOnly: boolean;
  private readonly context: CheckContext;
  private readonly reach: Reach;
  private readonly pointer: DataPointer;
  private readonly bells: Doorbells;
  private readonly injector: Injector | null;
  private readonly depth: number;
  private readonly counts = new Float64Array(Count.words);
  private readonly recovery: QueueRecovery;
  private readonly views: PairViews;
  private readonly options: NvmeQueueOptions;
  private readonly sleep: QueueSleep;
  private idle = 0;

  constructor(options: NvmeQueueOptions) {
    const { table, pair, depth, info } = options;
    const { entries } = table.shape;
    this.options = options;
    this.views = table.views(pair);
    const { header } = this.views;
    this.header = header;
    this.sq = options.ring ?? this.views.sq;
    this.sqPairs = new Float64Array(this.sq.buffer, this.sq.byteOffset, entries * 8);
    this.cq = this.views.cq;
    this.slots = new QueueSlots(this.views.slots, Math.min(depth, entries - 1), depth);
    this.sqTail = header[PairWord.sqTail]!;
    this.rung = this.sqTail;
    this.cqHead = header[PairWord.cqHead]!;
    this.phase = header[PairWord.phase]!;
    this.entryMask = entries - 1;
    this.nsid = options.nsid;
    this.shift = Math.log2(info.blockSize);
    this.maxBlocks = info.maxTransferBlocks;
    this.readOnly = info.readOnly;
    this.reach = new Reach(options.dma);
    this.pointer = new DataPointer({
      slots: this.slots.count,
      maxBytes: info.maxTransferBlocks * info.blockSize,
      sgl: options.sgl,
      kind: options.kind,
    });
    this.bells = new Doorbells(options.doorbells);
    this.injector = options.injector;
    this.depth = depth;
    this.sleep = new QueueSleep(options.interrupt);
    this.recovery = new QueueRecovery({
      views: this.views,
      namespaces: table.namespaces,
      row: options.row,
      retries: options.retries,
      slotCount: this.slots.count,
      counts: this.counts,
    });
    this.epoch = NO_EPOCH;
    this.context = { info, reach: this.reach, blocks: 0, removed: false };
    this.readFacts();
    header[PairWord.depth] = this.slots.count;
    header[PairWord.nsid] = options.nsid;
    this.mapLists();
  }

  get counters(): NvmeCounters {
    const { counts } = this;
    return {
      doorbells: this.bells.mmio >>> 0,
      polls: counts[Count.polls]!,
      submissions: counts[Count.submissions]!,
      completions: counts[Count.completions]!,
      shadowDoorbells: this.bells.shadowed >>> 0,
      idlePolls: counts[Count.idlePolls]!,
      retries: counts[Count.retries]!,
      timeouts: counts[Count.timeouts]!,
      resets: counts[Count.resets]!,
    };
  }

  /** Why memory could not be mapped for the device, when that happened. */
  get mappingFailure(): Reach['failure'] {
    return this.reach.failure;
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const { header } = this;
    header[PairWord.inside] = 1;
    const running = header[PairWord.epoch] === this.epoch || this.follow();
    const mask = (sq.length >>> 3) - 1;
    const { injector, slots } = this;
    let at = head;
    for (; at !== tail; at = (at + 1) | 0) {
      if (slots.freeCount === 0 || slots.done.length >= this.depth) break;
      const record = (at & mask) * Req.words;
      const slot = this.prepare(sq, record);
      if (slot < 0) {
        if (slot === -REACH_LATER) break;
        slots.done.push(sq[record + Req.tag]!, -slot, 0, 0);
        continue;
      }
      if (!running) this.keep(slot);
      else if (injector === null || !this.inject(injector, slot)) this.issue(slot);
    }
    if (this.sqTail !== this.rung) this.ring();
    header[PairWord.inside] = 0;
    return (at - head) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    const { header, counts } = this;
    counts[Count.polls] = counts[Count.polls]! + 1;
    header[PairWord.inside] = 1;
    const running = header[PairWord.epoch] === this.epoch || this.follow();
    const { done } = this.slots;
    let count = done.length === 0 ? 0 : done.drain(cq, 0, max);
    if (running) {
      count = this.reap(cq, count, max);
      if (this.recovery.waiting > 0) this.issueWaiting();
    }
    header[PairWord.inside] = 0;
    if (count > 0) {
      this.idle = 0;
      this.sleep.disarm();
    } else {
      this.idle = (this.idle + 1) | 0;
      if ((this.idle & (IDLE_POLLS - 1)) === 0) this.lookAround();
    }
    return count;
  }

  /** Completions of the device, from record `count` of cq on; returns the new count. */
  private reap(out: Uint32Array, count: number, max: number): number {
    const { cq } = this;
    const { words: slots, tags, free, count: slotCount } = this.slots;
    let head = this.cqHead;
    let phase = this.phase;
    let { freeCount } = this.slots;
    let to = count * Cpl.words;
    const end = max * Cpl.words;
    let taken = 0;
    // Once round the ring at most: a controller that goes on marking entries keeps nobody here.
    while (to < end && taken <= this.entryMask) {
      const at = head * Cqe.words;
      const word = cq[at + Cqe.status]!;
      if ((word & PHASE) !== phase) break;
      head++;
      taken++;
      if (head > this.entryMask) {
        head = 0;
        phase ^= PHASE;
      }
      const slot = word & 0xffff;
      if (slot >= slotCount || slots[slot * Slot.words] === 0) {
        this.recovery.stray();
        continue;
      }
      let status = 0;
      if (word >>> 17 !== 0) {
        status = this.recovery.failed(slot, word >>> 17);
        if (status < 0) continue; // it is tried again
      }
      const special = (slots[slot * Slot.words]! & 0xff) >= Op.ZONE_APPEND;
      out[to] = tags[slot]!;
      out[to + Cpl.status] = status;
      out[to + Cpl.resultLo] = special ? cq[at + Cqe.dw0]! : 0;
      out[to + Cpl.resultHi] = special ? cq[at + Cqe.dw1]! : 0;
      slots[slot * Slot.words] = 0;
      free[freeCount++] = slot;
      to += Cpl.words;
    }
    if (taken === 0) {
      this.counts[Count.idlePolls] = this.counts[Count.idlePolls]! + 1;
      return count;
    }
    this.slots.freeCount = freeCount;
    this.cqHead = head;
    this.phase = phase;
    this.counts[Count.completions] = this.counts[Count.completions]! + taken;
    this.bells.head(head);
    return to / Cpl.words;
  }

  /** Checks a request and keeps it in a slot; its number, or the negative status it has. */
  private prepare(sq: Uint32Array, record: number): number {
    const word = sq[record]!;
    const op = word & 0xff;
    const blocks = sq[record + Req.blocks]!;
    const addressLo = sq[record + Req.addressLo]!;
    const addressHi = sq[record + Req.addressHi]!;
    const lbaLo = sq[record + Req.lbaLo]!;
    const lbaHi = sq[record + Req.lbaHi]!;
    if ((op !== Op.READ && op !== Op.WRITE) || (word & (Flag.mask & ~Flag.FUA)) !== 0) {
      const status = checkOther(sq, record, this.context);
      if (status !== Status.OK) return -status;
    } else {
      if (op === Op.WRITE && this.readOnly) return -Status.READ_ONLY;
      if (blocks === 0) return -Status.BAD_REQUEST;
      if (lbaHi * 4294967296 + lbaLo + blocks > this.context.blocks) return -this.outside();
      if (blocks > this.maxBlocks) return -Status.TOO_LARGE;
      const access = op === Op.WRITE ? Access.read : Access.write;
      const status = this.reach.check(addressLo, addressHi, blocks << this.shift, access);
      if (status !== Status.OK) return -status;
      if ((addressLo & 3) !== 0) return -Status.MISALIGNED;
    }
    return this.slots.take(sq, record);
  }

  /** Makes the entry of a slot's operation at the ring's tail. */
  private issue(slot: number): void {
    const { sq, sqPairs } = this;
    const slots = this.slots.words;
    const s = slot * Slot.words;
    const at = this.sqTail * Sqe.words;
    const word = slots[s]!;
    const op = word & 0xff;
    // Words of two numbers are cleared at once: an entry may be that of an older command.
    sqPairs[(at >>> 1) + 1] = 0;
    sqPairs[(at >>> 1) + 2] = 0;
    if (op === Op.READ || op === Op.WRITE) {
      const blocks = slots[s + Slot.blocks]!;
      const psdt = this.pointer.describe(
        sq,
        at,
        slot,
        slots[s + Slot.addressLo]!,
        slots[s + Slot.addressHi]!,
        blocks << this.shift,
      );
      sq[at] = (op === Op.READ ? IoOp.READ : IoOp.WRITE) | psdt | (slot << 16);
      sq[at + Sqe.nsid] = this.nsid;
      sq[at + Sqe.cdw10] = slots[s + Slot.lbaLo]!;
      sq[at + Sqe.cdw11] = slots[s + Slot.lbaHi]!;
      sq[at + Sqe.cdw12] = (blocks - 1) | ((word & Flag.FUA) !== 0 ? Cdw12.FUA : 0);
      sq[at + Sqe.cdw13] = 0;
      sqPairs[(at >>> 1) + 7] = 0;
    } else {
      buildOther(sq, at, slot, slots, this.pointer, this.nsid, this.context);
    }
    this.sqTail = (this.sqTail + 1) & this.entryMask;
    this.counts[Count.submissions] = this.counts[Count.submissions]! + 1;
  }

  private ring(): void {
    this.rung = this.sqTail;
    this.bells.tail(this.sqTail);
  }

  // hot:end

  arm(): void {
    this.sleep.arm();
  }

  eventFd(): number {
    return this.slots.done.length > 0 || this.recovery.timed > 0 ? -1 : this.sleep.eventFd;
  }

  park(timeoutUs: number): void {
    // No look at the clock before some 10 µs have passed: at depth 1 every operation comes by here.
    if (this.slots.done.length > 0 || this.slots.idle || this.spin()) return;
    const until = timeoutUs < 0 ? Infinity : performance.now() + timeoutUs / 1000;
    do {
      this.lookAround();
      if (this.eventFd() >= 0) {
        this.sleep.arm();
        fence();
        if (!this.spin()) this.sleep.block((until - performance.now()) * 1000);
      }
      if (this.spin() || this.slots.done.length > 0) return;
    } while (performance.now() < until);
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    const scratch = new Uint32Array(Cpl.words * this.depth);
    const { done } = this.slots;
    while (!this.slots.idle) {
      const before = done.length;
      const count = this.poll(scratch, this.depth);
      for (let i = 0; i < count; i++) {
        const at = i * Cpl.words;
        done.push(
          scratch[at]!,
          scratch[at + Cpl.status]!,
          scratch[at + Cpl.resultLo]!,
          scratch[at + Cpl.resultHi]!,
        );
      }
      if (count === before) {
        this.lookAround();
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    }
  }

  async close(): Promise<void> {
    await this.drain();
    const { header } = this;
    header[PairWord.sqTail] = this.sqTail;
    header[PairWord.cqHead] = this.cqHead;
    header[PairWord.phase] = this.phase;
    header[PairWord.depth] = 0;
    this.pointer.close();
    this.options.onClose();
  }

  /** Whether there is something to poll; looks for it a bounded time. */
  private spin(): boolean {
    const { cq, header } = this;
    const at = this.cqHead * Cqe.words + Cqe.status;
    for (let i = 0; i < SPINS; i++) {
      if ((cq[at]! & PHASE) === this.phase || header[PairWord.epoch] !== this.epoch) return true;
    }
    return this.recovery.timed > 0;
  }

  /** Follows what the home did since the last look; false while the rings are nobody's. */
  private follow(): boolean {
    const { header, recovery } = this;
    const epoch = header[PairWord.epoch]!;
    if (recovery.isGone || recovery.homeEnded()) {
      this.slots.failAll();
      recovery.forgetAll();
      this.epoch = NO_EPOCH; // so that every call comes by here
      return false;
    }
    if ((epoch & 1) !== 0) return false;
    if (recovery.wasReset()) this.restart();
    this.readFacts();
    this.epoch = epoch;
    return true;
  }

  /** The rings are new and empty: what was in flight will not complete by itself. */
  private restart(): void {
    this.sqTail = 0;
    this.rung = 0;
    this.cqHead = 0;
    this.phase = PHASE;
    for (let slot = 0; slot < this.slots.count; slot++) {
      if (!this.recovery.inDevice(slot)) continue;
      const status = this.recovery.cutOff(slot);
      if (status >= 0) this.slots.finish(slot, status);
    }
  }

  /** Issues what waited for a reset, for another try, or for an injected delay to pass. */
  private issueWaiting(): void {
    const { recovery } = this;
    for (let slot = recovery.next(); slot >= 0; slot = recovery.next()) {
      const status = recovery.injectedStatus(slot);
      if (status === 0) this.issue(slot);
      else {
        const verdict = recovery.failed(slot, status, true);
        if (verdict >= 0) this.slots.finish(slot, verdict);
      }
    }
    if (this.sqTail !== this.rung) this.ring();
  }

  /** True when an injected error keeps the slot's command from the device. */
  private inject(injector: Injector, slot: number): boolean {
    const word = this.slots.words[slot * Slot.words]!;
    const rule = injector.take(word & 0xff);
    if (rule === null) return false;
    this.recovery.injectAt(slot, rule);
    return true;
  }

  private lookAround(): void {
    if (this.options.onIdle()) return;
    this.recovery.end();
    this.epoch = NO_EPOCH;
  }

  /** A request that came while the rings are nobody's. */
  private keep(slot: number): void {
    if (this.recovery.isGone) this.slots.finish(slot, Status.DEVICE_GONE);
    else this.recovery.hold(slot);
  }

  private readFacts(): void {
    this.recovery.readFacts();
    this.context.blocks = this.recovery.blocks;
    this.context.removed = this.recovery.removed;
  }

  private outside(): Status {
    return this.context.removed ? Status.DEVICE_GONE : Status.BAD_RANGE;
  }

  private mapLists(): void {
    const { dma } = this.options;
    const until = performance.now() + 5000;
    while (!dma.reach(this.pointer.address) && performance.now() < until) native.pause(1000);
  }
}
