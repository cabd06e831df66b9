// `penstock volume export`: a volume's bytes into a file, sparse.
//
// Invariant: the file has its name only once it is whole. Until then it stands beside it under
// another, and goes when anything fails; a file that is replaced (--force) stays until then. When
// the export is told of, bytes and name are durable.

import { lstatSync, realpathSync, statSync } from 'node:fs';
import { link, open as openFile, rename, rm, type FileHandle } from 'node:fs/promises';
import { dirname } from 'node:path';
import type { Pool } from '../dedup/index.js';
import { PenstockError, errnoCode } from '../errors.js';
import type { BlockDevice } from '../hpdi/index.js';
import { parseUri } from '../uri.js';
import { Exit } from './output.js';
import { closing, interrupted } from './pool-session.js';
import { BLOCK_BYTES, eachPiece, isZeros } from './volume-pieces.js';

/** How file systems without hard links say so. */
const NO_LINKS = new Set(['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK']);

/** What an export did; one that SIGINT ended got through some bytes, and has left no file. */
export interface ExportOutcome {
  readonly exported: Exported;
  /** INTERRUPTED, or null. */
  readonly failure: PenstockError | null;
}

/** What an export did, as it stands in its JSON. */
export interface Exported {
  readonly volume: string;
  readonly file: string;
  readonly bytes: number;
  /** What is not zeros, by blocks: what the file takes. */
  readonly written_bytes: number;
  readonly duration_s: number;
  readonly bytes_per_second: number;
}

/**
 * The path that an export is to have in the end, links followed. Errors: FILE_EXISTS, NOT_A_FILE,
 * BAD_OPTION when it is the pool's own file.
 */
export function exportTarget(file: string, uri: string, force: boolean): string {
  const facts = statSync(file, { throwIfNoEntry: false });
  if (facts === undefined) return file;
  if (!facts.isFile()) {
    throw new PenstockError('NOT_A_FILE', `${file} is no regular file`, {
      hint: 'export to a file, then copy that',
      exitCode: Exit.USAGE,
    });
  }
  const target = realpathSync(file);
  const { scheme, path } = parseUri(uri);
  const own = scheme === 'file' ? statSync(path, { throwIfNoEntry: false }) : undefined;
  if (own?.ino === facts.ino && own.dev === facts.dev) {
    throw new PenstockError('BAD_OPTION', `${file} is the pool itself`, {
      hint: 'export to another file',
      exitCode: Exit.USAGE,
    });
  }
  if (force) return target;
  throw existsError(file);
}

function existsError(file: string): PenstockError {
  return new PenstockError('FILE_EXISTS', `${file} exists`, {
    hint: 'choose another name; `--force` replaces it',
  });
}

/**
 * Writes a volume to `target`; with `force` one that is there is replaced. Errors: NO_SUCH_VOLUME,
 * NO_SPACE, FILE_EXISTS.
 */
export async function exportVolume(
  pool: Pool,
  name: string,
  target: string,
  force: boolean,
  signal: AbortSignal,
): Promise<ExportOutcome> {
  const disk = pool.openVolume(name);
  return closing(disk, async () => {
    const begun = performance.now();
    const bytes = disk.info.blocks * BLOCK_BYTES;
    const partial = `${target}.${process.pid}.part`;
    const handle = await openFile(partial, 'wx');
    let copied: Copied;
    try {
      copied = await closing(handle, () => writeFile(disk, handle, bytes, signal));
      if (copied.bytes < bytes) {
        await rm(partial);
      } else {
        await (force ? rename(partial, target) : nameNew(partial, target));
        await syncFolder(dirname(target));
      }
    } catch (error) {
      await rm(partial, { force: true });
      throw explained(error, target);
    }
    const seconds = (performance.now() - begun) / 1000;
    const exported: Exported = {
      volume: name,
      file: target,
      bytes: copied.bytes,
      written_bytes: copied.written,
      duration_s: seconds,
      bytes_per_second: Math.round(copied.bytes / Math.max(seconds, 1e-6)),
    };
    return { exported, failure: copied.bytes < bytes ? interrupted() : null };
  });
}

/** Gives a file its name where none is by now: a rename would replace it. */
async function nameNew(partial: string, target: string): Promise<void> {
  try {
    await link(partial, target);
  } catch (error) {
    const code = errnoCode(error) ?? '';
    if (code === 'EEXIST') throw existsError(target);
    if (!NO_LINKS.has(code)) throw error;
    // No links here: what appears between these two lines is replaced.
    if (lstatSync(target, { throwIfNoEntry: false }) !== undefined) throw existsError(target);
    await rename(partial, target);
    return;
  }
  await rm(partial);
}

/** Makes the names in a folder durable, where it may be read. */
async function syncFolder(path: string): Promise<void> {
  const handle = await openFile(path, 'r').catch((error: unknown) => {
    if (errnoCode(error) !== 'EACCES') throw error;
    return null;
  });
  if (handle !== null) await closing(handle, () => handle.sync());
}

interface Copied {
  /** From the start of the volume on; all of them are durable, or `signal` ended it. */
  readonly bytes: number;
  /** Of them, what is not zeros. */
  readonly written: number;
}

async function writeFile(
  disk: BlockDevice,
  handle: FileHandle,
  bytes: number,
  signal: AbortSignal,
): Promise<Copied> {
  await handle.truncate(bytes);
  let written = 0;
  const done = await eachPiece(disk, bytes, signal, async (at, buffer) => {
    await disk.read(at / BLOCK_BYTES, buffer);
    const { u8 } = buffer;
    if (isZeros(u8)) return;
    for (const [from, to] of runsOf(u8)) {
      await writeAll(handle, u8.subarray(from, to), at + from);
      written += to - from;
    }
  });
  if (done === bytes) await handle.sync();
  return { bytes: done, written };
}

/** From and to of each series of blocks that are not zeros. */
export function runsOf(u8: Uint8Array): [from: number, to: number][] {
  const runs: [number, number][] = [];
  for (let at = 0; at < u8.length; at += BLOCK_BYTES) {
    if (isZeros(u8.subarray(at, at + BLOCK_BYTES))) continue;
    const last = runs.at(-1);
    if (last?.[1] === at) last[1] = at + BLOCK_BYTES;
    else runs.push([at, at + BLOCK_BYTES]);
  }
  return runs;
}

async function writeAll(handle: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const left = bytes.length - done;
    done += (await handle.write(bytes, done, left, at + done)).bytesWritten;
  }
}

function explained(error: unknown, target: string): unknown {
  const errno = errnoCode(error);
  if (!['ENOSPC', 'EDQUOT', 'EFBIG'].includes(errno)) return error;
  return new PenstockError('NO_SPACE', `${target} could not be written: no space for it`, {
    hint:
      errno === 'EFBIG'
        ? 'the file system, or `ulimit -f`, allows no file of this size'
        : 'free space on the file system, or export to another',
    cause: error,
  });
}
