// A device of bytes that insists on its limits: what is handed to it beyond them is a violation,
// kept for the test to look at. It completes out of order (seeded), a few per poll, and holds as
// many
// operations as it is told to.

import type { QueueDriver } from '../../lib/hpdi/driver.js';
import type { DeviceInfo } from '../../lib/hpdi/info.js';
import { Cpl, Flag, Op, Req, Status } from '../../lib/hpdi/records.js';
import { addressSpace } from '../../lib/memory/index.js';

const TWO_32 = 2 ** 32;

export interface StrictOptions {
  info: DeviceInfo;
  seed?: number;
  /** Operations held at most. */
  capacity?: number;
  /** Completions per poll at most. */
  batch?: number;
}

interface Held {
  op: number;
  flags: number;
  tag: number;
  lba: number;
  blocks: number;
  address: number;
}

export function strictInfo(changes: Partial<DeviceInfo> = {}): DeviceInfo {
  return {
    blockSize: 512,
    blocks: 512,
    maxTransferBlocks: 8,
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
    operations: (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD),
    flags: Flag.FUA,
    readOnly: false,
    durable: false,
    physicalBlockSize: 512,
    description: {},
    ...changes,
  };
}

export class StrictDriver implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  readonly data: Uint8Array;
  /** Blocks whose transfers fail with MEDIA_ERROR and the lowest such block as detail. */
  readonly bad = new Set<number>();
  readonly violations: string[] = [];
  readonly seen: Held[] = [];
  readonly info: DeviceInfo;
  private readonly capacity: number;
  private readonly batch: number;
  private readonly held: Held[] = [];
  private state: number;
  closed = false;

  constructor(options: StrictOptions) {
    this.info = options.info;
    this.capacity = options.capacity ?? 64;
    this.batch = options.batch ?? 4;
    this.state = (options.seed ?? 1) | 1;
    this.data = new Uint8Array(options.info.blocks * options.info.blockSize);
  }

  get inFlight(): number {
    return this.held.length;
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    this.counters.doorbells++;
    let taken = 0;
    for (let at = head; at !== tail && this.held.length < this.capacity; at = (at + 1) | 0) {
      const r = (at & (sq.length / Req.words - 1)) * Req.words;
      const held = {
        op: sq[r]! & 0xff,
        flags: sq[r]! & Flag.mask,
        tag: sq[r + Req.tag]!,
        lba: sq[r + Req.lbaHi]! * TWO_32 + sq[r + Req.lbaLo]!,
        blocks: sq[r + Req.blocks]!,
        address: sq[r + Req.addressHi]! * TWO_32 + sq[r + Req.addressLo]!,
      };
      this.inspect(held);
      this.seen.push(held);
      this.held.push(held);
      taken++;
    }
    return taken;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    const count = Math.min(max, this.batch, this.held.length);
    for (let i = 0; i < count; i++) {
      this.state = (Math.imul(this.state, 1103515245) + 12345) >>> 0;
      const [held] = this.held.splice((this.state >>> 8) % this.held.length, 1);
      cq.set([held!.tag, this.execute(held!), 0, 0], i * Cpl.words);
    }
    return count;
  }

  arm(): void {
    // The next poll always brings what is held: nothing to arm.
  }

  eventFd(): number {
    return -1;
  }

  release(): boolean {
    return false;
  }

  drain(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    this.closed = true;
    return Promise.resolve();
  }

  private inspect({ op, flags, lba, blocks, address }: Held): void {
    const { info } = this;
    const name = `op ${op} at ${lba} of ${blocks}`;
    const broken = (what: string) => this.violations.push(`${name}: ${what}`);
    if (((info.operations >>> op) & 1) === 0) broken('not an operation of the device');
    if ((flags & ~Flag.FUA) !== 0) broken(`flags ${flags}`);
    if (op === Op.FLUSH) return;
    if (blocks < 1 || blocks > info.maxTransferBlocks) broken('size');
    if (lba + blocks > info.blocks) broken('range');
    const { boundary } = info;
    if (boundary !== 0 && (lba % boundary) + blocks > boundary) broken('boundary');
    if (op === Op.READ || op === Op.WRITE) {
      if (address % info.addressAlign !== 0) broken('alignment');
      if (this.view(address, blocks * info.blockSize) === null) broken('address');
    }
  }

  private execute({ op, lba, blocks, address }: Held): number {
    if (op === Op.FLUSH) return Status.OK;
    for (let block = lba; block < lba + blocks; block++) {
      if (this.bad.has(block)) return (Status.MEDIA_ERROR | (block << 8)) >>> 0;
    }
    const { blockSize } = this.info;
    const part = this.data.subarray(lba * blockSize, (lba + blocks) * blockSize);
    if (op === Op.DISCARD || op === Op.WRITE_ZEROES) part.fill(0);
    const view = op === Op.READ || op === Op.WRITE ? this.view(address, part.length) : null;
    if (op === Op.READ) view?.set(part);
    if (op === Op.WRITE && view !== null) part.set(view);
    return Status.OK;
  }

  private view(address: number, bytes: number): Uint8Array | null {
    const segment = addressSpace().find(address);
    const start = segment === undefined ? 0 : address - segment.address;
    if (segment === undefined || start + bytes > segment.bytes) return null;
    return segment.u8.subarray(start, start + bytes);
  }
}
