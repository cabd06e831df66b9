// The controller: queues, commands on their way, completions, events and interrupts. What each
// command does stands in admin.ts and io.ts, its life in power.ts.
//
// A step looks at registers and doorbells, moves time on by one, and does the commands that are
// there; nothing happens between steps but the answer to a trapped register write.

import { Cdw0, Cqe, Sqe } from '../../../lib/drivers/nvme/commands.js';
import { native } from '../../../lib/native.js';
import { fence } from '../../../lib/wire/index.js';
import { AdminCommands } from './admin.js';
import { consumeTransfers } from './consume.js';
import { type FaultAction, Faults } from './faults.js';
import { Features } from './features.js';
import type { ControllerHooks } from './function.js';
import { IoCommands } from './io.js';
import { Logs } from './logs.js';
import { Dma, TwinMemory, Violations } from './memory.js';
import type { ResolvedOptions } from './options.js';
import { Power } from './power.js';
import { CompletionQueue, SubmissionQueue } from './queues.js';
import { Control, DOORBELLS_OFFSET, type Shared, VECTOR_WORDS } from './shared.js';
import { TwinNamespace } from './storage.js';
import { Transfer } from './transfer.js';
import { Code, HELD } from './wire.js';

/** A command that was taken and has not completed. */
interface Held {
  readonly sq: SubmissionQueue;
  readonly sqe: Uint32Array;
  /** Steps until it is done; Infinity: never. */
  steps: number;
}

export class Controller implements ControllerHooks {
  readonly options: ResolvedOptions;
  readonly violations = new Violations();
  readonly memory: TwinMemory;
  readonly transfer: Transfer;
  readonly faults = new Faults();
  readonly logs: Logs;
  readonly features: Features;
  readonly namespaces = new Map<number, TwinNamespace>();
  readonly power: Power;
  /** dw0 of the completion of the command that is being done. */
  result = 0;
  /** Result of Set Features, number of queues: less one, submission and completion. */
  queuesGranted = 0;
  private readonly shared: Shared;
  private readonly doorbells: Uint32Array;
  private readonly admin: AdminCommands;
  private readonly io: IoCommands;
  private readonly sqs = new Map<number, SubmissionQueue>();
  private readonly cqs = new Map<number, CompletionQueue>();
  private order: SubmissionQueue[] = [];
  private held: Held[] = [];
  private eventRequests: Uint32Array[] = [];
  private shadow: { tails: Uint32Array; events: Uint32Array } | null = null;
  private readonly sqe = new Uint32Array(Sqe.words);
  private readonly cqe = new Uint32Array(Cqe.words);
  private hasMasked = false;
  /** Called when a trapped doorbell was rung. */
  onDoorbell: (() => void) | null = null;

  constructor(options: ResolvedOptions, shared: Shared) {
    this.options = options;
    this.shared = shared;
    this.memory = new TwinMemory(this.violations, options.dma);
    this.transfer = new Transfer(this.memory, this.violations, options);
    this.logs = new Logs(options);
    this.features = new Features(this);
    this.admin = new AdminCommands(this);
    this.io = new IoCommands(this);
    this.doorbells = shared.registers.subarray(DOORBELLS_OFFSET >>> 2);
    this.queuesGranted = (options.queuesMax - 1) * 0x10001;
    this.power = new Power(this, shared);
    for (const each of options.namespaces) {
      const nsid = each.nsid ?? this.namespaces.size + 1;
      this.namespaces.set(nsid, new TwinNamespace({ ...each, nsid }, options.volatileCache));
    }
  }

  /** Does up to `max` commands; returns how many were taken from queues. */
  step(max: number): number {
    const { power } = this;
    if (this.shared.isRemoved) return 0;
    power.look();
    power.tick();
    if (!power.isWorking) return 0;
    for (const cq of this.cqs.values()) {
      cq.look(this.violations);
      while (cq.waiting.length > 0 && cq.room > 0) cq.post(cq.waiting.shift()!);
    }
    if (this.held.length > 0) this.tickHeld();
    this.tellEvents();
    let done = 0;
    for (let i = 0; i < this.order.length && done < max; i++) {
      done += this.consume(this.order[i]!, max - done);
      // A command may have reset the controller, or taken queues away.
      if (!power.isWorking) break;
    }
    this.signal();
    return done;
  }

  /** Whether a step may do something even though no doorbell moves. */
  get isBusy(): boolean {
    return this.held.length > 0 || this.order.some((sq) => sq.head !== sq.tail);
  }

