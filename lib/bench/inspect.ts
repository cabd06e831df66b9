// Judging blocks that were read back: which kind of damage, where, and a sentence about it. Runs
// per block only for the comparison of the header; everything else runs for damaged blocks alone.
//
// Words for people: a `block` is a unit of the job's bs, as in the failure's number; what a device
// counts is an LBA.
//
// Order of judgement of one device block: no header → unwritten; checksum wrong → torn when its
// sectors belong to different writes, else corrupt; another position → misplaced; another job's
// seed or an older sequence → stale. A unit whose blocks belong to different writes is torn.

import { Header, MAGIC, type Pattern } from './pattern.js';
import type { VerifyFailure } from './types.js';

const SECTOR_BYTES = 512;
const SECTOR_WORDS = 128;
/** How many writes back a torn block's rest is looked for. */
const OTHER_WRITES = 16;
const TWO32 = 2 ** 32;

export type DamageKind = VerifyFailure['kind'];

export interface Damage {
  kind: DamageKind;
  /** Index of the first damaged device block within the unit. */
  index: number;
  detail: string;
}

/** What a unit should hold: `sequence` 0 takes any write of this seed. */
export interface Expectation {
  lba: number;
  sequence: number;
}

/** True when a block with a good checksum is the one expected. The hot half of verification. */
export function headerFits(
  words: Uint32Array,
  at: number,
  seed: number,
  lbaLo: number,
  lbaHi: number,
  sequence: number,
): boolean {
  return (
    words[at + Header.magic] === MAGIC &&
    words[at + Header.seed] === seed &&
    words[at + Header.lbaLo] === lbaLo &&
    words[at + Header.lbaHi] === lbaHi &&
    (sequence === 0 ? words[at + Header.sequence] !== 0 : words[at + Header.sequence] === sequence)
  );
}

/** Judges a unit of `blocks` device blocks; `crcs` has the computed checksums from `crcAt` on. */
export function inspectUnit(
  pattern: Pattern,
  words: Uint32Array,
  blocks: number,
  expected: Expectation,
  crcs: Uint32Array,
  crcAt: number,
): Damage | null {
  const size = pattern.blockWords;
  let first: Damage | null = null;
  let whole = 0;
  let old = 0;
  for (let i = 0; i < blocks; i++) {
    const damage = inspectBlock(pattern, words, i, blocks, expected, crcs[crcAt + i]!);
    if (damage === null) {
      whole++;
      continue;
    }
    if (damage.kind === 'stale' || damage.kind === 'unwritten') old++;
    if (first === null || rank(damage.kind) > rank(first.kind)) first = damage;
  }
  if (first === null) return tornBetween(words, size, blocks);
  // Some blocks are the expected write's and the rest an older one's: the write stopped half-way.
  if (old === blocks - whole && whole > 0) {
    const rest = `LBA ${expected.lba + first.index}: ${first.detail}`;
    const detail = `${whole} of its ${blocks} LBAs are of the last write; ${rest}`;
    return { kind: 'torn', index: first.index, detail };
  }
  const mixed = first.kind === 'stale' ? tornBetween(words, size, blocks) : null;
  return mixed ?? first;
}

/** The graver kind is the one to report when blocks of a unit differ. */
function rank(kind: DamageKind): number {
  return ['unwritten', 'stale', 'misplaced', 'corrupt', 'torn'].indexOf(kind);
}

/** Blocks of one written unit that carry different sequences. */
function tornBetween(words: Uint32Array, size: number, blocks: number): Damage | null {
  let unit = -1;
  let sequence = 0;
  for (let i = 0; i < blocks; i++) {
    const at = i * size;
    const start = lbaOf(words, at) - words[at + Header.index]!;
    if (start === unit && words[at + Header.sequence] !== sequence) {
      const own = words[at + Header.sequence];
      const detail = `from LBA ${lbaOf(words, at)} on it is of write ${own}, before of ${sequence}`;
      return { kind: 'torn', index: i, detail };
    }
    unit = start;
    sequence = words[at + Header.sequence]!;
  }
  return null;
}

function lbaOf(words: Uint32Array, at: number): number {
  return words[at + Header.lbaHi]! * TWO32 + words[at + Header.lbaLo]!;
}

