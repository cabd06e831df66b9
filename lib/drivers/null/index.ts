// null: a device that completes everything at once and touches no data.
//
// `null:1GiB?bs=512` checks each request as any driver does (range, size, address) and completes
// it: what is left is the cost of the queues themselves. Reads leave the buffer as it is.

import { PenstockError } from '../../errors.js';
import {
  Access,
  Cpl,
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
import { plainInfo } from '../plain-info.js';
import { parseBlockSize } from '../options.js';

/**
 * Operations by what is checked of them: 0 refused, 1 nothing, 2 range, 3 readable, 4 writable
 * buffer.
 */
const CHECKS = new Uint8Array(256);
CHECKS[Op.FLUSH] = 1;
CHECKS[Op.DISCARD] = 2;
CHECKS[Op.WRITE_ZEROES] = 2;
CHECKS[Op.WRITE] = 3;
CHECKS[Op.READ] = 4;

class NullQueue implements QueueDriver {
  readonly counters: QueueCounters = { doorbells: 0, polls: 0 };
  private readonly check: RequestCheck;
  private readonly depth: number;
  /** Completions not polled yet: tags and statuses in rings of `depth`. */
  private readonly tags: Uint32Array;
  private readonly statuses: Uint32Array;
  private head = 0;
  private tail = 0;

  constructor(info: DeviceInfo, depth: number) {
    this.check = new RequestCheck(info);
    this.depth = depth;
    this.tags = new Uint32Array(depth);
    this.statuses = new Uint32Array(depth);
  }

  // hot:begin

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = (sq.length >>> 3) - 1;
    const { tags, statuses, check } = this;
    const ringMask = tags.length - 1;
    const room = this.depth - ((this.tail - this.head) | 0);
    const wanted = (tail - head) | 0;
    const count = wanted < room ? wanted : room;
    const first = this.tail;
    for (let i = 0; i < count; i++) {
      const at = ((head + i) & mask) * Req.words;
      const word = sq[at]!;
      let status = Status.UNSUPPORTED;
      const kind = CHECKS[word & 0xff]!;
      if ((word & (Flag.mask & ~Flag.FUA)) !== 0) status = Status.BAD_REQUEST;
      else if (kind === 4) status = check.transfer(sq, at, Access.write);
      else if (kind === 3) status = check.transfer(sq, at, Access.read);
      else if (kind === 2) status = check.range(sq, at);
      else if (kind === 1) status = Status.OK;
      const to = (first + i) & ringMask;
      tags[to] = sq[at + Req.tag]!;
      statuses[to] = status;
    }
    this.tail = (first + count) | 0;
    this.counters.doorbells++;
    return count;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    const { tags, statuses } = this;
    const ringMask = tags.length - 1;
    const first = this.head;
    const waiting = (this.tail - first) | 0;
    const count = waiting < max ? waiting : max;
    for (let i = 0; i < count; i++) {
      const from = (first + i) & ringMask;
      const to = i * Cpl.words;
      cq[to] = tags[from]!;
      cq[to + Cpl.status] = statuses[from]!;
      cq[to + Cpl.resultLo] = 0;
      cq[to + Cpl.resultHi] = 0;
    }
    this.head = (first + count) | 0;
    return count;
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
    return new NullBackend(
      uri,
      plainInfo(blockSize, blocks, { driver: 'null', note: 'keeps no data' }),
    );
  },

  async attach(handle: DeviceHandle) {
    return new NullBackend(handle.uri, handle.info);
  },
};
