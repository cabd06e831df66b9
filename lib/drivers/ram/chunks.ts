// The memory of a ram device: a table from chunk to address, shared by every thread that attaches.
//
// Invariants
// 1. table[c] is 0 (no memory yet: reads as zeros), BUSY (being made by somebody), or the address
//    of the chunk in granules. It goes 0 → BUSY → address once and stays.
// 2. Memory belongs to the environment that opened the device, whoever made it: a worker's end
//    takes nothing away, the home's end takes all.

import { PenstockError } from '../../errors.js';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../memory/index.js';

const BUSY = -1;
/** Chunks are carved out of segments of this size. */
const ARENA_BYTES = 64 * 2 ** 20;

export interface ChunkShare {
  table: SharedArrayBuffer;
  chunkBytes: number;
  liveness: number;
}

export class Chunks {
  readonly chunkBytes: number;
  readonly table: Int32Array;
  private readonly liveness: number;
  private arena: Segment | null = null;
  private arenaUsed = 0;

  constructor(share: ChunkShare) {
    this.chunkBytes = share.chunkBytes;
    this.table = new Int32Array(share.table);
    this.liveness = share.liveness;
  }

  static table(bytes: number, chunkBytes: number): SharedArrayBuffer {
    return new SharedArrayBuffer(Math.ceil(bytes / chunkBytes) * 4);
  }

  share(): ChunkShare {
    return {
      table: this.table.buffer as SharedArrayBuffer,
      chunkBytes: this.chunkBytes,
      liveness: this.liveness,
    };
  }

  /** Gives every chunk memory now. OUT_OF_MEMORY when it cannot be had. */
  fillAll(bytes: number): void {
    for (let chunk = 0; chunk < this.table.length; chunk++) {
      const rest = Math.min(this.chunkBytes, bytes - chunk * this.chunkBytes);
      const segment = addressSpace().create(rest, { liveness: this.liveness });
      this.table[chunk] = segment.address / GRANULE_BYTES;
    }
  }

  /** Address of a chunk that is to be written; makes it if need be. 0 when no memory is left. */
  ensure(chunk: number): number {
    for (;;) {
      const entry = Atomics.compareExchange(this.table, chunk, 0, BUSY);
      if (entry > 0) return entry * GRANULE_BYTES;
      if (entry === BUSY) {
        Atomics.wait(this.table, chunk, BUSY, 10);
        continue;
      }
      const address = this.carve();
      Atomics.store(this.table, chunk, address / GRANULE_BYTES);
      Atomics.notify(this.table, chunk);
      return address;
    }
  }

  /** Closes all memory of the device, whoever made it. Only the home calls this. */
  closeAll(): void {
    for (const entry of this.table) {
      if (entry > 0)
        addressSpace()
          .find(entry * GRANULE_BYTES)
          ?.close();
    }
  }

  private carve(): number {
    if (this.arena === null || this.arenaUsed + this.chunkBytes > this.arena.bytes) {
      try {
        this.arena = addressSpace().create(ARENA_BYTES, { liveness: this.liveness });
      } catch (error) {
        if (error instanceof PenstockError) return 0;
        throw error;
      }
      this.arenaUsed = 0;
    }
    const address = this.arena.address + this.arenaUsed;
    this.arenaUsed += this.chunkBytes;
    return address;
  }
}
