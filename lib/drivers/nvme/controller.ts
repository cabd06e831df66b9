// An NVMe controller at its home: opened, watched, reset, shut down. Queues in any thread work on
// their own (queue.ts); what concerns all of them is here.
//
//   open ─► bring-up ─► READY ─► close ─► CLOSED
//                        │  ▲
//    command timed out,  ▼  │ queues made anew
//    stray completion,  RESETTING ──► FAILED (does not come back)
//    fatal status        │
//    removal             ▼
//                        GONE
//
// Invariants
// 1. Before queues are told that an operation will not complete, the controller is disabled, reset
//    or cut off from the bus: it can no longer touch the buffer.
// 2. While the epoch is odd nobody but the home touches rings (pairs.ts).
// 3. Everything here runs as tasks (steps.ts): nothing blocks the thread.

import { PenstockError } from '../../errors.js';
import type { DmaBuffer, Memory } from '../../memory/index.js';
import type { Bar, PciFunction } from '../../pci/index.js';
import { AdminQueue, type AdminResult } from './admin-queue.js';
import {
  createPair,
  disable,
  enable,
  endQueues,
  gone,
  identifyController,
  isAbsent,
  readCapabilities,
  setQueueCount,
  setShadowDoorbells,
  type BringUp,
  type Capabilities,
  type ControllerState,
} from './bring-up.js';
import { Caretaker } from './caretaker.js';
import { ControllerMemoryBuffer } from './controller-memory.js';
import { decodeEvent, readEventLog, requestEvents, type NvmeEvent } from './events.js';
import type { ControllerFacts } from './facts.js';
import { Injector } from './inject.js';
import { Namespaces } from './namespaces.js';
import { PairControl } from './pair-control.js';
import { PairTable } from './pairs.js';
import { DELAY_BEFORE_START_MS, quirksOf, type Quirk } from './quirks.js';
import { Cc, Csts, Reg } from './registers.js';
import type { NvmeSettings } from './settings.js';
import { pause, settled, Steps, type Task } from './steps.js';

const SHUTDOWN_MS = 5000;
const FINISH_TURNS = 1000;

export interface ControllerCounters {
  aborts: number;
  resets: number;
  /** Commands that the watchdog found overdue. */
  timeouts: number;
  events: number;
}

export class NvmeController implements BringUp {
  readonly pci: PciFunction;
  readonly bar: Bar;
  readonly capabilities: Capabilities;
  readonly settings: NvmeSettings;
  readonly memory: Memory;
  readonly table: PairTable;
  readonly admin: AdminQueue;
  readonly namespaces = new Namespaces();
  readonly injector = new Injector();
  readonly steps = new Steps();
  readonly vectors: number;
  readonly interrupts: boolean;
  readonly eventFds: readonly number[];
  readonly quirks: ReadonlySet<Quirk>;
  readonly counters: ControllerCounters = { aborts: 0, resets: 0, timeouts: 0, events: 0 };
  buffer: ControllerMemoryBuffer | null = null;
  facts!: ControllerFacts;
  shadow = false;
  state: ControllerState = 'CHECK_REGISTERS';
  /** Why the controller failed or was reset last. */
  cause: PenstockError | null = null;
  readonly pairs: PairControl;
  private readonly caretaker: Caretaker;
  private readonly listeners = new Set<(event: NvmeEvent) => void>();
  private readonly changes = new Set<(nsids: readonly number[]) => void>();
  private resetting: Promise<void> | null = null;
  private busyWithLog = false;
  /** Buffers of admin commands that timed out. */
  private readonly left: DmaBuffer[] = [];

