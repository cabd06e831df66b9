// A request that does not fit the device, while the adapter does it: checked whole, before any part
// of it is issued.
//
// Invariants
// 1. What the caller's memory says (an SG list) is read once, word by word, and only the copy is
//    checked and used: a list that changes meanwhile changes nothing.
// 2. A GIVEn buffer is the device's from the submission on: it goes home also when the request is
//    refused.

import { addressSpace } from '../memory/index.js';
import { changes, emulates } from './adapter-table.js';
import { Access, RequestCheck } from './check.js';
import type { DeviceInfo } from './info.js';
import type { LoanTable } from './loans.js';
import { Flag, Op, Req, Sg, Status } from './records.js';

const SG_ENTRIES_MAX = 4096;
/** Memory has no larger buffers. */
const LOAN_BYTES_MAX = 2 ** 30;

/** One request that did not fit. */
export class Parent {
  op = 0;
  flags = 0;
  tag = 0;
  lba = 0;
  blocks = 0;
  /** Source LBA of a COPY. */
  source = 0;
  /**
   * COPY onto itself: its pieces go one after the other, the last first when `source` lies lower.
   */
  inTurn = false;
  /** The data, as ranges: addresses and byte counts (one range without SG). */
  readonly addresses: number[] = [];
  readonly lengths: number[] = [];
  /** Blocks given to children so far, and children not completed. */
  issued = 0;
  inFlight = 0;
  /** In the list of those that have more to issue. */
  listed = false;
  status: number = Status.OK;
  /** Block at which the first failing child began. */
  failedAt = Infinity;
  /** COMPARE: offset of the first difference. */
  difference = 0;
  /** Slot of the loan, -1 when there is none. */
  loan = -1;
  /** Address of the GIVEn buffer, 0 when there is none. */
  give = 0;

  /**
   * A part that began at block `start` failed: the one that lies first tells the whole's status.
   */
  fail(start: number, status: number, difference = 0): void {
    if (start >= this.failedAt) return;
    this.failedAt = start;
    this.status = status;
    this.difference = difference;
  }

  /** Nothing more is to be issued. */
  get allIssued(): boolean {
    return this.status !== Status.OK || this.issued >= this.blocks;
  }
}

/** Makes parents of records. */
export class ParentMaker {
  private readonly source: { readonly info: DeviceInfo };
  private readonly check: RequestCheck;
  private readonly loans: LoanTable;

  /** `source.info` may be replaced when the device changes. */
  constructor(source: { readonly info: DeviceInfo }, loans: LoanTable) {
    this.source = source;
    this.check = new RequestCheck({ ...source.info, maxTransferBlocks: 2 ** 32 });
    this.loans = loans;
  }

  /** The request at word `at`; its status is not OK when it must be refused. */
  make(sq: Uint32Array, at: number): Parent {
    const parent = new Parent();
    parent.op = sq[at]! & 0xff;
    parent.flags = sq[at]! & Flag.mask;
    parent.tag = sq[at + Req.tag]!;
    parent.blocks = sq[at + Req.blocks]!;
    parent.lba = sq[at + Req.lbaHi]! * 2 ** 32 + sq[at + Req.lbaLo]!;
    parent.status = this.prepare(parent, sq, at);
    return parent;
  }

  /** Checks the whole request and collects its data ranges. */
  private prepare(parent: Parent, sq: Uint32Array, at: number): Status {
    const { op, flags } = parent;
    const { info } = this.source;
    // Bit 31 is the stack's: the completion of such a request would pass for that of a part.
    if (parent.tag >= 2 ** 31) return Status.BAD_REQUEST;
    if ((flags & ~(Flag.FUA | Flag.SG | Flag.GIVE | Flag.META)) !== 0) return Status.BAD_REQUEST;
    const dataOp = op === Op.READ || op === Op.WRITE || op === Op.COMPARE;
    if ((flags & (Flag.SG | Flag.GIVE)) !== 0 && !dataOp) return Status.BAD_REQUEST;
    if ((flags & Flag.GIVE) !== 0 && (flags & Flag.SG) !== 0) return Status.BAD_REQUEST;
    const lo = sq[at + Req.addressLo]!;
    const hi = sq[at + Req.addressHi]!;
    if ((flags & Flag.GIVE) !== 0) parent.give = hi * 2 ** 32 + lo;
    // Metadata travels beside its blocks: it cannot be split off without the device's help.
    if ((flags & Flag.META) !== 0) return Status.UNSUPPORTED;
    if (info.readOnly && changes(op)) return Status.READ_ONLY;
    if (!emulates(info, op)) return Status.UNSUPPORTED;
    this.check.blocks = info.blocks;
    const range = this.check.range(sq, at);
    if (range !== Status.OK) return range;
    if (op === Op.READ_LOAN) return this.prepareLoan(parent);
    if (op === Op.COPY) {
      const source = hi * 2 ** 32 + lo;
      parent.source = source;
      parent.inTurn = source !== parent.lba && Math.abs(source - parent.lba) < parent.blocks;
      return source + parent.blocks > info.blocks ? Status.BAD_RANGE : Status.OK;
    }
    if (!dataOp) return Status.OK;
    const access = op === Op.READ ? Access.write : Access.read;
    const bytes = parent.blocks * info.blockSize;
    if ((flags & Flag.SG) !== 0) return this.readSg(parent, sq[at]! >>> 16, lo, hi, bytes, access);
    parent.addresses.push(hi * 2 ** 32 + lo);
    parent.lengths.push(bytes);
    return this.check.memory(lo, hi, bytes, access);
  }

  private prepareLoan(parent: Parent): Status {
    const bytes = parent.blocks * this.source.info.blockSize;
    if (bytes > LOAN_BYTES_MAX) return Status.TOO_LARGE;
    try {
      parent.loan = this.loans.take(bytes);
    } catch {
      return Status.NO_MEMORY; // OUT_OF_MEMORY, as a status: nobody is here to catch it
    }
    if (parent.loan < 0) return Status.NO_MEMORY;
    parent.addresses.push(this.loans.address(parent.loan));
    parent.lengths.push(bytes);
    return Status.OK;
  }

  /** Reads an SG list from memory and checks every entry; the bytes must add up. */
  private readSg(
    parent: Parent,
    count: number,
    lo: number,
    hi: number,
    bytes: number,
    access: Access,
  ): Status {
    if (count === 0 || count > SG_ENTRIES_MAX || (lo & 3) !== 0) return Status.BAD_REQUEST;
    const listed = this.check.memory(lo, hi, count * Sg.words * 4, Access.read);
    if (listed !== Status.OK) return listed;
    const address = hi * 2 ** 32 + lo;
    const segment = addressSpace().find(address);
    if (segment === undefined) return Status.BAD_ADDRESS;
    const first = (address - segment.address) / 4;
    if (first + count * Sg.words > segment.u32.length) return Status.BAD_ADDRESS;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const at = first + i * Sg.words;
      const entryLo = segment.u32[at]!;
      const entryHi = segment.u32[at + Sg.addressHi]!;
      const length = segment.u32[at + Sg.bytes]!;
      if (length === 0) return Status.BAD_REQUEST;
      const status = this.check.memory(entryLo, entryHi, length, access);
      if (status !== Status.OK) return status;
      parent.addresses.push(entryHi * 2 ** 32 + entryLo);
      parent.lengths.push(length);
      sum += length;
    }
    return sum === bytes ? Status.OK : Status.BAD_REQUEST;
  }
}
