// What stands on a low-latency device besides the copies (docs/format.md): whose it is, and, when
// it was closed in order, which blocks the copies are of.
//
// Invariant: a device whose first 132 KiB hold something else is not written to, unless it is given
// for that.

import { randomBytes } from 'node:crypto';
import { PenstockError } from '../../errors.js';
import type { BlockDevice } from '../../hpdi/index.js';
import type { DmaBuffer } from '../../memory/index.js';
import { Head, Magic, Page, Tier } from '../format/layout.js';
import { SlotState, type LlrrmTable } from './llrrm-table.js';
import { setPair } from '../format/numbers.js';
import { checksum } from '../format/superblock.js';

export interface LlrrmPlace {
  readonly uuid: Uint32Array;
  /** Not 0: its table is that of the last close, which had this stamp. */
  readonly stamp: number;
  readonly tablePages: number;
  readonly firstPage: number;
  readonly slots: number;
}

/** Whose a device is: the pool's UUID, and its own; the superblock's stamp. */
export interface LlrrmOwner {
  readonly pool: Uint32Array;
  readonly uuid: Uint32Array;
  readonly stamp: number;
}

const SLOTS_MAX = 2 ** 28;
/** Pages that are looked at before a device is used: 128 KiB and one. */
const HEAD_PAGES = 33;
/** Pages of one request. */
const PIECE = 64;

export function newUuid(): Uint32Array {
  const uuid = new Uint32Array(4);
  randomBytes(16).copy(new Uint8Array(uuid.buffer));
  return uuid;
}

/** Makes a device a pool's, whatever it holds. Throws LLRRM_BAD_DEVICE, the device's errors. */
export async function formatLlrrm(device: BlockDevice, owner: LlrrmOwner): Promise<void> {
  placeOf(device);
  await writeHead(device, owner, 0);
}

/**
 * Finds out what a device is for a pool, and marks it as in use: what it holds counts only if the
 * pool was closed with it, and for this once. Throws LLRRM_FOREIGN when it is something else.
 */
export async function takeLlrrm(device: BlockDevice, owner: LlrrmOwner): Promise<LlrrmPlace> {
  const place = placeOf(device);
  // Whatever else it may be has something in its first pages: superblocks of file systems, RAIDs.
  const head = device.memory.alloc(
    Math.min(HEAD_PAGES, place.firstPage + place.slots) * Page.bytes,
  );
  try {
    await device.read(0, head);
    const words = head.u32.subarray(0, Page.words);
    const isOwn =
      isSound(words, Magic.tier, 0, owner.pool[0]!) && same(words, Tier.pool, owner.pool);
    if (!isOwn && head.u32.some((word) => word !== 0)) {
      throw new PenstockError('LLRRM_FOREIGN', `${device.uri} is not this pool's fast memory`, {
        hint: '`penstock pool set DEVICE --llrrm URI` makes it so; what it holds is lost then',
        exitCode: 3,
      });
    }
    const isKept =
      isOwn &&
      owner.stamp !== 0 &&
      words[Tier.stamp] === owner.stamp &&
      words[Tier.slots] === place.slots &&
      same(words, Tier.uuid, owner.uuid);
    await writeHead(device, owner, 0);
    return { ...place, uuid: owner.uuid, stamp: isKept ? owner.stamp : 0 };
  } finally {
    head.free();
  }
}

/** Fills the table with what the device was closed with; a page that is damaged is left out. */
export async function loadTable(
  device: BlockDevice,
  place: LlrrmPlace,
  pool: Uint32Array,
  table: LlrrmTable,
  isBlock: (pbn: number) => boolean,
): Promise<void> {
  await inPieces(device, place, async (buffer, first, count) => {
    await device.read(lba(device, first), buffer);
    for (let i = 0; i < count; i++) {
      const words = buffer.u32.subarray(i * Page.words, (i + 1) * Page.words);
      if (!isSound(words, Magic.tierTable, first + i, pool[0]!)) continue;
      const slot = (first + i - 1) * Tier.perPage;
      for (let e = 0; e < Tier.perPage && slot + e < place.slots; e++) {
        const at = Head.words + e * Tier.entryWords;
        const pbn = words[at + 1]! * 2 ** 32 + words[at]!;
        if (pbn !== 0 && isBlock(pbn)) table.restore(slot + e, pbn, words[at + 2]!);
      }
    }
  });
  table.restored();
}

