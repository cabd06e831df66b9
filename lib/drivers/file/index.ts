// file: a regular file or block device, by io_uring.
//
//   file:/path?create=1GiB      makes the file, with its space, if it is not there
//   file:/dev/loop0?direct=1    past the page cache (O_DIRECT)
//
// Keys: direct, sqpoll, iopoll, create, readonly, fixed. Buffered writes live in the page cache
// until FLUSH or FUA (info.volatileCache); direct ones may live in the drive's cache.

import { constants, existsSync, statSync, unlinkSync } from 'node:fs';
import { errnoCode, PenstockError } from '../../errors.js';
import {
  assertHomeAlive,
  Flag,
  Op,
  type Backend,
  type DeviceHandle,
  type DeviceInfo,
  type DriverModule,
  type QueueDriver,
  type QueueOptions,
} from '../../hpdi/index.js';
import { native } from '../../native.js';
import { parseSize } from '../../units.js';
import { Ring } from '../../uring/index.js';
import { parseSwitch } from '../options.js';
import { errnoText } from './errno.js';
import { FileQueue } from './queue.js';

interface Options {
  direct: boolean;
  sqpoll: boolean;
  iopoll: boolean;
  readonly: boolean;
  fixed: boolean;
}

interface FileShare {
  fd: number;
  options: Options;
}

const OPERATIONS =
  (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);
const READ_ONLY_OPERATIONS = (1 << Op.READ) | (1 << Op.FLUSH);
const BUFFERED_TRANSFER_BYTES = 32 * 2 ** 20;
const DIRECT_TRANSFER_BYTES = 16 * 2 ** 20;

class FileBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'file';
  info: DeviceInfo;
  onChange: ((info: DeviceInfo) => void) | null = null;
  private readonly fd: number;
  private readonly path: string;
  private readonly options: Options;
  private readonly queues = new Set<FileQueue>();
  private refreshing = false;
  private open = true;
  private claimed = false;

  constructor(uri: string, path: string, fd: number, options: Options, ring: string) {
    this.uri = uri;
    this.path = path;
    this.fd = fd;
    this.options = options;
    const info = describeFile(path, fd, options);
    this.info = { ...info, description: { ...info.description, ring } };
  }

  openQueue(options: QueueOptions): QueueDriver {
    const queue = new FileQueue({
      fd: this.fd,
      depth: options.depth,
      info: this.info,
      sqpoll: this.options.sqpoll,
      iopoll: this.options.iopoll,
      fixedBuffers: this.options.fixed,
      onShrunk: () => this.noticeShrunk(),
      onClose: (closed) => this.queues.delete(closed),
    });
    this.queues.add(queue);
    return queue;
  }

  share(): FileShare {
    return { fd: this.fd, options: this.options };
  }

  explainDetail(_code: number, detail: number): string {
    return errnoText(detail);
  }

  async refresh(): Promise<void> {
    const fresh = describeFile(this.path, this.fd, this.options);
    if (fresh.blocks === this.info.blocks) return;
    this.info = { ...this.info, blocks: fresh.blocks };
    for (const queue of this.queues) queue.resize(fresh.blocks);
    this.onChange?.(this.info);
  }

  claim(): void {
    try {
      native.fileLock(this.fd, true);
      this.claimed = true;
    } catch (cause) {
      const code = errnoCode(cause);
      // A file system without locks cannot say who else has the file; a file that is open for
      // reading only is nobody's to own.
      if (['ENOLCK', 'EOPNOTSUPP', 'EINVAL', 'EBADF'].includes(code)) return;
      if (code !== 'EAGAIN' && code !== 'EACCES') throw cause;
      throw new PenstockError('DEVICE_BUSY', `${this.path} is in use by another owner`, {
        hint: 'end that process, or close the pool there; the lock goes with it',
        exitCode: 3,
        cause,
      });
    }
  }

  async close(): Promise<void> {
    if (!this.open) return;
    this.open = false;
    // The kernel takes a while to let go of a ring's file, and a lock lasts as long.
    if (this.claimed) native.fileLock(this.fd, false);
    native.fileClose(this.fd);
  }

  /** A transfer met the end of the file: look at its size again, once the batch is done. */
  private noticeShrunk(): void {
    if (this.refreshing || !this.open) return;
    this.refreshing = true;
    setImmediate(() => {
      this.refreshing = false;
      if (this.open) void this.refresh();
    });
  }
}

/**
 * What the queues' rings will be on this kernel, by setting one up. Before a file is opened or
 * made:
 * where io_uring is forbidden, that is the error, and nothing is left behind.
 */
function probeRing({ sqpoll, iopoll }: Options): string {
  const ring = Ring.open({ entries: 2, sqpoll, iopoll });
  try {
    return ring.describe();
  } finally {
    ring.close();
  }
}

