// The queues that there are, and their doorbells: registers, or memory once a driver gave shadow
// doorbells (NVMe Base 2.0, section 5.8). The admin queue always goes by registers.

import { fence } from '../../../lib/wire/index.js';
import { Dma } from './dma.js';
import { type TwinMemory, type Violations } from './memory.js';
import type { ResolvedOptions } from './options.js';
import { CompletionQueue, SubmissionQueue } from './queues.js';
import { Code } from './wire.js';

type CqFacts = ConstructorParameters<typeof CompletionQueue>[0];
type SqFacts = ConstructorParameters<typeof SubmissionQueue>[0];

export class QueueSet {
  readonly sqs = new Map<number, SubmissionQueue>();
  readonly cqs = new Map<number, CompletionQueue>();
  /** Submission queues in the order they are served in. */
  order: readonly SubmissionQueue[] = [];
  /** All completion queues. */
  served: readonly CompletionQueue[] = [];
  /** Result of Set Features, number of queues: less one, submission and completion. */
  granted = 0;
  private readonly options: ResolvedOptions;
  private readonly memory: TwinMemory;
  private readonly violations: Violations;
  private readonly doorbells: Uint32Array;
  private shadow: { tails: Uint32Array; events: Uint32Array } | null = null;

  constructor(
    options: ResolvedOptions,
    memory: TwinMemory,
    violations: Violations,
    doorbells: Uint32Array,
  ) {
    this.options = options;
    this.memory = memory;
    this.violations = violations;
    this.doorbells = doorbells;
    this.granted = this.most;
  }

  get hasIoQueues(): boolean {
    return this.cqs.size > 1;
  }

  /** Whether the identifier is granted and free. */
  mayCreate(id: number, kind: 'sq' | 'cq'): boolean {
    const granted = kind === 'sq' ? this.granted & 0xffff : this.granted >>> 16;
    const queues = kind === 'sq' ? this.sqs : this.cqs;
    return id >= 1 && id <= granted + 1 && id <= this.options.queuesMax && !queues.has(id);
  }

  addCq(facts: CqFacts): CompletionQueue {
    const at = this.doorbellAt(facts.id, 1);
    this.doorbells[at] = 0;
    const cq = new CompletionQueue(facts, this.doorbells, at);
    this.cqs.set(facts.id, cq);
    this.served = [...this.cqs.values()];
    if (this.shadow !== null && facts.id !== 0) cq.doorbells = this.shadow.tails;
    return cq;
  }

  addSq(facts: SqFacts, cq: CompletionQueue): void {
    const at = this.doorbellAt(facts.id, 0);
    this.doorbells[at] = 0;
    const sq = new SubmissionQueue(facts, cq, this.doorbells, at);
    cq.users++;
    this.sqs.set(facts.id, sq);
    this.order = [...this.sqs.values()];
    if (this.shadow !== null) this.shadowQueue(sq, this.shadow.tails);
  }

  deleteCq(id: number): number {
    const cq = this.cqs.get(id);
    if (id === 0 || cq === undefined) return Code.QUEUE_ID | Code.DNR;
    if (cq.users > 0) return Code.QUEUE_DELETION | Code.DNR;
    this.cqs.delete(id);
    this.served = [...this.cqs.values()];
    this.memory.releaseRing(cq.address, cq.ring.byteLength, Dma.writes);
    return Code.SUCCESS;
  }

  deleteSq(sq: SubmissionQueue): void {
    this.sqs.delete(sq.id);
    this.order = [...this.sqs.values()];
    sq.cq.users--;
    this.memory.releaseRing(sq.address, sq.ring.byteLength, Dma.reads);
  }

  /** No queue is left, and doorbells are as after power on. */
  clear(): void {
    this.sqs.clear();
    this.cqs.clear();
    this.order = [];
    this.served = [];
    this.shadow = null;
    this.granted = this.most;
    this.memory.rings.clear();
    this.doorbells.fill(0);
  }

  /** Takes the queue's tail; false when the device does not look at it now. */
  lookTail(sq: SubmissionQueue): boolean {
    if (sq.asleep && this.doorbells[sq.doorbell] !== sq.registerSeen) sq.asleep = false;
    if (sq.asleep) return false;
    sq.look(this.violations);
    return true;
  }

  /** With shadow doorbells: says when the register is to be written, and looks once more. */
  sleep(sq: SubmissionQueue): void {
    const { shadow } = this;
    if (shadow === null || sq.id === 0) return;
    const isLazy = this.options.shadowDoorbells === 'lazy';
    shadow.events[sq.doorbell] = isLazy ? sq.tail : (sq.tail - 1) & 0xffff;
    shadow.events[sq.cq.doorbell] = isLazy ? sq.cq.head : (sq.cq.head - 1) & 0xffff;
    if (!isLazy || sq.head !== sq.tail) return;
    sq.registerSeen = this.doorbells[sq.doorbell]!;
    // The index must be out before the tail is read again: the driver stores its tail, then reads
    // the index.
    fence();
    sq.look(this.violations);
    sq.asleep = sq.head === sq.tail;
  }

  /** Every queue but the admin one is told of by memory from now on. */
  useShadow(tailsAddress: number, eventsAddress: number, pageBytes: number): boolean {
    const tails = this.memory.ring(tailsAddress, pageBytes, Dma.reads, 'shadow doorbells');
    const events = this.memory.ring(eventsAddress, pageBytes, Dma.writes, 'event indices');
    if (tails === null || events === null) return false;
    this.shadow = { tails, events };
    for (const sq of this.sqs.values()) this.shadowQueue(sq, tails);
    for (const cq of this.cqs.values()) if (cq.id !== 0) cq.doorbells = tails;
    return true;
  }

  /** A trapped doorbell was rung. */
  rung(index: number): void {
    const stride = 1 << this.options.doorbellStride;
    const id = Math.floor(index / stride / 2);
    const isHead = Math.floor(index / stride) % 2 === 1;
    const queue = isHead ? this.cqs.get(id) : this.sqs.get(id);
    if (queue === undefined || index % stride !== 0) {
      this.violations.add(`doorbell ${index} is rung, which belongs to no queue`);
    } else if (queue instanceof SubmissionQueue) {
      queue.asleep = false;
    }
  }

  /** Mapped doorbells of queues that are not there: whoever wrote to one is found here. */
  checkDoorbells(): void {
    const known = new Set<number>();
    for (const queue of [...this.sqs.values(), ...this.cqs.values()]) known.add(queue.doorbell);
    for (const [index, value] of this.doorbells.entries()) {
      if (value === 0 || known.has(index)) continue;
      this.violations.add(`doorbell ${index} holds ${value}, which belongs to no queue`);
    }
  }

  private get most(): number {
    return (this.options.queuesMax - 1) * 0x10001;
  }

  private shadowQueue(sq: SubmissionQueue, tails: Uint32Array): void {
    if (sq.id === 0) return;
    sq.doorbells = tails;
    sq.asleep = this.options.shadowDoorbells === 'lazy';
    sq.registerSeen = this.doorbells[sq.doorbell]!;
  }

  private doorbellAt(id: number, isHead: 0 | 1): number {
    return (2 * id + isHead) << this.options.doorbellStride;
  }
}
