// A namespace of a controller as HPDI's back end: at home, and attached from another thread.

import { PenstockError } from '../../errors.js';
import {
  Status,
  type Backend,
  type DeviceHandle,
  type DeviceInfo,
  type QueueDriver,
  type QueueOptions,
} from '../../hpdi/index.js';
import { addressSpace, isAlive, Liveness } from '../../memory/index.js';
import { native } from '../../native.js';
import type { PciFunction } from '../../pci/index.js';
import { vectorOf } from './bring-up.js';
import type { NvmeController } from './controller.js';
import { Sqe } from './commands.js';
import { controllers } from './controllers.js';
import { namespaceInfo } from './facts.js';
import type { NamespaceEntry } from './namespaces.js';
import { PairTable, type PairShape } from './pairs.js';
import { NvmeQueue } from './queue.js';
import { MAPPING_DETAIL } from './reach.js';
import type { QueueInterrupt } from './queue-sleep.js';
import { Reg } from './registers.js';
import { statusText } from './status.js';

/** Time between two looks of an attached thread whether the home still lives. */
const HOME_LOOK_MS = 200;

/** What a queue needs of its controller, whichever thread it is in. */
interface QueuePlace {
  readonly pci: PciFunction;
  readonly table: PairTable;
  readonly facts: PlaceFacts;
}

/** The part of it that travels (structured clone). */
interface PlaceFacts {
  readonly nsid: number;
  readonly row: number;
  readonly sgl: boolean;
  readonly retries: number;
  readonly shadow: boolean;
  readonly strideBytes: number;
  /** By vector; empty without interrupts. */
  readonly eventFds: readonly number[];
  /** Submission rings in the controller's memory: BAR, byte offset of the first. */
  readonly buffer: { readonly bar: number; readonly offset: number } | null;
}

export interface NvmeShare {
  readonly pci: unknown;
  readonly segment: number;
  readonly shape: PairShape;
  readonly usable: number;
  readonly facts: PlaceFacts;
}

interface Claimant {
  readonly liveness: Liveness;
  readonly injector: NvmeController['injector'] | null;
  readonly onIdle: () => boolean;
  readonly onClose: (queue: NvmeQueue) => void;
}

/** Claims a pair and makes a queue of it. */
function claimQueue(
  { pci, table, facts }: QueuePlace,
  info: DeviceInfo,
  depth: number,
  claimant: Claimant,
): NvmeQueue {
  const pair = table.claim(claimant.liveness.index, claimant.liveness.serial);
  if (pair < 0) {
    throw new PenstockError('NO_QUEUES', `all ${table.usable} queue pairs are in use`, {
      hint: 'close a queue, or open the device with more: ?queues=32 (as far as it has them)',
    });
  }
  const qid = pair + 1;
  const bell = 2 * qid * facts.strideBytes;
  const { entries } = table.shape;
  const { offsets } = table;
  try {
    const queue: NvmeQueue = new NvmeQueue({
      table,
      pair,
      depth,
      nsid: facts.nsid,
      row: facts.row,
      info,
      doorbells: {
        bar: pci.bar(0),
        offset: Reg.DOORBELLS + bell,
        strideBytes: facts.strideBytes,
        shadow: facts.shadow
          ? {
              doorbells: table.words(offsets.shadow, 1024),
              eventIndices: table.words(offsets.eventIndex, 1024),
              word: bell / 4,
            }
          : null,
      },
      ring: ringInDevice(pci, facts, pair, entries),
      dma: pci.dma,
      interrupt: interruptOf(pci, facts, pair),
      kind: pci.memoryKind,
      sgl: facts.sgl,
      retries: facts.retries,
      injector: claimant.injector,
      onIdle: claimant.onIdle,
      onClose: () => {
        table.giveBack(pair);
        claimant.onClose(queue);
      },
    });
    return queue;
  } catch (error) {
    table.giveBack(pair);
    throw error;
  }
}