function assertKind(path: string, kind: number): void {
  if (kind === constants.S_IFREG || kind === constants.S_IFBLK) return;
  throw new PenstockError('NOT_A_FILE', `${path} is neither a regular file nor a block device`, {
    hint: 'give a file (?create=1GiB makes one) or a block device such as /dev/loop0',
    exitCode: 2,
  });
}

function describeFile(path: string, fd: number, options: Options): DeviceInfo {
  const [mode = 0, size = 0, , memoryAlign = 0, offsetAlign = 0] = native.fileStat(fd);
  const kind = mode & constants.S_IFMT;
  assertKind(path, kind);
  let bytes = size;
  let blockSize = 512;
  let physicalBlockSize = 4096;
  if (kind === constants.S_IFBLK) {
    const [deviceBytes = 0, logical = 512, physical = 512] = native.blockGeometry(fd);
    bytes = deviceBytes;
    blockSize = logical;
    physicalBlockSize = physical;
  } else if (options.direct) {
    blockSize = Math.max(512, offsetAlign === 0 ? 4096 : offsetAlign);
  }
  const align = memoryAlign === 0 ? Math.max(512, blockSize) : memoryAlign;
  const transfer = options.direct ? DIRECT_TRANSFER_BYTES : BUFFERED_TRANSFER_BYTES;
  return {
    blockSize,
    blocks: Math.floor(bytes / blockSize),
    maxTransferBlocks: transfer / blockSize,
    maxSegments: 0,
    addressAlign: options.direct ? align : 1,
    segmentAlign: options.direct ? blockSize : 1,
    boundary: 0,
    atomicBlocks: 1,
    volatileCache: true,
    canLoan: false,
    loanStable: false,
    metadataBytes: 0,
    zones: null,
    operations: options.readonly ? READ_ONLY_OPERATIONS : OPERATIONS,
    flags: Flag.FUA,
    readOnly: options.readonly,
    durable: true,
    physicalBlockSize,
    description: {
      driver: 'file',
      path,
      kind: kind === constants.S_IFBLK ? 'block device' : 'regular file',
      direct: options.direct,
    },
  };
}

function assertPath(path: string, uri: string): void {
  if (path !== '' && !path.includes('\0')) return;
  throw new PenstockError('BAD_URI', `the URI '${uri}' has no path of a file`, {
    hint: 'write file:/path, or file:name for one in the current folder',
    exitCode: 2,
  });
}

function openFile(path: string, flags: number): number {
  try {
    // Before the open, because that alone may wait (a pipe) or do something (a tape, a watchdog).
    const kind = (statSync(path, { throwIfNoEntry: false })?.mode ?? 0) & constants.S_IFMT;
    if (kind !== 0 && kind !== constants.S_IFDIR) assertKind(path, kind);
    if (kind === constants.S_IFBLK && (flags & constants.O_RDWR) !== 0) assertFree(path);
    return native.fileOpen(path, flags, 0o644);
  } catch (cause) {
    throw openError(path, flags, cause);
  }
}

/**
 * EBUSY for a block device that is mounted, swap, or part of another: writing to it would damage
 * what holds it. Tried and let go, not kept: several openings of one disk are nobody's mistake.
 */
function assertFree(path: string): void {
  native.fileClose(native.fileOpen(path, constants.O_RDONLY | constants.O_EXCL, 0));
}

function openError(path: string, flags: number, cause: unknown): unknown {
  const direct = (flags & constants.O_DIRECT) !== 0;
  switch (errnoCode(cause)) {
    case 'ENOENT':
      return new PenstockError('NO_SUCH_FILE', `${path} does not exist`, {
        hint: 'check the path, or let it be made: ?create=1GiB',
        exitCode: 3,
        cause,
      });
    case 'EACCES':
    case 'EPERM':
      return new PenstockError('PERMISSION_DENIED', `${path} may not be opened`, {
        hint: 'take the rights, or ?readonly=1 if reading is enough',
        exitCode: 3,
        cause,
      });
    case 'EROFS':
      return new PenstockError('READ_ONLY', `${path} is on a read-only file system`, {
        hint: '?readonly=1 opens it for reading',
        exitCode: 3,
        cause,
      });
    case 'EISDIR':
      return new PenstockError('NOT_A_FILE', `${path} is a folder`, {
        hint: 'give a file or a block device',
        exitCode: 2,
        cause,
      });
    case 'EBUSY':
      return new PenstockError('DEVICE_BUSY', `${path} is held by somebody else`, {
        hint: '`penstock list` says who; ?readonly=1 reads it all the same',
        exitCode: 3,
        cause,
      });
    case 'EINVAL':
      if (!direct) return cause;
      return new PenstockError(
        'DIRECT_UNSUPPORTED',
        `the file system of ${path} has no direct I/O`,
        {
          hint: 'leave out ?direct=1, or use a file system such as ext4 or xfs',
          exitCode: 3,
          cause,
        },
      );
    case 'ENXIO':
    case 'ENODEV':
    case 'ENOMEDIUM':
      return new PenstockError('DEVICE_GONE', `${path} has no device behind it`, {
        hint: 'attach the medium or the loop file first',
        exitCode: 3,
        cause,
      });
    default:
      return cause;
  }
}

