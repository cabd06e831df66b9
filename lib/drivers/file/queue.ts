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

/** Words of a slot, a cache line: what it takes to complete the operation, or to continue it. */
const enum Slot {
  tag = 0,
  op = 1,
  /** Bytes of data left; fallocate: the mode. */
  bytes = 2,
  /** Virtual address; fallocate: the length. */
  addressLo = 3,
  addressHi = 4,
  offLo = 5,
  offHi = 6,
  /** Op-specific flags of the entry. */
  opFlags = 7,
  /** Fixed buffer + 1; 0: none. */
  buffer = 8,
  /** fallocate: the other mode was tried. */
  fallback = 9,
  /** The next free slot. */
  next = 10,
  /** WRITE_ZEROES with FUA: 1 a data sync is to follow, 2 it is under way. */
  sync = 11,
  words = 16,
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
  private readonly slots: Uint32Array;
  readonly ring: Ring;
  private freeHead = 0;
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
  private readonly retries: Int32Array;
  private readonly onShrunk: () => void;
  private readonly onClose: (queue: FileQueue) => void;

  constructor(options: FileQueueOptions) {
    const { depth, info } = options;
    this.slots = new Uint32Array(depth * Slot.words);
    for (let i = 0; i < depth; i++) this.slots[i * Slot.words + Slot.next] = i + 1;
    this.freeCount = depth;
    // SQPOLL's thread gives entries back after their completions are visible: twice as many keep
    // one free.
    const entries = options.sqpoll ? Math.min(depth * 2, 32768) : depth;
    this.ring = Ring.open({ entries, sqpoll: options.sqpoll, iopoll: options.iopoll });
    const fixed = this.ring.registerFiles([options.fd]);
    this.fileWord = fixed ? 0 : options.fd;
    this.fileFlag = fixed ? SqeFlag.FIXED_FILE : 0;
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
      if (status < 0) break;
      if (status !== Status.OK) this.refuse(sq[record + Req.tag]!, status);
    }
    if (this.ring.pending() > 0) this.ring.submit();
    return (at - head) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    this.polls = (this.polls + 1) | 0;
    let count = this.refused === 0 ? 0 : this.takeRefused(cq, max);
    const { ring, slots } = this;
    let ready = ring.ready();
    if (ready > max - count) ready = max - count;
    if (ready === 0) {
      if (this.retryCount > 0) this.retry();
      if (ring.pending() > 0) ring.submit(); // the kernel was short of something last time
      return count;
    }
    const { rings } = ring;
    let freeHead = this.freeHead;
    const before = count;
    for (let i = 0; i < ready; i++) {
      const at = ring.cqeAt(i);
      const slot = rings[at + Cqe.userDataLo]!;
      const s = slot * Slot.words;
      const result = rings[at + Cqe.res]! | 0;
      const status =
        result === (slots[s + Slot.bytes]! | 0) ? Status.OK : this.unusual(slot, result);
      if (status < 0) continue;
      const to = count * Cpl.words;
      cq[to] = slots[s]!;
      cq[to + Cpl.status] = status;
      cq[to + Cpl.resultLo] = 0;
      cq[to + Cpl.resultHi] = 0;
      slots[s + Slot.next] = freeHead;
      freeHead = slot;
      count++;
    }
    this.freeHead = freeHead;
    this.freeCount += count - before;
    ring.advance(ready);
    if (this.retryCount > 0) this.retry();
    // Who gets nothing goes to sleep on what it armed, though parts of its operations went on.
    if (this.armed && count > 0) this.disarm();
    return count;
  }

  /** Checks a request and makes its entry: OK, the error it has, or -1 when the ring is full. */
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
    const { shift, slots, ring } = this;
    const bytes = sq[record + Req.blocks]! << shift;
    const lbaLo = sq[record + Req.lbaLo]!;
    const offLo = lbaLo << shift;
    const offHi = (sq[record + Req.lbaHi]! << shift) | (lbaLo >>> (32 - shift));
    const buffer = this.buffers === null ? 0 : this.buffers.slotOf(addressLo, addressHi, bytes) + 1;
    const opFlags = writes && (word & Flag.FUA) !== 0 ? RWF_DSYNC : 0;
    const at = ring.next();
    if (at < 0) return -1 as Status;
    const slot = this.freeHead;
    const s = slot * Slot.words;
    this.freeHead = slots[s + Slot.next]!;
    this.freeCount--;
    slots[s] = sq[record + Req.tag]!;
    slots[s + Slot.op] = op;
    slots[s + Slot.bytes] = bytes;
    slots[s + Slot.addressLo] = addressLo;
    slots[s + Slot.addressHi] = addressHi + ADDRESS_BASE_HIGH;
    slots[s + Slot.offLo] = offLo;
    slots[s + Slot.offHi] = offHi;
    slots[s + Slot.opFlags] = opFlags;
    slots[s + Slot.buffer] = buffer;
    const { sqes } = ring;
    sqes[at] = transferOpcode(writes, buffer) | this.fileFlag;
    sqes[at + Sqe.fd] = this.fileWord;
    sqes[at + Sqe.offLo] = offLo;
    sqes[at + Sqe.offHi] = offHi;
    sqes[at + Sqe.addrLo] = addressLo;
    sqes[at + Sqe.addrHi] = addressHi + ADDRESS_BASE_HIGH;
    sqes[at + Sqe.len] = bytes;
    sqes[at + Sqe.opFlags] = opFlags;
    sqes[at + Sqe.userDataLo] = slot;
    sqes[at + Sqe.bufIndex] = buffer === 0 ? 0 : buffer - 1;
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
    if (this.ring.full()) return -1 as Status;
    const { slots } = this;
    const slot = this.freeHead;
    const s = slot * Slot.words;
    this.freeHead = slots[s + Slot.next]!;
    this.freeCount--;
    slots.fill(0, s, s + Slot.words);
    slots[s] = sq[record + Req.tag]!;
    slots[s + Slot.op] = op;
    if (op === Op.FLUSH) {
      slots[s + Slot.opFlags] = FSYNC_DATASYNC;
    } else {
      const blockSize = 2 ** this.shift;
      const offset = (sq[record + Req.lbaHi]! * 2 ** 32 + sq[record + Req.lbaLo]!) * blockSize;
      const length = sq[record + Req.blocks]! * blockSize;
      slots[s + Slot.offLo] = offset % 2 ** 32;
      slots[s + Slot.offHi] = Math.floor(offset / 2 ** 32);
      slots[s + Slot.addressLo] = length % 2 ** 32; // fallocate's length travels in addr,
      slots[s + Slot.addressHi] = Math.floor(length / 2 ** 32);
      if (op === Op.WRITE_ZEROES && (sq[record]! & Flag.FUA) !== 0) slots[s + Slot.sync] = 1;
      // … its mode in len
      slots[s + Slot.bytes] = op === Op.DISCARD ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE;
    }
    this.issue(slot);
    return Status.OK;
  }

  /** Writes the entry that a slot describes: operations without data, and continuations. */
  private issue(slot: number): void {
    const { ring, slots } = this;
    const at = ring.next();
    const { sqes } = ring;
    const s = slot * Slot.words;
    const op = slots[s + Slot.op]!;
    const buffer = slots[s + Slot.buffer]!;
    let opcode: number = Opcode.FALLOCATE;
    if (op === Op.FLUSH || slots[s + Slot.sync] === 2) opcode = Opcode.FSYNC;
    else if (op === Op.READ || op === Op.WRITE) opcode = transferOpcode(op === Op.WRITE, buffer);
    sqes[at] = opcode | this.fileFlag;
    sqes[at + Sqe.fd] = this.fileWord;
    sqes[at + Sqe.offLo] = slots[s + Slot.offLo]!;
    sqes[at + Sqe.offHi] = slots[s + Slot.offHi]!;
    sqes[at + Sqe.addrLo] = slots[s + Slot.addressLo]!;
    sqes[at + Sqe.addrHi] = slots[s + Slot.addressHi]!;
    sqes[at + Sqe.len] = slots[s + Slot.bytes]!;
    sqes[at + Sqe.opFlags] = slots[s + Slot.opFlags]!;
    sqes[at + Sqe.userDataLo] = slot;
    sqes[at + Sqe.bufIndex] = buffer === 0 ? 0 : buffer - 1;
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
        // What zeroes, punches where zeroing is unknown, and the other way: both read back as
        // zeros.
        slots[s + Slot.fallback] = 1;
        const zeroes = slots[s + Slot.bytes] === FALLOC_ZERO_RANGE;
        slots[s + Slot.bytes] = zeroes ? FALLOC_PUNCH_HOLE : FALLOC_ZERO_RANGE;
        return this.again(slot);
      }
      return statusOfErrno(errno);
    }
    if (!transfer && slots[s + Slot.sync] === 1) {
      // fallocate knows no FUA; the entry becomes a sync of what it did.
      slots.fill(0, s + Slot.bytes, s + Slot.next);
      slots[s + Slot.opFlags] = FSYNC_DATASYNC;
      slots[s + Slot.sync] = 2;
      return this.again(slot);
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
    while (this.retryCount > 0 && !this.ring.full()) this.issue(this.retries[--this.retryCount]!);
    this.ring.submit();
  }
}

function transferOpcode(writes: boolean, buffer: number): number {
  if (buffer !== 0) return writes ? Opcode.WRITE_FIXED : Opcode.READ_FIXED;
  return writes ? Opcode.WRITE : Opcode.READ;
}
