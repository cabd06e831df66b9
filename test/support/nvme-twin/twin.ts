// NvmeTwin: a software NVMe controller behind PciFunction, for tests at native speed.
//
//   const twin = new NvmeTwin({ namespaces: [{ blocks: 4096 }] });
//   twin.start();                                   // or twin.step() by hand
//   const backend = await openNvme(twin.pci, …);
//   …
//   expect(twin.check()).toEqual([]);               // what the driver did wrong
//
// It checks every address that a driver gives it, and obeys `twin.faults`.

import { Cqe } from '../../../lib/drivers/nvme/commands.js';
import { fillConfig } from './config-space.js';
import { Controller } from './controller.js';
import type { Faults } from './faults.js';
import { TwinFunction } from './function.js';
import type { Logs } from './logs.js';
import type { TwinMemory } from './memory.js';
import { type NvmeTwinOptions, resolveOptions, type TwinNamespaceOptions } from './options.js';
import { DOORBELLS_OFFSET, makeShared, Shared, type SharedParts } from './shared.js';
import { TwinNamespace } from './storage.js';

/** As many as there are; a small integer, which the loop of the benchmark needs not box. */
const ALL = 2 ** 30 - 1;
/** Idle turns of the event loop before the twin looks only once a millisecond. */
const IDLE_TURNS = 64;
/** Feature 0Bh: namespace attribute notices are wanted. */
const NAMESPACE_NOTICES = 1 << 8;
const NOTICE = 2;
const CHANGED_NAMESPACES_PAGE = 4;

export class NvmeTwin {
  readonly controller: Controller;
  readonly shared: Shared;
  private connection: TwinFunction;
  private loop: NodeJS.Immediate | NodeJS.Timeout | null = null;
  private isTimer = false;
  private isRunning = false;
  private idleTurns = 0;

  /** `parts`: what another thread's driver side was made with (see run-in-worker.ts). */
  constructor(options: NvmeTwinOptions = {}, parts?: SharedParts) {
    const resolved = resolveOptions(options);
    this.shared = parts === undefined ? sharedFor(options) : new Shared(parts);
    fillConfig(this.shared.config, resolved.vectors, resolved.cmbBytes);
    this.controller = new Controller(resolved, this.shared);
    this.connection = this.connect();
    this.controller.onDoorbell = () => this.kick();
  }

  /** The function; a new one when the last was closed, as after a driver's end. */
  get pci(): TwinFunction {
    if (this.connection.isClosed) this.connection = this.connect();
    return this.connection;
  }

  get faults(): Faults {
    return this.controller.faults;
  }

  get memory(): TwinMemory {
    return this.controller.memory;
  }

  get logs(): Logs {
    return this.controller.logs;
  }

  get violations(): string[] {
    return this.controller.violations.list;
  }

  /** Looks at what is seen only when one looks, and gives all violations. */
  check(): string[] {
    if (!this.shared.isRemoved) this.controller.queues.checkDoorbells();
    this.memory.checkFreed();
    return this.violations;
  }

  /** Does up to `max` commands whose doorbells were rung; returns how many. */
  step(max = ALL): number {
    return this.controller.step(max);
  }

  /** Steps from the event loop until `stop`. */
  start(): void {
    if (this.isRunning) return;
    this.isRunning = true;
    this.idleTurns = 0;
    this.schedule();
  }

  stop(): void {
    this.isRunning = false;
    this.unschedule();
  }

  /** Stops, and gives back what it holds of the process; after the driver's end. */
  close(): void {
    this.stop();
    this.memory.dma.shut();
  }

  private connect(): TwinFunction {
    const { memory, violations } = this.controller;
    return new TwinFunction(this.shared, memory.dma, violations, this.controller);
  }

  namespace(nsid: number): TwinNamespace {
    const namespace = this.controller.namespaces.get(nsid);
    if (namespace === undefined) throw new RangeError(`there is no namespace ${nsid}`);
    return namespace;
  }

  addNamespace(options: TwinNamespaceOptions & { nsid: number }): TwinNamespace {
    const namespace = new TwinNamespace(options, this.controller.options.volatileCache);
    this.controller.namespaces.set(options.nsid, namespace);
    this.tellOfNamespace(options.nsid);
    return namespace;
  }