/** Opens `path`, making it with its space if it is not there; nothing is left when that fails. */
function createFile(path: string, flags: number, bytes: number): number {
  let fd: number;
  try {
    // O_DIRECT comes with the second open: where the file system has none, the first would leave
    // the new file behind.
    const first = (flags & ~constants.O_DIRECT) | constants.O_CREAT | constants.O_EXCL;
    fd = native.fileOpen(path, first, 0o644);
  } catch (cause) {
    if (errnoCode(cause) === 'EEXIST') return openFile(path, flags);
    throw openError(path, flags, cause);
  }
  try {
    allocate(path, fd, bytes);
    if ((flags & constants.O_DIRECT) === 0) return fd;
    const direct = openFile(path, flags);
    native.fileClose(fd);
    return direct;
  } catch (error) {
    native.fileClose(fd);
    unlinkSync(path);
    throw error;
  }
}

function allocate(path: string, fd: number, bytes: number): void {
  try {
    try {
      native.fileAllocate(fd, 0, 0, bytes);
    } catch (cause) {
      if (errnoCode(cause) !== 'EOPNOTSUPP') throw cause;
      native.fileTruncate(fd, bytes); // a file system that cannot reserve space
    }
  } catch (cause) {
    if (!['ENOSPC', 'EDQUOT', 'EFBIG'].includes(errnoCode(cause))) throw cause;
    throw new PenstockError('NO_SPACE', `${path}: ${bytes} bytes could not be allocated`, {
      hint: 'free space on the file system, or choose a smaller create=',
      cause,
    });
  }
}

/** The size of a new file. */
function parseCreate(text: string, readonly: boolean, path: string): number {
  const bytes = parseSize(text);
  if (bytes >= 512 && !(readonly && !existsSync(path))) return bytes;
  throw new PenstockError(
    'BAD_OPTION',
    readonly
      ? `${path} does not exist and readonly=1 cannot make it`
      : `create=${text} has no block`,
    { hint: 'leave readonly=1 out, or give create= at least 512 bytes', exitCode: 2 },
  );
}

export const driver: DriverModule = {
  scheme: 'file',
  keys: {
    direct: '1: past the page cache (O_DIRECT)',
    sqpoll: '1: a kernel thread takes submissions (one more busy CPU, no system call)',
    iopoll: '1: completions by polling the drive (needs direct=1 and poll queues)',
    create: 'SIZE: make the file with this much space if it does not exist',
    readonly: '1: open for reading only',
    fixed: '1: registered buffers (default: as direct; the page cache gains nothing by them)',
  },

  async open(path, query, uri) {
    assertPath(path, uri);
    const options: Options = {
      direct: parseSwitch('direct', query.get('direct')),
      sqpoll: parseSwitch('sqpoll', query.get('sqpoll')),
      iopoll: parseSwitch('iopoll', query.get('iopoll')),
      readonly: parseSwitch('readonly', query.get('readonly')),
      fixed: parseSwitch('fixed', query.get('fixed') ?? query.get('direct')),
    };
    if (options.iopoll && !options.direct) {
      throw new PenstockError('BAD_OPTION', 'iopoll=1 needs direct=1', {
        hint: 'completions of the page cache cannot be polled; add direct=1',
        exitCode: 2,
      });
    }
    let flags = options.readonly ? constants.O_RDONLY : constants.O_RDWR;
    if (options.direct) flags |= constants.O_DIRECT;
    const create = query.get('create');
    const ring = probeRing(options);
    const fd =
      create === undefined
        ? openFile(path, flags)
        : createFile(path, flags, parseCreate(create, options.readonly, path));
    try {
      return new FileBackend(uri, path, fd, options, ring);
    } catch (error) {
      native.fileClose(fd);
      throw error;
    }
  },

  async attach(handle: DeviceHandle) {
    const { fd, options } = handle.shared as FileShare;
    const path = String(handle.info.description['path'] ?? '');
    const ring = String(handle.info.description['ring'] ?? '');
    assertHomeAlive(handle);
    const copy = native.fileDuplicate(fd);
    try {
      assertHomeAlive(handle); // while it lives, the number is that of its file
      return new FileBackend(handle.uri, path, copy, options, ring);
    } catch (error) {
      native.fileClose(copy);
      throw error;
    }
  },
};
