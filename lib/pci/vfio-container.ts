// The IOMMU side of a function: its group in a container of its own, the addresses that translates,
// and segments mapped through it. `IommuBackend` is all that the rest of the room knows of it, so
// that an iommufd (which replaces container and group) can stand in its place.

import { errnoCode } from '../errors.js';
import { native, type SegmentRecord } from '../native.js';
import { blockingCall, BlockingKind } from './blocking.js';
import type { DmaTransport, IovaRange } from './dma-space.js';
import type { FunctionFacts } from './facts.js';
import type { Root } from './root.js';
import { groupNotViable, openError, setupError } from './vfio-errors.js';

export interface IommuBackend extends DmaTransport {
  readonly ranges: readonly IovaRange[];
  /** What another environment duplicates to map segments: see `mapThrough`. */
  readonly mapFd: number;
  /** The device's descriptor, owned by this environment. */
  openDevice(): number;
  /** After the device was closed. Gives back every mapping. */
  close(): Promise<void>;
}

const STATUS_VIABLE = 1;

/** Maps and unmaps through a container's descriptor, in whichever environment owns it. */
export function mapThrough(container: number): DmaTransport {
  return {
    map(segment: SegmentRecord): boolean {
      try {
        native.vfioMap(container, segment.id);
      } catch (error) {
        // Somebody mapped it and ended before saying so: at its address nothing else can be.
        if (errnoCode(error) !== 'EEXIST') throw error;
      }
      return true;
    },
    unmap(address: number, bytes: number): boolean {
      native.vfioUnmap(container, address, bytes);
      return true;
    },
  };
}

export class VfioContainer implements IommuBackend {
  readonly ranges: readonly IovaRange[];
  readonly mapFd: number;
  readonly map: DmaTransport['map'];
  readonly unmap: DmaTransport['unmap'];
  private readonly group: number;
  private readonly facts: FunctionFacts;

  private constructor(facts: FunctionFacts, container: number, group: number) {
    this.facts = facts;
    this.mapFd = container;
    this.group = group;
    const { map, unmap } = mapThrough(container);
    this.map = map;
    this.unmap = unmap;
    this.ranges = pairsOf(native.vfioIommuInfo(container).ranges);
  }

  /**
   * Errors: VFIO_MISSING, PERMISSION_DENIED, GROUP_BUSY, GROUP_NOT_VIABLE, NO_IOMMU, VFIO_FAILED.
   */
  static open(root: Root, facts: FunctionFacts): VfioContainer {
    const node = `/dev/vfio/${facts.group}`;
    const container = orExplain('/dev/vfio/vfio', () => native.vfioContainerOpen());
    let group: number | undefined;
    try {
      group = orExplain(node, () => native.vfioGroupOpen(Number(facts.group)));
      if ((native.vfioGroupStatus(group) & STATUS_VIABLE) === 0) throw groupNotViable(root, facts);
      native.vfioGroupAttach(group, container);
      native.vfioSetIommu(container);
      return new VfioContainer(facts, container, group);
    } catch (error) {
      if (group !== undefined) native.fileClose(group);
      native.fileClose(container);
      throw setupError(facts, error);
    }
  }

  openDevice(): number {
    try {
      return native.vfioDeviceOpen(this.group, this.facts.address);
    } catch (error) {
      throw setupError(this.facts, error);
    }
  }

  async close(): Promise<void> {
    // The group first: with it the container loses its IOMMU, and unpins what was mapped.
    await blockingCall(BlockingKind.close, this.group);
    await blockingCall(BlockingKind.close, this.mapFd);
  }
}

function orExplain(path: string, open: () => number): number {
  try {
    return open();
  } catch (error) {
    throw openError(path, error);
  }
}

function pairsOf(numbers: readonly number[]): IovaRange[] {
  const ranges: IovaRange[] = [];
  for (let i = 0; i + 1 < numbers.length; i += 2) {
    ranges.push({ start: numbers[i]!, last: numbers[i + 1]! });
  }
  return ranges;
}
