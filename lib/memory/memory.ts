// Memory: buffers of any size for people, on pools by size class; and DmaBuffer, their handle.

import { PenstockError } from '../errors.js';
import { BufferPool, poolBytes, returnHome, type Place } from './pool.js';
import { GRANULE_BYTES, SEGMENT_BYTES_MAX, type Segment } from './segment.js';
import type { SegmentOptions } from './space.js';

const CLASS_BYTES_MIN = 512;
/** A slab holds about this much, so that small classes share few segments. */
const SLAB_BYTES = 2 ** 21 - 2 ** 16;
const LASTING_BYTES_MAX = 2 ** 26;

/**
 * A buffer that devices can reach, at `address` in every process that maps it. The handle knows
 * when its buffer was freed: its views then throw USE_AFTER_FREE.
 */
export class DmaBuffer {
  readonly address: number;
  /** Bytes asked for; the pool's buffer may be larger. */
  readonly bytes: number;
  private readonly pool: BufferPool;
  private readonly life: number;
  private sent = false;
  private bytesView: Uint8Array | undefined;
  private wordsView: Uint32Array | undefined;

  constructor(pool: BufferPool, address: number, bytes: number) {
    this.pool = pool;
    this.address = address;
    this.bytes = bytes;
    this.life = pool.stamp(address);
  }

  /** The bytes; made once. Throws USE_AFTER_FREE when the buffer was freed. */
  get u8(): Uint8Array {
    this.assertLive();
    if (this.bytesView === undefined) {
      const whole = this.pool.view(this.address);
      this.bytesView = whole.length === this.bytes ? whole : whole.subarray(0, this.bytes);
    }
    return this.bytesView;
  }

  /** The bytes as 32-bit words (a last part of a word is left out). */
  get u32(): Uint32Array {
    const u8 = this.u8;
    this.wordsView ??= new Uint32Array(u8.buffer, u8.byteOffset, u8.length >>> 2);
    return this.wordsView;
  }

  /** True too once it was surrendered: it is not this handle's any more. */
  get freed(): boolean {
    return this.sent || this.pool.segment.closed || this.pool.stamp(this.address) !== this.life;
  }

  /**
   * Gives up the handle, not the buffer: it now belongs to whoever knows its address, and goes home
   * by `Memory.freeAddress`. Uses of the handle throw USE_AFTER_SEND. Returns the upper word of the
   * buffer's loan: the address's high word | generation << 12 (20 bits).
   */
  surrender(): number {
    this.assertLive();
    const generation = (this.pool.stamp(this.address) >>> 2) & 0xfffff;
    this.sent = true;
    this.bytesView = undefined;
    this.wordsView = undefined;
    return (Math.floor(this.address / 2 ** 32) | (generation << 12)) >>> 0;
  }

  /** Gives the buffer back; a second free is DOUBLE_FREE. */
  free(): void {
    if (this.freed) {
      throw new PenstockError(
        'DOUBLE_FREE',
        `the buffer at 0x${this.address.toString(16)} is free already`,
        {
          hint: 'free each buffer once; a GIVEn buffer is freed by its device',
        },
      );
    }
    this.pool.put(this.address);
  }

  [Symbol.dispose](): void {
    if (!this.freed) this.free();
  }

  private assertLive(): void {
    if (!this.freed) return;
    if (this.sent) {
      throw new PenstockError(
        'USE_AFTER_SEND',
        `the buffer at 0x${this.address.toString(16)} was sent`,
        {
          hint: 'whoever got it has it now; take another buffer, or send a copy',
        },
      );
    }
    throw new PenstockError(
      'USE_AFTER_FREE',
      `the buffer at 0x${this.address.toString(16)} was freed`,
      {
        hint: 'keep the buffer until the last operation that uses it has completed',
      },
    );
  }
}

export interface MemoryOptions extends SegmentOptions {
  /**
   * For memory that others map: each segment of a size class is as large as all before it (up to 64
   * MiB), and none goes before `close`.
   */
  lasting?: boolean;
  /**
   * Where to make a pool of so many bytes, whose buffers are to be aligned so; undefined when there
   * is no room (OUT_OF_MEMORY). Segments of its own when left out.
   */
  carve?: (bytes: number, align: number) => Place | undefined;
  /** Called when all buffers of a class are out, before the memory grows: some may come home. */
  beforeGrowth?: () => void;
  /** Called with each new segment, before any buffer of it is given out. */
  onSegment?: (segment: Segment) => void;
}

/** Buffers by size class (powers of two); grows by new segments, shrinks by `trim`. */
export class Memory {
  private readonly options: MemoryOptions;
  private readonly classes = new Map<number, BufferPool[]>();

