// `penstock volume import`: an image's bytes into a volume.

import { open as openFile, type FileHandle } from 'node:fs/promises';
import type { Pool } from '../dedup/index.js';
import { PenstockError, errnoCode } from '../errors.js';
import type { BlockDevice } from '../hpdi/index.js';
import type { DmaBuffer } from '../memory/index.js';
import { Exit } from './output.js';
import { closing, interrupted, orInterrupted } from './pool-session.js';
import { BLOCK_BYTES, eachPiece, isZeros } from './volume-pieces.js';

/** State of a snapshot in a pool's record of it (docs/format.md). */
export const SNAPSHOT = 2;

/** An image that is open. */
export interface Image {
  readonly path: string;
  readonly bytes: number;
  readonly handle: FileHandle;
  close(): Promise<void>;
}

export interface ImportOptions {
  /** Reads back what was written, and compares. */
  readonly verify: boolean;
  readonly signal: AbortSignal;
}

/** What an import did; one that SIGINT ended is told up to where it came. */
export interface ImportOutcome {
  readonly imported: Imported;
  /** INTERRUPTED, or null. */
  readonly failure: PenstockError | null;
}

/** What an import did, as it stands in its JSON. */
export interface Imported {
  readonly volume: string;
  readonly image: string;
  /** The volume was not there before. */
  readonly created: boolean;
  /** From the start of the image on. */
  readonly bytes: number;
  readonly duration_s: number;
  readonly bytes_per_second: number;
  /** Of the image, rounded up to blocks: stored as new, found in the pool, zeros. */
  readonly stored_bytes: number;
  readonly shared_bytes: number;
  readonly zero_bytes: number;
  readonly saved_percent: number;
  readonly verified: boolean;
}

