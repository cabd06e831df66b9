// The statistics of a pool for other processes, who cannot open it: who has it open listens on a
// unix socket, and gives whoever connects one line of JSON.
//
// Invariants
// 1. Only the owner's user may connect: the socket has mode 0600 from the moment it is there.
// 2. What is at the path is replaced only if it is a socket of the same user on which nobody
//    listens; two owners that find the same one do not both replace it (`lock`).

import { createHash } from 'node:crypto';
import { lstatSync, realpathSync, statSync, unlinkSync, type Stats } from 'node:fs';
import { connect } from 'node:net';
import { basename, dirname, join, resolve } from 'node:path';
import { errnoCode, PenstockError } from '../../errors.js';
import { native } from '../../native.js';
import type { PoolStats } from './stats.js';

/** What is served: the statistics, and whose they are. */
export interface ServedStats extends PoolStats {
  readonly uri: string;
  readonly uuid: string;
  readonly pid: number;
}

/** Of sun_path, without the NUL. */
const PATH_BYTES_MAX = 107;
const MODE = 0o600;
/** How long one who does not take its line is waited for: the line fits in the socket's memory. */
const SEND_US = 1000;
/** How long nobody is let in where descriptors are short. */
const AGAIN_MS = 1000;
const ANSWER_MS = 5000;
const LINE_MAX = 2 ** 20;

const encoder = new TextEncoder();

export class StatsSocket {
  readonly path: string;
  private readonly lock: number;
  private readonly listener: number;
  private readonly inode: number;
  private watch = 0;
  private again: NodeJS.Timeout | null = null;
  private text: () => string = () => '';

  /** Connections wait until `serve`. Errors: BAD_OPTION, NOT_A_SOCKET, STATS_BUSY, STATS_FAILED. */
  constructor(path: string) {
    this.path = wholePath(path);
    this.lock = takeLock(this.path);
    let listener = -1;
    try {
      removeStale(this.path);
      listener = native.streamListen(this.path, MODE);
      this.inode = lstatSync(this.path).ino;
    } catch (error) {
      if (listener >= 0) native.fileClose(listener);
      native.fileClose(this.lock);
      throw failed(this.path, error);
    }
    this.listener = listener;
  }

  serve(stats: () => ServedStats): void {
    this.text = () => `${JSON.stringify(stats())}\n`;
    this.watch = native.watchOpen(this.listener, () => this.accept());
    native.watchSet(this.watch, true, false);
  }

  /** Nobody listens any more, and the socket is gone, if it is still this one. */
  close(): void {
    if (this.again !== null) clearTimeout(this.again);
    if (this.watch !== 0) native.watchClose(this.watch);
    if (factsOf(this.path)?.ino === this.inode) unlinkQuietly(this.path);
    native.fileClose(this.listener);
    native.fileClose(this.lock);
  }

  private accept(): void {
    for (;;) {
      let fd: number;
      try {
        fd = native.unixAccept(this.listener);
      } catch (error) {
        if (errnoCode(error) === '') throw error;
        this.rest();
        return;
      }
      if (fd < 0) return;
      try {
        native.streamSend(fd, encoder.encode(this.text()), [], SEND_US);
      } catch (error) {
        if (errnoCode(error) === '') throw error; // gone already, or it does not read
      } finally {
        native.fileClose(fd);
      }
    }
  }

  private rest(): void {
    native.watchSet(this.watch, false);
    this.again = setTimeout(() => native.watchSet(this.watch, true, false), AGAIN_MS).unref();
  }
}

/**
 * The statistics that somebody serves at a path. Errors: BAD_OPTION, NOT_A_SOCKET, NO_STATS,
 * STATS_SILENT, PERMISSION_DENIED.
 */
export async function readStats(path: string, timeoutMs = ANSWER_MS): Promise<ServedStats> {
  const whole = wholePath(path);
  const facts = factsOf(whole, statSync);
  if (facts !== null && !facts.isSocket()) throw notASocket(whole);
  return new Promise((resolve, reject) => {
    const socket = connect(whole);
    const end = (error: PenstockError): void => {
      clearTimeout(timer);
      socket.destroy();
      reject(error);
    };
    const timer = setTimeout(() => {
      end(
        new PenstockError(
          'STATS_SILENT',
          `who serves ${whole} did not answer for ${timeoutMs} ms`,
          {
            hint: 'its process is stopped, or does not let its event loop turn',
          },
        ),
      );
    }, timeoutMs);
    let text = '';
    socket.setEncoding('utf8');
    socket.on('data', (more: string) => {
      text += more;
      if (text.length > LINE_MAX) end(notAPools(whole));
    });
    socket.on('error', (cause) => end(connectError(whole, cause)));
    socket.on('end', () => {
      const stats = parse(text);
      if (stats === null) return end(text === '' ? noStats(whole) : notAPools(whole));
      clearTimeout(timer);
      socket.destroy();
      resolve(stats);
    });
  });
}