  constructor(options: MemoryOptions = {}) {
    this.options = options;
  }

  /** What it holds, in bytes of segments. */
  get segmentBytes(): number {
    let sum = 0;
    for (const pools of this.classes.values())
      for (const { segment } of pools) sum += segment.bytes;
    return sum;
  }

  /**
   * A buffer of `bytes` (1 to 1 GiB), aligned to the power of two from its size on, at most 2 MiB.
   * OUT_OF_MEMORY when none can be had.
   */
  alloc(bytes: number): DmaBuffer {
    if (!Number.isInteger(bytes) || bytes < 1 || bytes > SEGMENT_BYTES_MAX / 2) {
      throw new RangeError(`a buffer has from 1 byte to 1 GiB, not ${bytes}`);
    }
    const classBytes = Math.max(CLASS_BYTES_MIN, 2 ** Math.ceil(Math.log2(bytes)));
    let pools = this.classes.get(classBytes);
    if (pools === undefined) this.classes.set(classBytes, (pools = []));
    let address = takeFrom(pools);
    if (address === 0 && pools.length > 0 && this.options.beforeGrowth !== undefined) {
      this.options.beforeGrowth();
      address = takeFrom(pools);
    }
    if (address === 0) {
      pools.push(this.grow(classBytes, pools));
      address = takeFrom(pools);
    }
    return new DmaBuffer(pools[pools.length - 1]!, address, bytes);
  }

  /** Frees by address, in whichever environment of the process the buffer's pool lives. */
  freeAddress(address: number): void {
    for (const pools of this.classes.values()) {
      for (const pool of pools) {
        if (!pool.covers(address)) continue;
        pool.put(address);
        return;
      }
    }
    returnHome(address);
  }

  /** Buffers that are out. */
  get taken(): number {
    let sum = 0;
    for (const pools of this.classes.values()) for (const pool of pools) sum += pool.taken;
    return sum;
  }

  /** Closes the segments none of whose buffers is out (lasting memory keeps them). */
  trim(): void {
    if (this.options.lasting === true) return;
    for (const [classBytes, pools] of this.classes) {
      const kept = pools.filter((pool) => {
        if (pool.taken > 0) return true;
        pool.close();
        return false;
      });
      if (kept.length === 0) this.classes.delete(classBytes);
      else this.classes.set(classBytes, kept);
    }
  }

  /** Closes all segments, also under buffers that are out: their views show zeros from then on. */
  close(): void {
    for (const pools of this.classes.values()) for (const pool of pools) pool.close();
    this.classes.clear();
  }

  private grow(classBytes: number, pools: readonly BufferPool[]): BufferPool {
    let count = Math.max(
      1,
      Math.floor(SLAB_BYTES / classBytes) || Math.min(8, Math.floor((16 * 2 ** 20) / classBytes)),
    );
    if (this.options.lasting === true) {
      const have = pools.reduce((sum, pool) => sum + pool.count, 0);
      count = Math.max(count, Math.min(have, Math.floor(LASTING_BYTES_MAX / classBytes)));
    }
    const { carve, onSegment, ...options } = this.options;
    const place = carve === undefined ? {} : { within: carved(carve, classBytes, count) };
    const pool = new BufferPool({ ...options, ...place, bufferBytes: classBytes, count });
    onSegment?.(pool.segment);
    return pool;
  }
}

function carved(
  carve: NonNullable<MemoryOptions['carve']>,
  bufferBytes: number,
  count: number,
): Place {
  const place = carve(poolBytes(bufferBytes, count), Math.min(bufferBytes, GRANULE_BYTES));
  if (place !== undefined) return place;
  throw new PenstockError('OUT_OF_MEMORY', 'the region has no room for more buffers', {
    hint: 'give buffers back, or make the region larger',
  });
}

/** Takes a buffer from the pools, whose last is then the one that it came from; or 0. */
function takeFrom(pools: BufferPool[]): number {
  const last = pools.length - 1;
  for (let i = last; i >= 0; i--) {
    const pool = pools[i]!;
    const address = pool.take();
    if (address === 0) continue;
    if (i !== last) [pools[i], pools[last]] = [pools[last]!, pool];
    return address;
  }
  return 0;
}

const instances: { private?: Memory; device?: Memory } = {};

/**
 * The environment's memory of a kind, which all devices share: private as a rule, device for those
 * whose back end, another process, maps it.
 */
export function memoryOfKind(kind: 'private' | 'device'): Memory {
  return (instances[kind] ??= new Memory({ kind }));
}

/** The environment's ordinary (private) memory. */
export function defaultMemory(): Memory {
  return memoryOfKind('private');
}
