// A device in memory that does its work as late as it may: the reference that wrappers are
// tested on.
//
// An operation is done, and its buffer touched, only in the poll that completes it,
// `latencyPolls` polls after its submission. So whoever completes an operation too early, or
// changes what it was given, shows in the data. It may hold fewer operations than its queue is
// deep, to show back-pressure.

import type { Backend, QueueDriver, QueueOptions } from '../../lib/hpdi/driver.js';
import type { DeviceInfo } from '../../lib/hpdi/info.js';
import { Cpl, Flag, Op, Req, Sg, Status } from '../../lib/hpdi/records.js';
import { addressSpace, returnHome } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';

const TWO_32 = 2 ** 32;

export interface TwinOptions {
  blocks?: number;
  blockSize?: number;
  latencyPolls?: number;
  /** Operations that the device holds at most. */
  capacity?: number;
}

/** One operation as the device got it. */
export interface TwinOperation {
  op: number;
  flags: number;
  tag: number;
  blocks: number;
  lba: number;
  address: number;
  segments: number;
}

const OPERATIONS =
  (1 << Op.READ) |
  (1 << Op.WRITE) |
  (1 << Op.FLUSH) |
  (1 << Op.DISCARD) |
  (1 << Op.WRITE_ZEROES) |
  (1 << Op.COMPARE) |
  (1 << Op.COPY);

export class TwinBackend implements Backend {
  readonly uri = 'twin:';
  readonly scheme = 'twin';
  readonly info: DeviceInfo;
  readonly data: Uint8Array;
  /** Everything that was submitted, in order. */
  readonly log: TwinOperation[] = [];
  /** Status that operations get instead of being done, while not OK. */
  fail: number = Status.OK;
  readonly options: Required<TwinOptions>;
  closed = false;

  constructor(options: TwinOptions = {}) {
    this.options = {
      blocks: 256,
      blockSize: 512,
      latencyPolls: 1,
      capacity: 2 ** 16,
      ...options,
    };
    const { blocks, blockSize } = this.options;
    this.data = new Uint8Array(blocks * blockSize);
    this.info = Object.freeze({
      blockSize,
      blocks,
      maxTransferBlocks: 64,
      maxSegments: 32,
      addressAlign: 4,
      segmentAlign: 4,
      boundary: 0,
      atomicBlocks: 1,
      volatileCache: false,
      canLoan: false,
      loanStable: false,
      metadataBytes: 0,
      zones: null,
      operations: OPERATIONS,
      flags: Flag.FUA | Flag.SG | Flag.GIVE,
      readOnly: false,
      durable: false,
      physicalBlockSize: blockSize,
      description: Object.freeze({ model: 'twin' }),
    });
  }

  openQueue(options: QueueOptions): QueueDriver {
    return new TwinQueue(this, options.depth);
  }

  share(): unknown {
    return null;
  }

  explainDetail(): string {
    return '';
  }

  close(): Promise<void> {
    this.closed = true;
    return Promise.resolve();
  }

  /** Block `lba`'s bytes. */
  block(lba: number): Uint8Array {
    const { blockSize } = this.options;
    return this.data.subarray(lba * blockSize, (lba + 1) * blockSize);
  }
}

interface Held {
  operation: TwinOperation;
  pollsLeft: number;
}

