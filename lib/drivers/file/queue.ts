// A file's queue: requests become io_uring entries, one io_uring_enter per batch.
//
// Invariants
// 1. A slot belongs to one operation from submit to its completion; user_data is the slot.
// 2. Entries carry addresses that were checked against the access map: never another pointer.
// 3. A short transfer is continued until done, failed, or at the end of the file.

import {
  Access,
  CompletionRing,
  Cpl,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type DeviceInfo,
  type QueueCounters,
  type QueueDriver,
} from '../../hpdi/index.js';
import { ADDRESS_BASE_HIGH } from '../../memory/index.js';
import { BufferTable, Cqe, Opcode, Ring, Sqe, SqeFlag } from '../../uring/index.js';
import { EAGAIN, EINTR, EOPNOTSUPP, statusOfErrno } from './errno.js';

const RWF_DSYNC = 2;
const FSYNC_DATASYNC = 1;
const FALLOC_KEEP_SIZE = 1;
const FALLOC_PUNCH_HOLE = 2 | FALLOC_KEEP_SIZE;
const FALLOC_ZERO_RANGE = 16 | FALLOC_KEEP_SIZE;

/** Words of a slot: what it takes to continue the operation. */
const enum Slot {
  tag = 0,
  op = 1,
  /** Bytes of data left, as the kernel was asked for. */
  bytes = 2,
  addressLo = 3,
  addressHi = 4,
  offLo = 5,
  offHi = 6,
  /** Words of the entry that a continuation repeats. */
  opcode = 7,
  opFlags = 8,
  bufIndex = 9,
  /** fallocate: the other mode was tried. */
  fallback = 10,
  bytesHi = 11,
  words = 12,
}

export interface FileQueueOptions {
  fd: number;
  depth: number;
  info: DeviceInfo;
  sqpoll: boolean;
  iopoll: boolean;
  fixedBuffers: boolean;
  /** Called when a transfer met the end of the file before the end of the device. */
  onShrunk: () => void;
}

export class FileQueue implements QueueDriver {
  readonly counters: QueueCounters;
  readonly ring: Ring;
  private readonly check: RequestCheck;
  private readonly done: CompletionRing;
  private readonly slots: Uint32Array;
  private readonly free: Int32Array;
  private freeCount: number;
  private readonly depth: number;
  private readonly shift: number;
  private readonly fileWord: number;
  private readonly fileFlag: number;
  private readonly buffers: BufferTable | null;
  private readonly alignMask: number;
  private readonly readOnly: boolean;
  private readonly retries: Int32Array;
  private retryCount = 0;
  private armed = false;
  private readonly onShrunk: () => void;

  constructor(options: FileQueueOptions) {
    const { depth, info } = options;
    this.ring = Ring.open({ entries: depth, sqpoll: options.sqpoll, iopoll: options.iopoll });
    const { ring } = this;
    this.counters = {
      get doorbells(): number {
        return ring.calls;
      },
      polls: 0,
    };
    const fixed = ring.registerFiles([options.fd]);
    this.fileWord = fixed ? 0 : options.fd;
    this.fileFlag = fixed ? SqeFlag.FIXED_FILE : 0;
    this.buffers = options.fixedBuffers ? new BufferTable(ring) : null;
    this.check = new RequestCheck(info);
    // A full ring's worth may be refused while as many are in flight: a drain brings both here.
    this.done = new CompletionRing(depth * 2);
    this.depth = depth;
    this.shift = Math.log2(info.blockSize);
    this.alignMask = info.addressAlign - 1;
    this.readOnly = info.readOnly;
    this.slots = new Uint32Array(depth * Slot.words);
    this.free = new Int32Array(depth);
    for (let i = 0; i < depth; i++) this.free[i] = depth - 1 - i;
    this.freeCount = depth;
    this.retries = new Int32Array(depth);
    this.onShrunk = options.onShrunk;
  }

