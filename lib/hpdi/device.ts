// BlockDevice: an open device for people (promises and buffers), and the maker of its queues.

import { PenstockError } from '../errors.js';
import {
  addressSpace,
  memoryOfKind,
  Liveness,
  type DmaBuffer,
  type Memory,
} from '../memory/index.js';
import { Adapter } from './adapter.js';
import { emulatedOperations } from './adapter-table.js';
import { AttachedDriver } from './attached.js';
import type { Backend, DeviceHandle, QueueDriver, QueueOptions } from './driver.js';
import type { DeviceInfo } from './info.js';
import { PromiseQueue } from './promises.js';
import { Queue } from './queue.js';
import { Flag, Op, Status } from './records.js';
import { explainStatus, statusError, type Explanation } from './status.js';

const PROMISE_DEPTH = 256;

/** Bytes lent by the device: valid, and unchanged, until `release`. */
export interface Loan {
  readonly address: number;
  readonly bytes: number;
  readonly u8: Uint8Array;
  /** Gives the loan back; a second release is BAD_LOAN. */
  release(): void;
}

interface Home {
  index: number;
  serial: number;
}

export class BlockDevice {
  readonly uri: string;
  /** Where buffers for this device come from. */
  readonly memory: Memory;
  /** The driver's side, wrappers included: for what reaches into one (`faultControl`). */
  readonly backend: Backend;
  private readonly home: Home | null;
  private liveness: Liveness | null = null;
  private readonly queues = new Set<Queue>();
  private readonly listeners = new Set<(info: DeviceInfo) => void>();
  /** Who has to end before the device may. */
  private readonly users = new Set<{ readonly what: string }>();
  private promises: PromiseQueue | null = null;
  private closing: Promise<void> | null = null;

  /** `home` is given on attached devices: the liveness word of the environment that opened it. */
  constructor(backend: Backend, home: Home | null = null, memory?: Memory) {
    this.backend = backend;
    this.uri = backend.uri;
    this.home = home;
    this.memory = memory ?? backend.memory ?? memoryOfKind(backend.memoryKind ?? 'private');
  }

  /** What the device can do, with what its queues add in software. */
  get info(): DeviceInfo {
    const { info } = this.backend;
    return {
      ...info,
      canLoan: true,
      loanStable: true,
      operations: info.operations | emulatedOperations(info),
    };
  }

  /** What the driver itself can do: the limits of queues opened with `split: false`. */
  get nativeInfo(): DeviceInfo {
    return this.backend.info;
  }

  /**
   * Calls `listener` with the new facts when the device changes (size, namespace); the function
   * that
   * it gives ends that. What another thread notices is not told here: each attachment looks itself.
   */
  onChange(listener: (info: DeviceInfo) => void): () => void {
    const own = (info: DeviceInfo): void => listener(info); // so that each call counts for itself
    this.listeners.add(own);
    this.backend.onChange = () => {
      for (const each of [...this.listeners]) each(this.info);
    };
    return () => void this.listeners.delete(own);
  }

  /**
   * Takes the device for one owner (a pool), among all processes, until it is closed. Throws
   * DEVICE_BUSY. Where other processes cannot open the device, or none can say so, it does nothing.
   */
  claim(): void {
    this.assertOpen();
    this.backend.claim?.();
  }

  /**
   * Somebody (a pool) builds on the device: until the function that this gives is called, `close`
   * is DEVICE_BUSY.
   */
  use(what: string): () => void {
    this.assertOpen();
    const user = { what };
    this.users.add(user);
    return () => void this.users.delete(user);
  }

  /** Re-reads the device's size. */
  async refresh(): Promise<DeviceInfo> {
    this.assertOpen();
    await this.backend.refresh?.();
    return this.info;
  }

  /**
   * Reads buf.bytes from block `lba` on. Rejects with a PenstockError whose code is a STATUS name.
   */
  async read(lba: number, buf: DmaBuffer): Promise<void> {
    await this.run('read', Op.READ, lba, this.blocksOf(buf), this.liveAddress(buf));
  }

  /** Writes the whole buffer; with `fua` it is durable when the promise resolves. */
  async write(lba: number, buf: DmaBuffer, options: { fua?: boolean } = {}): Promise<void> {
    const word = Op.WRITE | (options.fua === true ? Flag.FUA : 0);
    await this.run('write', word, lba, this.blocksOf(buf), this.liveAddress(buf));
  }

  /** Makes every write that completed before durable. */
  async flush(): Promise<void> {
    await this.run('flush', Op.FLUSH, 0, 0, 0);
  }

  async discard(lba: number, blocks: number): Promise<void> {
    await this.run('discard', Op.DISCARD, lba, blocks, 0);
  }

  async writeZeroes(lba: number, blocks: number): Promise<void> {
    await this.run('write zeroes', Op.WRITE_ZEROES, lba, blocks, 0);
  }

  /** Rejects with MISCOMPARE when the blocks differ from the buffer. */
  async compare(lba: number, buf: DmaBuffer): Promise<void> {
    await this.run('compare', Op.COMPARE, lba, this.blocksOf(buf), this.liveAddress(buf));
  }

  async copy(toLba: number, fromLba: number, blocks: number): Promise<void> {
    await this.run('copy', Op.COPY, toLba, blocks, this.checkedLba(fromLba));
  }

