// The superblock: what it says, read and written (docs/format.md, "Superblock").

import { PenstockError } from '../../errors.js';
import { native } from '../../native.js';
import {
  FEATURES_KNOWN,
  FORMAT_VERSION,
  Head,
  Magic,
  Page,
  READ_FEATURES_KNOWN,
  ROOT_SLOT_WORDS,
  Super,
} from './layout.js';
import { pair, setPair } from './numbers.js';

export interface SuperblockFacts {
  uuid: Uint32Array;
  /** Features, known or not: who writes the next superblock keeps them. */
  compatible: number;
  incompatible: number;
  readCompatible: number;
  epoch: number;
  checkpoint: number;
  seq: number;
  journalAt: number;
  clean: boolean;
  pages: number;
  roots: number;
  journalPage: number;
  journalPages: number;
  firstGroup: number;
  highWater: number;
  thn: number;
  llrrmThreshold: number;
  dataChecksum: boolean;
  sampling: number;
  catalogueLevel: number;
  catalogueRoot: number;
  volumes: number;
  nextSerial: number;
  blockSize: number;
  /** Of the low-latency device: all 0, none; its stamp at the last close; 0 shared, 1 random. */
  llrrmUuid: Uint32Array;
  llrrmStamp: number;
  llrrmPolicy: number;
  /** Memory for the index, in pages of 4 KiB; 0: by the pool's size. */
  indexPages: number;
  llrrmUri: string;
  /** Bit per root page. */
  rootSlots: Uint32Array;
}

/** Writes facts to a page; `slot` is where it goes, 0 or 1. */
export function writeSuperblock(words: Uint32Array, facts: SuperblockFacts, slot: number): void {
  fillSuperblock(words, facts, slot);
  words[Head.crc] = checksum(words, facts.uuid[0]!);
}

/**
 * The same, with the seed where its checksum is to be. Leaves no objects but for the URI of
 * low-latency memory.
 */
export function fillSuperblock(words: Uint32Array, facts: SuperblockFacts, slot: number): void {
  words.fill(0, 0, Page.words);
  words[Head.magic] = Magic.superblock;
  words[Head.pbnLo] = slot;
  setPair(words, Head.seqLo, facts.seq);
  words[Head.checkpoint] = facts.checkpoint;
  words[Head.own] = FORMAT_VERSION;
  words.set(facts.uuid, Super.uuid);
  words[Super.compatible] = facts.compatible;
  words[Super.incompatible] = facts.incompatible;
  words[Super.readCompatible] = facts.readCompatible;
  words[Super.epoch] = facts.epoch;
  setPair(words, Super.seqLo, facts.seq);
  words[Super.journalAt] = facts.journalAt;
  words[Super.clean] = facts.clean ? 1 : 0;
  setPair(words, Super.pagesLo, facts.pages);
  words[Super.roots] = facts.roots;
  words[Super.journalPage] = facts.journalPage;
  words[Super.journalPages] = facts.journalPages;
  words[Super.firstGroup] = facts.firstGroup;
  words[Super.highWater] = facts.highWater;
  words[Super.thn] = facts.thn;
  words[Super.llrrmThreshold] = facts.llrrmThreshold;
  words[Super.dataChecksum] = facts.dataChecksum ? 1 : 0;
  words[Super.sampling] = facts.sampling;
  words[Super.catalogueLevel] = facts.catalogueLevel;
  setPair(words, Super.catalogueLo, facts.catalogueRoot);
  words[Super.volumes] = facts.volumes;
  words[Super.nextSerial] = facts.nextSerial;
  words[Super.blockSize] = facts.blockSize;
  words.set(facts.llrrmUuid, Super.llrrmUuid);
  words[Super.llrrmStamp] = facts.llrrmStamp;
  words[Super.llrrmPolicy] = facts.llrrmPolicy;
  words[Super.indexPages] = facts.indexPages;
  if (facts.llrrmUri !== '') uriBytes(words).write(facts.llrrmUri);
  words.set(facts.rootSlots, Super.rootSlots);
  words[Head.crc] = facts.uuid[0]!;
}