function parse(text: string): ServedStats | null {
  try {
    const stats = JSON.parse(text) as ServedStats;
    return stats.schema === 'penstock.pool-stats/1' ? stats : null;
  } catch {
    return null;
  }
}

/** One spelling for one place. Throws BAD_OPTION for what cannot be the path of a socket. */
function wholePath(path: string): string {
  let whole = resolve(path);
  try {
    whole = join(realpathSync(dirname(whole)), basename(whole));
  } catch {
    // No such folder: said when the socket is made.
  }
  if (path !== '' && Buffer.byteLength(whole) <= PATH_BYTES_MAX && !path.includes('\0')) {
    return whole;
  }
  throw new PenstockError('BAD_OPTION', `'${path}' cannot be the path of a socket`, {
    hint: `give one of at most ${PATH_BYTES_MAX} bytes, from the root on`,
    exitCode: 2,
  });
}

/** An abstract name that the kernel frees with its holder: one owner at a path at a time. */
function takeLock(path: string): number {
  try {
    const name = createHash('sha256').update(path).digest('hex');
    return native.streamListen(`\0penstock-stats-${name}`, MODE);
  } catch (cause) {
    if (errnoCode(cause) !== 'EADDRINUSE') throw failed(path, cause);
    throw busy(path, cause);
  }
}

function removeStale(path: string): void {
  const facts = factsOf(path);
  if (facts === null) return;
  if (!facts.isSocket()) throw notASocket(path);
  // Another program's, or one of another network namespace, which does not hold the lock.
  if (facts.uid !== process.getuid?.() || isListenedOn(path)) throw busy(path);
  unlinkSync(path);
}

function isListenedOn(path: string): boolean {
  try {
    native.fileClose(native.streamConnect(path));
    return true;
  } catch (error) {
    const code = errnoCode(error);
    if (code === '') throw error;
    // A socket of another kind answers EPROTOTYPE where somebody listens, and a full queue EAGAIN.
    return code === 'EPROTOTYPE' || code === 'EAGAIN' || code === 'EACCES';
  }
}

/** Null where nothing is, or where nothing can be seen: what is done there then says why. */
function factsOf(path: string, look: (path: string) => Stats = lstatSync): Stats | null {
  try {
    return look(path);
  } catch {
    return null;
  }
}

function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody has removed it.
  }
}

function busy(path: string, cause?: unknown): PenstockError {
  return new PenstockError('STATS_BUSY', `${path} is somebody else's`, {
    hint: 'another pool, or program, is there: choose another path for the statistics',
    exitCode: 3,
    ...(cause === undefined ? {} : { cause }),
  });
}

function failed(path: string, cause: unknown): PenstockError {
  if (cause instanceof PenstockError) return cause;
  return new PenstockError('STATS_FAILED', `statistics cannot be served at ${path}`, {
    hint: 'its folder must be there, and may be written to',
    exitCode: 3,
    cause,
  });
}

function notASocket(path: string): PenstockError {
  return new PenstockError('NOT_A_SOCKET', `${path} is there and no socket`, {
    hint: 'choose another path for the statistics',
    exitCode: 3,
  });
}

function noStats(path: string, cause?: unknown): PenstockError {
  return new PenstockError('NO_STATS', `nobody serves statistics of a pool at ${path}`, {
    hint: `who opens the pool says where: dedup:DEVICE?dedup.stats=${path}#VOLUME`,
    exitCode: 3,
    ...(cause === undefined ? {} : { cause }),
  });
}

function notAPools(path: string): PenstockError {
  return new PenstockError('NO_STATS', `what ${path} serves are no statistics of a pool`, {
    hint: 'give the path that the owner of the pool was given as dedup.stats',
    exitCode: 3,
  });
}

function connectError(path: string, cause: Error): PenstockError {
  if (errnoCode(cause) !== 'EACCES') return noStats(path, cause);
  return new PenstockError('PERMISSION_DENIED', `${path} may not be connected to`, {
    hint: 'only the user who has the pool open may: run this as that user',
    exitCode: 3,
    cause,
  });
}
