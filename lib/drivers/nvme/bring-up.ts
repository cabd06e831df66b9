// Bringing a controller up: the steps of NVM Express Base 2.0, section 3.5, each by its name, each
// with a deadline. The same steps serve at open and after a reset.

import { PenstockError } from '../../errors.js';
import type { Bar, PciFunction } from '../../pci/index.js';
import {
  createCompletionQueue,
  createSubmissionQueue,
  deleteQueue,
  doorbellBufferConfig,
  identify,
  setFeature,
} from './admin-commands.js';
import { adminError, type AdminQueue } from './admin-queue.js';
import { AdminOp, Cns, Feature } from './commands.js';
import type { ControllerMemoryBuffer } from './controller-memory.js';
import { controllerFacts, type ControllerFacts } from './facts.js';
import { Oacs } from './identify-controller.js';
import { PairState, PairWord, type PairTable } from './pairs.js';
import { ADMIN_ENTRIES } from './pairs.js';
import { DELAY_AFTER_QUEUE_MS, DELAY_BEFORE_READY_MS, type Quirk } from './quirks.js';
import { Cc, CapHi, CapLo, Csts, Reg } from './registers.js';
import type { NvmeSettings } from './settings.js';
import { pause, type Task } from './steps.js';

/** Create I/O Submission Queue, cdw11 bits 2:1. */
const PRIORITY_MEDIUM = 2;

/** Time that a controller has to end its queues. */
const QUEUES_END_MS = 2000;

export type ControllerState =
  | 'CHECK_REGISTERS'
  | 'WAIT_DISABLED'
  | 'SET_ADMIN_QUEUE'
  | 'WAIT_READY'
  | 'IDENTIFY_CONTROLLER'
  | 'SET_QUEUE_COUNT'
  | 'SET_SHADOW_DOORBELLS'
  | 'CREATE_QUEUES'
  | 'IDENTIFY_NAMESPACES'
  | 'REQUEST_EVENTS'
  | 'READY'
  | 'RESETTING'
  | 'SHUTTING_DOWN'
  | 'FAILED'
  | 'GONE'
  | 'CLOSED';

/** What CAP says that the driver goes by. */
export interface Capabilities {
  readonly entriesMax: number;
  /** Time in ms that enabling and disabling may take. */
  readonly timeoutMs: number;
  readonly strideBytes: number;
  /** Command sets to choose by CC.CSS. */
  readonly css: number;
  readonly hasMemoryBuffer: boolean;
}

/** Everything the steps work on; the controller owns it. */
export interface BringUp {
  readonly pci: PciFunction;
  readonly bar: Bar;
  readonly capabilities: Capabilities;
  readonly settings: NvmeSettings;
  readonly table: PairTable;
  readonly admin: AdminQueue;
  readonly buffer: ControllerMemoryBuffer | null;
  /** Interrupt vectors in use; 0: none. */
  readonly vectors: number;
  /** Completion queues ask for interrupts. */
  readonly interrupts: boolean;
  readonly quirks: ReadonlySet<Quirk>;
  enter(state: ControllerState): void;
  /** Runs `use` with a page that the controller can reach. */
  withPage<T>(bytes: number, use: (address: number, bytes: Uint8Array) => Task<T>): Task<T>;
}

/** CAP and VS; DEVICE_GONE or UNSUPPORTED_CONTROLLER when they make no sense. */
export function readCapabilities(bar: Bar, address: string): Capabilities {
  const lo = bar.read32(Reg.CAP);
  const hi = bar.read32(Reg.CAP + 4);
  const version = bar.read32(Reg.VS);
  if (isAbsent(version) || (isAbsent(lo) && isAbsent(hi))) {
    throw new PenstockError(
      'DEVICE_GONE',
      `${address}: registers read ${hex(lo)}, ${hex(version)}`,
      {
        hint: 'the device was removed, or its memory space is off; rescan the bus',
      },
    );
  }
  const css = hi & CapHi.CSS_MASK;
  const page = (hi & CapHi.MPSMIN_MASK) >>> CapHi.MPSMIN_SHIFT;
  const entriesMax = (lo & CapLo.MQES_MASK) + 1;
  if ((css & (CapHi.CSS_NVM | CapHi.CSS_IO)) === 0 || page !== 0 || entriesMax < 2) {
    throw new PenstockError(
      'UNSUPPORTED_CONTROLLER',
      `${address}: command sets ${hex(css)}, pages from ${4096 * 2 ** page} bytes on`,
      { hint: 'a controller with the NVM command set and pages of 4 KiB is needed' },
    );
  }
  return {
    entriesMax,
    timeoutMs: Math.max(1, (lo & CapLo.TO_MASK) >>> CapLo.TO_SHIFT) * 500,
    strideBytes: 4 << (hi & CapHi.DSTRD_MASK),
    css: (css & CapHi.CSS_NVM) !== 0 ? Cc.CSS_NVM : Cc.CSS_ALL,
    hasMemoryBuffer: (hi & CapHi.CMBS) !== 0,
  };
}