  private constructor(pci: PciFunction, settings: NvmeSettings, memory: Memory) {
    this.pci = pci;
    this.bar = pci.bar(0);
    this.settings = settings;
    this.memory = memory;
    this.quirks = quirksOf(pci.identity);
    assertDrivable(pci, this.quirks);
    pci.enable();
    this.capabilities = readCapabilities(this.bar, pci.address);
    const entriesMax = this.quirks.has('queue-of-one') ? 2 : this.capabilities.entriesMax;
    const entries = Math.min(settings.entries, 2 ** Math.floor(Math.log2(entriesMax)));
    const completion = this.completionMode();
    const single = this.quirks.has('single-vector') || this.quirks.has('broken-msi');
    this.interrupts = completion !== 'polled' && pci.vectors > 1 && !single;
    // A pair that has no vector of its own would have to poll: rather fewer pairs.
    const pairs = this.interrupts ? Math.min(settings.queues, pci.vectors - 1) : settings.queues;
    this.table = PairTable.create({ pairs, entries }, pci.memoryKind);
    this.vectors = pci.vectors === 0 ? 0 : Math.min(pci.vectors, this.interrupts ? pairs + 1 : 1);
    this.eventFds = this.vectors === 0 ? [] : pci.enableInterrupts(this.vectors);
    this.admin = new AdminQueue(this.table, this.bar, this.capabilities.strideBytes);
    this.admin.onEvent = (dw0, status) => this.takeEvent(dw0, status);
    this.pairs = new PairControl(this.table, this.interrupts ? this.eventFds : []);
    this.caretaker = new Caretaker(this);
    pci.onRemovalRequested = () => this.remove();
  }

  /** Opens the controller behind a function, which it owns from here on, also when that fails. */
  static async open(
    pci: PciFunction,
    settings: NvmeSettings,
    memory: Memory,
  ): Promise<NvmeController> {
    let controller: NvmeController | null = null;
    try {
      controller = new NvmeController(pci, settings, memory);
      await controller.steps.run(controller.begin());
      controller.caretaker.start();
      return controller;
    } catch (error) {
      if (controller === null) await pci.close();
      else await controller.abandon();
      throw error;
    }
  }

  enter(state: ControllerState): void {
    this.state = state;
  }

  get isReady(): boolean {
    return this.state === 'READY';
  }

  onEvent(listener: (event: NvmeEvent) => void): () => void {
    this.listeners.add(listener);
    return () => void this.listeners.delete(listener);
  }

  onNamespaces(listener: (nsids: readonly number[]) => void): () => void {
    this.changes.add(listener);
    return () => void this.changes.delete(listener);
  }

  /** Runs an admin command of 16 words; the data pointer in it must be reachable memory. */
  run(words: Uint32Array, timeoutMs = this.settings.adminTimeoutMs): Promise<AdminResult> {
    return this.steps.run(this.guarded(words, timeoutMs));
  }

  /** A task with a buffer of `bytes` (at most two pages) that the controller can reach. */
  *withPage<T>(bytes: number, use: (address: number, bytes: Uint8Array) => Task<T>): Task<T> {
    const buffer = this.memory.alloc(Math.max(4096, bytes));
    buffer.u8.fill(0);
    let inDevice = false;
    try {
      while (!this.pci.dma.reach(buffer.address)) yield;
      return yield* use(buffer.address, buffer.u8.subarray(0, bytes));
    } catch (error) {
      // The command may still be in the device: until that is reset its buffer is nobody else's.
      inDevice = error instanceof PenstockError && error.code === 'TIMED_OUT';
      throw error;
    } finally {
      if (inDevice) this.left.push(buffer);
      else buffer.free();
    }
  }

  /**
   * Disables the controller, makes it anew, and completes or repeats what was in flight. `orderly`:
   * the controller is well, and ends its queues before.
   */
  reset(cause = 'asked for', orderly = true): Promise<void> {
    this.resetting ??= this.steps.run(this.resetTask(cause, orderly)).finally(() => {
      this.resetting = null;
    });
    return this.resetting;
  }

  /** Resets, whatever comes of it: `state` and `cause` say. */
  startReset(cause: string): void {
    void this.reset(cause, false).catch(() => undefined);
  }

  /** Reads a log page, as at an asynchronous event, and tells listeners. */
  startReport(kind: NvmeEvent['kind'], info: number, page: number): void {
    void this.steps.run(this.report(kind, info, page)).catch(() => undefined);
  }

  /** Looks which namespaces there are, and of what size. */
  async refreshNamespaces(): Promise<void> {
    if (this.state === 'READY') await this.steps.run(this.rescan());
  }

