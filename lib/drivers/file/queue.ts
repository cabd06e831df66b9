// A file's queue: requests become io_uring entries, one io_uring_enter per batch.
//
// Invariants
// 1. A slot belongs to one operation from submit to its completion. It is the index of its entry,
//    which stays as it is until then: what a continuation needs stands there.
// 2. user_data is all that an ordinary completion needs (tag, slot, bytes), so that it touches no
//    memory but the completion itself.
// 3. Entries carry addresses that were checked against the access map: never another pointer.
// 4. A short transfer is continued until done, failed, or at the end of the file.

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

/** The high word of user_data: slot | expected result in units of 512 bytes << 15. */
const SLOT_BITS = 15;
const SLOT_MASK = (1 << SLOT_BITS) - 1;
/** An expectation that no result meets: the entry says what is to be looked at. */
const LOOK = 0x1ffff;

/** Bits of `notes`, for operations without data. */
const enum Note {
  /** fallocate: the other mode was tried. */
  fallback = 1,
  /** WRITE_ZEROES with FUA: a data sync is to follow. */
  sync = 2,
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
  onClose: (queue: FileQueue) => void;
}

export class FileQueue implements QueueDriver {
  // What every operation touches stands first, together: after a system call little is in the
  // cache.
  readonly ring: Ring;
  private readonly free: Uint16Array;
  private freeCount: number;
  private refused = 0;
  private retryCount = 0;
  private armed = false;
  private polls = 0;
  private readonly check: RequestCheck;
  private readonly shift: number;
  private readonly alignMask: number;
  private readonly readOnly: boolean;
  private readonly fileWord: number;
  private readonly fileFlag: number;
  private readonly buffers: BufferTable | null;
  private readonly depth: number;
  private readonly done: CompletionRing;
  private readonly notes: Uint8Array;
  private readonly retries: Int32Array;
  private readonly onShrunk: () => void;
  private readonly onClose: (queue: FileQueue) => void;

  constructor(options: FileQueueOptions) {
    const { depth, info } = options;
    this.free = new Uint16Array(depth);
    for (let i = 0; i < depth; i++) this.free[i] = depth - 1 - i;
    this.freeCount = depth;
    this.ring = Ring.open({
      entries: depth,
      indexed: true,
      sqpoll: options.sqpoll,
      iopoll: options.iopoll,
    });
    const fixed = this.ring.registerFiles([options.fd]);
    this.fileWord = fixed ? 0 : options.fd;
    this.fileFlag = fixed ? SqeFlag.FIXED_FILE : 0;
    for (let slot = 0; slot < depth; slot++) {
      this.ring.sqes[slot * Sqe.words + Sqe.fd] = this.fileWord;
    }
    this.notes = new Uint8Array(depth);
    this.buffers = options.fixedBuffers ? new BufferTable(this.ring) : null;
    this.check = new RequestCheck(info);
    // A full ring's worth may be refused while as many are in flight: a drain brings both here.
    this.done = new CompletionRing(depth * 2);
    this.depth = depth;
    this.shift = Math.log2(info.blockSize);
    this.alignMask = info.addressAlign - 1;
    this.readOnly = info.readOnly;
    this.retries = new Int32Array(depth);
    this.onShrunk = options.onShrunk;
    this.onClose = options.onClose;
  }

  get counters(): QueueCounters {
    return { doorbells: this.ring.calls, polls: this.polls };
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
    this.polls = (this.polls + 1) | 0;
    let count = this.refused === 0 ? 0 : this.takeRefused(cq, max);
    const { ring, free } = this;
    let ready = ring.ready();
    if (ready > max - count) ready = max - count;
    if (ready === 0) {
      if (this.retryCount > 0) this.retry();
      if (ring.pending() > 0) ring.submit(); // the kernel was short of something last time
      return count;
    }
    const { rings } = ring;
    let freeCount = this.freeCount;
    for (let i = 0; i < ready; i++) {
      const at = ring.cqeAt(i);
      const high = rings[at + Cqe.userDataHi]!;
      const result = rings[at + Cqe.res]! | 0;
      const expected = (high >>> SLOT_BITS) << 9;
      const status = result === expected ? Status.OK : this.unusual(high & SLOT_MASK, result);
      if (status < 0) continue;
      const to = count * Cpl.words;
      cq[to] = rings[at]!;
      cq[to + Cpl.status] = status;
      cq[to + Cpl.resultLo] = 0;
      cq[to + Cpl.resultHi] = 0;
      free[freeCount++] = high & SLOT_MASK;
      count++;
    }
    this.freeCount = freeCount;
    ring.advance(ready);
    if (this.retryCount > 0) this.retry();
    // Who gets nothing goes to sleep on what it armed, though parts of its operations went on.
    if (this.armed && count > 0) this.disarm();
    return count;
  }

