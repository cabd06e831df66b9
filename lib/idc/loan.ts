// Loan: a buffer of another domain that is held here, to be read and given back.

import { PenstockError } from '../errors.js';
import type { Segment } from '../memory/index.js';
import { slotOf } from './half.js';

/**
 * Bytes that belong to another process: a Uint8Array without what stores into it. Its memory is
 * mapped read-only; a store all the same (by a cast) ends this process.
 */
export type ReadonlyBytes = Omit<
  Uint8Array,
  'set' | 'fill' | 'copyWithin' | 'sort' | 'reverse' | 'buffer' | 'subarray' | number
> & {
  readonly [index: number]: number;
  subarray(begin?: number, end?: number): ReadonlyBytes;
};

/** The same for 32-bit words. */
export type ReadonlyWords = Omit<
  Uint32Array,
  'set' | 'fill' | 'copyWithin' | 'sort' | 'reverse' | 'buffer' | 'subarray' | number
> & {
  readonly [index: number]: number;
  subarray(begin?: number, end?: number): ReadonlyWords;
};

/** What a message says of the buffer that it brings. */
export interface LoanWords {
  readonly lo: number;
  readonly hi: number;
  readonly bytes: number;
  readonly ownerGeneration: number;
}

/** What a loan asks of the domain that has it. */
export interface LoanHome {
  segmentOf(loan: Loan): Segment | undefined;
  giveBack(loan: Loan): void;
}

export class Loan {
  readonly address: number;
  readonly bytes: number;
  /** Domain whose memory it is. */
  readonly owner: number;
  /** Domain that it came from: the owner, or who passed it on. */
  readonly via: number;
  /** Which life of the owner's slot it is. */
  readonly ownerGeneration: number;
  /** Loan words: the address, and the generation above it. */
  readonly lo: number;
  readonly hi: number;
  private readonly home: LoanHome;
  private over = false;
  private bytesView: Uint8Array | undefined;
  private wordsView: Uint32Array | undefined;

  constructor(home: LoanHome, { lo, hi, bytes, ownerGeneration }: LoanWords, via: number) {
    this.home = home;
    this.lo = lo;
    this.hi = hi;
    this.address = (hi & 0xfff) * 2 ** 32 + lo;
    this.bytes = bytes;
    this.owner = slotOf(this.address);
    this.via = via;
    this.ownerGeneration = ownerGeneration;
  }

  /** The bytes where they lie. Throws USE_AFTER_RELEASE. */
  get u8(): ReadonlyBytes {
    this.assertHeld();
    if (this.bytesView === undefined) {
      const { segment, offset } = this.locate();
      this.bytesView = new Uint8Array(segment.u8.buffer, offset, this.bytes);
    }
    return this.bytesView as unknown as ReadonlyBytes;
  }

  /** The bytes as 32-bit words (a last part of a word is left out). */
  get u32(): ReadonlyWords {
    this.assertHeld();
    if (this.wordsView === undefined) {
      const { segment, offset } = this.locate();
      this.wordsView = new Uint32Array(segment.u8.buffer, offset, this.bytes >>> 2);
    }
    return this.wordsView as unknown as ReadonlyWords;
  }

  /** Given back or passed on. */
  get released(): boolean {
    return this.over;
  }

  /** Gives the buffer back to its owner. A second time is USE_AFTER_RELEASE. */
  release(): void {
    this.assertHeld();
    this.home.giveBack(this);
    this.close();
  }

  [Symbol.dispose](): void {
    if (!this.over) this.release();
  }

  /** Ends the handle: the hold was given back, or passed on. */
  close(): void {
    this.over = true;
    this.bytesView = undefined;
    this.wordsView = undefined;
  }

  private locate(): { segment: Segment; offset: number } {
    const segment = this.home.segmentOf(this);
    if (segment === undefined) {
      throw new PenstockError('PEER_GONE', `the memory of domain ${this.owner} is gone`, {
        hint: 'its process ended before this buffer was looked at for the first time',
      });
    }
    return { segment, offset: this.address - segment.address };
  }

  private assertHeld(): void {
    if (!this.over) return;
    throw new PenstockError(
      'USE_AFTER_RELEASE',
      `the loan of 0x${this.address.toString(16)} was released or passed on`,
      { hint: 'release a loan once, after the last look at its bytes' },
    );
  }
}
