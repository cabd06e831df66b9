// Queues as a controller sees them (NVMe Base 2.0, section 3.3; NVMe over PCIe 1.0, 3.1.2): it
// consumes submission entries up to the tail that the driver rang, and posts completions while the
// driver's head leaves room.

import { Cqe, Sqe } from '../../../lib/drivers/nvme/commands.js';
import type { Violations } from './memory.js';

const DOORBELL_NONE = -1;

export class CompletionQueue {
  readonly id: number;
  readonly ring: Uint32Array;
  readonly address: number;
  readonly size: number;
  readonly vector: number;
  readonly interrupts: boolean;
  /** Word index of the head doorbell, in `doorbells`. */
  doorbells: Uint32Array;
  doorbell: number;
  head = 0;
  tail = 0;
  phase = 1;
  /** Submission queues that complete here. */
  users = 0;
  /** Entries were posted since the last interrupt. */
  hasNews = false;
  /** Completions that wait for room. */
  readonly waiting: Uint32Array[] = [];
  private badHead = DOORBELL_NONE;

  constructor(
    facts: { id: number; ring: Uint32Array; address: number; vector: number; interrupts: boolean },
    doorbells: Uint32Array,
    doorbell: number,
  ) {
    this.id = facts.id;
    this.ring = facts.ring;
    this.address = facts.address;
    this.size = facts.ring.length / Cqe.words;
    this.vector = facts.vector;
    this.interrupts = facts.interrupts;
    this.doorbells = doorbells;
    this.doorbell = doorbell;
  }

  /** Entries that can be posted before the queue is full. */
  get room(): number {
    const used = this.tail >= this.head ? this.tail - this.head : this.tail - this.head + this.size;
    return this.size - 1 - used;
  }

  /** Takes the driver's head; one that frees what was never posted is a violation. */
  look(violations: Violations): void {
    const head = this.doorbells[this.doorbell]!;
    if (head === this.head || head === this.badHead) return;
    const posted = (this.tail - this.head + this.size) % this.size;
    const freed = (head - this.head + this.size) % this.size;
    if (head >= this.size || freed > posted) {
      violations.add(`CQ ${this.id}: head ${head} rung, with head ${this.head}, tail ${this.tail}`);
      this.badHead = head;
      return;
    }
    this.badHead = DOORBELL_NONE;
    this.head = head;
  }

  /** Posts an entry whose phase bit is that of the first round: it is turned to this round's. */
  post(cqe: Uint32Array): void {
    const at = this.tail * Cqe.words;
    const { ring } = this;
    ring[at] = cqe[0]!;
    ring[at + 1] = cqe[1]!;
    ring[at + 2] = cqe[2]!;
    // The word with the phase goes last: the driver may be looking from another thread.
    ring[at + 3] = this.phase === 1 ? cqe[3]! : cqe[3]! ^ 0x10000;
    this.advance();
    this.hasNews = true;
  }

  private advance(): void {
    this.tail++;
    if (this.tail < this.size) return;
    this.tail = 0;
    this.phase ^= 1;
  }
}

export class SubmissionQueue {
  readonly id: number;
  readonly ring: Uint32Array;
  readonly address: number;
  readonly size: number;
  readonly cq: CompletionQueue;
  doorbells: Uint32Array;
  doorbell: number;
  head = 0;
  tail = 0;
  /** The head that the last completion told the driver of. */
  reported = 0;
  /** With shadow doorbells: the device does not look until the register is written. */
  asleep = false;
  /** The register's value when it fell asleep. */
  registerSeen = 0;
  private badTail = DOORBELL_NONE;

  constructor(
    facts: { id: number; ring: Uint32Array; address: number },
    cq: CompletionQueue,
    doorbells: Uint32Array,
    doorbell: number,
  ) {
    this.id = facts.id;
    this.ring = facts.ring;
    this.address = facts.address;
    this.size = facts.ring.length / Sqe.words;
    this.cq = cq;
    this.doorbells = doorbells;
    this.doorbell = doorbell;
  }

  /** Takes the driver's tail; one that overtakes the head it was told of is a violation. */
  look(violations: Violations): void {
    const tail = this.doorbells[this.doorbell]!;
    if (tail === this.tail || tail === this.badTail) return;
    const used = (this.tail - this.reported + this.size) % this.size;
    const added = (tail - this.tail + this.size) % this.size;
    if (tail >= this.size) {
      violations.add(`SQ ${this.id}: tail ${tail} rung, of ${this.size}`);
      this.badTail = tail;
      return;
    }
    if (used + added >= this.size) {
      const from = `tail ${this.tail}, head ${this.reported}`;
      violations.add(`SQ ${this.id}: tail ${tail} rung over entries in use (${from})`);
    }
    this.badTail = DOORBELL_NONE;
    this.tail = tail;
  }
}
