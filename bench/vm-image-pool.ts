// Images in a pool: imports them, says where their blocks are kept, and reads them back, each byte
// compared with the image, to count what the data device is asked for.

import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { Random } from '../lib/bench/random.js';
import { BLOCK_BYTES, isZeros, PIECE_BYTES } from '../lib/cli/volume-pieces.js';
import { eachBlock } from '../lib/dedup/maps/extents.js';
import { Pool } from '../lib/dedup/index.js';
import type { BlockDevice } from '../lib/hpdi/index.js';
import { countExtents, type Contents, type Places, type Readings } from './vm-image-figures.js';

export const PIECE_BLOCKS = PIECE_BYTES / BLOCK_BYTES;
const PIECES_IN_FLIGHT = 8;
/** Blocks of a read in sequence, and reads at random. */
const READ_BLOCKS = 32;
const RANDOM_READS = 20_000;
const BLOCKS_PER_MIB = 2 ** 20 / BLOCK_BYTES;

export interface Image {
  readonly path: string;
  readonly name: string;
  readonly contents: Contents;
}

/** Low-latency memory of a pool. */
export interface Tier {
  readonly device: BlockDevice;
  readonly threshold: number;
}

/** An image in pieces of 256 blocks, as an import writes them. */
export class ImageFile {
  readonly pieces: number;
  private readonly fd: number;

  constructor(path: string) {
    this.fd = openSync(path, 'r');
    this.pieces = Math.ceil(fstatSync(this.fd).size / PIECE_BYTES);
  }

  /** Zeros follow its end. False: the piece is all zeros. */
  read(piece: number, into: Uint8Array): boolean {
    for (let done = 0; done < PIECE_BYTES;) {
      const at = piece * PIECE_BYTES + done;
      const got = readSync(this.fd, into, done, PIECE_BYTES - done, at);
      if (got === 0) into.fill(0, done);
      done = got === 0 ? PIECE_BYTES : done + got;
    }
    return !isZeros(into);
  }

  close(): void {
    closeSync(this.fd);
  }
}

export interface Imported {
  readonly pool: Pool;
  /** Where each block is kept. */
  readonly places: Places[];
  readonly seconds: number;
}

/** Imports all images to a new pool, and closes it when `look` has looked at it. */
export async function withPool<T>(
  device: BlockDevice,
  images: readonly Image[],
  how: { thn: number; sampling: number; tier: Tier | null },
  look: (imported: Imported) => T | Promise<T>,
): Promise<T> {
  const { thn, sampling, tier } = how;
  const llrrm = tier?.device ?? null;
  const own = tier === null ? {} : { llrrm, llrrmThreshold: tier.threshold };
  await Pool.create(device, { thn, sampling, force: true, ...own });
  const pool = await Pool.open(device, { llrrm });
  try {
    const begun = performance.now();
    for (const { name, path, contents } of images) {
      await pool.createVolume(name, contents.length * BLOCK_BYTES);
      const disk = pool.openVolume(name);
      await importImage(disk, path).finally(() => disk.close());
      // What has references enough is in low-latency memory before the next one comes.
      await pool.settle();
    }
    const seconds = (performance.now() - begun) / 1000;
    const places: Places[] = [];
    for (const { name, contents } of images) {
      const kept = new Float64Array(contents.length);
      const volume = pool.engine.parts.catalogue.get(name);
      await eachBlock(pool.engine, device, volume, (lbn, pbn) => (kept[lbn] = pbn));
      places.push(kept);
    }
    assertSame(await pool.readExtents(), countExtents(places));
    return await look({ pool, places, seconds });
  } finally {
    await pool.close();
  }
}

/** As `penstock volume import`, but always in one order: the same images, the same places. */
async function importImage(disk: BlockDevice, path: string): Promise<void> {
  const file = new ImageFile(path);
  const buffers = Array.from({ length: PIECES_IN_FLIGHT }, () => disk.memory.alloc(PIECE_BYTES));
  const writes: Promise<void>[] = buffers.map(() => Promise.resolve());
  try {
    for (let piece = 0, lane = 0; piece < file.pieces; piece++) {
      await writes[lane];
      const buffer = buffers[lane]!;
      if (!file.read(piece, buffer.u8)) continue;
      writes[lane] = disk.write(piece * PIECE_BLOCKS, buffer);
      lane = (lane + 1) % PIECES_IN_FLIGHT;
    }
    await Promise.all(writes);
    await disk.flush();
  } finally {
    await Promise.allSettled(writes);
    for (const buffer of buffers) buffer.free();
    file.close();
  }
}