function inspectBlock(
  pattern: Pattern,
  words: Uint32Array,
  index: number,
  blocks: number,
  expected: Expectation,
  crc: number,
): Damage | null {
  const at = index * pattern.blockWords;
  const lba = expected.lba + index;
  const found = lbaOf(words, at);
  const ours = words[at + Header.seed] === pattern.seed;
  if (words[at + Header.magic] !== MAGIC && !(ours && found === lba)) {
    return { kind: 'unwritten', index, detail: unwrittenDetail(pattern, words, at) };
  }
  if (words[at + Header.crc] !== crc) return checksumDamage(pattern, words, index, lba, crc);
  if (!ours) {
    return { kind: 'stale', index, detail: 'whole, but written by a job with another seed' };
  }
  if (found !== lba) {
    const home = Math.floor(found / blocks);
    return { kind: 'misplaced', index, detail: `whole, but it is block ${home} (LBA ${found})` };
  }
  const sequence = words[at + Header.sequence]!;
  if (expected.sequence !== 0 && sequence !== expected.sequence) {
    return {
      kind: 'stale',
      index,
      detail: `whole, but of write ${sequence}; write ${expected.sequence} was acknowledged`,
    };
  }
  return null;
}

function unwrittenDetail(pattern: Pattern, words: Uint32Array, at: number): string {
  const block = words.subarray(at, at + pattern.blockWords);
  return block.every((word) => word === 0)
    ? 'all zeroes: never written, or discarded'
    : 'no header: never written by a verified job, or overwritten by something else';
}

/** A block with a wrong checksum: torn at a sector boundary, or corrupt. */
function checksumDamage(
  pattern: Pattern,
  words: Uint32Array,
  index: number,
  lba: number,
  crc: number,
): Damage {
  const at = index * pattern.blockWords;
  const hi = Math.floor(lba / TWO32);
  const lo = lba - hi * TWO32;
  const sequence = words[at + Header.sequence]!;
  const other = otherSectors(pattern, words, at, lo, hi, sequence);
  if (other !== null) {
    const from = other.sector * SECTOR_BYTES;
    const detail = `bytes from ${from} on are of ${other.what}, the header of write ${sequence}`;
    return { kind: 'torn', index, detail };
  }
  const key = pattern.key(lo, hi, sequence);
  for (let i = Header.words; i < pattern.blockWords; i++) {
    const difference = (words[at + i]! ^ pattern.payload(key, i)) >>> 0;
    if (difference === 0) continue;
    const bit = 31 - Math.clz32(difference & -difference);
    const place = `byte ${i * 4 + (bit >> 3)} of LBA ${lba}, bit ${bit & 7}`;
    const detail = `checksum wrong: first difference in ${place}`;
    return { kind: 'corrupt', index, detail };
  }
  const stored = words[at + Header.crc]!;
  const detail = `checksum ${hex(crc)} where the block says ${hex(stored)}: its header is damaged`;
  return { kind: 'corrupt', index, detail };
}

/** The first sector that is wholly another write's, or zeroes, while the others fit the header. */
function otherSectors(
  pattern: Pattern,
  words: Uint32Array,
  at: number,
  lo: number,
  hi: number,
  sequence: number,
): { sector: number; what: string } | null {
  const sectors = pattern.blockWords / SECTOR_WORDS;
  let found: { sector: number; what: string } | null = null;
  for (let sector = 0; sector < sectors; sector++) {
    if (sectorFits(pattern, words, at, sector, pattern.key(lo, hi, sequence))) continue;
    const what = sectorOrigin(pattern, words, at, sector, lo, hi, sequence);
    if (what === null) return null;
    found ??= { sector, what };
  }
  return found;
}

function sectorOrigin(
  pattern: Pattern,
  words: Uint32Array,
  at: number,
  sector: number,
  lo: number,
  hi: number,
  sequence: number,
): string | null {
  const from = at + sector * SECTOR_WORDS;
  if (sector > 0 && words.subarray(from, from + SECTOR_WORDS).every((word) => word === 0)) {
    return 'no write (zeroes)';
  }
  // From the next write (the header's sector is the one left behind) down to older ones.
  for (let other = sequence + 1; other > 0 && other >= sequence - OTHER_WRITES; other--) {
    if (other === sequence) continue;
    if (sectorFits(pattern, words, at, sector, pattern.key(lo, hi, other))) return `write ${other}`;
  }
  return null;
}

function sectorFits(
  pattern: Pattern,
  words: Uint32Array,
  at: number,
  sector: number,
  key: number,
): boolean {
  const end = (sector + 1) * SECTOR_WORDS;
  for (let i = Math.max(Header.words, sector * SECTOR_WORDS); i < end; i++) {
    if (words[at + i] !== pattern.payload(key, i)) return false;
  }
  return true;
}

function hex(word: number): string {
  return `0x${word.toString(16).padStart(8, '0')}`;
}