  /** Reads into a buffer of the device's and lends it out. */
  async readLoan(lba: number, blocks: number): Promise<Loan> {
    const { resultLo, resultHi } = await this.run('read loan', Op.READ_LOAN, lba, blocks, 0);
    const address = (resultHi & 0xfff) * 2 ** 32 + resultLo;
    const bytes = blocks * this.backend.info.blockSize;
    const segment = addressSpace().find(address)!;
    const offset = address - segment.address;
    const { queue } = this.promised();
    return {
      address,
      bytes,
      u8: segment.u8.subarray(offset, offset + bytes),
      release: () => {
        if (queue.release(resultLo, resultHi)) return;
        throw statusError('release', this.explain(Status.BAD_LOAN));
      },
    };
  }

  /** A queue of its own, for the calling thread. Depth is rounded up to a power of two. */
  queue(options: QueueOptions): Queue {
    this.assertOpen();
    const { depth } = options;
    if (!Number.isInteger(depth) || depth < 1 || depth > 32768) {
      throw new RangeError(`a queue's depth is from 1 to 32768, not ${depth}`);
    }
    const rounded = 2 ** Math.ceil(Math.log2(depth));
    let driver: QueueDriver = this.backend.openQueue({ ...options, depth: rounded });
    if (this.home !== null)
      driver = new AttachedDriver(driver, this.home.index, this.home.serial, rounded);
    if (options.split !== false) {
      driver = new Adapter(driver, this.backend, this.memory, rounded);
    }
    const queue: Queue = new Queue(driver, rounded, () => this.queues.delete(queue));
    this.queues.add(queue);
    return queue;
  }

  /**
   * What `attach` in a worker needs; can be posted. The device must stay open while workers use it.
   */
  handle(): DeviceHandle {
    this.assertOpen();
    let home = this.home;
    if (home === null) {
      this.liveness ??= new Liveness();
      home = this.liveness;
    }
    return {
      uri: this.uri,
      scheme: this.backend.scheme,
      info: this.backend.info,
      liveness: home.index,
      livenessSerial: home.serial,
      shared: this.backend.share(),
    };
  }

  /** Name, meaning and hint of a completion's status word. */
  explain(status: number): Explanation {
    return explainStatus(status, (code, detail) => this.backend.explainDetail(code, detail));
  }

  /**
   * Completes what is in flight, closes every queue, then the device; attached workers get
   * DEVICE_GONE.
   */
  async close(): Promise<void> {
    const [user] = this.users;
    if (user !== undefined && this.closing === null) {
      throw new PenstockError('DEVICE_BUSY', `${this.uri} is in use by ${user.what}`, {
        hint: 'close that first',
        exitCode: 3,
      });
    }
    this.closing ??= this.closeAll();
    return this.closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Whatever fails, the rest is closed: nobody can close this device a second time. */
  private async closeAll(): Promise<void> {
    this.liveness?.close();
    const failures: unknown[] = [];
    const close = async (what: { close(): Promise<void> }): Promise<void> => {
      await what.close().catch((error: unknown) => failures.push(error));
    };
    if (this.promises !== null) await close(this.promises);
    for (const queue of [...this.queues]) await close(queue);
    await close(this.backend);
    this.memory.trim();
    if (failures.length > 0) throw failures[0];
  }

  /** The queue under the promises, made at the first call. */
  private promised(): PromiseQueue {
    this.promises ??= new PromiseQueue(this.queue({ depth: PROMISE_DEPTH }));
    return this.promises;
  }

  private run(
    what: string,
    word: number,
    lba: number,
    blocks: number,
    address: number,
  ): Promise<{ resultLo: number; resultHi: number }> {
    this.assertOpen();
    this.checkedLba(lba);
    if (!Number.isInteger(blocks) || blocks < 0 || blocks > 0xffffffff) {
      throw new RangeError(`blocks is an integer from 0 to 2^32 - 1, not ${blocks}`);
    }
    return this.promised().run({ word, blocks, lba, address }, (status) =>
      statusError(`${what} at block ${lba} of ${this.uri}`, this.explain(status)),
    );
  }

  private checkedLba(lba: number): number {
    if (Number.isSafeInteger(lba) && lba >= 0) return lba;
    throw new RangeError(`a block address is an integer from 0 on, not ${lba}`);
  }

  private blocksOf(buf: DmaBuffer): number {
    const { blockSize } = this.backend.info;
    const blocks = buf.bytes / blockSize;
    if (Number.isInteger(blocks)) return blocks;
    throw new PenstockError(
      'BAD_REQUEST',
      `a buffer of ${buf.bytes} bytes is not a whole number of blocks of ${blockSize}`,
      { hint: 'allocate a multiple of info.blockSize' },
    );
  }

  private liveAddress(buf: DmaBuffer): number {
    if (!buf.freed) return buf.address;
    throw new PenstockError('USE_AFTER_FREE', 'the buffer was freed', {
      hint: 'free a buffer only after the last operation that uses it has completed',
    });
  }

  private assertOpen(): void {
    if (this.closing === null) return;
    throw new PenstockError('DEVICE_CLOSED', `${this.uri} is closed`, {
      hint: 'open it again, or close it later',
    });
  }
}