  // --- commands ----------------------------------------------------------------------------------

  private consume(sq: SubmissionQueue, max: number): number {
    if (!this.lookTail(sq)) return 0;
    let done = 0;
    while (sq.head !== sq.tail && done < max && sq.cq.room > sq.cq.waiting.length) {
      if (this.options.null && sq.id !== 0 && !this.faults.isArmed) {
        done += consumeTransfers(sq, max - done);
        if (sq.head === sq.tail || done >= max || sq.cq.room === 0) break;
      }
      this.sqe.set(sq.ring.subarray(sq.head * Sqe.words, (sq.head + 1) * Sqe.words));
      sq.head = (sq.head + 1) % sq.size;
      done++;
      this.run(sq, this.sqe);
      if (!this.power.isWorking) return done;
    }
    this.sleep(sq);
    return done;
  }

  private run(sq: SubmissionQueue, sqe: Uint32Array): void {
    const action = this.faults.isArmed ? this.faults.take(sq.id, sqe) : null;
    if (action?.kind === 'drop') this.hold(sq, sqe, Infinity);
    else if (action?.kind === 'delay') this.hold(sq, sqe, action.steps);
    else this.finish(sq, sqe, action);
  }

  private finish(sq: SubmissionQueue, sqe: Uint32Array, action: FaultAction | null): void {
    this.result = 0;
    let status: number = Code.SUCCESS;
    if (action?.kind !== 'status' || action.execute) status = this.execute(sq, sqe);
    if (action?.kind === 'status') status = action.status;
    if (status === HELD) return;
    const mutate = action?.kind === 'cqe' ? action.mutate : null;
    const times = action?.kind === 'twice' ? 2 : 1;
    for (let i = 0; i < times; i++) this.complete(sq, sqe, status, mutate);
  }

  private execute(sq: SubmissionQueue, sqe: Uint32Array): number {
    if (sq.id === 0) return this.admin.execute(sqe);
    return this.options.null ? Code.SUCCESS : this.io.execute(sqe);
  }

  private hold(sq: SubmissionQueue, sqe: Uint32Array, steps: number): void {
    this.held.push({ sq, sqe: Uint32Array.from(sqe), steps });
  }

  private tickHeld(): void {
    for (const held of this.held) held.steps--;
    const due = this.held.filter((held) => held.steps <= 0);
    this.held = this.held.filter((held) => held.steps > 0);
    for (const { sq, sqe } of due) this.finish(sq, sqe, null);
  }

  private complete(
    sq: SubmissionQueue,
    sqe: Uint32Array,
    status: number,
    mutate: ((cqe: Uint32Array) => void) | null,
  ): void {
    const { cqe } = this;
    const cid = sqe[Sqe.cdw0]! >>> Cdw0.CID_SHIFT;
    cqe[Cqe.dw0] = this.result;
    cqe[Cqe.dw1] = 0;
    cqe[Cqe.sqHead] = (sq.id << 16) | sq.head;
    cqe[Cqe.status] = cid | 0x10000 | (status << 17);
    sq.reported = sq.head;
    if (status !== Code.SUCCESS) {
      const lba = sq.id === 0 ? 0 : sqe[Sqe.cdw10]!;
      const entry = { sqid: sq.id, cid, status: (status << 1) & 0xffff, lba };
      this.logs.recordError({ ...entry, nsid: sqe[Sqe.nsid]! });
    }
    mutate?.(cqe);
    this.deliver(sq.cq, cqe);
  }

  /** Posts an entry, now or when the queue has room; its phase bit is that of a first round. */
  deliver(cq: CompletionQueue, cqe: Uint32Array): void {
    this.faults.completion?.(cqe, cq.id);
    if (cq.waiting.length > 0 || cq.room === 0) cq.waiting.push(Uint32Array.from(cqe));
    else cq.post(cqe);
  }

  /** Ends a command that is held; false when there is none. */
  abort(sqid: number, cid: number): boolean {
    const isIt = (sqe: Uint32Array): boolean => sqe[Sqe.cdw0]! >>> Cdw0.CID_SHIFT === cid;
    const held = this.held.find(({ sq, sqe }) => sq.id === sqid && isIt(sqe));
    const request = sqid === 0 ? this.eventRequests.find(isIt) : undefined;
    const sq = this.sqs.get(sqid);
    const sqe = held?.sqe ?? request;
    if (sqe === undefined || sq === undefined) return false;
    this.held = this.held.filter((each) => each !== held);
    this.eventRequests = this.eventRequests.filter((each) => each !== request);
    this.result = 0;
    this.complete(sq, sqe, Code.ABORT_REQUESTED, null);
    return true;
  }

