// Identify Namespace (CNS 00h): NVM Command Set 1.0, section 4.1.5.1, with what NVM Express Base
// 2.0, section 5.17.2.8, makes independent of the command set (CNS 08h), and the NVM and ZNS parts
// of CNS 05h and 06h. Field names are the standard's in lower case.
//
// Nothing in the page is trusted: `checkNamespace` says what cannot be so.

import { layout } from '../../wire/index.js';
import type { Problem } from './identify-controller.js';
import { type Read, readRows, rows } from './table.js';

const NAMESPACE_ROWS = [
  ['nsze', 0, 8, 'size, in blocks'],
  ['ncap', 8, 8, 'capacity, in blocks'],
  ['nuse', 16, 8, 'blocks allocated'],
  ['nsfeat', 24, 1, 'features: bit 0 thin, 1 atomics of its own, 2 DULBE, 4 I/O hints'],
  ['nlbaf', 25, 1, 'LBA formats, less one'],
  ['flbas', 26, 1, 'format in use: bits 3:0, upper bits in 6:5; bit 4 metadata inline'],
  ['mc', 27, 1, 'metadata: bit 0 inline, bit 1 in a buffer of its own'],
  ['dpc', 28, 1, 'protection supported'],
  ['dps', 29, 1, 'protection in use: bits 2:0 type, bit 3 in the first bytes'],
  ['nmic', 30, 1, 'bit 0: may be attached to several controllers'],
  ['rescap', 31, 1, 'reservations'],
  ['fpi', 32, 1, 'format progress: bits 6:0 percent left, bit 7 supported'],
  ['dlfeat', 33, 1, 'deallocated blocks: bits 2:0 1 read zeros, 2 read ones; 3 by Write Zeroes'],
  ['nawun', 34, 2, 'atomic write, blocks, less one'],
  ['nawupf', 36, 2, 'atomic write over power failure, blocks, less one'],
  ['nacwu', 38, 2, 'atomic compare and write, blocks, less one'],
  ['nabsn', 40, 2, 'atomic boundary, blocks, less one'],
  ['nabo', 42, 2, 'offset of the first atomic boundary, in blocks'],
  ['nabspf', 44, 2, 'atomic boundary over power failure, blocks, less one'],
  ['noiob', 46, 2, 'optimal I/O boundary, in blocks; 0 none'],
  ['nvmcap', 48, 16, 'capacity, in bytes'],
  ['npwg', 64, 2, 'preferred write granularity, blocks, less one'],
  ['npwa', 66, 2, 'preferred write alignment, blocks, less one'],
  ['npdg', 68, 2, 'preferred deallocate granularity, blocks, less one'],
  ['npda', 70, 2, 'preferred deallocate alignment, blocks, less one'],
  ['nows', 72, 2, 'optimal write size, blocks, less one'],
  ['mssrl', 74, 2, 'Copy: most blocks of one range'],
  ['mcl', 76, 4, 'Copy: most blocks'],
  ['msrc', 80, 1, 'Copy: most ranges, less one'],
  ['nulbaf', 82, 1, 'LBA formats with attributes of their own'],
  ['anagrpid', 92, 4, 'ANA group'],
  ['nsattr', 99, 1, 'bit 0: write protected'],
  ['nvmsetid', 100, 2, 'NVM set'],
  ['endgid', 102, 2, 'endurance group'],
  ['nguid', 104, 16, 'globally unique identifier', 'bytes'],
  ['eui64', 120, 8, 'IEEE extended unique identifier', 'bytes'],
  ['vs', 384, 3712, 'vendor specific', 'bytes'],
] as const;

const LBA_FORMAT_ROWS = [
  ['ms', 0, 2, 'metadata bytes of a block'],
  ['ds', 2, 1, 'data of a block, 1 << n bytes; 0: no such format'],
  ['rp', 3, 1, 'relative performance: bits 1:0, 0 best'],
] as const;

const INDEPENDENT_ROWS = [
  ['nsfeat', 0, 1, 'common namespace features'],
  ['nmic', 1, 1, 'bit 0: may be attached to several controllers'],
  ['rescap', 2, 1, 'reservations'],
  ['fpi', 3, 1, 'format progress'],
  ['anagrpid', 4, 4, 'ANA group'],
  ['nsattr', 8, 1, 'bit 0: write protected'],
  ['nvmsetid', 10, 2, 'NVM set'],
  ['endgid', 12, 2, 'endurance group'],
  ['nstat', 14, 1, 'bit 0: ready'],
] as const;