  /** What a queue does now and then in a thread that polls: the event loop may not run. */
  lookAround(): void {
    this.admin.poll();
    this.steps.advance();
    this.caretaker.lookAround();
  }

  /**
   * A queue was closed, and so was its memory, which stays pinned until it is unmapped: a thread
   * that opens and closes queues may not come to its event loop in between.
   */
  queueClosed(): void {
    if (this.isReady) this.caretaker.reapMemory();
  }

  /** Orderly shutdown: queues complete with DEVICE_GONE what is left. */
  async close(): Promise<void> {
    if (this.state === 'CLOSED') return;
    this.caretaker.stop();
    if (this.resetting !== null) await this.resetting.catch(() => undefined);
    if (this.state !== 'GONE' && this.state !== 'FAILED') {
      await this.steps.run(this.shutDown()).catch(() => undefined);
    }
    await this.abandon();
  }

  private completionMode(): 'adaptive' | 'polled' | 'interrupt' {
    const { completion } = this.settings;
    if (completion !== 'default') return completion;
    return this.pci.transport === 'vfio-user' ? 'polled' : 'adaptive';
  }

  private *begin(): Task<void> {
    while (!this.pci.dma.reach(this.table.segment.address)) yield;
    yield* disable(this);
    if (this.settings.cmb && this.capabilities.hasMemoryBuffer) {
      const { pairs, entries } = this.table.shape;
      this.buffer = ControllerMemoryBuffer.open(this.pci, this.bar, pairs, entries);
    }
    yield* this.start();
    this.pairs.begin();
    this.enter('READY');
  }

  /** From a disabled controller to one whose queues are there. */
  private *start(): Task<void> {
    this.buffer?.place(this.bar);
    yield* enable(this);
    this.facts = yield* identifyController(this);
    this.table.usable = Math.min(this.table.usable, yield* setQueueCount(this));
    this.shadow = yield* setShadowDoorbells(this, this.facts);
    this.enter('CREATE_QUEUES');
    for (let pair = 0; pair < this.table.usable; pair++) yield* createPair(this, pair);
    this.enter('IDENTIFY_NAMESPACES');
    const changed = yield* this.namespaces.refresh(this, this.facts);
    yield* requestEvents(this, this.facts);
    if (changed.length > 0) this.tellNamespaces(changed);
  }

  /** An admin command, once the controller is ready; one that times out has it reset. */
  *guarded(words: Uint32Array, timeoutMs: number): Task<AdminResult> {
    const until = performance.now() + timeoutMs;
    while (this.state === 'RESETTING' || this.resetting !== null) {
      if (performance.now() > until) break;
      yield;
    }
    if (this.state !== 'READY') throw this.cause ?? gone(this.pci.address);
    try {
      return yield* this.admin.execute(words, timeoutMs);
    } catch (error) {
      if (error instanceof PenstockError && error.code === 'TIMED_OUT') {
        this.startReset('an admin command timed out');
      }
      throw error;
    }
  }

  private *resetTask(cause: string, orderly: boolean): Task<void> {
    if (this.state !== 'READY') throw this.cause ?? gone(this.pci.address);
    this.counters.resets++;
    this.enter('RESETTING');
    try {
      yield* this.pairs.stop();
      if (orderly) yield* endQueues(this);
      yield* this.disableOrReset();
      this.forgetCommands();
      this.enter('RESETTING');
      this.pairs.releaseOrphans();
      yield* this.start();
      this.pairs.restart();
      this.enter('READY');
    } catch (error) {
      this.fail(error, cause);
      throw this.cause ?? error;
    }
  }

  /** The controller touches no memory after it. */
  private *disableOrReset(): Task<void> {
    try {
      yield* disable(this);
    } catch (error) {
      if (this.pci.gone) throw error;
      // It does not obey: the function is reset, or at least cut off from memory.
      this.pci.quiesce();
      yield* settled(this.pci.reset());
      if (this.quirks.has('delay-before-start')) yield* pause(DELAY_BEFORE_START_MS);
      this.pci.enable();
      yield* disable(this);
    }
  }

  /** The controller is disabled: admin commands end, and their memory is free. */
  private forgetCommands(): void {
    this.admin.reset();
    for (const buffer of this.left.splice(0)) buffer.free();
  }

