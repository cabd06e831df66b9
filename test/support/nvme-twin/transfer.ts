// Where a command's data is: PRP entries and lists, SGL descriptors and segments, walked as a
// controller walks them (NVMe Base 2.0, sections 4.1.1 and 4.1.2), every address checked.
//
// Whatever a driver should never have written is a violation besides its status.

import { Cdw0, Sgl, SglWord, Sqe } from '../../../lib/drivers/nvme/commands.js';
import { Dma } from './dma.js';
import { range, type TwinMemory, type Violations } from './memory.js';
import { Code, wide } from './wire.js';

const SGL_DESCRIPTORS_MAX = 65536;
const SGL_BYTES = 16;
/** Type and sub-type stand in the last byte of a descriptor. */
const TYPE_MASK = 0xff000000;

export class Transfer {
  /** The pieces of the last `gather`, in order; null is a bit bucket. */
  readonly views: (Uint8Array | null)[] = [];
  readonly lengths: number[] = [];
  /** The controller's memory page, from CC.MPS. */
  pageBytes = 4096;
  private readonly memory: TwinMemory;
  private readonly violations: Violations;
  private readonly sglAlign: number;
  private readonly sglExcess: boolean;
  private readonly hasSgl: boolean;
  private ownData = false;
  private access = Dma.reads;

  constructor(
    memory: TwinMemory,
    violations: Violations,
    options: { sgls: 0 | 1 | 2; sglExcess: boolean },
  ) {
    this.memory = memory;
    this.violations = violations;
    this.hasSgl = options.sgls !== 0;
    this.sglAlign = options.sgls === 2 ? 4 : 1;
    this.sglExcess = options.sglExcess;
  }

  /**
   * Finds the `bytes` of the command's data pointer for the access. `own`: the buffer is the
   * driver's (identify pages, lists of ranges), not an operation's.
   */
  gather(sqe: Uint32Array, bytes: number, access: Dma, own: boolean): number {
    this.begin(access, own);
    if (bytes === 0) return Code.SUCCESS;
    if ((sqe[0]! & (Cdw0.PSDT_SGL | Cdw0.PSDT_SGL_MPTR)) === 0) {
      return this.prp(wide(sqe, Sqe.prp1Lo), wide(sqe, Sqe.prp2Lo), bytes);
    }
    if (!this.hasSgl) return this.bad('an SGL, of which the twin has none', Code.INVALID_FIELD);
    return this.sgl(sqe.subarray(Sqe.prp1Lo, Sqe.prp1Lo + SglWord.words), bytes);
  }

  /** Metadata: one buffer at MPTR, or an SGL segment of one descriptor there. */
  gatherMetadata(sqe: Uint32Array, bytes: number, access: Dma): number {
    this.begin(access, false);
    const mptr = wide(sqe, Sqe.mptrLo);
    if ((sqe[0]! & Cdw0.PSDT_SGL_MPTR) === 0) {
      if (mptr % 4 !== 0) return this.bad('a misaligned MPTR', Code.INVALID_FIELD);
      return this.push(mptr, bytes);
    }
    if (mptr % 8 !== 0) return this.bad('a misaligned SGL at MPTR', Code.SGL_SEGMENT);
    const view = this.memory.own(mptr, SGL_BYTES, Dma.reads, 'metadata SGL');
    if (view === null) return Code.DATA_TRANSFER_ERROR;
    const status = this.sgl(wordsOf(view), bytes);
    return status === Code.SGL_LENGTH ? Code.SGL_METADATA_LENGTH : status;
  }

  /** The pieces of the last `gather` as text, to compare with another time. */
  place(): string {
    const starts = this.views.map((view) => view?.byteOffset ?? -1);
    return `${starts.join()}/${this.lengths.join()}`;
  }

  /** Copies from `bytes` to the pieces. */
  scatter(bytes: Uint8Array): void {
    let at = 0;
    for (const [i, view] of this.views.entries()) {
      const end = at + this.lengths[i]!;
      view?.set(bytes.subarray(at, end));
      at = end;
    }
  }

  /** Copies the pieces to `bytes`. */
  collect(bytes: Uint8Array): void {
    let at = 0;
    for (const [i, view] of this.views.entries()) {
      if (view !== null) bytes.set(view, at);
      at += this.lengths[i]!;
    }
  }

  private begin(access: Dma, own: boolean): void {
    this.views.length = 0;
    this.lengths.length = 0;
    this.access = access;
    this.ownData = own;
  }

  private prp(prp1: number, prp2: number, bytes: number): number {
    const { pageBytes } = this;
    if (prp1 % 4 !== 0) return this.bad('PRP1 is no multiple of 4', Code.PRP_OFFSET);
    const first = Math.min(bytes, pageBytes - (prp1 % pageBytes));
    const left = bytes - first;
    const status = this.push(prp1, first);
    if (status !== Code.SUCCESS || left === 0) return status;
    if (left > pageBytes) return this.prpList(prp2, left);
    if (prp2 % pageBytes !== 0) return this.bad('PRP2 has an offset', Code.PRP_OFFSET);
    return this.push(prp2, left);
  }