function ringInDevice(
  pci: PciFunction,
  { buffer }: PlaceFacts,
  pair: number,
  entries: number,
): Uint32Array | null {
  if (buffer === null) return null;
  const bytes = entries * Sqe.words * 4;
  return pci.bar(buffer.bar).words(buffer.offset + pair * bytes, bytes);
}

function interruptOf(pci: PciFunction, facts: PlaceFacts, pair: number): QueueInterrupt | null {
  const vector = vectorOf(pair, facts.eventFds.length);
  const eventFd = vector < 0 ? undefined : facts.eventFds[vector];
  return eventFd === undefined ? null : { eventFd, control: pci.vectorControl(vector) };
}

/** A namespace in the environment that opened it. */
export class NvmeBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'nvme';
  readonly controller: NvmeController;
  readonly namespace: NamespaceEntry;
  readonly memoryKind: 'private' | 'device';
  info: DeviceInfo;
  onChange: ((info: DeviceInfo) => void) | null = null;
  private readonly liveness = new Liveness();
  private readonly queues = new Set<NvmeQueue>();
  private readonly forgetChanges: () => void;
  private open = true;

  constructor(uri: string, controller: NvmeController, namespace: NamespaceEntry) {
    this.uri = uri;
    this.controller = controller;
    this.namespace = namespace;
    this.memoryKind = controller.pci.memoryKind;
    this.info = this.describe();
    this.forgetChanges = controller.onNamespaces((nsids) => {
      if (!nsids.includes(namespace.nsid)) return;
      this.info = this.describe();
      this.onChange?.(this.info);
    });
  }

  openQueue(options: QueueOptions): QueueDriver {
    const { controller } = this;
    if (!controller.isReady && controller.state !== 'RESETTING') {
      throw (
        controller.cause ??
        new PenstockError('DEVICE_GONE', `${this.uri}: the controller is ${controller.state}`, {
          hint: 'open the device again',
        })
      );
    }
    const place = { pci: controller.pci, table: controller.table, facts: this.placeFacts() };
    const queue = claimQueue(place, this.info, options.depth, {
      liveness: this.liveness,
      injector: controller.injector,
      onIdle: () => {
        controller.lookAround();
        return true;
      },
      onClose: (closed) => {
        this.queues.delete(closed);
        controller.queueClosed();
      },
    });
    this.queues.add(queue);
    return queue;
  }

  share(): NvmeShare {
    const { pci, table } = this.controller;
    return {
      pci: pci.share(),
      segment: table.segment.address,
      shape: table.shape,
      usable: table.usable,
      facts: this.placeFacts(),
    };
  }

  explainDetail(code: number, detail: number): string {
    return explainDetail(this.queues, code, detail);
  }

  async refresh(): Promise<void> {
    await this.controller.refreshNamespaces();
  }

  async close(): Promise<void> {
    if (!this.open) return;
    this.open = false;
    this.forgetChanges();
    try {
      for (const queue of [...this.queues]) await queue.close();
      await controllers.release(this.controller);
    } finally {
      this.liveness.close();
    }
  }

  private placeFacts(): PlaceFacts {
    const { controller, namespace } = this;
    const { settings, facts, capabilities, interrupts, buffer } = controller;
    return {
      nsid: namespace.nsid,
      row: namespace.row,
      sgl: settings.sgl && facts.sgl,
      retries: settings.retries,
      shadow: controller.shadow,
      strideBytes: capabilities.strideBytes,
      eventFds: interrupts ? controller.eventFds : [],
      buffer: buffer === null ? null : { bar: buffer.bar, offset: buffer.offset },
    };
  }

  private describe(): DeviceInfo {
    const { controller, namespace } = this;
    const { facts, pci, table, settings } = controller;
    if (namespace.facts === null) {
      // Removed while it is open: nothing of it is left but its name.
      return { ...this.info, blocks: 0 };
    }
    const own = settings.readonly ? { ...namespace.facts, readOnly: true } : namespace.facts;
    return namespaceInfo(own, facts, {
      driver: 'nvme',
      address: pci.address,
      transport: pci.transport,
      namespace: namespace.nsid,
      model: facts.model,
      serial: facts.serial,
      firmware: facts.firmware,
      queues: table.usable,
      entries: table.shape.entries,
      completion: controller.interrupts ? 'adaptive' : 'polled',
      shadowDoorbells: controller.shadow,
      submissionRings: controller.buffer === null ? 'memory' : 'controller memory buffer',
    });
  }
}