/** Errors: NO_SUCH_FILE, NOT_A_FILE, BAD_SIZE (nothing is in it). */
export async function openImage(path: string): Promise<Image> {
  const handle = await openFile(path).catch((cause: unknown) => {
    if (errnoCode(cause) !== 'ENOENT') throw cause;
    throw new PenstockError('NO_SUCH_FILE', `${path} does not exist`, {
      hint: 'check the path of the image',
      exitCode: Exit.NOT_READY,
      cause,
    });
  });
  try {
    const facts = await handle.stat();
    if (!facts.isFile()) {
      throw new PenstockError('NOT_A_FILE', `${path} is no regular file`, {
        hint: 'an image is a file; copy a block device into one first',
        exitCode: Exit.USAGE,
      });
    }
    if (facts.size === 0) {
      throw new PenstockError('BAD_SIZE', `${path} is empty`, {
        hint: 'an image has one byte at least; `penstock volume create` makes an empty volume',
        exitCode: Exit.USAGE,
      });
    }
    return { path, bytes: facts.size, handle, close: () => handle.close() };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/**
 * Writes an image to the start of a volume, which is made in its size where it is not there.
 * Errors: READ_ONLY (a snapshot), BAD_SIZE, NO_SPACE.
 */
export async function importImage(
  pool: Pool,
  name: string,
  image: Image,
  { verify, signal }: ImportOptions,
): Promise<ImportOutcome> {
  const bytes = Math.ceil(image.bytes / BLOCK_BYTES) * BLOCK_BYTES;
  const known = pool.volumes.find((volume) => volume.name === name);
  if (known?.state === SNAPSHOT) {
    throw new PenstockError('READ_ONLY', `'${name}' is a snapshot`, {
      hint: 'a snapshot keeps what it holds; import into a clone of it: `penstock volume clone`',
      exitCode: Exit.NOT_READY,
    });
  }
  if (known === undefined) await pool.createVolume(name, bytes);
  else if (known.bytes < bytes) {
    throw new PenstockError('BAD_SIZE', `${image.path} is larger than the volume '${name}'`, {
      hint: `it needs ${bytes} bytes, the volume has ${known.bytes}: import it under another name`,
      exitCode: Exit.USAGE,
    });
  }
  // Before that, what the pool holds is not found.
  await orInterrupted(pool.indexed, signal);
  const disk = pool.openVolume(name);
  return closing(disk, async () => {
    const before = pool.stats().written;
    const begun = performance.now();
    const written = await writeImage(disk, image, bytes, known === undefined, signal);
    const seconds = (performance.now() - begun) / 1000;
    const { fresh, same, zero } = pool.stats().written;
    // What was not written is not compared either.
    const compared = verify ? await compareImage(disk, image, written.bytes, signal) : 0;
    const stored = (fresh - before.fresh) * BLOCK_BYTES;
    const done = Math.min(written.bytes, image.bytes);
    const imported: Imported = {
      volume: name,
      image: image.path,
      created: known === undefined,
      bytes: done,
      duration_s: seconds,
      bytes_per_second: Math.round(done / Math.max(seconds, 1e-6)),
      stored_bytes: stored,
      shared_bytes: (same - before.same) * BLOCK_BYTES,
      zero_bytes: (zero - before.zero) * BLOCK_BYTES + written.skipped,
      saved_percent: written.bytes === 0 ? 0 : 100 * (1 - stored / written.bytes),
      verified: compared === bytes,
    };
    const isWhole = written.bytes === bytes && (!verify || compared === bytes);
    return { imported, failure: isWhole ? null : interrupted() };
  });
}

/**
 * Resolves with the bytes that are in the volume, which are durable then; `skipped` of them were
 * zeros by whole pieces.
 */
async function writeImage(
  disk: BlockDevice,
  image: Image,
  bytes: number,
  isNew: boolean,
  signal: AbortSignal,
): Promise<{ bytes: number; skipped: number }> {
  let skipped = 0;
  const write = async (at: number, buffer: DmaBuffer): Promise<void> => {
    const lba = at / BLOCK_BYTES;
    if (!isZeros(buffer.u8)) return disk.write(lba, buffer);
    skipped += buffer.bytes;
    // A volume that was just made has only holes.
    if (!isNew) await disk.writeZeroes(lba, buffer.bytes / BLOCK_BYTES);
  };
  // Writes begin in the image's order, whichever read ends first: what follows in it follows in
  // the pool.
  let before: Promise<unknown> = Promise.resolve();
  const done = await eachPiece(disk, bytes, signal, async (at, buffer) => {
    const begun = Promise.all([readImage(image, at, buffer.u8), before]).then(() => ({
      written: write(at, buffer),
    }));
    before = begun.catch(() => undefined);
    await (
      await begun
    ).written;
  });
  await disk.flush();
  return { bytes: done, skipped };
}

/** Resolves with the bytes that are the image's. Throws VERIFY_MISMATCH. */
async function compareImage(
  disk: BlockDevice,
  image: Image,
  bytes: number,
  signal: AbortSignal,
): Promise<number> {
  return eachPiece(disk, bytes, signal, async (at, buffer) => {
    const wanted = new Uint8Array(buffer.bytes);
    await readImage(image, at, wanted);
    await disk.read(at / BLOCK_BYTES, buffer);
    const read = buffer.u8;
    if (Buffer.compare(read, wanted) === 0) return;
    const first = at + wanted.findIndex((byte, index) => byte !== read[index]);
    throw new PenstockError(
      'VERIFY_MISMATCH',
      `the volume differs from ${image.path} from byte ${first} on`,
      {
        hint: 'the image was changed meanwhile, or the device under the pool damages data',
        exitCode: Exit.MISMATCH,
      },
    );
  });
}

/** Fills `into` from a place of the image; zeros follow its end. */
async function readImage(image: Image, at: number, into: Uint8Array): Promise<void> {
  const wanted = Math.min(into.length, image.bytes - at);
  for (let done = 0; done < wanted;) {
    const { bytesRead } = await image.handle.read(into, done, wanted - done, at + done);
    if (bytesRead === 0) {
      throw new PenstockError('IO_ERROR', `${image.path} ended at byte ${at + done}`, {
        hint: 'it became shorter while it was read: import it again once nobody writes it',
      });
    }
    done += bytesRead;
  }
  into.fill(0, wanted);
}