  /** The controller is given up: cut off from memory, and all that is in flight completes. */
  private fail(error: unknown, cause: string): void {
    const removed =
      this.pci.gone || (error instanceof PenstockError && error.code === 'DEVICE_GONE');
    this.enter(removed ? 'GONE' : 'FAILED');
    this.cause =
      error instanceof PenstockError
        ? error
        : new PenstockError('CONTROLLER_FAILED', `${this.pci.address}: ${cause}`, { cause: error });
    this.pci.quiesce();
    this.admin.close();
    this.pairs.end();
  }

  /** The kernel or the server wants the device back, or it was pulled out. */
  remove(): void {
    if (this.state === 'CLOSED' || this.state === 'GONE') return;
    this.fail(gone(this.pci.address), 'removed');
  }

  private *shutDown(): Task<void> {
    yield* this.pairs.stop();
    this.enter('SHUTTING_DOWN');
    yield* endQueues(this);
    const cc = this.bar.read32(Reg.CC);
    this.bar.write32(Reg.CC, (cc & ~Cc.SHN_MASK) | Cc.SHN_NORMAL);
    const until = performance.now() + SHUTDOWN_MS;
    while (performance.now() < until) {
      const status = this.bar.read32(Reg.CSTS);
      if (isAbsent(status) || (status & Csts.SHST_MASK) === Csts.SHST_COMPLETE) break;
      yield;
    }
    yield* this.disableOrReset();
    this.forgetCommands();
  }

  /** Gives back all that is held; nothing touches the controller after it. */
  private async abandon(): Promise<void> {
    this.caretaker.stop();
    this.pci.onRemovalRequested = null;
    if (this.state !== 'GONE' && this.state !== 'FAILED') this.pci.quiesce();
    this.pairs.end();
    this.enter('CLOSED');
    this.pci.disableInterrupts();
    await this.pci.close();
    this.admin.close();
    // Tasks that waited for a command see that it was cut off, and give back what they hold.
    await this.steps.finish(FINISH_TURNS);
    this.forgetCommands();
    this.table.segment.close();
  }

  private takeEvent(dw0: number, status: number): void {
    if (status !== 0 || this.state === 'CLOSED') return; // too many requests: one fewer from now on
    this.counters.events++;
    const { kind, info, page } = decodeEvent(dw0);
    this.startReport(kind, info, page);
    this.admin.requestEvent();
  }

  private *report(kind: NvmeEvent['kind'], info: number, page: number): Task<void> {
    while (this.busyWithLog || this.state === 'RESETTING') yield;
    if (this.state !== 'READY') return;
    this.busyWithLog = true;
    try {
      const log = yield* readEventLog(this, this.facts, page);
      const namespaces = kind === 'notice' ? yield* this.rescan() : [];
      for (const listener of [...this.listeners]) {
        tell(() => listener({ kind, info, page, log, namespaces }));
      }
    } finally {
      this.busyWithLog = false;
    }
  }

  /** Reads the namespaces again and tells queues and listeners of those that changed. */
  private *rescan(): Task<number[]> {
    const changed = yield* this.namespaces.refresh(this, this.facts);
    if (changed.length > 0) {
      this.pairs.publishFacts();
      this.tellNamespaces(changed);
    }
    return changed;
  }

  private tellNamespaces(namespaces: readonly number[]): void {
    for (const listener of [...this.changes]) tell(() => listener(namespaces));
  }
}

/** Entries of another size, or tags shared with the admin queue, are not what this driver does. */
function assertDrivable(pci: PciFunction, quirks: ReadonlySet<Quirk>): void {
  if (!quirks.has('wide-entries') && !quirks.has('shared-tags')) return;
  throw new PenstockError('UNSUPPORTED_CONTROLLER', `${pci.address} has queues of its own kind`, {
    hint: 'leave it to the kernel: its driver knows this model',
  });
}

/** What a listener throws is an uncaught error of its own, not one of the controller's. */
function tell(call: () => void): void {
  try {
    call();
  } catch (error) {
    setImmediate(() => {
      throw error;
    });
  }
}
