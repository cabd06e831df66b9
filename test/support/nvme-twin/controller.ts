// The controller: commands on their way, completions and events. What each command does stands in
// admin.ts and io.ts, queues in queue-set.ts, its life in power.ts.
//
// A step looks at registers and doorbells, moves time on by one, and does the commands that are
// there; nothing happens between steps but the answer to a trapped register write.

import { Cdw0, Cqe, Sqe } from '../../../lib/drivers/nvme/commands.js';
import { AdminCommands } from './admin.js';
import { consumeTransfers } from './consume.js';
import { type FaultAction, Faults } from './faults.js';
import { Features } from './features.js';
import type { ControllerHooks } from './function.js';
import { Interrupts } from './interrupts.js';
import { IoCommands } from './io.js';
import { Logs } from './logs.js';
import { Dma } from './dma.js';
import { TwinMemory, Violations } from './memory.js';
import type { ResolvedOptions } from './options.js';
import { Power } from './power.js';
import { QueueSet } from './queue-set.js';
import type { CompletionQueue, SubmissionQueue } from './queues.js';
import { Control, DOORBELLS_OFFSET, type Shared } from './shared.js';
import { TwinNamespace } from './storage.js';
import { Transfer } from './transfer.js';
import { Code, HELD } from './wire.js';

/** A command that was taken and has not completed. */
interface Held {
  readonly sq: SubmissionQueue;
  readonly sqe: Uint32Array;
  /** Steps until it is done; Infinity: never. */
  steps: number;
  /** Where its data was when it was taken: its lists must stay until it completes. */
  readonly pieces: string;
}

export class Controller implements ControllerHooks {
  readonly options: ResolvedOptions;
  readonly violations = new Violations();
  readonly memory: TwinMemory;
  readonly transfer: Transfer;
  readonly faults = new Faults();
  readonly logs: Logs;
  readonly features: Features;
  readonly queues: QueueSet;
  readonly interrupts: Interrupts;
  readonly namespaces = new Map<number, TwinNamespace>();
  readonly power: Power;
  /** dw0 of the completion of the command that is being done. */
  result = 0;
  /** Called when a trapped doorbell was rung. */
  onDoorbell: (() => void) | null = null;
  private readonly shared: Shared;
  private readonly admin: AdminCommands;
  private readonly io: IoCommands;
  private held: Held[] = [];
  private eventRequests: Uint32Array[] = [];
  private readonly sqe = new Uint32Array(Sqe.words);
  private readonly cqe = new Uint32Array(Cqe.words);

  constructor(options: ResolvedOptions, shared: Shared) {
    this.options = options;
    this.shared = shared;
    const { violations } = this;
    this.memory = new TwinMemory(violations, options.dma);
    this.transfer = new Transfer(this.memory, violations, options);
    const doorbells = shared.registers.subarray(DOORBELLS_OFFSET >>> 2);
    this.queues = new QueueSet(options, this.memory, violations, doorbells);
    this.interrupts = new Interrupts(shared);
    this.logs = new Logs(options);
    this.features = new Features(this);
    this.admin = new AdminCommands(this);
    this.io = new IoCommands(this);
    this.power = new Power(this, shared);
    for (const each of options.namespaces) {
      const nsid = each.nsid ?? this.namespaces.size + 1;
      this.namespaces.set(nsid, new TwinNamespace({ ...each, nsid }, options.volatileCache));
    }
  }

  /** Does up to `max` commands; returns how many were taken from queues. */
  step(max: number): number {
    const { power, queues } = this;
    if (this.shared.isRemoved) return 0;
    power.look();
    power.tick();
    if (!power.isWorking) return 0;
    // By index: an iterator per step would be garbage in the benchmark's loop.
    const { served } = queues;
    for (let i = 0; i < served.length; i++) {
      const cq = served[i]!;
      cq.look(this.violations);
      while (cq.waiting.length > 0 && cq.room > 0) cq.post(cq.waiting.shift()!);
    }
    if (this.held.length > 0) this.tickHeld();
    this.tellEvents();
    const { order } = queues;
    let done = 0;
    for (let i = 0; i < order.length && done < max; i++) {
      done += this.consume(order[i]!, max - done);
      // A command may have reset the controller.
      if (!power.isWorking) break;
    }
    this.signal();
    return done;
  }

