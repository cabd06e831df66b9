// What the twin translates: all live segments, or those it was asked to reach, over the DMA domain
// that the real transports use.

import type { PenstockError } from '../../../lib/errors.js';
import {
  accessMap,
  addressSpace,
  GRANULE_BYTES,
  type Segment,
  statusWords,
  StatusWord,
} from '../../../lib/memory/index.js';
import type { SegmentRecord } from '../../../lib/native.js';
import { DomainSpace } from '../../../lib/pci/dma-space.js';
import type { DmaSpace } from '../../../lib/pci/index.js';

/** What the device does to memory, as the access map's bits. */
export const enum Dma {
  reads = 1,
  writes = 3,
}

/** A DmaSpace as the device itself sees it. */
export interface TwinDma extends DmaSpace {
  /** What `reach` throws, when it is to fail. */
  refuse: ((address: number) => PenstockError | null) | null;
  /** How often `reach` says that another thread is at it. */
  laterTimes: number;
  /** Whether the device's side translates the whole range. */
  reaches(address: number, bytes: number, access: Dma): boolean;
  segmentAt(address: number): Segment | undefined;
  /** The addon's domain, for another environment; -1: all live segments. */
  readonly domain: number;
  /** Frees what it holds of the process. */
  shut(): void;
}

/** `domain`: that of the home, for another environment of the process. */
export function makeDma(kind: 'live' | 'reached', domain?: number): TwinDma {
  return kind === 'live' ? new LiveDma() : new ReachedDma(domain);
}

/** Every live segment; nothing needs to be reached. */
class LiveDma implements TwinDma {
  readonly map = accessMap();
  readonly stale = false;
  readonly domain = -1;
  refuse: TwinDma['refuse'] = null;
  laterTimes = 0;
  private readonly segments = new Map<number, Segment | undefined>();
  private epoch = -1;

  reach(): boolean {
    return true;
  }

  collect(): void {
    // Nothing outlives its segment here.
  }

  reap(): void {
    // As collect.
  }

  reaches(address: number, bytes: number, access: Dma): boolean {
    return everyGranule(address, bytes, (granule) => (this.map[granule]! & access) === access);
  }

  segmentAt(address: number): Segment | undefined {
    const granule = Math.floor(address / GRANULE_BYTES);
    const epoch = statusWords()[StatusWord.epoch]!;
    if (epoch !== this.epoch) {
      this.epoch = epoch;
      this.segments.clear();
    }
    if (!this.segments.has(granule)) this.segments.set(granule, addressSpace().find(address));
    return this.segments.get(granule);
  }

  shut(): void {
    this.segments.clear();
  }
}

/**
 * Segments that `reach` was called for. One that was closed stays translated until it is reaped, as
 * its pages stay mapped for a device.
 */
class ReachedDma implements TwinDma {
  refuse: TwinDma['refuse'] = null;
  laterTimes = 0;
  private readonly space: DomainSpace;
  private readonly mapped = new Map<number, Segment>();

  constructor(domain?: number) {
    const transport = {
      map: (record: SegmentRecord) => this.open(record),
      unmap: (address: number, bytes: number) => this.close(address, bytes),
    };
    this.space = new DomainSpace(transport, [], domain);
  }

  get map(): Uint8Array {
    return this.space.map;
  }

  get stale(): boolean {
    return this.space.stale;
  }

  reach(address: number): boolean {
    const error = this.refuse?.(address) ?? null;
    if (error !== null) throw error;
    if (this.laterTimes === 0) return this.space.reach(address);
    this.laterTimes--;
    return false;
  }

  collect(): void {
    this.space.collect();
  }

  reap(): void {
    this.space.reap();
  }

  reaches(address: number, bytes: number, access: Dma): boolean {
    return everyGranule(address, bytes, (granule) => {
      const segment = this.mapped.get(granule);
      // What another environment of the process mapped is in the map alone.
      if (segment === undefined) return (this.map[granule]! & access) === access;
      return segment.writable || access === Dma.reads;
    });
  }

  segmentAt(address: number): Segment | undefined {
    return this.mapped.get(Math.floor(address / GRANULE_BYTES)) ?? addressSpace().find(address);
  }

  get domain(): number {
    return this.space.domain;
  }

  shut(): void {
    this.space.close();
    this.mapped.clear();
  }

  private open({ address, bytes }: SegmentRecord): boolean {
    const segment = addressSpace().find(address)!;
    for (let at = 0; at < bytes; at += GRANULE_BYTES) {
      this.mapped.set((address + at) / GRANULE_BYTES, segment);
    }
    return true;
  }

  private close(address: number, bytes: number): boolean {
    for (let at = 0; at < bytes; at += GRANULE_BYTES) {
      this.mapped.delete((address + at) / GRANULE_BYTES);
    }
    return true;
  }
}

function everyGranule(
  address: number,
  bytes: number,
  holds: (granule: number) => boolean,
): boolean {
  const last = Math.floor((address + bytes - 1) / GRANULE_BYTES);
  // Hostile addresses reach up to 2^64, and sizes up to 4 GiB.
  if (!(address + bytes <= 2 ** 44)) return false;
  for (let granule = Math.floor(address / GRANULE_BYTES); granule <= last; granule++) {
    if (!holds(granule)) return false;
  }
  return true;
}
