// A pool's bytes in memory, to damage: places by the rules of docs/format.md, word by word.

import { open } from '../../lib/open.js';
import { Pool } from '../../lib/dedup/index.js';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { native } from '../../lib/native.js';

export const DEVICE = 'ram:256MiB';
const PAGE = 4096;
const PAGE_WORDS = 1024;
/** So much of the device is used: two groups after the first two. */
const IMAGE_BYTES = 16 * 2 ** 20;
const CHUNK = 4 * 2 ** 20;

/** Volumes of the pool that `sound` makes, in bytes; the map of `wide` has three levels. */
export const VOLUMES = { one: 64 * 2 ** 20, wide: 3 * 2 ** 30, empty: 2 ** 20 };
/** What is written, in order: volume, first block, blocks, seed of what; 0: discarded. */
const WRITES = [
  ['one', 0, 256, 1],
  ['one', 1000, 256, 1],
  ['wide', 400_000, 256, 1],
  ['wide', 100, 256, 2],
  ['one', 1000, 100, 0],
  ['one', 10, 64, 3],
  ['wide', 400_100, 64, 3],
  ['wide', 110, 16, 4],
] as const;

export class PoolImage {
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;

  constructor(u8: Uint8Array) {
    this.u8 = u8;
    this.u32 = new Uint32Array(u8.buffer, u8.byteOffset, u8.byteLength / 4);
  }

  static async of(device: BlockDevice): Promise<PoolImage> {
    const u8 = new Uint8Array(IMAGE_BYTES);
    const buffer = device.memory.alloc(CHUNK);
    for (let at = 0; at < IMAGE_BYTES; at += CHUNK) {
      await device.read(at / device.info.blockSize, buffer);
      u8.set(buffer.u8, at);
    }
    buffer.free();
    return new PoolImage(u8);
  }

  copy(): PoolImage {
    return new PoolImage(this.u8.slice());
  }

  /** A device with the pool. */
  async device(): Promise<BlockDevice> {
    const device = await open(DEVICE);
    await this.put(device);
    return device;
  }

  /** Writes the pool to a device; what lies beyond it means nothing. */
  async put(device: BlockDevice): Promise<void> {
    const buffer = device.memory.alloc(CHUNK);
    for (let at = 0; at < IMAGE_BYTES; at += CHUNK) {
      buffer.u8.set(this.u8.subarray(at, at + CHUNK));
      await device.write(at / device.info.blockSize, buffer);
    }
    buffer.free();
  }

  page(pbn: number): Uint32Array {
    return this.u32.subarray(pbn * PAGE_WORDS, (pbn + 1) * PAGE_WORDS);
  }

  flip(pbn: number, bit = 8 * 1000): void {
    const at = pbn * PAGE + (bit >>> 3);
    this.u8[at] = this.u8[at]! ^ (1 << (bit & 7));
  }

  /** Changes words of a page, and makes its checksum right. */
  change(pbn: number, by: (words: Uint32Array) => void): void {
    const words = this.page(pbn);
    by(words);
    words[1] = this.page(this.superblock)[8]!;
    words[1] = native.crc32c(this.u8.subarray(pbn * PAGE, (pbn + 1) * PAGE), 0);
  }

  /** Page of the journal's first entry after the checkpoint. */
  get entry(): number {
    const words = this.page(this.superblock);
    return words[23]! + words[18]!;
  }

  /** Changes words of that entry, and makes its checksum right. */
  changeEntry(by: (words: Uint32Array) => void): void {
    const at = this.entry * PAGE_WORDS;
    const words = this.u32.subarray(at, at + 16 * PAGE_WORDS);
    by(words);
    words[1] = this.page(this.superblock)[8]!;
    words[1] = native.crc32c(this.u8.subarray(at * 4, at * 4 + words[8]!), 0);
  }

  /** The newer superblock. */
  get superblock(): number {
    return this.page(1)[6]! > this.page(0)[6]! ? 1 : 0;
  }

  get firstGroup(): number {
    return this.page(this.superblock)[25]!;
  }

  get highWater(): number {
    return this.page(this.superblock)[26]!;
  }

  get root(): number {
    return 16 + (this.page(this.superblock)[64]! & 1);
  }

  get summary(): number {
    const slot = this.page(this.root)[8]! & 1;
    return this.firstGroup * 1024 + (2 + slot) * 256 + 2;
  }