/** A removed function reads all ones, or zeros where the emulation says so. */
export function isAbsent(word: number): boolean {
  return word === 0xffffffff || word === 0;
}

/** CC.EN = 0 and the wait for it: from then on the controller touches no memory. */
export function* disable(up: BringUp): Task<void> {
  const { bar, quirks } = up;
  up.enter('WAIT_DISABLED');
  const cc = bar.read32(Reg.CC);
  // A controller that is becoming ready must be so before it may be disabled (section 3.5.1).
  if ((cc & Cc.EN) !== 0) {
    if ((bar.read32(Reg.CSTS) & (Csts.RDY | Csts.CFS)) === 0) {
      yield* waitFor(up, (csts) => (csts & (Csts.RDY | Csts.CFS)) !== 0, 'become ready', false);
    }
    bar.write32(Reg.CC, cc & ~(Cc.EN | Cc.SHN_MASK));
    if (quirks.has('delay-before-ready')) yield* pause(DELAY_BEFORE_READY_MS);
  }
  yield* waitFor(up, (csts) => (csts & Csts.RDY) === 0, 'become disabled', true);
}

/** Sets the admin queue and enables; the controller is ready after it. */
export function* enable(up: BringUp): Task<void> {
  const { bar, table, admin, capabilities } = up;
  up.enter('SET_ADMIN_QUEUE');
  admin.reset();
  write64(bar, Reg.ASQ, table.address(table.offsets.adminSq));
  write64(bar, Reg.ACQ, table.address(table.offsets.adminCq));
  bar.write32(Reg.AQA, (ADMIN_ENTRIES - 1) | ((ADMIN_ENTRIES - 1) << 16));
  const configuration = capabilities.css | Cc.IOSQES_64 | Cc.IOCQES_16;
  bar.write32(Reg.CC, configuration);
  up.enter('WAIT_READY');
  bar.write32(Reg.CC, configuration | Cc.EN);
  yield* waitFor(up, (csts) => (csts & Csts.RDY) !== 0, 'become ready', true);
}

/** Waits for CSTS within CAP.TO. Errors: CONTROLLER_NOT_READY, CONTROLLER_FATAL, DEVICE_GONE. */
function* waitFor(
  up: BringUp,
  until: (csts: number) => boolean,
  what: string,
  demanded: boolean,
): Task<void> {
  const { bar, capabilities, pci } = up;
  const deadline = performance.now() + capabilities.timeoutMs;
  for (;;) {
    const csts = bar.read32(Reg.CSTS);
    if (csts === 0xffffffff || pci.gone) throw gone(pci.address);
    if (until(csts)) return;
    if (demanded && (csts & Csts.CFS) !== 0 && what === 'become ready') {
      throw new PenstockError('CONTROLLER_FATAL', `${pci.address}: fatal status while it starts`, {
        hint: 'reset or power-cycle the drive; its firmware could not start',
      });
    }
    if (performance.now() > deadline) break;
    yield;
  }
  if (!demanded) return;
  throw new PenstockError(
    'CONTROLLER_NOT_READY',
    `${pci.address} did not ${what} within ${capabilities.timeoutMs} ms (CAP.TO)`,
    { hint: 'reset it (`penstock nvme reset`), or power-cycle the drive' },
  );
}