function assertSame(pool: object, counted: object): void {
  if (JSON.stringify(pool) === JSON.stringify(counted)) return;
  throw new Error(`the pool says ${JSON.stringify(pool)}, not ${JSON.stringify(counted)}`);
}

/**
 * Reads at random what several images share, then all of each image in sequence. `short`: the
 * blocks that LLRRM is to have.
 */
export async function readBack(
  pool: Pool,
  images: readonly Image[],
  short: ReadonlySet<number>,
): Promise<Readings> {
  const { llrrm, written } = pool.stats();
  const held = llrrm?.used ?? 0;
  const table = pool.engine.llrrm?.table;
  const isHeld = (pbn: number): boolean => (table?.slotOf(pbn | 0, (pbn / 2 ** 32) | 0) ?? -1) >= 0;
  const heldShort = [...short].filter(isHeld).length;
  const disks = images.map(({ name }) => pool.openVolume(name));
  try {
    await readShared(disks, images);
    const served = pool.stats().llrrm?.hit_rate ?? 0;
    await pool.settle();
    const { reads: before } = pool.stats().device;
    let blocks = 0;
    for (const [i, disk] of disks.entries()) blocks += await readAll(disk, images[i]!);
    await pool.settle();
    const reads = pool.stats().device.reads - before;
    return {
      perMiB: (reads * BLOCKS_PER_MIB) / blocks,
      served,
      short: written.short,
      held,
      heldShort,
    };
  } finally {
    for (const disk of disks) await disk.close();
  }
}

/** Blocks whose content is in more than one image are read, one at a time. */
async function readShared(disks: readonly BlockDevice[], images: readonly Image[]): Promise<void> {
  const shared = sharedBlocks(images.map(({ contents }) => contents));
  if (shared.length === 0) return;
  const random = new Random(1, 0);
  const buffer = disks[0]!.memory.alloc(BLOCK_BYTES);
  try {
    for (let i = 0; i < RANDOM_READS; i++) {
      const [image, lbn] = shared[random.below(shared.length)]!;
      await disks[image]!.read(lbn, buffer);
    }
  } finally {
    buffer.free();
  }
}

function sharedBlocks(images: readonly Contents[]): [image: number, lbn: number][] {
  /** The image that has a content; -1: several. */
  const owners = new Map<number, number>();
  for (const [i, contents] of images.entries()) {
    for (const content of contents) {
      if (content !== 0) owners.set(content, (owners.get(content) ?? i) === i ? i : -1);
    }
  }
  return images.flatMap((contents, i) => {
    const found: [number, number][] = [];
    for (const [lbn, content] of contents.entries()) {
      if (owners.get(content) === -1) found.push([i, lbn]);
    }
    return found;
  });
}

/** Reads an image from start to end, 128 KiB at a time, and compares; how many are no zeros. */
async function readAll(disk: BlockDevice, { path, contents }: Image): Promise<number> {
  const file = new ImageFile(path);
  const wanted = Buffer.allocUnsafe(PIECE_BYTES);
  const bytes = READ_BLOCKS * BLOCK_BYTES;
  const buffer = disk.memory.alloc(bytes);
  try {
    for (let lbn = 0; lbn < contents.length; lbn += READ_BLOCKS) {
      const at = (lbn % PIECE_BLOCKS) * BLOCK_BYTES;
      if (at === 0) file.read(lbn / PIECE_BLOCKS, wanted);
      await disk.read(lbn, buffer);
      if (wanted.compare(buffer.u8, 0, bytes, at, at + bytes) === 0) continue;
      throw new Error(`${disk.uri} differs from ${path} within 128 KiB from block ${lbn} on`);
    }
  } finally {
    buffer.free();
    file.close();
  }
  return contents.filter((content) => content !== 0).length;
}
