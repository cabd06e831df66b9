// I/O commands besides reads and writes: flush, deallocate, write zeroes, zone append, and commands
// that the caller made (RAW). NVM Command Set 1.0, section 3.
//
// A RAW request's address is that of a block of 24 words in live memory:
//   0–15  the submission entry; the driver fills cid, PSDT and the data pointer
//   16–17 address of the data (0: none), 18 bytes
//   19    bit 0: the device writes the data
//   20–21 address of the metadata (0: none), 22 bytes
// Its completion's result is the entry's dwords 0 and 1.

import { Access, Flag, Op, Req, Status, type DeviceInfo } from '../../hpdi/index.js';
import { addressSpace } from '../../memory/index.js';
import { Cdw0, Cdw12, Dsm, DsmRange, IoOp, Sqe } from './commands.js';
import type { DataPointer } from './data-pointer.js';
import { Slot } from './pairs.js';
import type { Reach } from './reach.js';

/** Word indices of a RAW command block. */
export const enum Raw {
  dataLo = 16,
  dataHi = 17,
  dataBytes = 18,
  flags = 19,
  metadataLo = 20,
  metadataHi = 21,
  metadataBytes = 22,
  words = 24,
}

export const RAW_COMMAND = Object.freeze({
  dataLo: 16,
  dataHi: 17,
  dataBytes: 18,
  flags: 19,
  metadataLo: 20,
  metadataHi: 21,
  metadataBytes: 22,
  words: 24,
  /** Bit of `flags`: data flows from the device. */
  FROM_DEVICE: 1,
});

export const enum RawFlag {
  fromDevice = 1,
}

/** Blocks of one Write Zeroes or of one transfer: 16 bits, less one. */
const NLB_MAX = 65536;

/** What requests are checked against; one object per queue. */
export interface CheckContext {
  readonly info: DeviceInfo;
  readonly reach: Reach;
  blocks: number;
  removed: boolean;
}

/** Operations but plain reads and writes: OK, or the error the request has. */
export function checkOther(sq: Uint32Array, record: number, context: CheckContext): number {
  const { info, blocks: capacity, removed } = context;
  const word = sq[record]!;
  const op = word & 0xff;
  if ((word & (Flag.mask & ~Flag.FUA)) !== 0) return Status.BAD_REQUEST;
  if (op > 31 || (info.operations & (1 << op)) === 0) {
    return info.readOnly && isWrite(op) ? Status.READ_ONLY : Status.UNSUPPORTED;
  }
  if (removed) return Status.DEVICE_GONE;
  if (op === Op.FLUSH) return Status.OK;
  if (op === Op.RAW) {
    return checkRaw(rawWords(sq[record + Req.addressLo]!, sq[record + Req.addressHi]!), context);
  }
  const blocks = sq[record + Req.blocks]!;
  if (blocks === 0) return Status.BAD_REQUEST;
  const lba = sq[record + Req.lbaHi]! * 2 ** 32 + sq[record + Req.lbaLo]!;
  if (lba + blocks > capacity) return Status.BAD_RANGE;
  if (op === Op.WRITE_ZEROES && blocks > NLB_MAX) return Status.TOO_LARGE;
  return Status.OK;
}

function isWrite(op: number): boolean {
  return op === Op.WRITE || op === Op.DISCARD || op === Op.WRITE_ZEROES;
}

/** The 24 words of a RAW request, or null when they are not in live memory. */
function rawWords(addressLo: number, addressHi: number): Uint32Array | null {
  const address = addressHi * 2 ** 32 + addressLo;
  const segment = addressSpace().find(address);
  const offset = segment === undefined ? 0 : address - segment.address;
  if (segment === undefined || offset % 4 !== 0 || offset + Raw.words * 4 > segment.bytes) {
    return null;
  }
  return segment.u32.subarray(offset / 4, offset / 4 + Raw.words);
}

function checkRaw(words: Uint32Array | null, { info, reach }: CheckContext): number {
  if (words === null) return Status.BAD_ADDRESS;
  if (words[Raw.dataBytes]! > info.maxTransferBlocks * info.blockSize) return Status.TOO_LARGE;
  const access = (words[Raw.flags]! & RawFlag.fromDevice) !== 0 ? Access.write : Access.read;
  const data = checkRawPart(words, Raw.dataLo, access, reach);
  return data === Status.OK ? checkRawPart(words, Raw.metadataLo, access, reach) : data;
}

