// What an attached worker's queue adds: when the device's home is gone, everything completes with
// DEVICE_GONE, and what is in flight only after the device has let go of it.

import { PenstockError } from '../errors.js';
import { isAlive, statusWords, StatusWord } from '../memory/index.js';
import { CompletionRing } from './completions.js';
import type { DeviceHandle, QueueCounters, QueueDriver } from './driver.js';
import { Cpl, Req, Status } from './records.js';

/** A constant of the module: V8 then knows where its words are. */
const status = statusWords();

/** Throws DEVICE_GONE when the device that a handle names was closed, or its thread ended. */
export function assertHomeAlive(handle: DeviceHandle): void {
  if (isAlive(handle.liveness, handle.livenessSerial)) return;
  throw new PenstockError('DEVICE_GONE', `${handle.uri}: the thread that opened it closed it`, {
    hint: 'keep the device open until all who attach to it are done',
  });
}

export class AttachedDriver implements QueueDriver {
  private readonly inner: QueueDriver;
  private readonly index: number;
  private readonly serial: number;
  private readonly refused: CompletionRing;
  private readonly depth: number;
  /** As the device has it: HPDI waits on eventFd where there is none. */
  readonly park?: (timeoutUs: number) => void;

  /** index and serial name the home's liveness word. */
  constructor(inner: QueueDriver, index: number, serial: number, depth: number) {
    this.inner = inner;
    this.index = StatusWord.liveness + index;
    this.serial = serial;
    this.refused = new CompletionRing(depth);
    this.depth = depth;
    if (inner.park !== undefined) {
      this.park = (timeoutUs) => {
        if (this.refused.length === 0) inner.park!(timeoutUs);
      };
    }
  }

  get counters(): QueueCounters {
    return this.inner.counters;
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    if (status[this.index] === this.serial) return this.inner.submit(sq, head, tail);
    const mask = (sq.length >>> 3) - 1;
    // The parts of a split request may be more than the queue is deep: the rest comes again.
    const room = this.depth - this.refused.length;
    const wanted = (tail - head) | 0;
    const count = wanted < room ? wanted : room;
    for (let i = 0; i < count; i++) {
      this.refused.push(sq[((head + i) & mask) * Req.words + Req.tag]!, Status.DEVICE_GONE, 0, 0);
    }
    return count;
  }

  poll(cq: Uint32Array, max: number): number {
    const count = this.inner.poll(cq, max);
    if (status[this.index] === this.serial) return count;
    for (let i = 0; i < count; i++) {
      const at = i * Cpl.words;
      cq[at + Cpl.status] = Status.DEVICE_GONE;
      cq[at + Cpl.resultLo] = 0;
      cq[at + Cpl.resultHi] = 0;
    }
    return count + this.refused.drain(cq, count, max - count);
  }

  arm(): void {
    this.inner.arm();
  }

  eventFd(): number {
    return this.refused.length > 0 ? -1 : this.inner.eventFd();
  }

  release(resultLo: number, resultHi: number): boolean {
    return this.inner.release(resultLo, resultHi);
  }

  drain(): Promise<void> {
    return this.inner.drain();
  }

  close(): Promise<void> {
    return this.inner.close();
  }
}