  /** The device's capacity changed. */
  resize(blocks: number): void {
    this.check.blocks = blocks;
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    let at = head;
    for (; at !== tail; at = (at + 1) | 0) {
      if (this.freeCount === 0 || this.done.length >= this.depth) break;
      const record = (at & mask) * Req.words;
      const status = this.prepare(sq, record);
      if (status !== Status.OK) this.refuse(sq[record + Req.tag]!, status);
    }
    if (this.ring.pending() > 0) this.ring.submit();
    return (at - head) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    let count = this.done.length === 0 ? 0 : this.done.drain(cq, 0, max);
    const { ring } = this;
    let ready = ring.ready();
    if (ready > max - count) ready = max - count;
    if (ready === 0) {
      if (ring.pending() > 0) ring.submit(); // the kernel was short of something last time
      return count;
    }
    const { rings } = ring;
    for (let i = 0; i < ready; i++) {
      const at = ring.cqeAt(i);
      const slot = rings[at + Cqe.userDataLo]!;
      const status = this.outcome(slot, rings[at + Cqe.res]! | 0);
      if (status < 0) continue;
      const to = count * Cpl.words;
      cq[to] = this.slots[slot * Slot.words]!;
      cq[to + Cpl.status] = status;
      cq[to + Cpl.resultLo] = 0;
      cq[to + Cpl.resultHi] = 0;
      this.free[this.freeCount++] = slot;
      count++;
    }
    ring.advance(ready);
    if (this.retryCount > 0) this.retry();
    // Who gets nothing goes to sleep on what it armed, though parts of its operations went on.
    if (this.armed && count > 0) this.disarm();
    return count;
  }

  /** Checks a request and makes its entry; a status other than OK when it is wrong. */
  private prepare(sq: Uint32Array, record: number): Status {
    const word = sq[record]!;
    const op = word & 0xff;
    if ((word & (Flag.mask & ~Flag.FUA)) !== 0) return Status.BAD_REQUEST;
    if (op !== Op.READ && op !== Op.WRITE) return this.prepareOther(sq, record, op);
    const writes = op === Op.WRITE;
    if (writes && this.readOnly) return Status.READ_ONLY;
    const status = this.check.transfer(sq, record, writes ? Access.read : Access.write);
    if (status !== Status.OK) return status;
    const addressLo = sq[record + Req.addressLo]!;
    const addressHi = sq[record + Req.addressHi]!;
    if ((addressLo & this.alignMask) !== 0) return Status.MISALIGNED;
    const bytes = sq[record + Req.blocks]! << this.shift;
    const lbaLo = sq[record + Req.lbaLo]!;
    const { shift } = this;
    const buffer = this.buffers === null ? -1 : this.buffers.slotOf(addressLo, addressHi, bytes);
    let opcode: number = writes ? Opcode.WRITE : Opcode.READ;
    if (buffer >= 0) opcode = writes ? Opcode.WRITE_FIXED : Opcode.READ_FIXED;
    const slot = this.free[--this.freeCount]!;
    const s = slot * Slot.words;
    const { slots } = this;
    slots[s] = sq[record + Req.tag]!;
    slots[s + Slot.op] = op;
    slots[s + Slot.bytes] = bytes;
    slots[s + Slot.addressLo] = addressLo;
    slots[s + Slot.addressHi] = addressHi + ADDRESS_BASE_HIGH;
    slots[s + Slot.offLo] = lbaLo << shift;
    slots[s + Slot.offHi] = (sq[record + Req.lbaHi]! << shift) | (lbaLo >>> (32 - shift));
    slots[s + Slot.opcode] = opcode | this.fileFlag;
    slots[s + Slot.opFlags] = (word & Flag.FUA) !== 0 && writes ? RWF_DSYNC : 0;
    slots[s + Slot.bufIndex] = buffer >= 0 ? buffer : 0;
    this.issue(slot);
    return Status.OK;
  }

  /** Writes a slot's entry. The ring has at least `depth` entries, so that there is one. */
  private issue(slot: number): void {
    const { ring, slots } = this;
    const at = ring.next();
    const { sqes } = ring;
    const s = slot * Slot.words;
    sqes[at] = slots[s + Slot.opcode]!;
    sqes[at + Sqe.fd] = this.fileWord;
    sqes[at + Sqe.offLo] = slots[s + Slot.offLo]!;
    sqes[at + Sqe.offHi] = slots[s + Slot.offHi]!;
    sqes[at + Sqe.addrLo] = slots[s + Slot.addressLo]!;
    sqes[at + Sqe.addrHi] = slots[s + Slot.addressHi]!;
    sqes[at + Sqe.len] = slots[s + Slot.bytes]!;
    sqes[at + Sqe.opFlags] = slots[s + Slot.opFlags]!;
    sqes[at + Sqe.userDataLo] = slot;
    sqes[at + Sqe.bufIndex] = slots[s + Slot.bufIndex]!;
  }

  /** The status of a completed entry, or -1 when the operation goes on. */
  private outcome(slot: number, result: number): number {
    if (result === this.slots[slot * Slot.words + Slot.bytes]!) return Status.OK;
    return this.unusual(slot, result);
  }

  // hot:end

  arm(): void {
    this.armed = true;
    this.ring.arm();
  }