/** Writes the table, and that it counts for who has the stamp. */
export async function saveTable(
  device: BlockDevice,
  place: LlrrmPlace,
  owner: LlrrmOwner,
  table: LlrrmTable,
): Promise<void> {
  await inPieces(device, place, async (buffer, first, count) => {
    buffer.u8.fill(0);
    for (let i = 0; i < count; i++) {
      const words = buffer.u32.subarray(i * Page.words, (i + 1) * Page.words);
      const slot = (first + i - 1) * Tier.perPage;
      for (let e = 0; e < Tier.perPage && slot + e < place.slots; e++) {
        if (table.states[slot + e] !== SlotState.valid) continue;
        const at = Head.words + e * Tier.entryWords;
        words[at] = table.pbnLo[slot + e]!;
        words[at + 1] = table.pbnHi[slot + e]!;
        words[at + 2] = table.crcs[slot + e]!;
      }
      seal(words, Magic.tierTable, first + i, owner.pool[0]!);
    }
    await device.write(lba(device, first), buffer);
  });
  await device.flush();
  await writeHead(device, owner, owner.stamp);
}

async function inPieces(
  device: BlockDevice,
  place: LlrrmPlace,
  run: (buffer: DmaBuffer, first: number, count: number) => Promise<void>,
): Promise<void> {
  for (let first = 1; first <= place.tablePages; first += PIECE) {
    const count = Math.min(PIECE, place.tablePages + 1 - first);
    const buffer = device.memory.alloc(count * Page.bytes);
    try {
      await run(buffer, first, count);
    } finally {
      buffer.free();
    }
  }
}

async function writeHead(device: BlockDevice, owner: LlrrmOwner, stamp: number): Promise<void> {
  const page = device.memory.alloc(Page.bytes);
  try {
    const words = page.u32;
    words.fill(0);
    words.set(owner.pool, Tier.pool);
    words.set(owner.uuid, Tier.uuid);
    words[Tier.stamp] = stamp;
    words[Tier.slots] = placeOf(device).slots;
    seal(words, Magic.tier, 0, owner.pool[0]!);
    await device.write(0, page);
    await device.flush();
  } finally {
    page.free();
  }
}

/** How a device is divided. Throws LLRRM_BAD_DEVICE. */
function placeOf(device: BlockDevice): Omit<LlrrmPlace, 'uuid' | 'stamp'> {
  const { blockSize, blocks, readOnly } = device.info;
  const isGood = blockSize <= Page.bytes && Page.bytes % blockSize === 0 && !readOnly;
  const pages = Math.floor((blocks * blockSize) / Page.bytes);
  const slots = Math.floor(((pages - 1) * Tier.perPage) / (Tier.perPage + 1));
  if (isGood && slots >= 1 && slots <= SLOTS_MAX) {
    const tablePages = Math.ceil(slots / Tier.perPage);
    return { tablePages, firstPage: 1 + tablePages, slots };
  }
  throw new PenstockError('LLRRM_BAD_DEVICE', `${device.uri} cannot be a pool's fast memory`, {
    hint: 'it needs blocks of 512 to 4096 bytes, 12 KiB to 1 TiB, and to be writable',
    exitCode: 2,
  });
}

function seal(words: Uint32Array, magic: number, pbn: number, seed: number): void {
  words[Head.magic] = magic;
  setPair(words, Head.pbnLo, pbn);
  words[Head.crc] = checksum(words, seed);
}

function isSound(words: Uint32Array, magic: number, pbn: number, seed: number): boolean {
  const isMine = words[Head.magic] === magic && words[Head.pbnLo] === pbn;
  return isMine && checksum(words, seed) === words[Head.crc];
}

function same(words: Uint32Array, at: number, uuid: Uint32Array): boolean {
  return uuid.every((word, i) => words[at + i] === word);
}

function lba(device: BlockDevice, page: number): number {
  return (page * Page.bytes) / device.info.blockSize;
}
