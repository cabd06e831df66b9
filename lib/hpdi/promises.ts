// Promises on top of a queue: one slot per operation in flight, submissions gathered per microtask.

import { PenstockError } from '../errors.js';
import { Queue } from './queue.js';
import { Cpl, Req, Status } from './records.js';

/** One operation as words; `at` is where its data lies. */
export interface Operation {
  /** Op | Flag bits | SG segments << 16. */
  word: number;
  blocks: number;
  lba: number;
  address: number;
}

interface Slot {
  resolve: (result: { resultLo: number; resultHi: number }) => void;
  reject: (status: number) => void;
}

export class PromiseQueue {
  readonly queue: Queue;
  private readonly slots: (Slot | undefined)[];
  private readonly free: number[] = [];
  private readonly backlog: { operation: Operation; slot: Slot }[] = [];
  private scheduled = false;
  private pumping = false;
  private active = 0;
  private failure: unknown = null;

  constructor(queue: Queue) {
    this.queue = queue;
    this.slots = new Array<Slot | undefined>(queue.depth).fill(undefined);
    for (let i = queue.depth - 1; i >= 0; i--) this.free.push(i);
  }

  /** Runs one operation; rejects with what `failed` makes of its status word. */
  run(
    operation: Operation,
    failed: (status: number) => Error,
  ): Promise<{ resultLo: number; resultHi: number }> {
    return new Promise((resolve, reject) => {
      if (this.failure !== null) {
        reject(this.failure);
        return;
      }
      this.backlog.push({
        operation,
        slot: { resolve, reject: (status) => reject(failed(status)) },
      });
      this.active++;
      if (this.scheduled) return;
      this.scheduled = true;
      queueMicrotask(() => this.flush());
    });
  }

  /** Completes what was begun, then closes the queue. */
  async close(): Promise<void> {
    while (this.active > 0 && !this.queue.isClosed) {
      // A device that drains makes an end of what is stuck in it; the pump then settles it.
      await this.queue.drain();
      await new Promise((resolve) => setImmediate(resolve));
    }
    await this.queue.close();
  }

  private flush(): void {
    this.scheduled = false;
    const { queue } = this;
    while (this.backlog.length > 0 && this.free.length > 0) {
      const at = queue.tail;
      if (queue.reserve(1) === 0) break;
      const { operation, slot } = this.backlog.shift()!;
      const tag = this.free.pop()!;
      this.slots[tag] = slot;
      const r = (at & queue.mask) * Req.words;
      queue.sq[r] = operation.word;
      queue.sq[r + Req.tag] = tag;
      queue.sq[r + Req.blocks] = operation.blocks;
      queue.sq[r + Req.aux] = 0;
      queue.sq[r + Req.lbaLo] = operation.lba >>> 0;
      queue.sq[r + Req.lbaHi] = Math.floor(operation.lba / 2 ** 32);
      queue.sq[r + Req.addressLo] = operation.address >>> 0;
      queue.sq[r + Req.addressHi] = Math.floor(operation.address / 2 ** 32);
    }
    try {
      queue.submit();
    } catch (error) {
      this.fail(error);
      return;
    }
    if (this.pumping || this.active === 0) return;
    this.pumping = true;
    void this.pump();
  }

  /** Settles completions and feeds the backlog until no operation is left. Never rejects. */
  private async pump(): Promise<void> {
    const { queue } = this;
    try {
      while (this.active > 0) {
        const count = await queue.wait();
        for (let i = 0; i < count; i++) this.settle(i * Cpl.words);
        if (queue.isClosed) this.abandon(Status.ABORTED);
        else if (this.backlog.length > 0 || queue.head !== queue.tail) this.flush();
        if (count === 0 && queue.inFlight === 0) {
          await new Promise((resolve) => setImmediate(resolve));
        }
      }
    } catch (error) {
      this.fail(error);
    } finally {
      // In the same turn as the last look at `active`: an operation begun later starts a new pump.
      this.pumping = false;
    }
  }

  private settle(at: number): void {
    const { cq } = this.queue;
    const tag = cq[at]!;
    const slot = this.slots[tag];
    if (slot === undefined) return; // abandoned meanwhile
    this.slots[tag] = undefined;
    this.free.push(tag);
    this.active--;
    const status = cq[at + Cpl.status]!;
    if (status === 0) {
      slot.resolve({ resultLo: cq[at + Cpl.resultLo]!, resultHi: cq[at + Cpl.resultHi]! });
    } else {
      slot.reject(status);
    }
  }

  /** A driver threw: nothing can be said of what is in flight but that the device is unusable. */
  private fail(cause: unknown): void {
    this.failure ??= new PenstockError(
      'DEVICE_FAILED',
      'the driver failed; the device is unusable',
      { hint: 'close it and open it again; the cause says what happened', cause },
    );
    this.abandon(Status.DEVICE_GONE);
  }

  /** Rejects all that is outstanding. Tags in flight stay taken: their completions may yet come. */
  private abandon(status: Status): void {
    for (const slot of this.slots) slot?.reject(status);
    for (const { slot } of this.backlog) slot.reject(status);
    this.slots.fill(undefined);
    this.backlog.length = 0;
    this.active = 0;
  }
}
