// The memory of a ram device: a table from chunk to address, shared by every thread that attaches.
//
// Invariants
// 1. table[c] is 0 (no memory yet: reads as zeros) or the address of the chunk in granules. It goes
//    0 → address once, by compare-and-swap, and stays; whoever loses keeps its memory for the
//    next. So a thread that ends at any point of it keeps nobody waiting.
// 2. Memory belongs to the environment that opened the device, whoever made it: a worker's end
//    takes nothing away, the home's end takes all.
// 3. known[c] is table[c], in a worker only once it holds a view of that memory, taken while the
//    home lived. So when the home is gone the addresses a worker may still use are nobody else's.

import { PenstockError } from '../../errors.js';
import { addressSpace, GRANULE_BYTES, isAlive, type Segment } from '../../memory/index.js';

/** Chunks are carved out of segments of this size. */
const ARENA_BYTES = 64 * 2 ** 20;

export interface ChunkShare {
  table: SharedArrayBuffer;
  chunkBytes: number;
  /** The home's liveness word, and its value while the home has the device open. */
  liveness: number;
  livenessSerial: number;
}

export class Chunks {
  readonly chunkBytes: number;
  /** Addresses in granules; 0: ask `locate`. */
  readonly known: Int32Array;
  private readonly table: Int32Array;
  private readonly liveness: number;
  private readonly livenessSerial: number;
  private readonly isHome: boolean;
  private readonly held = new Set<Segment>();
  private arena: Segment | null = null;
  private arenaUsed = 0;
  private spare = 0;

  constructor(share: ChunkShare, isHome: boolean) {
    this.chunkBytes = share.chunkBytes;
    this.table = new Int32Array(share.table);
    this.known = isHome ? this.table : new Int32Array(this.table.length);
    this.liveness = share.liveness;
    this.livenessSerial = share.livenessSerial;
    this.isHome = isHome;
  }

  static table(bytes: number, chunkBytes: number): SharedArrayBuffer {
    return new SharedArrayBuffer(Math.ceil(bytes / chunkBytes) * 4);
  }

  share(): ChunkShare {
    return {
      table: this.table.buffer as SharedArrayBuffer,
      chunkBytes: this.chunkBytes,
      liveness: this.liveness,
      livenessSerial: this.livenessSerial,
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

  /** Address of a chunk that has memory; 0 when it has none, or the home is gone. */
  locate(chunk: number): number {
    const entry = this.table[chunk]!;
    if (entry === 0 || this.isHome) return entry * GRANULE_BYTES;
    const segment = addressSpace().find(entry * GRANULE_BYTES);
    // In this order: what is found while the home lives is the home's.
    if (segment === undefined || !isAlive(this.liveness, this.livenessSerial)) return 0;
    this.held.add(segment);
    this.known[chunk] = entry;
    return entry * GRANULE_BYTES;
  }

  /** Address of a chunk that is to be written; makes it if need be. 0 when no memory is left. */
  ensure(chunk: number): number {
    const there = this.locate(chunk);
    if (there !== 0) return there;
    const made = this.spare === 0 ? this.carve() : this.spare;
    if (made === 0) return 0;
    const before = Atomics.compareExchange(this.table, chunk, 0, made / GRANULE_BYTES);
    this.spare = before === 0 ? 0 : made;
    return this.locate(chunk);
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

  /** Gives up the views of the home's memory. */
  letGo(): void {
    this.held.clear();
    this.known.fill(0);
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