  /** A list's last entry in a page leads to the next page when more entries are left. */
  private prpList(list: number, bytes: number): number {
    const { pageBytes } = this;
    let left = bytes;
    let at = list;
    while (left > 0) {
      if (at % 8 !== 0) return this.bad('a PRP list is no multiple of 8', Code.PRP_OFFSET);
      const wanted = Math.ceil(left / pageBytes);
      const room = (pageBytes - (at % pageBytes)) / 8;
      const isLast = wanted <= room;
      const view = this.memory.own(at, (isLast ? wanted : room) * 8, Dma.reads, 'PRP list');
      if (view === null) return Code.DATA_TRANSFER_ERROR;
      const entries = wordsOf(view);
      const count = isLast ? wanted : room - 1;
      for (let i = 0; i < count; i++) {
        const page = wide(entries, i * 2);
        if (page % pageBytes !== 0) return this.bad('a PRP entry has an offset', Code.PRP_OFFSET);
        const part = Math.min(left, pageBytes);
        const status = this.push(page, part);
        if (status !== Code.SUCCESS) return status;
        left -= part;
      }
      if (isLast) return Code.SUCCESS;
      at = wide(entries, count * 2);
      if (at % pageBytes !== 0) return this.bad('a PRP list goes on at an offset', Code.PRP_OFFSET);
    }
    return Code.SUCCESS;
  }

  /** `first` is the descriptor in the command; segments follow each other by their last one. */
  private sgl(first: Uint32Array, bytes: number): number {
    let descriptors = first;
    let left = bytes;
    let isLastSegment = false;
    let seen = 0;
    for (;;) {
      const count = descriptors.length / SglWord.words;
      seen += count;
      if (seen > SGL_DESCRIPTORS_MAX) return this.bad('an SGL without end', Code.SGL_COUNT);
      for (let i = 0; i < count - 1; i++) {
        const status = this.sglData(descriptors, i * SglWord.words, left);
        if (status < 0) return -status;
        left -= status;
      }
      const at = (count - 1) * SglWord.words;
      const type = descriptors[at + SglWord.type]! & TYPE_MASK;
      if (!isSegment(type)) {
        const status = this.sglData(descriptors, at, left);
        if (status < 0) return -status;
        return this.sglEnd(left - status, descriptors === first || isLastSegment);
      }
      if (isLastSegment) return this.bad('a segment after the last one', Code.SGL_TYPE);
      isLastSegment = (type & 0xf0000000) >>> 0 === Sgl.LAST_SEGMENT;
      const next = this.segment(descriptors, at);
      if (typeof next === 'number') return next;
      descriptors = next;
    }
  }

  private segment(descriptors: Uint32Array, at: number): Uint32Array | number {
    const address = wide(descriptors, at + SglWord.addressLo);
    const bytes = descriptors[at + SglWord.bytes]!;
    if (bytes === 0 || bytes % SGL_BYTES !== 0 || address % 8 !== 0) {
      return this.bad(`an SGL segment at ${range(address, bytes)}`, Code.SGL_SEGMENT);
    }
    const view = this.memory.own(address, bytes, Dma.reads, 'SGL segment');
    return view === null ? Code.DATA_TRANSFER_ERROR : wordsOf(view);
  }

  /** Bytes that the descriptor gives, or a status, negative. */
  private sglData(descriptors: Uint32Array, at: number, left: number): number {
    const type = (descriptors[at + SglWord.type]! & TYPE_MASK) >>> 0;
    const length = descriptors[at + SglWord.bytes]!;
    const address = wide(descriptors, at + SglWord.addressLo);
    if ((descriptors[at + SglWord.type]! & ~TYPE_MASK) !== 0) {
      return -this.bad('reserved bits of an SGL descriptor', Code.SGL_TYPE);
    }
    if (type === Sgl.BIT_BUCKET && this.access === Dma.writes) {
      this.views.push(null);
      this.lengths.push(Math.min(left, length));
      return length;
    }
    if (type !== Sgl.DATA_BLOCK) {
      return -this.bad(`an SGL descriptor of type 0x${(type >>> 24).toString(16)}`, Code.SGL_TYPE);
    }
    if (address % this.sglAlign !== 0 || length % this.sglAlign !== 0) {
      return -this.bad(`a misaligned SGL data block ${range(address, length)}`, Code.SGL_LENGTH);
    }
    const used = Math.min(left, length);
    if (used === 0) return length;
    const status = this.push(address, used);
    return status === Code.SUCCESS ? length : -status;
  }

  private sglEnd(left: number, isClosed: boolean): number {
    if (!isClosed) return this.bad('an SGL that ends in a middle segment', Code.SGL_SEGMENT);
    if (left > 0) return this.bad('an SGL shorter than the data', Code.SGL_LENGTH);
    if (left < 0 && !this.sglExcess) return this.bad('an SGL beyond the data', Code.SGL_LENGTH);
    return Code.SUCCESS;
  }

  private push(address: number, bytes: number): number {
    const view = this.ownData
      ? this.memory.own(address, bytes, this.access, 'admin data')
      : this.memory.data(address, bytes, this.access);
    if (view === null) return Code.DATA_TRANSFER_ERROR;
    this.views.push(view);
    this.lengths.push(bytes);
    return Code.SUCCESS;
  }

  private bad(what: string, status: number): number {
    this.violations.add(what);
    return status | Code.DNR;
  }
}

function isSegment(type: number): boolean {
  const kind = (type & 0xf0000000) >>> 0;
  return kind === Sgl.SEGMENT || kind === Sgl.LAST_SEGMENT;
}

function wordsOf(view: Uint8Array): Uint32Array {
  return new Uint32Array(view.buffer, view.byteOffset, view.length >>> 2);
}
