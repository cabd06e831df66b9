// Operations of all clients at the served device: one HPDI queue, and what each operation in flight
// in it belongs to.
//
// Invariants
// 1. An operation has a slot from `begin` until its completion was handed out; the slot's number is
//    its tag in the queue.
// 2. `memoryInUse` counts, by domain, the operations whose data the device reads in that domain's
//    memory: it stays mapped until there are none, also when the domain is dead.

import { Queue, Req } from '../hpdi/index.js';

/** What becomes of an operation's buffer. */
export const enum Kind {
  /** None of the server's: the data lies with the client, or there is none. */
  none = 0,
  /** A READ: the client copies it and then says `done`. */
  read = 1,
  /** A READ_LOAN: the client gives it back. */
  loan = 2,
}

const DOMAINS = 256;

export class DeviceOps {
  readonly queue: Queue;
  readonly depth: number;
  freeCount: number;
  readonly memoryInUse = new Uint32Array(DOMAINS);
  /** By slot. */
  readonly sessions: Int32Array;
  readonly tags: Uint32Array;
  readonly kinds: Uint8Array;
  readonly buffers: Int32Array;
  readonly domains: Uint8Array;
  readonly bytes: Float64Array;
  private readonly free: Int32Array;

  constructor(queue: Queue) {
    const { depth } = queue;
    this.queue = queue;
    this.depth = depth;
    this.sessions = new Int32Array(depth);
    this.tags = new Uint32Array(depth);
    this.kinds = new Uint8Array(depth);
    this.buffers = new Int32Array(depth);
    this.domains = new Uint8Array(depth);
    this.bytes = new Float64Array(depth);
    this.free = new Int32Array(depth);
    for (let slot = 0; slot < depth; slot++) this.free[slot] = depth - 1 - slot;
    this.freeCount = depth;
  }

  // hot:begin

  /**
   * Takes the request at word `at` of `rq`, which was checked, as operation `op` (a word with its
   * flags) on the memory at lo, hi. There must be a free slot. Gives the slot, whose other words
   * are the caller's to fill.
   */
  begin(rq: Uint32Array, at: number, op: number, lo: number, hi: number): number {
    const { queue } = this;
    const slot = this.free[--this.freeCount]!;
    const to = (queue.tail & queue.mask) * Req.words;
    queue.reserve(1);
    const { sq } = queue;
    sq[to] = op;
    sq[to + Req.tag] = slot;
    sq[to + Req.blocks] = rq[at + Req.blocks]!;
    sq[to + Req.aux] = 0;
    sq[to + Req.lbaLo] = rq[at + Req.lbaLo]!;
    sq[to + Req.lbaHi] = rq[at + Req.lbaHi]!;
    sq[to + Req.addressLo] = lo;
    sq[to + Req.addressHi] = hi;
    this.tags[slot] = rq[at + Req.tag]!;
    return slot;
  }

  /** An operation has completed and its completion was handed on. */
  end(slot: number): void {
    const domain = this.domains[slot]!;
    if (domain !== 0) {
      this.memoryInUse[domain] = this.memoryInUse[domain]! - 1;
      this.domains[slot] = 0;
    }
    this.free[this.freeCount++] = slot;
  }

  // hot:end
}