  /** The two words of a group. */
  group(group: number): [number, number] {
    const at = 8 + 2 * group;
    return [this.page(this.summary)[at]!, this.page(this.summary)[at + 1]!];
  }

  count(group: number): number {
    return group * 1024 + (this.group(group)[1] & 1) * 256 + 2;
  }

  fingerprint(extent: number): number {
    const slot = (this.group(Math.floor(extent / 4))[1] >>> (1 + (extent % 4))) & 1;
    return extent * 256 + slot;
  }

  get catalogue(): number {
    return this.page(this.superblock)[32]!;
  }

  /** First word of a volume's record in the catalogue's page. */
  record(volume: number): number {
    return 8 + 64 * volume;
  }

  rootOf(volume: number): number {
    return this.page(this.catalogue)[this.record(volume) + 2]!;
  }

  /** Extents in use, of blocks or of nodes. */
  extents(nodes: boolean): number[] {
    const found: number[] = [];
    for (let extent = this.firstGroup * 4; extent < this.highWater * 4; extent++) {
      const [used, bits] = this.group(extent >>> 2);
      const k = extent % 4;
      if (((used >>> (8 * k)) & 0xff) === 0) continue;
      if (((bits >>> (8 + k)) & 1) === Number(nodes)) found.push(extent);
    }
    return found;
  }

  /** Places of nonzero words among `count` from `from` on. */
  set(pbn: number, from: number, count: number): number[] {
    const words = this.page(pbn);
    return Array.from({ length: count }, (_, i) => from + i).filter((at) => words[at] !== 0);
  }
}

/** Fills with what is the same for the same seed and block, and nowhere zero. */
function fill(u32: Uint32Array, seed: number): void {
  for (let i = 0; i < u32.length; i++) u32[i] = Math.imul(i + 1, 2654435761) ^ (seed << 20);
}

/** What block `lbn` of a volume holds by now: its seed and place; 0: zeros. */
function whatIs(volume: string, lbn: number): { seed: number; at: number } {
  let what = { seed: 0, at: 0 };
  for (const [name, first, blocks, seed] of WRITES) {
    if (name === volume && lbn >= first && lbn < first + blocks) what = { seed, at: lbn - first };
  }
  return what;
}

/** Makes a pool, and writes; `beforeClose` sees the device before the pool is closed. */
export async function sound(
  beforeClose: (device: BlockDevice) => Promise<void> = async () => {},
): Promise<PoolImage> {
  const device = await open(DEVICE);
  try {
    await Pool.create(device);
    const pool = await Pool.open(device);
    for (const [name, bytes] of Object.entries(VOLUMES)) await pool.createVolume(name, bytes);
    for (const [name, first, blocks, seed] of WRITES) {
      const disk = pool.openVolume(name);
      if (seed === 0) {
        await disk.discard(first, blocks);
      } else {
        const buffer = disk.memory.alloc(blocks * PAGE);
        fill(buffer.u32, seed);
        await disk.write(first, buffer);
        buffer.free();
      }
      await disk.flush();
      await disk.close();
    }
    await beforeClose(device);
    await pool.close();
    return await PoolImage.of(device);
  } finally {
    await device.close();
  }
}

/** Ranges that were written, and some around: volume, first block, blocks. */
export const RANGES = WRITES.map(
  ([name, first, blocks]) => [name, Math.max(0, first - 4), blocks + 8] as const,
);

/** Whether a range as it was read is what was written. */
export function isRight(volume: string, first: number, u32: Uint32Array): boolean {
  const made = new Map<number, Uint32Array>();
  for (let b = 0; b < u32.length / PAGE_WORDS; b++) {
    const { seed, at } = whatIs(volume, first + b);
    let words = made.get(seed);
    if (words === undefined) {
      words = new Uint32Array(256 * PAGE_WORDS);
      if (seed !== 0) fill(words, seed);
      made.set(seed, words);
    }
    const got = Buffer.from(u32.slice(b * PAGE_WORDS, (b + 1) * PAGE_WORDS).buffer);
    const wanted = Buffer.from(words.slice(at * PAGE_WORDS, (at + 1) * PAGE_WORDS).buffer);
    if (!got.equals(wanted)) return false;
  }
  return true;
}
