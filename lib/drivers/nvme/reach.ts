// Whether a device can reach a buffer: every granule of it mapped for DMA, with the wanted access.

import { Access, Status } from '../../hpdi/index.js';
import { accessMap } from '../../memory/index.js';
import { PenstockError } from '../../errors.js';
import type { DmaSpace } from '../../pci/index.js';

/** What `check` says when another thread is mapping the memory: try again later. */
export const REACH_LATER = 255;

/** Detail of a status whose cause is `Reach.failure`. */
export const MAPPING_DETAIL = 1;

const live = accessMap();

export class Reach {
  private readonly dma: DmaSpace;
  private readonly map: Uint8Array;
  /** Why the last mapping failed, for whoever asks what a status with MAPPING_DETAIL was. */
  failure: PenstockError | null = null;

  constructor(dma: DmaSpace) {
    this.dma = dma;
    this.map = dma.map;
  }

  // hot:begin

  /** OK, BAD_ADDRESS, NO_MEMORY (it could not be mapped), or REACH_LATER. */
  check(addressLo: number, addressHi: number, bytes: number, access: Access): number {
    if (addressHi >>> 12 !== 0) return Status.BAD_ADDRESS;
    let granule = (addressHi << 11) | (addressLo >>> 21);
    const reach = (addressLo & 0x1fffff) + bytes - 1;
    const last = granule + (bytes < 0x40000000 ? reach >>> 21 : Math.floor(reach / 2097152));
    const { map } = this;
    do {
      if ((map[granule]! & access) !== access) {
        const status = this.extend(granule, access);
        if (status !== Status.OK) return status;
      }
      granule++;
    } while (granule <= last);
    return Status.OK;
  }

  // hot:end

  /** A granule that the device cannot reach yet: maps it when it is live memory. */
  private extend(granule: number, access: Access): number {
    if ((live[granule]! & access) !== access) return Status.BAD_ADDRESS;
    try {
      if (!this.dma.reach(granule * 2 ** 21)) return REACH_LATER;
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      this.failure = error;
      const isMemory = error.code === 'OUT_OF_LOCKED_MEMORY';
      return (isMemory ? Status.NO_MEMORY : Status.BAD_ADDRESS) | (MAPPING_DETAIL << 8);
    }
    return (this.map[granule]! & access) === access ? Status.OK : Status.BAD_ADDRESS;
  }
}