/** The buffer whose address stands at word `at`, its bytes two words on. */
function checkRawPart(words: Uint32Array, at: number, access: Access, reach: Reach): number {
  const lo = words[at]!;
  const hi = words[at + 1]!;
  const bytes = words[at + 2]!;
  if (lo === 0 && hi === 0) return bytes === 0 ? Status.OK : Status.BAD_ADDRESS;
  if (bytes === 0) return Status.BAD_REQUEST;
  if ((lo & 3) !== 0) return Status.MISALIGNED;
  return reach.check(lo, hi, bytes, access);
}

/** Makes the entry at word `at` of an operation that checkOther passed; words 2–5 are 0. */
export function buildOther(
  sq: Uint32Array,
  at: number,
  slot: number,
  slots: Uint32Array,
  pointer: DataPointer,
  nsid: number,
  context: CheckContext,
): void {
  const s = slot * Slot.words;
  const word = slots[s]!;
  const op = word & 0xff;
  sq.fill(0, at + Sqe.prp1Lo, at + Sqe.words);
  sq[at + Sqe.nsid] = nsid;
  if (op === Op.RAW) {
    buildRaw(sq, at, slot, slots, pointer, context);
    return;
  }
  if (op === Op.FLUSH) {
    sq[at] = IoOp.FLUSH | (slot << Cdw0.CID_SHIFT);
    return;
  }
  const blocks = slots[s + Slot.blocks]!;
  if (op === Op.DISCARD) {
    const ranges = pointer.words;
    const to = pointer.wordOf(slot);
    ranges[to + DsmRange.attributes] = 0;
    ranges[to + DsmRange.blocks] = blocks;
    ranges[to + DsmRange.slbaLo] = slots[s + Slot.lbaLo]!;
    ranges[to + DsmRange.slbaHi] = slots[s + Slot.lbaHi]!;
    pointer.pointAtRanges(sq, at, slot);
    sq[at] = IoOp.DATASET_MANAGEMENT | (slot << Cdw0.CID_SHIFT);
    sq[at + Sqe.cdw10] = 0; // one range
    sq[at + Sqe.cdw11] = Dsm.DEALLOCATE;
    return;
  }
  sq[at] = IoOp.WRITE_ZEROES | (slot << Cdw0.CID_SHIFT);
  sq[at + Sqe.cdw10] = slots[s + Slot.lbaLo]!;
  sq[at + Sqe.cdw11] = slots[s + Slot.lbaHi]!;
  sq[at + Sqe.cdw12] = (blocks - 1) | ((word & Flag.FUA) !== 0 ? Cdw12.FUA : 0);
}

/** Bits of cdw0 that a caller may choose: the opcode and whether it is fused. */
const RAW_CDW0 = 0x3ff;

function buildRaw(
  sq: Uint32Array,
  at: number,
  slot: number,
  slots: Uint32Array,
  pointer: DataPointer,
  context: CheckContext,
): void {
  const s = slot * Slot.words;
  const words = rawWords(slots[s + Slot.addressLo]!, slots[s + Slot.addressHi]!);
  if (words === null || checkRaw(words, context) !== Status.OK) {
    // Changed since it was checked, while it waited: a command that harms nobody.
    sq[at] = IoOp.FLUSH | (slot << Cdw0.CID_SHIFT);
    return;
  }
  for (let i = Sqe.nsid; i < Sqe.words; i++) sq[at + i] = words[i]!;
  const bytes = words[Raw.dataBytes]!;
  let psdt = 0;
  sq.fill(0, at + Sqe.mptrLo, at + Sqe.cdw10);
  if (bytes > 0) {
    psdt = pointer.describe(sq, at, slot, words[Raw.dataLo]!, words[Raw.dataHi]!, bytes);
  }
  sq[at + Sqe.mptrLo] = words[Raw.metadataLo]!;
  sq[at + Sqe.mptrHi] = words[Raw.metadataHi]!;
  sq[at] = (words[0]! & RAW_CDW0) | psdt | (slot << Cdw0.CID_SHIFT);
}
