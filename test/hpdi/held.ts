// A device of bytes that completes what it holds only when a test says so, and signals only when it
// was armed: what waits for it shows whether a wake-up can be missed.

import type { QueueDriver } from '../../lib/hpdi/driver.js';
import type { DeviceInfo } from '../../lib/hpdi/info.js';
import { Cpl, Flag, Op, Req, Status } from '../../lib/hpdi/records.js';
import { addressSpace } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';

const TWO_32 = 2 ** 32;

export interface HeldOperation {
  op: number;
  tag: number;
  lba: number;
  blocks: number;
  address: number;
}

export function heldInfo(changes: Partial<DeviceInfo> = {}): DeviceInfo {
  return {
    blockSize: 512,
    blocks: 16384,
    maxTransferBlocks: 256,
    maxSegments: 0,
    addressAlign: 512,
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

export class HeldDriver implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  readonly info: DeviceInfo;
  readonly data: Uint8Array;
  /** In the device, in the order of their submission. */
  readonly held: HeldOperation[] = [];
  /** Blocks whose transfers fail with MEDIA_ERROR. */
  readonly bad = new Set<number>();
  /** -1: a device that is polled. */
  fd = native.eventfdCreate();
  armed = false;
  /** Operations that complete at their submission, without a signal. */
  isInstant: (op: number) => boolean = () => false;
  onPoll: () => void = () => undefined;
  onClose: () => Promise<void> = () => Promise.resolve();
  private readonly ready: HeldOperation[] = [];

  constructor(info: DeviceInfo = heldInfo()) {
    this.info = info;
    this.data = new Uint8Array(info.blocks * info.blockSize);
  }

  /** Completes the operation at `index` of those held. */
  complete(index = 0): void {
    this.ready.push(...this.held.splice(index, 1));
    if (this.armed && this.fd >= 0) native.eventfdSignal(this.fd);
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    this.counters.doorbells++;
    for (let at = head; at !== tail; at = (at + 1) | 0) {
      const r = (at & (sq.length / Req.words - 1)) * Req.words;
      const operation = {
        op: sq[r]! & 0xff,
        tag: sq[r + Req.tag]!,
        lba: sq[r + Req.lbaHi]! * TWO_32 + sq[r + Req.lbaLo]!,
        blocks: sq[r + Req.blocks]!,
        address: sq[r + Req.addressHi]! * TWO_32 + sq[r + Req.addressLo]!,
      };
      (this.isInstant(operation.op) ? this.ready : this.held).push(operation);
    }
    return (tail - head) | 0;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    this.onPoll();
    const done = this.ready.splice(0, max);
    done.forEach((operation, i) => {
      cq.set([operation.tag, this.execute(operation), 0, 0], i * Cpl.words);
    });
    if (done.length > 0) {
      this.armed = false;
      if (this.fd >= 0) native.eventfdDrain(this.fd);
    }
    return done.length;
  }

  arm(): void {
    this.armed = true;
  }

  eventFd(): number {
    return this.fd;
  }

  release(): boolean {
    return false;
  }

  drain(): Promise<void> {
    this.ready.push(...this.held.splice(0));
    return Promise.resolve();
  }

  async close(): Promise<void> {
    await this.onClose();
    if (this.fd >= 0) native.fileClose(this.fd);
  }

  private execute({ op, lba, blocks, address }: HeldOperation): Status {
    const { blockSize, boundary, maxTransferBlocks } = this.info;
    if (op === Op.FLUSH) return Status.OK;
    if (blocks > maxTransferBlocks) return Status.TOO_LARGE;
    if (boundary !== 0 && (lba % boundary) + blocks > boundary) return Status.BAD_REQUEST;
    for (let i = 0; i < blocks; i++) if (this.bad.has(lba + i)) return Status.MEDIA_ERROR;
    const part = this.data.subarray(lba * blockSize, (lba + blocks) * blockSize);
    if (op === Op.DISCARD) part.fill(0);
    if (op === Op.DISCARD) return Status.OK;
    if (address % this.info.addressAlign !== 0) return Status.MISALIGNED;
    const segment = addressSpace().find(address);
    if (segment === undefined) return Status.BAD_ADDRESS;
    const view = segment.u8.subarray(address - segment.address).subarray(0, part.length);
    if (op === Op.READ) view.set(part);
    else part.set(view);
    return Status.OK;
  }
}