  removeNamespace(nsid: number): void {
    this.controller.namespaces.delete(nsid);
    this.tellOfNamespace(nsid);
  }

  resize(nsid: number, blocks: number): void {
    this.namespace(nsid).blocks = blocks;
    this.tellOfNamespace(nsid);
  }

  /** Completes an asynchronous event request, now or when the driver leaves one. */
  event(type: number, info: number, page: number): void {
    this.logs.raise({ type, info, page });
  }

  private tellOfNamespace(nsid: number): void {
    this.logs.changed.add(nsid);
    const isWanted = (this.controller.features.asyncEvents & NAMESPACE_NOTICES) !== 0;
    if (isWanted) this.event(NOTICE, 0, CHANGED_NAMESPACES_PAGE);
  }

  /** Controller fatal status. */
  fail(): void {
    this.controller.power.fail();
  }

  /** Surprise removal: registers read all ones, or what is said. */
  remove(value = 0xffffffff): void {
    this.controller.remove(value);
  }

  /** The owner of the device asks for it back. */
  requestRemoval(): void {
    this.pci.onRemovalRequested?.();
  }

  /** Cuts the power: unflushed writes are lost, the controller is as after power on. */
  powerCut(survives?: (nsid: number, lba: number) => boolean): void {
    for (const [nsid, namespace] of this.controller.namespaces) {
      namespace.powerCut((lba) => survives?.(nsid, lba) ?? false);
    }
    this.controller.power.powerOn();
  }

  /** Posts a completion that nobody asked for. */
  post(entry: { qid: number; cid: number; sqid?: number; sqhd?: number; status?: number }): void {
    const cq = this.controller.queues.cqs.get(entry.qid);
    if (cq === undefined) throw new RangeError(`there is no completion queue ${entry.qid}`);
    const cqe = new Uint32Array(Cqe.words);
    const sqhd = entry.sqhd ?? this.controller.queues.sqs.get(entry.qid)?.head ?? 0;
    cqe[Cqe.sqHead] = ((entry.sqid ?? entry.qid) << 16) | sqhd;
    cqe[Cqe.status] = entry.cid | 0x10000 | ((entry.status ?? 0) << 17);
    this.controller.deliver(cq, cqe);
  }

  /** Signals a vector for nothing. */
  interrupt(vector: number): void {
    this.controller.interrupts.signal(vector);
  }

  /** Changes config space before a driver reads it. */
  mutateConfig(mutate: (config: Uint8Array) => void): void {
    mutate(this.shared.config);
  }

  /** Changes register values that a driver reads: CAP, VS and the like. */
  mutateRegisters(mutate: (registers: Uint32Array) => void): void {
    mutate(this.shared.registers.subarray(0, DOORBELLS_OFFSET >>> 2));
  }

  private kick(): void {
    this.idleTurns = 0;
    if (!this.isRunning || !this.isTimer) return;
    this.unschedule();
    this.schedule();
  }

  private schedule(): void {
    this.isTimer = this.idleTurns >= IDLE_TURNS;
    const turn = (): void => this.turn();
    this.loop = this.isTimer ? setTimeout(turn, 1) : setImmediate(turn);
  }

  private unschedule(): void {
    if (this.loop === null) return;
    if (this.isTimer) clearTimeout(this.loop as NodeJS.Timeout);
    else clearImmediate(this.loop as NodeJS.Immediate);
    this.loop = null;
  }

  private turn(): void {
    if (!this.isRunning) return;
    const done = this.step();
    this.idleTurns = done > 0 || this.controller.isBusy ? 0 : this.idleTurns + 1;
    this.schedule();
  }
}

/** The parts that both sides share, for these options. */
export function sharedFor(options: NvmeTwinOptions): Shared {
  const resolved = resolveOptions(options);
  const doorbells = (resolved.queuesMax + 1) * 2 * (4 << resolved.doorbellStride);
  const registerBytes = 2 ** Math.ceil(Math.log2(DOORBELLS_OFFSET + Math.max(4096, doorbells)));
  return makeShared({ ...resolved, registerBytes });
}