export function gone(address: string): PenstockError {
  return new PenstockError('DEVICE_GONE', `${address}: the controller does not answer any more`, {
    hint: 'it was removed, or its server ended; open it again when it is back',
  });
}

export function* identifyController(up: BringUp): Task<ControllerFacts> {
  up.enter('IDENTIFY_CONTROLLER');
  const timeoutMs = up.settings.adminTimeoutMs;
  return yield* up.withPage(4096, function* (address, bytes) {
    yield* up.admin.demand(identify(Cns.CONTROLLER, 0, address), timeoutMs);
    return controllerFacts(bytes, up.quirks);
  });
}

/** Asks for queues; the pairs that were granted, at most those of the table. */
export function* setQueueCount(up: BringUp): Task<number> {
  up.enter('SET_QUEUE_COUNT');
  const wanted = up.table.shape.pairs;
  const value = (wanted - 1) | ((wanted - 1) << 16);
  const command = setFeature(Feature.NUMBER_OF_QUEUES, value);
  const { status, dw0 } = yield* up.admin.execute(command, up.settings.adminTimeoutMs);
  if (status !== 0) throw adminError(AdminOp.SET_FEATURES, status);
  const granted = Math.min((dw0 & 0xffff) + 1, (dw0 >>> 16) + 1);
  return Math.min(granted, wanted);
}

/** Shadow doorbells; false where the controller has none, or does not take them. */
export function* setShadowDoorbells(up: BringUp, facts: ControllerFacts): Task<boolean> {
  const { table, settings, admin } = up;
  if (!settings.shadow || (facts.oacs & Oacs.DOORBELL_BUFFER) === 0) return false;
  up.enter('SET_SHADOW_DOORBELLS');
  const { shadow, eventIndex } = table.offsets;
  table.words(shadow, 1024).fill(0);
  table.words(eventIndex, 1024).fill(0);
  const command = doorbellBufferConfig(table.address(shadow), table.address(eventIndex));
  const { status } = yield* admin.execute(command, settings.adminTimeoutMs);
  return status === 0;
}

/** The vector of a pair's interrupts: one of its own, or none. */
export function vectorOf(pair: number, vectors: number): number {
  return pair + 1 < vectors ? pair + 1 : -1;
}

export function* createPair(up: BringUp, pair: number): Task<void> {
  const { table, admin, settings, buffer } = up;
  const { entries } = table.shape;
  const qid = pair + 1;
  const { sq, cq } = table.rings(pair);
  const views = table.views(pair);
  (buffer?.ring(pair) ?? views.sq).fill(0);
  views.cq.fill(0);
  views.header[PairWord.sqTail] = 0;
  views.header[PairWord.cqHead] = 0;
  views.header[PairWord.phase] = 1 << 16;
  views.header[PairWord.state] = PairState.ready;
  const vector = up.interrupts ? vectorOf(pair, up.vectors) : -1;
  const { adminTimeoutMs } = settings;
  yield* admin.demand(createCompletionQueue(qid, entries, cq, vector), adminTimeoutMs);
  const address = buffer?.address(pair) ?? sq;
  const priority = up.quirks.has('medium-priority') ? PRIORITY_MEDIUM : 0;
  yield* admin.demand(createSubmissionQueue(qid, entries, address, priority), adminTimeoutMs);
  if (up.quirks.has('delay-after-queue')) yield* pause(DELAY_AFTER_QUEUE_MS);
}

/**
 * Deletes the submission queues, so that what is in flight ends before the controller is disabled
 * (Base 2.0, section 3.6.1). One that does not do so is disabled all the same.
 */
export function* endQueues({ admin, table }: BringUp): Task<void> {
  const until = performance.now() + QUEUES_END_MS;
  for (let pair = 0; pair < table.usable; pair++) {
    try {
      const command = deleteQueue(AdminOp.DELETE_IO_SQ, pair + 1);
      yield* admin.execute(command, until - performance.now());
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      return;
    }
  }
}

function write64(bar: Bar, offset: number, value: number): void {
  bar.write32(offset, value % 2 ** 32);
  bar.write32(offset + 4, Math.floor(value / 2 ** 32));
}

function hex(value: number): string {
  return `0x${(value >>> 0).toString(16)}`;
}
