// A memory device for tests of what drives queues: completes in a seeded order, at most `batch` a
// poll, and misbehaves on request. Every address is looked up among the buffers that were
// registered, so that a wrong address fails the test instead of touching memory.

import type { QueueCounters, QueueDriver } from '../../lib/hpdi/driver.js';
import { Cpl, Op, Req, Status } from '../../lib/hpdi/records.js';
import type { SlotBuffer, SlotMemory } from '../../lib/bench/slots.js';

const TWO32 = 2 ** 32;

/** Hands out another memory's buffers and remembers which are out. */
export class RecordedMemory implements SlotMemory {
  readonly live = new Map<number, Uint32Array>();

  constructor(private readonly inner: SlotMemory) {}

  alloc(bytes: number): SlotBuffer {
    const buffer = this.inner.alloc(bytes);
    const live = this.live;
    live.set(buffer.address, buffer.u32);
    return {
      address: buffer.address,
      u32: buffer.u32,
      free() {
        live.delete(buffer.address);
        buffer.free();
      },
    };
  }
}

export interface FakeOptions {
  memory: RecordedMemory;
  blockSize: number;
  blocks: number;
  /** Completions per poll at most. */
  batch?: number;
  /** Requests taken per submit at most. */
  take?: number;
  /** Looks at each request before it is done: gives a status other than 0 to fail it. */
  fail?: (op: number, lba: number) => number;
  /** Called on every poll, for clocks that follow the device. */
  onPoll?: () => void;
}

interface Pending {
  op: number;
  tag: number;
  lba: number;
  blocks: number;
  address: number;
}

export class FakeDriver implements QueueDriver {
  readonly store: Uint32Array;
  readonly counters: QueueCounters = { doorbells: 0, polls: 0 };
  /** Requests seen, by operation code. */
  readonly seen: { op: number; lba: number }[] = [];
  /** Times a request met another one in flight over the same blocks. */
  overlaps = 0;
  private readonly pending: Pending[] = [];
  private picks = 1;

  constructor(private readonly options: FakeOptions) {
    this.store = new Uint32Array((options.blockSize * options.blocks) / 4);
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    this.counters.doorbells++;
    const mask = sq.length / Req.words - 1;
    const count = Math.min((tail - head) | 0, this.options.take ?? Infinity);
    for (let i = 0; i < count; i++) {
      const r = ((head + i) & mask) * Req.words;
      const request = {
        op: sq[r + Req.op]! & 0xff,
        tag: sq[r + Req.tag]!,
        lba: sq[r + Req.lbaLo]! + sq[r + Req.lbaHi]! * TWO32,
        blocks: sq[r + Req.blocks]!,
        address: sq[r + Req.addressLo]! + sq[r + Req.addressHi]! * TWO32,
      };
      this.seen.push({ op: request.op, lba: request.lba });
      const end = request.lba + request.blocks;
      const meets = (other: Pending): boolean =>
        other.lba < end && request.lba < other.lba + other.blocks;
      if (this.pending.some(meets)) this.overlaps++;
      this.pending.push(request);
    }
    return count;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    this.options.onPoll?.();
    const count = Math.min(max, this.pending.length, this.options.batch ?? Infinity);
    for (let i = 0; i < count; i++) {
      // Out of order: any pending one may be next.
      this.picks = (Math.imul(this.picks, 1103515245) + 12345) >>> 0;
      const [request] = this.pending.splice((this.picks >>> 8) % this.pending.length, 1);
      cq[i * Cpl.words + Cpl.tag] = request!.tag;
      cq[i * Cpl.words + Cpl.status] = this.execute(request!);
    }
    return count;
  }

  private execute({ op, lba, blocks, address }: Pending): number {
    const { blockSize, memory, fail } = this.options;
    const status = fail?.(op, lba) ?? 0;
    if (status !== 0) return status;
    if (lba + blocks > this.options.blocks) return Status.BAD_RANGE;
    const words = memory.live.get(address);
    if (words === undefined || words.length < (blocks * blockSize) / 4) return Status.BAD_ADDRESS;
    const at = (lba * blockSize) / 4;
    const end = at + (blocks * blockSize) / 4;
    if (op === Op.READ) words.set(this.store.subarray(at, end));
    else if (op === Op.WRITE) this.store.set(words.subarray(0, end - at), at);
    else return Status.UNSUPPORTED;
    return 0;
  }

  arm(): void {
    // Completions are always there to be polled: nothing to arm.
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
    return Promise.resolve();
  }
}