  /** Gives an identify or log page to the buffer of an admin command. */
  sendPage(sqe: Uint32Array, page: Uint8Array): number {
    const status = this.transfer.gather(sqe, page.length, Dma.writes, true);
    if (status === Code.SUCCESS) this.transfer.scatter(page);
    return status;
  }

  // --- queues ------------------------------------------------------------------------------------

  get hasIoQueues(): boolean {
    return this.cqs.size > 1;
  }

  completionQueue(id: number): CompletionQueue | undefined {
    return this.cqs.get(id);
  }

  submissionQueue(id: number): SubmissionQueue | undefined {
    return this.sqs.get(id);
  }

  /** Whether the identifier is granted and free. */
  mayCreate(id: number, kind: 'sq' | 'cq'): boolean {
    const granted = kind === 'sq' ? this.queuesGranted & 0xffff : this.queuesGranted >>> 16;
    const queues = kind === 'sq' ? this.sqs : this.cqs;
    return id >= 1 && id <= granted + 1 && id <= this.options.queuesMax && !queues.has(id);
  }

  addCq(facts: ConstructorParameters<typeof CompletionQueue>[0]): CompletionQueue {
    const at = this.doorbellAt(facts.id, 1);
    this.doorbells[at] = 0;
    const cq = new CompletionQueue(facts, this.doorbells, at);
    this.cqs.set(facts.id, cq);
    if (this.shadow !== null && facts.id !== 0) cq.doorbells = this.shadow.tails;
    return cq;
  }

  addSq(facts: ConstructorParameters<typeof SubmissionQueue>[0], cq: CompletionQueue): void {
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
    this.memory.releaseRing(cq.address, cq.ring.byteLength, Dma.writes);
    return Code.SUCCESS;
  }

  /** Commands of the queue that have not completed are aborted. */
  deleteSq(id: number): number {
    const sq = this.sqs.get(id);
    if (id === 0 || sq === undefined) return Code.QUEUE_ID | Code.DNR;
    const { result } = this;
    this.result = 0;
    for (const held of this.held.filter((each) => each.sq === sq)) {
      this.complete(sq, held.sqe, Code.SQ_DELETED, null);
    }
    this.result = result;
    this.held = this.held.filter((each) => each.sq !== sq);
    this.sqs.delete(id);
    this.order = [...this.sqs.values()];
    sq.cq.users--;
    this.memory.releaseRing(sq.address, sq.ring.byteLength, Dma.reads);
    return Code.SUCCESS;
  }

  private doorbellAt(id: number, isHead: 0 | 1): number {
    return (2 * id + isHead) << this.options.doorbellStride;
  }

  // --- doorbells ---------------------------------------------------------------------------------

  /** Takes the queue's tail; false when the device does not look at it now. */
  private lookTail(sq: SubmissionQueue): boolean {
    if (sq.asleep && this.doorbells[sq.doorbell] !== sq.registerSeen) sq.asleep = false;
    if (sq.asleep) return false;
    sq.look(this.violations);
    return true;
  }

  /** With shadow doorbells: says when the register is to be written, and looks once more. */
  private sleep(sq: SubmissionQueue): void {
    const { shadow } = this;
    if (shadow === null || sq.id === 0) return;
    const isLazy = this.options.shadowDoorbells === 'lazy';
    shadow.events[sq.doorbell] = isLazy ? sq.tail : (sq.tail - 1) & 0xffff;
    shadow.events[sq.cq.doorbell] = isLazy ? sq.cq.head : (sq.cq.head - 1) & 0xffff;
    if (!isLazy || sq.head !== sq.tail) return;
    sq.registerSeen = this.doorbells[sq.doorbell]!;
    fence();
    sq.look(this.violations);
    sq.asleep = sq.head === sq.tail;
  }

  /** Every queue but the admin one is told of by memory from now on. */
  useShadowDoorbells(tailsAddress: number, eventsAddress: number): boolean {
    const { pageBytes } = this.transfer;
    const tails = this.memory.ring(tailsAddress, pageBytes, Dma.reads, 'shadow doorbells');
    const events = this.memory.ring(eventsAddress, pageBytes, Dma.writes, 'event indices');
    if (tails === null || events === null) return false;
    this.shadow = { tails, events };
    for (const sq of this.sqs.values()) this.shadowQueue(sq, tails);
    for (const cq of this.cqs.values()) if (cq.id !== 0) cq.doorbells = tails;
    return true;
  }