const NVM_CONTROLLER_ROWS = [
  ['vsl', 0, 1, 'Verify limit, smallest page << n; 0 none'],
  ['wzsl', 1, 1, 'Write Zeroes limit, smallest page << n; 0 none'],
  ['wusl', 2, 1, 'Write Uncorrectable limit, smallest page << n; 0 none'],
  ['dmrl', 3, 1, 'Dataset Management: most ranges; 0 no limit'],
  ['dmrsl', 4, 4, 'Dataset Management: most blocks of one range; 0 no limit'],
  ['dmsl', 8, 8, 'Dataset Management: most blocks; 0 no limit'],
] as const;

const NVM_NAMESPACE_ROWS = [
  ['lbstm', 0, 8, 'logical block storage tag mask'],
  ['pic', 8, 1, 'protection information capabilities'],
  ['elbafs', 12, 256, 'extended LBA formats', 'bytes'],
] as const;

const ZNS_NAMESPACE_ROWS = [
  ['zoc', 0, 2, 'zone operation characteristics'],
  ['ozcs', 2, 2, 'optional zoned commands'],
  ['mar', 4, 4, 'most active zones, less one; all ones: no limit'],
  ['mor', 8, 4, 'most open zones, less one; all ones: no limit'],
  ['rrl', 12, 4, 'reset recommended limit, in seconds'],
  ['frl', 16, 4, 'finish recommended limit, in seconds'],
  ['lbafes', 2816, 1024, 'zone sizes by LBA format', 'bytes'],
  ['vs', 3840, 256, 'vendor specific', 'bytes'],
] as const;

const SOURCE = 'NVM Command Set 1.0, 4.1.5';
export const NAMESPACE_LAYOUT = layout('identify namespace', 4096, SOURCE, [
  ...rows(NAMESPACE_ROWS),
  { name: 'lbafs', offset: 128, bytes: 256, meaning: 'LBA formats' },
]);
export const LBA_FORMAT_LAYOUT = layout('lba format', 4, SOURCE, rows(LBA_FORMAT_ROWS));
export const INDEPENDENT_LAYOUT = layout(
  'identify namespace, independent of the command set',
  4096,
  'NVMe Base 2.0, 5.17.2.8',
  rows(INDEPENDENT_ROWS),
);
export const NVM_CONTROLLER_LAYOUT = layout(
  'identify controller, NVM',
  4096,
  SOURCE,
  rows(NVM_CONTROLLER_ROWS),
);
export const NVM_NAMESPACE_LAYOUT = layout(
  'identify namespace, NVM',
  4096,
  SOURCE,
  rows(NVM_NAMESPACE_ROWS),
);
export const ZNS_NAMESPACE_LAYOUT = layout(
  'identify namespace, ZNS',
  4096,
  'Zoned Namespaces 1.1, 4.1.5.1',
  rows(ZNS_NAMESPACE_ROWS),
);

const FORMATS_OFFSET = 128;
export const LBA_FORMATS_MAX = 64;
/** Blocks of less than 512 bytes are against the standard; above 64 KiB no drive has any. */
const BLOCK_SHIFT_MIN = 9;
const BLOCK_SHIFT_MAX = 16;
const TRIM_READS = ['not reported', 'zeros', 'ones'];

export type LbaFormat = Read<typeof LBA_FORMAT_ROWS>;

export type IdentifyNamespace = Read<typeof NAMESPACE_ROWS> & {
  /** All 64, as they stand in the page; `formatCount` of them count. */
  readonly lbaFormats: readonly LbaFormat[];
  /** nlbaf + 1 + nulbaf, 64 at most whatever these say. */
  readonly formatCount: number;
  /** Index of the format in use; may be beyond formatCount (checkNamespace). */
  readonly formatIndex: number;
};

/** Reads the page (4096 bytes). */
export function parseNamespace(page: Uint8Array): IdentifyNamespace {
  const fields = readRows(NAMESPACE_ROWS, page);
  const lbaFormats = Array.from({ length: LBA_FORMATS_MAX }, (_, index) => {
    const offset = FORMATS_OFFSET + index * LBA_FORMAT_LAYOUT.bytes;
    return readRows(LBA_FORMAT_ROWS, page.subarray(offset, offset + LBA_FORMAT_LAYOUT.bytes));
  });
  const formatCount = Math.min(fields.nlbaf + 1 + fields.nulbaf, LBA_FORMATS_MAX);
  // Bits 6:5 count only where there are formats that bits 3:0 cannot name.
  const upper = formatCount > 16 ? (fields.flbas & 0x60) >>> 1 : 0;
  return { ...fields, lbaFormats, formatCount, formatIndex: (fields.flbas & 0xf) | upper };
}

/** What I/O goes by. */
export interface NamespaceFormat {
  readonly blockBytes: number;
  readonly metadataBytes: number;
  /** Metadata follow each block's data in the same buffer. */
  readonly metadataInline: boolean;
  /** Type of protection information, 0 for none. */
  readonly protection: number;
}