class TwinQueue implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  private readonly device: TwinBackend;
  private readonly capacity: number;
  private readonly held: Held[] = [];
  private readonly fd = native.eventfdCreate();

  constructor(device: TwinBackend, depth: number) {
    this.device = device;
    this.capacity = Math.min(device.options.capacity, depth);
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    this.counters.doorbells++;
    let taken = 0;
    for (let i = head; i !== tail && this.held.length < this.capacity; i = (i + 1) | 0) {
      const r = (i & (sq.length / Req.words - 1)) * Req.words;
      const word = sq[r + Req.op]!;
      const operation = {
        op: word & 0xff,
        flags: word & Flag.mask,
        segments: word >>> 16,
        tag: sq[r + Req.tag]!,
        blocks: sq[r + Req.blocks]!,
        lba: sq[r + Req.lbaHi]! * TWO_32 + sq[r + Req.lbaLo]!,
        address: sq[r + Req.addressHi]! * TWO_32 + sq[r + Req.addressLo]!,
      };
      this.device.log.push(operation);
      this.held.push({ operation, pollsLeft: this.device.options.latencyPolls });
      taken++;
    }
    return taken;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    native.eventfdDrain(this.fd);
    // The next poll may bring something, and nobody but this device's polls moves its time on.
    if (this.held.length > 0) native.eventfdSignal(this.fd);
    let done = 0;
    for (const held of this.held) held.pollsLeft--;
    while (done < max && this.held.length > 0 && this.held[0]!.pollsLeft <= 0) {
      const { operation } = this.held.shift()!;
      const c = done * Cpl.words;
      cq[c + Cpl.tag] = operation.tag;
      cq[c + Cpl.resultLo] = 0;
      cq[c + Cpl.resultHi] = 0;
      cq[c + Cpl.status] = this.execute(operation, cq, c);
      done++;
    }
    return done;
  }

  arm(): void {
    if (this.held.length > 0) native.eventfdSignal(this.fd);
  }

  eventFd(): number {
    return this.fd;
  }

  release(): boolean {
    return false;
  }

  drain(): Promise<void> {
    for (const held of this.held) held.pollsLeft = 0;
    return Promise.resolve();
  }

  close(): Promise<void> {
    this.held.length = 0;
    native.fileClose(this.fd);
    return Promise.resolve();
  }

  private execute(operation: TwinOperation, cq: Uint32Array, c: number): number {
    const { device } = this;
    const { blockSize, blocks } = device.options;
    const { op, lba } = operation;
    if (device.fail !== Status.OK) return device.fail;
    if (op === Op.FLUSH) return Status.OK;
    if (op > Op.COPY || ((device.info.operations >>> op) & 1) === 0) return Status.UNSUPPORTED;
    if (lba + operation.blocks > blocks) return Status.BAD_RANGE;
    const bytes = operation.blocks * blockSize;
    const target = device.data.subarray(lba * blockSize, lba * blockSize + bytes);
    if (op === Op.DISCARD || op === Op.WRITE_ZEROES) {
      target.fill(0);
    } else if (op === Op.COPY) {
      const from = operation.address * blockSize;
      device.data.copyWithin(lba * blockSize, from, from + bytes);
    } else {
      return this.transfer(operation, target, cq, c);
    }
    return Status.OK;
  }

  private transfer(
    operation: TwinOperation,
    target: Uint8Array,
    cq: Uint32Array,
    c: number,
  ): number {
    const pieces = piecesOf(operation, target.length);
    if (pieces === null) return Status.BAD_ADDRESS;
    let at = 0;
    for (const piece of pieces) {
      const part = target.subarray(at, at + piece.length);
      if (operation.op === Op.READ) piece.set(part);
      else if (operation.op === Op.WRITE) part.set(piece);
      else {
        const differs = part.findIndex((byte, i) => byte !== piece[i]);
        if (differs >= 0) {
          cq[c + Cpl.resultLo] = at + differs;
          return Status.MISCOMPARE;
        }
      }
      at += piece.length;
    }
    if ((operation.flags & Flag.GIVE) !== 0) returnHome(operation.address);
    return at === target.length ? Status.OK : Status.BAD_REQUEST;
  }
}

/** The buffer of an operation as views; null when it lies in no segment. */
function piecesOf(operation: TwinOperation, bytes: number): Uint8Array[] | null {
  if ((operation.flags & Flag.SG) === 0) {
    const view = viewOf(operation.address, bytes);
    return view === null ? null : [view];
  }
  const list = viewOf(operation.address, operation.segments * Sg.words * 4);
  if (list === null) return null;
  const words = new Uint32Array(list.buffer, list.byteOffset, list.length / 4);
  const pieces: Uint8Array[] = [];
  for (let i = 0; i < operation.segments; i++) {
    const w = i * Sg.words;
    const address = words[w + Sg.addressHi]! * TWO_32 + words[w + Sg.addressLo]!;
    const view = viewOf(address, words[w + Sg.bytes]!);
    if (view === null) return null;
    pieces.push(view);
  }
  return pieces;
}

function viewOf(address: number, bytes: number): Uint8Array | null {
  const segment = address === 0 ? undefined : addressSpace().find(address);
  if (segment === undefined || address + bytes > segment.address + segment.bytes) return null;
  return segment.u8.subarray(address - segment.address, address - segment.address + bytes);
}