/** A namespace in another thread of the home's process. */
export class AttachedNvmeBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'nvme';
  readonly info: DeviceInfo;
  readonly memoryKind: 'private' | 'device';
  private readonly pci: PciFunction;
  private readonly table: PairTable;
  private readonly facts: PlaceFacts;
  private readonly home: { index: number; serial: number };
  private readonly liveness = new Liveness();
  private readonly queues = new Set<NvmeQueue>();
  private readonly ownFds: number[] = [];
  private readonly timer: NodeJS.Timeout;

  /** `pci`: the function as this thread sees it; the backend closes it. */
  constructor(handle: DeviceHandle, pci: PciFunction) {
    const share = handle.shared as NvmeShare;
    const segment = addressSpace().find(share.segment);
    this.uri = handle.uri;
    this.info = handle.info;
    this.home = { index: handle.liveness, serial: handle.livenessSerial };
    if (segment === undefined || !this.homeLives()) throw homeGone(handle.uri);
    this.pci = pci;
    this.memoryKind = this.pci.memoryKind;
    this.table = new PairTable(segment, share.shape, share.usable);
    // Descriptors of its own, so that a wait of this thread never stands on a number that is
    // reused.
    for (const fd of share.facts.eventFds) this.ownFds.push(native.fileDuplicate(fd));
    this.facts = { ...share.facts, eventFds: this.ownFds };
    if (!this.homeLives()) {
      this.closeFds();
      throw homeGone(handle.uri);
    }
    this.timer = setInterval(() => this.lookAtHome(), HOME_LOOK_MS);
    this.timer.unref();
  }

  openQueue(options: QueueOptions): QueueDriver {
    const place = { pci: this.pci, table: this.table, facts: this.facts };
    const queue = claimQueue(place, this.info, options.depth, {
      liveness: this.liveness,
      injector: null,
      onIdle: () => this.homeLives(),
      onClose: (closed) => this.queues.delete(closed),
    });
    this.queues.add(queue);
    return queue;
  }

  share(): unknown {
    throw new PenstockError('NOT_SHAREABLE', `${this.uri} is shared by the thread that opened it`, {
      hint: 'post the handle of the device that was opened',
    });
  }

  explainDetail(code: number, detail: number): string {
    return explainDetail(this.queues, code, detail);
  }

  async close(): Promise<void> {
    clearInterval(this.timer);
    for (const queue of [...this.queues]) await queue.close();
    this.closeFds();
    await this.pci.close();
    this.liveness.close();
  }

  private homeLives(): boolean {
    return isAlive(this.home.index, this.home.serial);
  }

  /** Wakes queues that sleep, so that they see that nothing will come any more. */
  private lookAtHome(): void {
    if (this.homeLives() || this.queues.size === 0) return;
    for (const fd of this.ownFds) native.eventfdSignal(fd);
  }

  private closeFds(): void {
    for (const fd of this.ownFds.splice(0)) native.fileClose(fd);
  }
}

function homeGone(uri: string): PenstockError {
  return new PenstockError('DEVICE_GONE', `${uri}: the thread that opened it closed it`, {
    hint: 'keep the device open until all who attach to it are done',
  });
}

function explainDetail(queues: Iterable<NvmeQueue>, code: number, detail: number): string {
  const isOurs = code === Status.NO_MEMORY || code === Status.BAD_ADDRESS;
  if (!isOurs || detail !== MAPPING_DETAIL) return detail === 0 ? '' : statusText(detail & 0x7fff);
  for (const { mappingFailure: failure } of queues) {
    if (failure !== null) return `${failure.message}: ${failure.hint}`;
  }
  return '';
}
