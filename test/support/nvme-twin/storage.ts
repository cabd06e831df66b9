// A namespace's blocks: chunks made at the first write, zeros elsewhere; and its volatile write
// cache, kept as what the blocks held before, so that a power cut can bring that back.

import type { TwinNamespaceOptions } from './options.js';

const CHUNK_BLOCKS = 128;

/** Bytes per block in chunks: data, or metadata. */
class Plane {
  readonly unit: number;
  private readonly chunks = new Map<number, Uint8Array>();

  constructor(unit: number) {
    this.unit = unit;
  }

  read(block: number, count: number, to: Uint8Array): void {
    this.eachPart(block, count, (chunk, start, end, at) => {
      const from = this.chunks.get(chunk);
      if (from === undefined) to.fill(0, at, at + end - start);
      else to.set(from.subarray(start, end), at);
    });
  }

  write(block: number, count: number, from: Uint8Array): void {
    this.eachPart(block, count, (chunk, start, end, at) => {
      this.chunk(chunk).set(from.subarray(at, at + end - start), start);
    });
  }

  zero(block: number, count: number): void {
    this.eachPart(block, count, (chunk, start, end) => {
      this.chunks.get(chunk)?.fill(0, start, end);
    });
  }

  private chunk(index: number): Uint8Array {
    let chunk = this.chunks.get(index);
    if (chunk === undefined) {
      chunk = new Uint8Array(CHUNK_BLOCKS * this.unit);
      this.chunks.set(index, chunk);
    }
    return chunk;
  }

  /** Calls with chunk, byte range in it, and the offset in the whole transfer. */
  private eachPart(
    block: number,
    count: number,
    part: (chunk: number, start: number, end: number, at: number) => void,
  ): void {
    let at = 0;
    for (let next = block; next < block + count;) {
      const chunk = Math.floor(next / CHUNK_BLOCKS);
      const first = next - chunk * CHUNK_BLOCKS;
      const here = Math.min(CHUNK_BLOCKS - first, block + count - next);
      part(chunk, first * this.unit, (first + here) * this.unit, at);
      at += here * this.unit;
      next += here;
    }
  }
}

interface OldBlock {
  readonly data: Uint8Array;
  readonly metadata: Uint8Array;
}

export class TwinNamespace {
  readonly nsid: number;
  readonly blockSize: number;
  readonly metadataBytes: number;
  /** Metadata follows each block's data in the buffer. */
  readonly extended: boolean;
  blocks: number;
  /** Blocks that were written since, as they were at the last flush; null: no volatile cache. */
  private readonly dirty: Map<number, OldBlock> | null;
  private readonly data: Plane;
  private readonly metadata: Plane;

  constructor(options: TwinNamespaceOptions & { nsid: number }, volatileCache: boolean) {
    this.nsid = options.nsid;
    this.blocks = options.blocks ?? 1024;
    this.blockSize = options.blockSize ?? 512;
    this.metadataBytes = options.metadataBytes ?? 0;
    this.extended = options.extended ?? false;
    this.data = new Plane(this.blockSize);
    this.metadata = new Plane(this.metadataBytes);
    this.dirty = volatileCache ? new Map() : null;
  }

  /** Bytes of a block in the data buffer. */
  get bufferUnit(): number {
    return this.blockSize + (this.extended ? this.metadataBytes : 0);
  }

  /** The blocks as they stand in a data buffer. */
  read(lba: number, count: number): Uint8Array {
    const data = new Uint8Array(count * this.blockSize);
    this.data.read(lba, count, data);
    return this.extended ? this.interleave(data, this.readMetadata(lba, count)) : data;
  }

  readMetadata(lba: number, count: number): Uint8Array {
    const metadata = new Uint8Array(count * this.metadataBytes);
    this.metadata.read(lba, count, metadata);
    return metadata;
  }

  /** `buffer` is a data buffer (with metadata if extended), `metadata` a buffer of its own. */
  write(lba: number, count: number, buffer: Uint8Array, metadata: Uint8Array | null): void {
    this.remember(lba, count);
    if (!this.extended) {
      this.data.write(lba, count, buffer);
      if (metadata !== null) this.metadata.write(lba, count, metadata);
      return;
    }
    const { blockSize, bufferUnit } = this;
    for (let i = 0; i < count; i++) {
      const at = i * bufferUnit;
      this.data.write(lba + i, 1, buffer.subarray(at, at + blockSize));
      this.metadata.write(lba + i, 1, buffer.subarray(at + blockSize, at + bufferUnit));
    }
  }

  zero(lba: number, count: number): void {
    this.remember(lba, count);
    this.data.zero(lba, count);
    this.metadata.zero(lba, count);
  }

  /** Makes blocks, or all, durable. */
  settle(lba = 0, count = Infinity): void {
    if (this.dirty === null) return;
    if (count === Infinity) this.dirty.clear();
    else for (let block = lba; block < lba + count; block++) this.dirty.delete(block);
  }

  /** What was not flushed is lost, but for the blocks that `survives` keeps. */
  powerCut(survives: (lba: number) => boolean = () => false): void {
    for (const [lba, old] of this.dirty ?? []) {
      if (survives(lba)) continue;
      this.data.write(lba, 1, old.data);
      this.metadata.write(lba, 1, old.metadata);
    }
    this.dirty?.clear();
  }

  get dirtyBlocks(): number {
    return this.dirty?.size ?? 0;
  }

  private remember(lba: number, count: number): void {
    if (this.dirty === null) return;
    for (let block = lba; block < lba + count; block++) {
      if (this.dirty.has(block)) continue;
      const data = new Uint8Array(this.blockSize);
      this.data.read(block, 1, data);
      this.dirty.set(block, { data, metadata: this.readMetadata(block, 1) });
    }
  }

  private interleave(data: Uint8Array, metadata: Uint8Array): Uint8Array {
    const { blockSize, metadataBytes, bufferUnit } = this;
    const whole = new Uint8Array((data.length / blockSize) * bufferUnit);
    for (let i = 0; i * blockSize < data.length; i++) {
      whole.set(data.subarray(i * blockSize, (i + 1) * blockSize), i * bufferUnit);
      const from = metadata.subarray(i * metadataBytes, (i + 1) * metadataBytes);
      whole.set(from, i * bufferUnit + blockSize);
    }
    return whole;
  }
}