/** The format in use; null where checkNamespace finds a fatal problem with it. */
export function formatInUse(namespace: IdentifyNamespace): NamespaceFormat | null {
  const format = namespace.lbaFormats[namespace.formatIndex];
  if (format === undefined || namespace.formatIndex >= namespace.formatCount) return null;
  if (format.ds < BLOCK_SHIFT_MIN || format.ds > BLOCK_SHIFT_MAX) return null;
  return {
    blockBytes: 2 ** format.ds,
    metadataBytes: format.ms,
    metadataInline: format.ms > 0 && (namespace.flbas & 0x10) !== 0,
    protection: namespace.dps & 0x7,
  };
}

/** What deallocated blocks read as: `zeros`, `ones`, `not reported`. */
export function deallocatedReads(namespace: IdentifyNamespace): string {
  return TRIM_READS[namespace.dlfeat & 0x7] ?? 'not reported';
}

/** Whether the page makes sense; empty when it does. An inactive namespace is all zeros. */
export function checkNamespace(namespace: IdentifyNamespace): Problem[] {
  const problems: Problem[] = [];
  const say = (field: string, fatal: boolean, problem: string): void => {
    problems.push({ field, problem, fatal });
  };
  const { nsze, ncap, nuse, nlbaf, nulbaf, dps } = namespace;
  if (nsze === 0n) say('nsze', true, 'the namespace has no blocks, or is not active');
  if (nsze > BigInt(Number.MAX_SAFE_INTEGER)) say('nsze', true, `${nsze} blocks are beyond 2^53`);
  if (ncap > nsze) say('ncap', false, `${ncap} blocks are more than the size, ${nsze}`);
  if (nuse > ncap) say('nuse', false, `${nuse} blocks are more than the capacity, ${ncap}`);
  if (nlbaf + 1 + nulbaf > LBA_FORMATS_MAX) {
    say('nlbaf', false, `${nlbaf + 1} + ${nulbaf} formats are more than 64`);
  }
  checkFormat(namespace, say);
  if ((dps & 0x7) > 3) say('dps', true, `${dps & 0x7} is no type of protection`);
  return problems;
}

function checkFormat(
  namespace: IdentifyNamespace,
  say: (field: string, fatal: boolean, problem: string) => void,
): void {
  const { formatIndex, formatCount, dps, nsze } = namespace;
  if (formatIndex >= formatCount) {
    say('flbas', true, `format ${formatIndex} is in use, but there are ${formatCount}`);
    return;
  }
  const { ds, ms } = namespace.lbaFormats[formatIndex]!;
  if (ds === 0) say('lbads', true, `format ${formatIndex} is in use, but not available`);
  else if (ds < BLOCK_SHIFT_MIN) say('lbads', true, `2^${ds} bytes are less than 512`);
  else if (ds > BLOCK_SHIFT_MAX) say('lbads', true, `2^${ds} bytes are more than 64 KiB`);
  else if (nsze << BigInt(ds) >= 1n << 64n) say('nsze', true, 'the size is beyond 2^64 bytes');
  if ((dps & 0x7) !== 0 && ms < 8) {
    say('dps', true, `protection needs 8 bytes of metadata, the format has ${ms}`);
  }
}

export type IndependentNamespace = Read<typeof INDEPENDENT_ROWS>;
export type NvmController = Read<typeof NVM_CONTROLLER_ROWS>;
export type NvmNamespace = Read<typeof NVM_NAMESPACE_ROWS>;
export type ZnsNamespace = Read<typeof ZNS_NAMESPACE_ROWS>;

/** CNS 08h. */
export function parseIndependentNamespace(page: Uint8Array): IndependentNamespace {
  return readRows(INDEPENDENT_ROWS, page);
}

/** CNS 06h, CSI 0. */
export function parseNvmController(page: Uint8Array): NvmController {
  return readRows(NVM_CONTROLLER_ROWS, page);
}

/** CNS 05h, CSI 0. */
export function parseNvmNamespace(page: Uint8Array): NvmNamespace {
  return readRows(NVM_NAMESPACE_ROWS, page);
}

/** CNS 05h, CSI 2. */
export function parseZnsNamespace(page: Uint8Array): ZnsNamespace {
  return readRows(ZNS_NAMESPACE_ROWS, page);
}

/** Zone size in blocks by LBA format (ZNS): the 16-byte entries of `lbafes`. */
export function zoneBlocks(namespace: ZnsNamespace, formatIndex: number): bigint {
  const entry = Buffer.from(namespace.lbafes, 'hex').subarray(formatIndex * 16);
  return entry.length < 8 ? 0n : entry.readBigUInt64LE(0);
}