/** The facts of a page, or null when it is no superblock. Throws NEWER_FORMAT. */
export function readSuperblock(words: Uint32Array, slot: number): SuperblockFacts | null {
  const seed = words[Super.uuid]!;
  if (words[Head.magic] !== Magic.superblock) return null;
  if (words[Head.pbnLo] !== slot || words[Head.pbnHi] !== 0) return null;
  if (checksum(words, seed) !== words[Head.crc]) return null;
  const version = words[Head.own]!;
  const isKnown = (words[Super.incompatible]! & ~FEATURES_KNOWN) === 0;
  if (version !== FORMAT_VERSION || !isKnown) {
    const features = words[Super.incompatible]!.toString(16);
    throw newerFormat(
      `the pool has format ${version} with features 0x${features}; this version knows ` +
        `${FORMAT_VERSION} with 0x${FEATURES_KNOWN.toString(16)}`,
    );
  }
  return {
    uuid: words.slice(Super.uuid, Super.uuid + 4),
    compatible: words[Super.compatible]!,
    incompatible: words[Super.incompatible]!,
    readCompatible: words[Super.readCompatible]!,
    epoch: words[Super.epoch]!,
    checkpoint: words[Head.checkpoint]!,
    seq: pair(words, Super.seqLo),
    journalAt: words[Super.journalAt]!,
    clean: words[Super.clean] === 1,
    pages: pair(words, Super.pagesLo),
    roots: words[Super.roots]!,
    journalPage: words[Super.journalPage]!,
    journalPages: words[Super.journalPages]!,
    firstGroup: words[Super.firstGroup]!,
    highWater: words[Super.highWater]!,
    thn: words[Super.thn]!,
    llrrmThreshold: words[Super.llrrmThreshold]!,
    dataChecksum: words[Super.dataChecksum] === 1,
    sampling: words[Super.sampling]!,
    catalogueLevel: words[Super.catalogueLevel]!,
    catalogueRoot: pair(words, Super.catalogueLo),
    volumes: words[Super.volumes]!,
    nextSerial: words[Super.nextSerial]!,
    blockSize: words[Super.blockSize]!,
    llrrmUuid: words.slice(Super.llrrmUuid, Super.llrrmUuid + 4),
    llrrmStamp: words[Super.llrrmStamp]!,
    llrrmPolicy: words[Super.llrrmPolicy]!,
    indexPages: words[Super.indexPages]!,
    llrrmUri: uriBytes(words).toString().replace(/\0+$/, ''),
    rootSlots: words.slice(Super.rootSlots, Super.rootSlots + ROOT_SLOT_WORDS),
  };
}

/** Throws NEWER_FORMAT for a pool that this version may read, and not write. */
export function assertWritable(facts: SuperblockFacts): void {
  const unknown = (facts.readCompatible & ~READ_FEATURES_KNOWN) >>> 0;
  if (unknown === 0) return;
  const features = unknown.toString(16);
  throw newerFormat(`the pool has features 0x${features}, which this version cannot write with`);
}

function newerFormat(message: string): PenstockError {
  return new PenstockError('NEWER_FORMAT', message, {
    hint: 'open it with the version of Penstock that made it, or a newer one',
    exitCode: 3,
  });
}

function uriBytes(words: Uint32Array): Buffer {
  return Buffer.from(words.buffer, words.byteOffset + Super.llrrmUri * 4, Super.llrrmUriBytes);
}

/** CRC-32C of a page with the pool's seed in the checksum's place. */
export function checksum(words: Uint32Array, seed: number): number {
  const known = words[Head.crc]!;
  words[Head.crc] = seed;
  const crc = native.crc32c(new Uint8Array(words.buffer, words.byteOffset, Page.bytes), 0);
  words[Head.crc] = known;
  return crc;
}

/** Throws POOL_CORRUPT when a page is not what it should be. */
export function assertPage(words: Uint32Array, magic: number, pbn: number, seed: number): void {
  const isSound = words[Head.crc] === checksum(words, seed);
  if (words[Head.magic] === magic && pair(words, Head.pbnLo) === pbn && isSound) return;
  throw new PenstockError('POOL_CORRUPT', `the pool is damaged: page ${pbn} is not what it was`, {
    hint: '`penstock pool check` says what can still be used',
  });
}

/** A UUID as people write it. */
export function uuidText(uuid: Uint32Array): string {
  const hex = [...uuid].map((word) => word.toString(16).padStart(8, '0')).join('');
  return [8, 12, 16, 20].reduceRight((text, at) => `${text.slice(0, at)}-${text.slice(at)}`, hex);
}
