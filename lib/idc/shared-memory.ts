// SharedMemory: what of a domain's own memory the others can map: its segments, and for the other
// threads of the process which granules they are.

import {
  addressSpace,
  GRANULE_BYTES,
  Memory,
  type MemoryOptions,
  type Segment,
} from '../memory/index.js';
import type { Lease } from './leases.js';

const SLOT_GRANULES = 2 ** 36 / GRANULE_BYTES;

export class SharedMemory {
  readonly memory: Memory;
  readonly segments: Segment[] = [];
  /** Segments that other threads of this process have. */
  readonly leases: Lease[] = [];
  /**
   * One byte per granule of the domain's slot, which all threads can be given: 1 where the memory
   * is shared and those that have a link were told of it.
   */
  readonly granules = new Uint8Array(new SharedArrayBuffer(SLOT_GRANULES));
  private readonly announce: (segment: Segment) => void;

  /** `announce` tells whoever has a link of a segment, before any address in it is given out. */
  constructor(
    options: MemoryOptions,
    beforeGrowth: () => void,
    announce: (segment: Segment) => void,
  ) {
    this.announce = announce;
    this.memory = new Memory({
      ...options,
      kind: 'shared',
      lasting: true,
      beforeGrowth,
      onSegment: (segment) => this.enter(segment),
    });
  }

  segmentAt(address: number): Segment | undefined {
    return this.segments.find(
      (segment) => address >= segment.address && address < segment.address + segment.bytes,
    );
  }

  /** A segment for another thread, told of as all shared memory is. */
  makeSegment(bytes: number): Segment {
    const segment = addressSpace().create(bytes, { kind: 'shared' });
    this.enter(segment);
    return segment;
  }

  close(): void {
    this.memory.close();
    for (const { segment } of this.leases) segment.close();
    this.granules.fill(0);
  }

  private enter(segment: Segment): void {
    if (this.segments.includes(segment)) return; // another pool in a region
    this.segments.push(segment);
    this.announce(segment);
    const first = (segment.address % 2 ** 36) / GRANULE_BYTES;
    this.granules.fill(1, first, first + segment.bytes / GRANULE_BYTES);
  }
}