  /** Whether a step may do something even though no doorbell moves. */
  get isBusy(): boolean {
    return this.held.length > 0 || this.queues.order.some((sq) => sq.head !== sq.tail);
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
    const sq = this.queues.sqs.get(sqid);
    const sqe = held?.sqe ?? request;
    if (sqe === undefined || sq === undefined) return false;
    this.held = this.held.filter((each) => each !== held);
    this.eventRequests = this.eventRequests.filter((each) => each !== request);
    this.result = 0;
    this.complete(sq, sqe, Code.ABORT_REQUESTED, null);
    return true;
  }

  /** Commands of the queue that have not completed are aborted. */
  deleteSq(id: number): number {
    const sq = this.queues.sqs.get(id);
    if (id === 0 || sq === undefined) return Code.QUEUE_ID | Code.DNR;
    for (const held of this.held.filter((each) => each.sq === sq)) {
      this.complete(sq, held.sqe, Code.SQ_DELETED, null);
    }
    this.held = this.held.filter((each) => each.sq !== sq);
    this.queues.deleteSq(sq);
    return Code.SUCCESS;
  }

  /** Gives an identify or log page to the buffer of an admin command. */
  sendPage(sqe: Uint32Array, page: Uint8Array): number {
    const status = this.transfer.gather(sqe, page.length, Dma.writes, true);
    if (status === Code.SUCCESS) this.transfer.scatter(page);
    return status;
  }

  holdEventRequest(sqe: Uint32Array): number {
    if (this.eventRequests.length > this.options.aerl) return Code.ASYNC_EVENT_LIMIT | Code.DNR;
    this.eventRequests.push(Uint32Array.from(sqe));
    return HELD;
  }

  registerWritten(): void {
    this.power.look();
  }

  doorbellWritten(index: number): void {
    this.queues.rung(index);
    this.onDoorbell?.();
  }

  reset(): void {
    this.power.look();
  }

  settleAll(): void {
    for (const namespace of this.namespaces.values()) namespace.settle();
  }

  forgetCommands(): void {
    this.held = [];
    this.eventRequests = [];
  }

  /** After a reset: no queue, no command and no event. */
  forget(): void {
    this.forgetCommands();
    this.queues.clear();
    this.memory.open = false;
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

  private consume(sq: SubmissionQueue, max: number): number {
    if (!this.queues.lookTail(sq)) return 0;
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
    this.queues.sleep(sq);
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
    this.held.push({ sq, sqe: Uint32Array.from(sqe), steps, pieces: this.pieces(sq, sqe) });
  }

  /** Where an I/O command's data is, as text; '' where it has none. */
  private pieces(sq: SubmissionQueue, sqe: Uint32Array): string {
    if (sq.id === 0 || this.options.null) return '';
    return this.io.place(sqe) === Code.SUCCESS ? this.transfer.place() : '';
  }

  private tickHeld(): void {
    for (const held of this.held) held.steps--;
    const due = this.held.filter((held) => held.steps <= 0);
    this.held = this.held.filter((held) => held.steps > 0);
    for (const { sq, sqe, pieces } of due) {
      if (this.pieces(sq, sqe) !== pieces) {
        const cid = sqe[Sqe.cdw0]! >>> Cdw0.CID_SHIFT;
        this.violations.add(`SQ ${sq.id}: command ${cid}'s data pointer changed in flight`);
      }
      this.finish(sq, sqe, null);
    }
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

  private tellEvents(): void {
    while (this.eventRequests.length > 0 && this.logs.hasEvents) {
      const event = this.logs.takeEvent();
      if (event === null) return;
      this.result = event.type | (event.info << 8) | (event.page << 16);
      const request = this.eventRequests.shift()!;
      this.complete(this.queues.sqs.get(0)!, request, Code.SUCCESS, null);
    }
  }

  /** One signal per vector for all that was posted since the last. */
  private signal(): void {
    const { served } = this.queues;
    for (let i = 0; i < served.length; i++) {
      const cq = served[i]!;
      if (!cq.hasNews) continue;
      cq.hasNews = false;
      if (cq.interrupts && !this.faults.mute) this.interrupts.signal(cq.vector);
    }
    this.interrupts.look();
  }
}
