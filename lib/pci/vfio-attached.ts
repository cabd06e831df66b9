// A function that another environment of this process opened (its home), as this one may use it:
// mapped registers, memory, vectors. See function.ts, invariant 3.
//
// Invariant: descriptors are duplicated first and the home's liveness word looked at then. The home
// clears it before it closes any, so that no number that is somebody else's by now is kept.

import { PenstockError } from '../errors.js';
import { isAlive } from '../memory/index.js';
import { native } from '../native.js';
import { type BarShare, MappedBar, vectorControlIn } from './bar.js';
import type { MsixTable } from './config-space.js';
import { DomainSpace, type IovaRange } from './dma-space.js';
import type { Bar, ConfigSpace, PciFunction, PciIdentity } from './function.js';
import { mapThrough } from './vfio-container.js';

/** What `share` of a VFIO function gives: numbers that mean the same in all of the process. */
export interface VfioShare {
  readonly transport: 'vfio';
  readonly address: string;
  readonly identity: PciIdentity;
  readonly vectors: number;
  /** Of the vectors that were enabled by then. */
  readonly eventfds: readonly number[];
  readonly table: MsixTable | null;
  readonly bars: readonly BarShare[];
  readonly domain: number;
  readonly ranges: readonly IovaRange[];
  readonly mapFd: number;
  readonly liveness: { readonly index: number; readonly serial: number };
}

/** Errors: DEVICE_GONE when its home closed it or ended. */
export function attachVfio(shared: unknown): PciFunction {
  return new AttachedVfio(shared as VfioShare);
}

class AttachedVfio implements PciFunction {
  readonly address: string;
  readonly transport = 'vfio';
  readonly memoryKind = 'private';
  readonly identity: PciIdentity;
  readonly vectors: number;
  readonly dma: DomainSpace;
  onRemovalRequested: (() => void) | null = null;
  private readonly shared: VfioShare;
  private readonly bars = new Map<number, MappedBar>();
  private readonly owned: number[] = [];
  private departed = false;

  constructor(shared: VfioShare) {
    this.shared = shared;
    this.address = shared.address;
    this.identity = shared.identity;
    this.vectors = shared.vectors;
    try {
      const container = this.duplicate(shared.mapFd);
      this.dma = new DomainSpace(mapThrough(container), shared.ranges, shared.domain);
      for (const bar of shared.bars) {
        this.bars.set(bar.index, new MappedBar(bar, null, () => undefined));
      }
      this.assertHome();
    } catch (error) {
      this.closeOwned();
      throw isAlive(shared.liveness.index, shared.liveness.serial) ? error : this.goneError(error);
    }
  }

  get config(): ConfigSpace {
    return this.refuse('config space');
  }

  get gone(): boolean {
    if (this.departed) return true;
    const { index, serial } = this.shared.liveness;
    if (!isAlive(index, serial)) this.departed = true;
    for (const bar of this.bars.values()) if (bar.lost) this.departed = true;
    return this.departed;
  }

  bar(index: number): Bar {
    const bar = this.bars.get(index);
    if (bar !== undefined) return bar;
    throw new PenstockError('NO_SUCH_BAR', `${this.address} has no BAR ${index}`, {
      hint: `it has ${[...this.bars.keys()].join(', ') || 'none'}`,
    });
  }

  /** Duplicates of the home's eventfds: it enabled them before it shared the function. */
  enableInterrupts(count: number): readonly number[] {
    const { eventfds } = this.shared;
    if (!Number.isInteger(count) || count < 1 || count > eventfds.length) {
      throw new RangeError(`${eventfds.length} vectors were enabled when it was shared`);
    }
    return eventfds.slice(0, count).map((fd) => this.duplicate(fd));
  }

  disableInterrupts(): void {
    this.refuse('disabling interrupts');
  }

  vectorControl(vector: number): { readonly words: Uint32Array; readonly index: number } | null {
    const { table } = this.shared;
    const bar = table === null ? undefined : this.bars.get(table.bar);
    return vectorControlIn(bar, table, vector);
  }

  enable(): void {
    this.refuse('enabling it');
  }

  quiesce(): void {
    this.refuse('quiescing it');
  }

  reset(): Promise<void> {
    return this.refuse('its reset');
  }

  share(): unknown {
    return this.shared;
  }

  /** Closes what this environment has of it; the function itself is its home's. */
  async close(): Promise<void> {
    this.departed = true;
    this.closeOwned();
  }

  private duplicate(fd: number): number {
    const copy = native.fileDuplicate(fd);
    this.owned.push(copy);
    this.assertHome();
    return copy;
  }

  private assertHome(): void {
    const { index, serial } = this.shared.liveness;
    if (!isAlive(index, serial)) throw this.goneError();
  }

  private goneError(cause?: unknown): PenstockError {
    return new PenstockError('DEVICE_GONE', `${this.address} was closed by its home`, {
      hint: 'keep the function open until all who attach to it are done',
      cause,
    });
  }

  private closeOwned(): void {
    for (const fd of this.owned.splice(0)) native.fileClose(fd);
  }

  private refuse(what: string): never {
    throw new TypeError(`${what} belongs to the environment that opened ${this.address}`);
  }
}
