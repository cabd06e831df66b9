// null: a device that completes everything at once and touches no data.
//
// `null:1GiB?bs=512` checks each request as any driver does (range, size, address) and completes it: what
// is left is the cost of the queues themselves. Reads leave the buffer as it is.

import { PenstockError } from '../../errors.js';
import {
  Access,
  CompletionRing,
  Flag,
  Op,
  Req,
  RequestCheck,
  Status,
  type Backend,
  type DeviceHandle,
  type DeviceInfo,
  type DriverModule,
  type QueueCounters,
  type QueueDriver,
  type QueueOptions,
} from '../../hpdi/index.js';
import { parseSize } from '../../units.js';
import { parseBlockSize } from '../options.js';

const OPERATIONS =
  (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);
const MAX_TRANSFER_BYTES = 2 ** 30;

class NullQueue implements QueueDriver {
  readonly counters: QueueCounters = { doorbells: 0, polls: 0 };
  private readonly done: CompletionRing;
  private readonly check: RequestCheck;
  private readonly depth: number;

  constructor(info: DeviceInfo, depth: number) {
    this.check = new RequestCheck(info);
    this.done = new CompletionRing(depth);
    this.depth = depth;
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    const { done, check } = this;
    const room = this.depth - done.length;
    const wanted = (tail - head) | 0;
    const count = wanted < room ? wanted : room;
    for (let i = 0; i < count; i++) {
      const at = ((head + i) & mask) * Req.words;
      const word = sq[at]!;
      let status = Status.OK;
      if ((word & (Flag.mask & ~Flag.FUA)) !== 0) status = Status.BAD_REQUEST;
      else if ((word & 0xff) === Op.READ) status = check.transfer(sq, at, Access.write);
      else if ((word & 0xff) === Op.WRITE) status = check.transfer(sq, at, Access.read);
      else if ((word & 0xff) === Op.DISCARD || (word & 0xff) === Op.WRITE_ZEROES) {
        status = check.range(sq, at);
      } else if ((word & 0xff) !== Op.FLUSH) status = Status.UNSUPPORTED;
      done.push(sq[at + Req.tag]!, status, 0, 0);
    }
    this.counters.doorbells++;
    return count;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    return this.done.drain(cq, 0, max);
  }

  // hot:end

  arm(): void {
    // Everything completes at submit: there is nothing to wait for.
  }

  eventFd(): number {
    return -1;
  }

  release(): boolean {
    return false;
  }

  async drain(): Promise<void> {
    // Nothing is ever in flight.
  }

  async close(): Promise<void> {
    // Nothing is held.
  }
}

class NullBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'null';
  readonly info: DeviceInfo;

  constructor(uri: string, info: DeviceInfo) {
    this.uri = uri;
    this.info = info;
  }

  openQueue(options: QueueOptions): QueueDriver {
    return new NullQueue(this.info, options.depth);
  }

  share(): unknown {
    return null;
  }

  explainDetail(): string {
    return '';
  }

  async close(): Promise<void> {
    // Nothing is held.
  }
}

export const driver: DriverModule = {
  scheme: 'null',
  keys: { bs: 'logical block size in bytes (512)' },

  async open(path, query, uri) {
    const blockSize = parseBlockSize(query.get('bs'));
    const blocks = Math.floor(parseSize(path === '' ? '1GiB' : path) / blockSize);
    if (blocks < 1) {
      throw new PenstockError('BAD_SIZE', `${uri} has no blocks`, {
        hint: 'give a size of at least one block: null:1GiB',
        exitCode: 2,
      });
    }
    return new NullBackend(uri, {
      blockSize,
      blocks,
      maxTransferBlocks: MAX_TRANSFER_BYTES / blockSize,
      maxSegments: 0,
      addressAlign: 1,
      segmentAlign: 1,
      boundary: 0,
      atomicBlocks: 1,
      volatileCache: false,
      canLoan: false,
      loanStable: false,
      metadataBytes: 0,
      zones: null,
      operations: OPERATIONS,
      flags: Flag.FUA,
      readOnly: false,
      durable: false,
      physicalBlockSize: blockSize,
      description: { driver: 'null', note: 'keeps no data' },
    });
  },

  async attach(handle: DeviceHandle) {
    return new NullBackend(handle.uri, handle.info);
  },
};
