// What a device can reach, over a DMA domain of the addon (native/dma.cc). VFIO and vfio-user
// differ in how a segment is mapped and unmapped (DmaTransport); which one, when, and when its
// address is free again is the same for both.
//
// Invariants
// 1. A segment is mapped whole, at IOVA = Address, by whoever first holds it. Its bytes in `map`
//    are set when it is mapped, and cleared by native code when the segment closes.
// 2. A closed segment stays mapped, and its addresses taken, until the home reaps what it collected
//    before: in between, every operation that was in flight at the close has completed.
// 3. What a transport began (it said false) it ends by `settle` or `unmapped`; nothing else does.

import { errnoCode, PenstockError } from '../errors.js';
import { GRANULE_BYTES } from '../memory/index.js';
import { native, type SegmentRecord } from '../native.js';
import type { DmaSpace } from './function.js';

/** Addresses that the device's side translates, both ends included. */
export interface IovaRange {
  readonly start: number;
  readonly last: number;
}

export interface DmaTransport {
  /**
   * Makes the whole segment reachable at its address: true when it is, false when that is under way
   * and `settle` will be called. Throws what the system call threw.
   */
  map(segment: SegmentRecord): boolean;
  /**
   * Ends that: true when the device reaches it no more, false when that is under way and `unmapped`
   * will be called.
   */
  unmap(address: number, bytes: number): boolean;
}

/** Bytes of the map; the word of stale segments comes right after it. */
const MAP_BYTES = 2 ** 44 / GRANULE_BYTES;
const READ_WRITE = 3;

export class DomainSpace implements DmaSpace {
  readonly domain: number;
  readonly ranges: readonly IovaRange[];
  readonly map: Uint8Array;
  private readonly staleWords: Uint32Array;
  private readonly transport: DmaTransport;
  private readonly home: boolean;
  /** Closed segments that the next reap unmaps: address and bytes, in pairs. */
  private collected: number[] = [];
  /** Addresses whose unmapping is under way. */
  private readonly leaving = new Set<number>();

  /** `domain`: one that another environment of the process opened; default: a new one. */
  constructor(transport: DmaTransport, ranges: readonly IovaRange[], domain?: number) {
    this.transport = transport;
    this.ranges = ranges;
    this.home = domain === undefined;
    this.domain = domain ?? native.dmaOpen();
    const area = native.dmaMap(this.domain);
    this.map = new Uint8Array(area, 0, MAP_BYTES);
    this.staleWords = new Uint32Array(area, MAP_BYTES, 1);
  }

  get stale(): boolean {
    return this.staleWords[0] !== 0;
  }

  reach(address: number): boolean {
    const segment = segmentOver(address);
    this.checkRanges(segment);
    const held = this.orGone(address, () => native.dmaHold(this.domain, segment.id));
    if (held === 0) return this.map[Math.floor(address / GRANULE_BYTES)] !== 0;
    let mapped: boolean;
    try {
      mapped = this.transport.map(segment);
    } catch (cause) {
      this.settle(segment, false);
      throw mappingError(segment, cause);
    }
    if (mapped) this.settle(segment, true);
    return mapped;
  }

  /** A mapping that `DmaTransport.map` left under way is there; or failed, to be tried anew. */
  settle(segment: SegmentRecord, mapped: boolean): void {
    whileOpen(() => {
      if (mapped) native.dmaMark(this.domain, segment.id, READ_WRITE);
      else native.dmaDrop(this.domain, segment.address);
    });
  }

  collect(): void {
    if (!this.home) throw new TypeError('only the environment that opened a function collects');
    this.collected = native.dmaStale(this.domain);
  }

  reap(): void {
    const pairs = this.collected;
    this.collected = [];
    for (let i = 0; i + 1 < pairs.length; i += 2) {
      const address = pairs[i]!;
      if (this.leaving.has(address)) continue;
      if (this.transport.unmap(address, pairs[i + 1]!)) native.dmaDrop(this.domain, address);
      else this.leaving.add(address);
    }
  }

  /** An unmapping that `DmaTransport.unmap` left under way is done. */
  unmapped(address: number): void {
    this.leaving.delete(address);
    whileOpen(() => native.dmaDrop(this.domain, address));
  }

  /** Home only, when the device can do no DMA any more: nothing is unmapped one by one. */
  close(): void {
    native.dmaClose(this.domain);
  }

  private checkRanges(segment: SegmentRecord): void {
    const last = segment.address + segment.bytes - 1;
    if (this.ranges.length === 0) return; // the kernel does not say
    if (this.ranges.some((range) => range.start <= segment.address && last <= range.last)) return;
    const known = this.ranges.map((range) => `${hex(range.start)}-${hex(range.last)}`).join(', ');
    throw new PenstockError(
      'IOVA_OUT_OF_RANGE',
      `the segment ${hex(segment.address)}-${hex(last)} is not what the device can address`,
      { hint: `it reaches ${known}: join the hub as a lower domain`, exitCode: 3 },
    );
  }

  /** What `call` gives; the errors of a domain or segment that went away meanwhile in our words. */
  private orGone<T>(address: number, call: () => T): T {
    try {
      return call();
    } catch (cause) {
      if (errnoCode(cause) === 'EBADF') throw badAddress(address, cause);
      if (errnoCode(cause) !== 'ENXIO') throw cause;
      throw new PenstockError('DEVICE_GONE', 'the device that was to reach the memory is closed', {
        hint: 'its home closed it or ended',
        cause,
      });
    }
  }
}

/** Does what matters no more once the domain is closed, by the home or by its end. */
function whileOpen(call: () => void): void {
  try {
    call();
  } catch (cause) {
    if (errnoCode(cause) !== 'ENXIO') throw cause;
  }
}

function segmentOver(address: number): SegmentRecord {
  const id = native.segmentFind(address);
  if (id === 0) throw badAddress(address);
  try {
    return native.segmentInfo(id);
  } catch (cause) {
    throw badAddress(address, cause); // closed between the two calls
  }
}

function badAddress(address: number, cause?: unknown): PenstockError {
  return new PenstockError('BAD_ADDRESS', `no live segment lies over address ${hex(address)}`, {
    hint: 'give a buffer from memory that is open',
    cause,
  });
}

function mappingError(segment: SegmentRecord, cause: unknown): unknown {
  const what = `${segment.bytes / 2 ** 20} MiB at ${hex(segment.address)}`;
  switch (errnoCode(cause)) {
    case '':
      return cause;
    case 'EBADF':
      return badAddress(segment.address, cause);
    case 'ENOMEM':
      return new PenstockError('OUT_OF_LOCKED_MEMORY', `${what} could not be locked for DMA`, {
        hint: 'ulimit -l unlimited, or "* - memlock unlimited" in /etc/security/limits.conf',
        exitCode: 3,
        cause,
      });
    case 'ENOSPC':
      return new PenstockError('DMA_MAP_FAILED', `no DMA mapping is left for ${what}`, {
        hint: 'use fewer, larger segments; or raise dma_entry_limit of vfio_iommu_type1',
        cause,
      });
    default:
      return new PenstockError('DMA_MAP_FAILED', `${what} could not be mapped for DMA`, {
        hint: 'the cause says what the call answered; the kernel log may say more',
        cause,
      });
  }
}

function hex(address: number): string {
  return `0x${address.toString(16)}`;
}