  private shadowQueue(sq: SubmissionQueue, tails: Uint32Array): void {
    if (sq.id === 0) return;
    sq.doorbells = tails;
    sq.asleep = this.options.shadowDoorbells === 'lazy';
    sq.registerSeen = this.doorbells[sq.doorbell]!;
  }

  // --- hooks of the driver's side ----------------------------------------------------------------

  registerWritten(): void {
    this.power.look();
  }

  doorbellWritten(index: number): void {
    const stride = 1 << this.options.doorbellStride;
    const id = Math.floor(index / stride / 2);
    const isHead = Math.floor(index / stride) % 2 === 1;
    const queue = isHead ? this.cqs.get(id) : this.sqs.get(id);
    if (queue === undefined || index % stride !== 0) {
      this.violations.add(`doorbell ${index} is rung, which belongs to no queue`);
      return;
    }
    if (queue instanceof SubmissionQueue) queue.asleep = false;
    this.onDoorbell?.();
  }

  reset(): void {
    this.power.look();
  }

  /** Mapped doorbells of queues that are not there: whoever wrote to one is found here. */
  checkDoorbells(): void {
    if (this.shared.isRemoved) return;
    const known = new Set<number>();
    for (const queue of [...this.sqs.values(), ...this.cqs.values()]) known.add(queue.doorbell);
    for (const [index, value] of this.doorbells.entries()) {
      if (value === 0 || known.has(index)) continue;
      this.violations.add(`doorbell ${index} holds ${value}, which belongs to no queue`);
    }
  }

  // --- events and interrupts -----------------------------------------------------------------------

  holdEventRequest(sqe: Uint32Array): number {
    if (this.eventRequests.length > this.options.aerl) return Code.ASYNC_EVENT_LIMIT | Code.DNR;
    this.eventRequests.push(Uint32Array.from(sqe));
    return HELD;
  }

  private tellEvents(): void {
    while (this.eventRequests.length > 0) {
      const event = this.logs.takeEvent();
      if (event === null) return;
      this.result = event.type | (event.info << 8) | (event.page << 16);
      this.complete(this.sqs.get(0)!, this.eventRequests.shift()!, Code.SUCCESS, null);
    }
  }

  /** One signal per vector for all that was posted since the last. */
  private signal(): void {
    for (const cq of this.cqs.values()) {
      if (!cq.hasNews) continue;
      cq.hasNews = false;
      if (cq.interrupts && !this.faults.mute) this.interrupt(cq.vector);
    }
    if (this.hasMasked) this.signalUnmasked();
  }

  interrupt(vector: number): void {
    const { control, vectors } = this.shared;
    if (vector >= control[Control.vectors]!) return;
    if ((vectors[vector * VECTOR_WORDS + 3]! & 1) !== 0) {
      vectors[this.pendingAt(vector)] = 1;
      this.hasMasked = true;
      return;
    }
    native.eventfdSignal(control[Control.eventFds + vector]!);
  }

  private pendingAt(vector: number): number {
    return Math.max(1, this.options.vectors) * VECTOR_WORDS + vector;
  }

  private signalUnmasked(): void {
    this.hasMasked = false;
    for (let vector = 0; vector < this.options.vectors; vector++) {
      const at = this.pendingAt(vector);
      if (this.shared.vectors[at] === 0) continue;
      this.shared.vectors[at] = 0;
      this.interrupt(vector);
    }
  }

  // --- ends --------------------------------------------------------------------------------------

  settleAll(): void {
    for (const namespace of this.namespaces.values()) namespace.settle();
  }

  forgetCommands(): void {
    this.held = [];
    this.eventRequests = [];
  }

  /** After a reset: no queue, no command, no event, and doorbells as after power on. */
  forget(): void {
    this.forgetCommands();
    this.sqs.clear();
    this.cqs.clear();
    this.order = [];
    this.shadow = null;
    this.queuesGranted = (this.options.queuesMax - 1) * 0x10001;
    this.memory.rings.clear();
    this.memory.open = false;
    this.doorbells.fill(0);
    this.features.reset();
    this.logs.reset();
  }

  /** The function is pulled out: registers read `value`, nothing is touched any more. */
  remove(value: number): void {
    this.forget();
    this.power.isReady = false;
    const { control, registers } = this.shared;
    control[Control.removedValue] = value;
    control[Control.removed] = 1;
    registers.fill(value);
  }
}
