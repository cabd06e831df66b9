// Data pointers of commands: PRP entries and lists, and SGL descriptors (NVM Express Base 2.0,
// section 4.1). A buffer is contiguous at its Address, which is the IOVA, so that one SGL data
// block describes any buffer, and a PRP list is arithmetic on page numbers.
//
// Invariants
// 1. Each slot has list memory of its own, so that a list stays while its command is in flight.
// 2. A list never crosses a page: its memory is a power of two, at most a page, aligned to itself.
// 3. Page numbers fit 32 bits: addresses are below 2^44, pages have 4 KiB.

import { addressSpace, roundUp, type Segment } from '../../memory/index.js';
import { Cdw0, Sgl, Sqe } from './commands.js';

const PAGE = 4096;

export class DataPointer {
  /** Bytes of list memory per slot. */
  readonly listBytes: number;
  private readonly segment: Segment;
  private readonly lists: Uint32Array;
  private readonly wordsPerList: number;
  private readonly listLo: number;
  private readonly listHi: number;
  /** Buffers of more than two pages go as one SGL data block. */
  private readonly sgl: boolean;

  constructor(options: {
    slots: number;
    maxBytes: number;
    sgl: boolean;
    kind: 'private' | 'device';
  }) {
    const { slots, maxBytes, sgl, kind } = options;
    const entries = Math.ceil(maxBytes / PAGE) + 1;
    this.listBytes = Math.max(64, 2 ** Math.ceil(Math.log2(entries * 8)));
    if (this.listBytes > PAGE) throw new RangeError(`${maxBytes} bytes need more than one list`);
    this.segment = addressSpace().create(roundUp(slots * this.listBytes, PAGE), { kind });
    this.lists = this.segment.u32;
    this.wordsPerList = this.listBytes / 4;
    const { address } = this.segment;
    this.listLo = address % 2 ** 32;
    this.listHi = Math.floor(address / 2 ** 32);
    this.sgl = sgl;
  }

  get address(): number {
    return this.segment.address;
  }

  get bytes(): number {
    return this.segment.bytes;
  }

  /** Words of a slot's list memory, from `wordOf(slot)` on: ranges of a command, too. */
  get words(): Uint32Array {
    return this.lists;
  }

  close(): void {
    this.segment.close();
  }

  // hot:begin

  wordOf(slot: number): number {
    return slot * this.wordsPerList;
  }

  /** Stores the data pointer of `bytes` at an address into the entry at word `at`; cdw0's bits. */
  describe(
    sq: Uint32Array,
    at: number,
    slot: number,
    addressLo: number,
    addressHi: number,
    bytes: number,
  ): number {
    sq[at + Sqe.prp1Lo] = addressLo;
    sq[at + Sqe.prp1Hi] = addressHi;
    // Whole pages that the buffer touches after its first.
    const more = ((addressLo & 4095) + bytes - 1) >>> 12;
    if (more === 0) {
      sq[at + Sqe.prp2Lo] = 0;
      sq[at + Sqe.prp2Hi] = 0;
      return Cdw0.PSDT_PRP;
    }
    let page = (((addressHi << 20) | (addressLo >>> 12)) + 1) >>> 0;
    if (more === 1) {
      sq[at + Sqe.prp2Lo] = page << 12;
      sq[at + Sqe.prp2Hi] = page >>> 20;
      return Cdw0.PSDT_PRP;
    }
    if (this.sgl) {
      sq[at + Sqe.prp2Lo] = bytes;
      sq[at + Sqe.prp2Hi] = Sgl.DATA_BLOCK;
      return Cdw0.PSDT_SGL;
    }
    const { lists } = this;
    let to = slot * this.wordsPerList;
    for (let i = 0; i < more; i++) {
      lists[to] = page << 12;
      lists[to + 1] = page >>> 20;
      to += 2;
      page = (page + 1) >>> 0;
    }
    this.pointAt(sq, at, slot);
    return Cdw0.PSDT_PRP;
  }

  /** PRP entry 2 is the address of the slot's list. */
  private pointAt(sq: Uint32Array, at: number, slot: number): void {
    const lo = this.listLo + slot * this.listBytes;
    sq[at + Sqe.prp2Lo] = lo;
    sq[at + Sqe.prp2Hi] = lo < 4294967296 ? this.listHi : this.listHi + 1;
  }

  // hot:end

  /** PRP entry 1 is the address of the slot's list memory, which holds `ranges` of a command. */
  pointAtRanges(sq: Uint32Array, at: number, slot: number): void {
    const lo = this.listLo + slot * this.listBytes;
    sq[at + Sqe.prp1Lo] = lo % 2 ** 32;
    sq[at + Sqe.prp1Hi] = lo < 2 ** 32 ? this.listHi : this.listHi + 1;
    sq[at + Sqe.prp2Lo] = 0;
    sq[at + Sqe.prp2Hi] = 0;
  }
}