  /** Checks a request and makes its entry: OK, or the error it has. */
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
    const { shift, ring } = this;
    const bytes = sq[record + Req.blocks]! << shift;
    const lbaLo = sq[record + Req.lbaLo]!;
    const offLo = lbaLo << shift;
    const offHi = (sq[record + Req.lbaHi]! << shift) | (lbaLo >>> (32 - shift));
    const buffer = this.buffers === null ? 0 : this.buffers.slotOf(addressLo, addressHi, bytes) + 1;
    const opFlags = writes && (word & Flag.FUA) !== 0 ? RWF_DSYNC : 0;
    const slot = this.free[--this.freeCount]!;
    const at = slot * Sqe.words;
    const { sqes } = ring;
    sqes[at] = transferOpcode(writes, buffer) | this.fileFlag;
    sqes[at + Sqe.offLo] = offLo;
    sqes[at + Sqe.offHi] = offHi;
    sqes[at + Sqe.addrLo] = addressLo;
    sqes[at + Sqe.addrHi] = addressHi + ADDRESS_BASE_HIGH;
    sqes[at + Sqe.len] = bytes;
    sqes[at + Sqe.opFlags] = opFlags;
    sqes[at + Sqe.userDataLo] = sq[record + Req.tag]!;
    sqes[at + Sqe.userDataHi] = slot | ((bytes >>> 9) << SLOT_BITS);
    sqes[at + Sqe.bufIndex] = buffer === 0 ? 0 : buffer - 1;
    ring.push(slot);
    return Status.OK;
  }

  // hot:end

  arm(): void {
    this.armed = true;
    this.ring.arm();
  }

  eventFd(): number {
    return this.refused > 0 ? -1 : this.ring.eventFd();
  }

  park(timeoutUs: number): void {
    if (this.refused > 0 || this.freeCount === this.depth) return;
    this.ring.submitAndWait(1, timeoutUs);
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    const scratch = new Uint32Array(Cpl.words * this.depth);
    while (this.freeCount < this.depth) {
      const before = this.refused;
      const count = this.poll(scratch, this.depth);
      for (let i = 0; i < count; i++) {
        this.refuse(scratch[i * Cpl.words]!, scratch[i * Cpl.words + Cpl.status]!);
      }
      if (count === before) await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  async close(): Promise<void> {
    await this.drain();
    this.ring.close();
    this.onClose(this);
  }

  private disarm(): void {
    this.armed = false;
    this.ring.disarm();
  }

  /** Keeps a completion for the next poll: a request that was wrong, or one that drain met. */
  private refuse(tag: number, status: number): void {
    this.done.push(tag, status, 0, 0);
    this.refused++;
  }

  private takeRefused(cq: Uint32Array, max: number): number {
    const count = this.done.drain(cq, 0, max);
    this.refused -= count;
    return count;
  }

  /** FLUSH, DISCARD, WRITE_ZEROES. */
  private prepareOther(sq: Uint32Array, record: number, op: number): Status {
    if (op !== Op.FLUSH && op !== Op.DISCARD && op !== Op.WRITE_ZEROES) return Status.UNSUPPORTED;
    if (op !== Op.FLUSH) {
      if (this.readOnly) return Status.READ_ONLY;
      const status = this.check.range(sq, record);
      if (status !== Status.OK) return status;
    }
    const { sqes } = this.ring;
    const slot = this.free[--this.freeCount]!;
    const at = slot * Sqe.words;
    sqes.fill(0, at, at + Sqe.words);
    sqes[at + Sqe.fd] = this.fileWord;
    sqes[at + Sqe.userDataLo] = sq[record + Req.tag]!;
    this.notes[slot] = 0;
    let expected = 0;
    if (op === Op.FLUSH) this.makeSync(at);
    else {
      const blockSize = 2 ** this.shift;
      const offset = (sq[record + Req.lbaHi]! * 2 ** 32 + sq[record + Req.lbaLo]!) * blockSize;
      const length = sq[record + Req.blocks]! * blockSize;
      sqes[at] = Opcode.FALLOCATE | this.fileFlag;
      sqes[at + Sqe.offLo] = offset % 2 ** 32;
      sqes[at + Sqe.offHi] = Math.floor(offset / 2 ** 32);
      // fallocate's length travels in addr, its mode in len.
      sqes[at + Sqe.addrLo] = length % 2 ** 32;
      sqes[at + Sqe.addrHi] = Math.floor(length / 2 ** 32);
      sqes[at + Sqe.len] = op === Op.DISCARD ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE;
      if (op === Op.WRITE_ZEROES && (sq[record]! & Flag.FUA) !== 0) {
        this.notes[slot] = Note.sync;
        expected = LOOK;
      }
    }
    sqes[at + Sqe.userDataHi] = slot | (expected << SLOT_BITS);
    this.ring.push(slot);
    return Status.OK;
  }

  private makeSync(at: number): void {
    const { sqes } = this.ring;
    sqes.fill(0, at + Sqe.offLo, at + Sqe.userDataLo);
    sqes[at] = Opcode.FSYNC | this.fileFlag;
    sqes[at + Sqe.opFlags] = FSYNC_DATASYNC;
  }

  /** Anything but a whole transfer: errors, short transfers, operations with more to do. */
  private unusual(slot: number, result: number): number {
    const { sqes } = this.ring;
    const at = slot * Sqe.words;
    const opcode = sqes[at]! & 0xff;
    const allocates = opcode === Opcode.FALLOCATE;
    if (result < 0) {
      const errno = -result;
      if (errno === EAGAIN || errno === EINTR) return this.again(slot);
      if (errno === EOPNOTSUPP && allocates && (this.notes[slot]! & Note.fallback) === 0) {
        // What zeroes, punches where zeroing is unknown, and the other way: both read back as
        // zeros.
        this.notes[slot]! |= Note.fallback;
        const zeroes = sqes[at + Sqe.len] === FALLOC_ZERO_RANGE;
        sqes[at + Sqe.len] = zeroes ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE;
        return this.again(slot);
      }
      return statusOfErrno(errno);
    }
    if (allocates && (this.notes[slot]! & Note.sync) !== 0) {
      this.makeSync(at); // fallocate knows no FUA: the entry becomes a sync of what it did
      sqes[at + Sqe.userDataHi] = slot;
      return this.again(slot);
    }
    if (allocates || opcode === Opcode.FSYNC) return Status.OK;
    if (result === 0) {
      this.onShrunk();
      const reads = opcode === Opcode.READ || opcode === Opcode.READ_FIXED;
      return reads ? Status.BAD_RANGE : Status.NO_SPACE;
    }
    const left = sqes[at + Sqe.len]! - result;
    if (left === 0) return Status.OK;
    sqes[at + Sqe.len] = left;
    this.advanceWords(at + Sqe.addrLo, result);
    this.advanceWords(at + Sqe.offLo, result);
    sqes[at + Sqe.userDataHi] = (slot | (LOOK << SLOT_BITS)) >>> 0;
    return this.again(slot);
  }

  private advanceWords(at: number, bytes: number): void {
    const { sqes } = this.ring;
    const sum = sqes[at]! + bytes;
    sqes[at] = sum % 2 ** 32;
    if (sum >= 2 ** 32) sqes[at + 1] = sqes[at + 1]! + 1;
  }

  private again(slot: number): number {
    this.retries[this.retryCount++] = slot;
    return -1;
  }

  private retry(): void {
    while (this.retryCount > 0) this.ring.push(this.retries[--this.retryCount]!);
    this.ring.submit();
  }
}

function transferOpcode(writes: boolean, buffer: number): number {
  if (buffer !== 0) return writes ? Opcode.WRITE_FIXED : Opcode.READ_FIXED;
  return writes ? Opcode.WRITE : Opcode.READ;
}