  eventFd(): number {
    return this.done.length > 0 ? -1 : this.ring.eventFd();
  }

  park(timeoutUs: number): void {
    if (this.done.length > 0 || this.freeCount === this.depth) return;
    this.ring.submitAndWait(1, timeoutUs);
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    const scratch = new Uint32Array(Cpl.words * this.depth);
    while (this.freeCount < this.depth) {
      const before = this.done.length;
      const count = this.poll(scratch, this.depth);
      for (let i = 0; i < count; i++) {
        const at = i * Cpl.words;
        this.done.push(scratch[at]!, scratch[at + Cpl.status]!, 0, 0);
      }
      if (count === before) await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async close(): Promise<void> {
    await this.drain();
    this.ring.close();
  }

  private disarm(): void {
    this.armed = false;
    this.ring.disarm();
  }

  private refuse(tag: number, status: number): void {
    this.done.push(tag, status, 0, 0);
  }

  /** FLUSH, DISCARD, WRITE_ZEROES. */
  private prepareOther(sq: Uint32Array, record: number, op: number): Status {
    if (op !== Op.FLUSH && op !== Op.DISCARD && op !== Op.WRITE_ZEROES) return Status.UNSUPPORTED;
    if (op !== Op.FLUSH) {
      if (this.readOnly) return Status.READ_ONLY;
      const status = this.check.range(sq, record);
      if (status !== Status.OK) return status;
    }
    const slot = this.free[--this.freeCount]!;
    const s = slot * Slot.words;
    const { slots } = this;
    slots.fill(0, s, s + Slot.words);
    slots[s] = sq[record + Req.tag]!;
    slots[s + Slot.op] = op;
    if (op === Op.FLUSH) {
      slots[s + Slot.opcode] = Opcode.FSYNC | this.fileFlag;
      slots[s + Slot.opFlags] = FSYNC_DATASYNC;
    } else {
      const blockSize = 2 ** this.shift;
      const offset = (sq[record + Req.lbaHi]! * 2 ** 32 + sq[record + Req.lbaLo]!) * blockSize;
      const length = sq[record + Req.blocks]! * blockSize;
      slots[s + Slot.opcode] = Opcode.FALLOCATE | this.fileFlag;
      slots[s + Slot.offLo] = offset % 2 ** 32;
      slots[s + Slot.offHi] = Math.floor(offset / 2 ** 32);
      slots[s + Slot.addressLo] = length % 2 ** 32; // fallocate's length travels in addr,
      slots[s + Slot.addressHi] = Math.floor(length / 2 ** 32);
      slots[s + Slot.bytes] = op === Op.DISCARD ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE; // its mode in len
    }
    this.issue(slot);
    return Status.OK;
  }

  /** Anything but a whole transfer: errors, short transfers, operations without data. */
  private unusual(slot: number, result: number): number {
    const s = slot * Slot.words;
    const { slots } = this;
    const op = slots[s + Slot.op]!;
    const transfer = op === Op.READ || op === Op.WRITE;
    if (result < 0) {
      const errno = -result;
      if (errno === EAGAIN || errno === EINTR) return this.again(slot);
      if (errno === EOPNOTSUPP && op !== Op.FLUSH && !transfer && slots[s + Slot.fallback] === 0) {
        // What zeroes, punches where zeroing is unknown, and the other way: both read back as zeros.
        slots[s + Slot.fallback] = 1;
        const zeroes = slots[s + Slot.bytes] === FALLOC_ZERO_RANGE;
        slots[s + Slot.bytes] = zeroes ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE;
        return this.again(slot);
      }
      return statusOfErrno(errno);
    }
    if (!transfer) return Status.OK;
    if (result === 0) {
      this.onShrunk();
      return op === Op.READ ? Status.BAD_RANGE : Status.NO_SPACE;
    }
    slots[s + Slot.bytes] = slots[s + Slot.bytes]! - result;
    this.advanceWords(s + Slot.addressLo, result);
    this.advanceWords(s + Slot.offLo, result);
    return this.again(slot);
  }

  private advanceWords(at: number, bytes: number): void {
    const sum = this.slots[at]! + bytes;
    this.slots[at] = sum % 2 ** 32;
    if (sum >= 2 ** 32) this.slots[at + 1] = this.slots[at + 1]! + 1;
  }

  private again(slot: number): number {
    this.retries[this.retryCount++] = slot;
    return -1;
  }

  private retry(): void {
    for (let i = 0; i < this.retryCount; i++) this.issue(this.retries[i]!);
    this.retryCount = 0;
    this.ring.submit();
  }
}
