// RequestSlots: the requests that one queue has in flight at a device of another domain: checked,
// kept until they complete, and put on the channel.
//
// Invariants
// 1. A slot holds its request from `prepare` to `free`: what was in flight when the server went can
//    be issued to the next one as it was.
// 2. A WRITE's buffer lies in memory that the server can read, or it is refused here.
// 3. At most `loansMax` loans are asked for or out at a time.

import {
  Access,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type CompletionRing,
  type DeviceInfo,
} from '../hpdi/index.js';
import type { QueueTable } from './device-table.js';
import { Rec } from './layout.js';
import type { RecordChannel } from './record-channel.js';

/** What a thread knows of the domain whose memory it uses. */
export interface OwnMemory {
  /** The domain's number, and which granules of it others can read. */
  readonly slot: number;
  readonly granules: Uint8Array;
}

const CHANGING = (1 << Op.WRITE) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);

export class RequestSlots {
  /** Records by slot; the first word of a free one is 0. */
  readonly words: Uint32Array;
  readonly count: number;
  freeCount: number;
  /** Loans that are out or asked for. */
  loans = 0;
  readonly loansMax: number;
  readonly check: RequestCheck;
  readonly blockSize: number;
  private readonly stack: Int32Array;
  private readonly table: QueueTable;
  private readonly alignMask: number;
  private readonly readOnly: boolean;
  private readonly operations: number;
  private readonly slot: number;
  private readonly granules: Uint8Array;

  constructor(
    count: number,
    loansMax: number,
    info: DeviceInfo,
    table: QueueTable,
    memory: OwnMemory,
  ) {
    this.count = count;
    this.words = new Uint32Array(count * Req.words);
    this.stack = new Int32Array(count);
    for (let slot = 0; slot < count; slot++) this.stack[slot] = count - 1 - slot;
    this.freeCount = count;
    this.loansMax = loansMax;
    this.table = table;
    this.check = new RequestCheck({ ...info, blocks: table.blocks });
    this.blockSize = info.blockSize;
    this.alignMask = info.addressAlign - 1;
    this.readOnly = info.readOnly;
    this.operations = info.operations;
    this.slot = memory.slot;
    this.granules = memory.granules;
  }

  // hot:begin

  /** Checks a request and keeps it in a slot; `channel` gets it, if there is one. */
  prepare(sq: Uint32Array, record: number, channel: RecordChannel | null): Status {
    const word = sq[record]!;
    const op = word & 0xff;
    if ((word & (Flag.mask & ~Flag.FUA)) !== 0) return Status.BAD_REQUEST;
    const bit = op < 32 ? 1 << op : 0;
    if (this.readOnly && (CHANGING & bit) !== 0) return Status.READ_ONLY;
    if ((this.operations & bit) === 0) return Status.UNSUPPORTED;
    if (op !== Op.FLUSH) {
      const status = this.checked(sq, record, op);
      if (status !== Status.OK) return status;
    }
    const slot = this.stack[--this.freeCount]!;
    const { words } = this;
    const at = slot * Req.words;
    words[at] = word & 0xffff;
    words[at + Req.tag] = sq[record + Req.tag]!;
    words[at + Req.blocks] = sq[record + Req.blocks]!;
    words[at + Req.lbaLo] = sq[record + Req.lbaLo]!;
    words[at + Req.lbaHi] = sq[record + Req.lbaHi]!;
    words[at + Req.addressLo] = sq[record + Req.addressLo]!;
    words[at + Req.addressHi] = sq[record + Req.addressHi]!;
    if (channel !== null) this.issue(channel, slot);
    return Status.OK;
  }

  /** Puts a slot's request on the channel, which has room. */
  issue(channel: RecordChannel, slot: number): void {
    const { words } = this;
    const { sq } = channel;
    const from = slot * Req.words;
    const to = (channel.tail & channel.mask) << Rec.shift;
    channel.reserve(1);
    sq[to] = words[from]!;
    sq[to + Req.tag] = slot;
    sq[to + Req.blocks] = words[from + Req.blocks]!;
    sq[to + Req.aux] = 0;
    sq[to + Req.lbaLo] = words[from + Req.lbaLo]!;
    sq[to + Req.lbaHi] = words[from + Req.lbaHi]!;
    sq[to + Req.addressLo] = words[from + Req.addressLo]!;
    sq[to + Req.addressHi] = words[from + Req.addressHi]!;
  }

  /** The request has completed. */
  free(slot: number): void {
    this.words[slot * Req.words] = 0;
    this.stack[this.freeCount++] = slot;
  }

  private checked(sq: Uint32Array, record: number, op: number): Status {
    const { check } = this;
    let status = check.range(sq, record);
    if (status === Status.BAD_RANGE) status = this.rangeAgain(sq, record);
    if (status !== Status.OK) return status;
    const blocks = sq[record + Req.blocks]!;
    if (blocks > check.maxBlocks) return Status.TOO_LARGE;
    if (op === Op.WRITE || op === Op.READ) {
      const lo = sq[record + Req.addressLo]!;
      const hi = sq[record + Req.addressHi]!;
      const bytes = blocks * this.blockSize;
      if (op === Op.WRITE) status = this.sendable(lo, hi, bytes);
      else status = check.memory(lo, hi, bytes, Access.write);
      if (status !== Status.OK) return status;
      return (lo & this.alignMask) === 0 ? Status.OK : Status.MISALIGNED;
    }
    if (op === Op.READ_LOAN) {
      if (this.loans === this.loansMax) return Status.NO_MEMORY;
      this.loans++;
    }
    return Status.OK;
  }

  /** Whether a WRITE's buffer lies in memory that the server can read. */
  private sendable(lo: number, hi: number, bytes: number): Status {
    // A loan of a third domain's may be written too: whether the server has it, it says.
    if (hi >>> 4 !== this.slot) return this.check.memory(lo, hi, bytes, Access.read);
    let granule = ((hi & 15) << 11) | (lo >>> 21);
    const reach = (lo & 0x1fffff) + bytes - 1;
    const last = granule + (bytes < 0x40000000 ? reach >>> 21 : Math.floor(reach / 2097152));
    const { granules } = this;
    for (; granule <= last; granule++) {
      if (granules[granule] !== 1) return Status.BAD_ADDRESS;
    }
    return Status.OK;
  }

  // hot:end

  /** Issues all that is in flight, to another server. */
  issueAll(channel: RecordChannel): void {
    for (let slot = 0; slot < this.count; slot++) {
      if (this.words[slot * Req.words] !== 0) this.issue(channel, slot);
    }
    channel.submit();
  }

  /** Completes all that is in flight with DEVICE_GONE. */
  failAll(done: CompletionRing): void {
    for (let slot = 0; slot < this.count; slot++) {
      const at = slot * Req.words;
      const op = this.words[at]! & 0xff;
      if (op === 0) continue;
      if (op === Op.READ_LOAN) this.loans--;
      done.push(this.words[at + Req.tag]!, Status.DEVICE_GONE, 0, 0);
      this.free(slot);
    }
  }

  /** The device may have grown since this thread looked. */
  private rangeAgain(sq: Uint32Array, record: number): Status {
    this.check.blocks = this.table.blocks;
    return this.check.range(sq, record);
  }
}
