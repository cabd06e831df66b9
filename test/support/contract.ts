// The contract suite: what every block device must do, whichever driver is behind it (HPDI).
//
// It runs unchanged over all drivers, wrapped or not; what a driver cannot show (a null device
// keeps no data) is said in the expectations, nothing else is left out. The parts: data
// (contract-data.ts), requests that are wrong (contract-requests.ts), queues and lifetimes
// (contract-queues.ts).

import { afterAll, beforeAll, describe } from 'vitest';
import type { BlockDevice, Queue } from '../../lib/hpdi/index.js';
import { addressSpace, type DmaBuffer, type Segment } from '../../lib/memory/index.js';
import { dataContract } from './contract-data.js';
import { queueContract } from './contract-queues.js';
import { requestContract } from './contract-requests.js';

export interface Opened {
  device: BlockDevice;
  /** Removes what was made for the device; called after device.close. */
  remove?(): Promise<void> | void;
  /** Cuts the power and brings it back: unflushed data is lost (devices with a volatile cache). */
  cut?(): Promise<void>;
}

export interface Expectations {
  /** Reads give back what was written. */
  data: boolean;
  /** Discarded blocks read as zeros. */
  discardZeroes: boolean;
  /** Opens a device that must refuse writes. */
  openReadOnly?: () => Promise<Opened>;
  /** Repetitions of the random model check. */
  modelRuns?: number;
}

/** What the parts of the suite share: one open device, and the means to open another. */
export class Contract {
  readonly expectations: Expectations;
  readonly open: () => Promise<Opened>;
  private current: Opened | null = null;
  private readonly queues: Queue[] = [];
  private readonly segments: Segment[] = [];

  constructor(open: () => Promise<Opened>, expectations: Expectations) {
    this.open = open;
    this.expectations = expectations;
  }

  get device(): BlockDevice {
    return this.opened.device;
  }

  get opened(): Opened {
    if (this.current === null) throw new Error('the device is not open yet');
    return this.current;
  }

  get blockSize(): number {
    return this.device.info.blockSize;
  }

  /** Largest transfer in blocks that tests use: the device's, or what 2 MiB hold. */
  get maxBlocks(): number {
    const { maxTransferBlocks, blockSize } = this.device.info;
    return Math.min(maxTransferBlocks, (2 * 2 ** 20) / blockSize);
  }

  async begin(): Promise<void> {
    this.current = await this.open();
  }

  async end(): Promise<void> {
    if (this.current === null) return;
    await this.tidy();
    await closeOpened(this.current);
    this.current = null;
  }

  /** A queue that is closed at the end of the test. */
  queue(depth = 32, split = true): Queue {
    const queue = this.device.queue({ depth, split });
    this.queues.push(queue);
    return queue;
  }

  /** A buffer of `bytes` bytes of the device's memory. */
  buffer(bytes: number): DmaBuffer {
    return this.device.memory.alloc(bytes);
  }

  /** An address that was memory once. */
  freedAddress(): number {
    const segment = addressSpace().create(2 ** 21);
    const { address } = segment;
    segment.close();
    return address;
  }

  /** A segment of its own, closed at the end of the test. */
  segment(): Segment {
    const segment = addressSpace().create(2 ** 21);
    this.segments.push(segment);
    return segment;
  }

  /** Closes what a test made. */
  async tidy(): Promise<void> {
    for (const queue of this.queues.splice(0)) await queue.close();
    for (const segment of this.segments.splice(0)) segment.close();
  }
}

export async function closeOpened(opened: Opened): Promise<void> {
  await opened.device.close();
  await opened.remove?.();
}

/** Runs the whole suite on what `open` opens: a device of at least 8 MiB, full of zeros. */
export function contractSuite(
  name: string,
  open: () => Promise<Opened>,
  expectations: Expectations,
): void {
  describe(`contract: ${name}`, () => {
    const contract = new Contract(open, expectations);
    beforeAll(() => contract.begin());
    afterAll(() => contract.end());
    dataContract(contract);
    requestContract(contract);
    queueContract(contract);
  });
}
