// Segments: pieces of memory at one address in every environment of the process, and beyond it.

import { errnoCode, PenstockError } from '../errors.js';
import { native, type SegmentRecord } from '../native.js';
import { StatusWord, statusWords } from './status.js';

export const MEBIBYTE = 2 ** 20;
/** Segments are placed and sized in granules. */
export const GRANULE_BYTES = 2 * MEBIBYTE;
export const SEGMENT_BYTES_MAX = 2 ** 31;

/**
 * private: never given out. shared: sealed, read-only for others. device: for one back end that
 * writes.
 */
export type SegmentKind = 'private' | 'shared' | 'device' | 'imported' | 'admitted';

const KINDS: readonly SegmentKind[] = ['private', 'shared', 'device', 'imported', 'admitted'];

/** Memory of this process (or mapped into it), at `address` for everyone. */
export class Segment {
  readonly id: number;
  readonly address: number;
  /** A multiple of 2 MiB. */
  readonly bytes: number;
  /** Bytes the object behind it has; less than `bytes` only for imported memory. */
  readonly backedBytes: number;
  readonly pageBytes: number;
  readonly kind: SegmentKind;
  readonly writable: boolean;
  /** Made once. After close they show zeros (anonymous pages), never someone else's memory. */
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  private open = true;
  private readonly onClose: (segment: Segment) => void;

  constructor(record: SegmentRecord, onClose: (segment: Segment) => void) {
    this.id = record.id;
    this.address = record.address;
    this.bytes = record.bytes;
    this.backedBytes = record.backedBytes;
    this.pageBytes = record.pageBytes;
    this.kind = KINDS[record.kind] ?? 'private';
    this.writable = record.writable;
    const buffer = native.segmentBuffer(record.id);
    this.u8 = new Uint8Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.onClose = onClose;
  }

  /**
   * True when the object behind the mapping vanished (truncated file, removed device): bytes read
   * 0xff.
   */
  get lost(): boolean {
    return this.open && statusWords()[StatusWord.lost + (this.id % 4096)] !== 0;
  }

  get closed(): boolean {
    return !this.open;
  }

  /**
   * A new descriptor for others: read-only and sealed (shared) or writable (device). The caller
   * closes it.
   */
  descriptor(): number {
    try {
      return native.segmentFd(this.id);
    } catch (cause) {
      if (errnoCode(cause) !== 'EPERM') throw cause;
      throw new PenstockError('SEGMENT_PRIVATE', `a ${this.kind} segment is not given out`, {
        hint: 'allocate it with kind: "shared" (for domains) or "device" (for a device back end)',
        cause,
      });
    }
  }

  /**
   * Replaces the pages by anonymous ones; the range is used again when no view over it is left
   * anywhere.
   */
  close(): void {
    if (!this.open) return;
    this.open = false;
    this.onClose(this);
    native.segmentClose(this.id);
  }
}
