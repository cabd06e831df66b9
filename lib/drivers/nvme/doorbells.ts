// A queue pair's doorbells: by a store to the mapped register, by a call where registers are
// trapped, or by shadow doorbells in memory (NVM Express Base 2.0, section 5.8 and annex B.5),
// which need the register only when the controller asks for it by its event index.

import type { Bar } from '../../pci/index.js';
import { fence } from '../../wire/index.js';

export interface DoorbellOptions {
  readonly bar: Bar;
  /**
   * Bytes from the BAR's start to the pair's tail doorbell, and from there to its head doorbell.
   */
  readonly offset: number;
  readonly strideBytes: number;
  /** Shadow doorbells and event indices, with the word of the pair's tail in both; null: none. */
  readonly shadow: { doorbells: Uint32Array; eventIndices: Uint32Array; word: number } | null;
}

export class Doorbells {
  /** Register writes and shadow writes so far (32-bit, wrapping). */
  mmio = 0;
  shadowed = 0;
  private readonly words: Uint32Array | null;
  private readonly headWord: number;
  private readonly shadow: Uint32Array | null;
  private readonly eventIndices: Uint32Array;
  private readonly shadowWord: number;
  private readonly shadowStride: number;
  private readonly bar: Bar;
  private readonly offset: number;
  private readonly strideBytes: number;

  constructor(options: DoorbellOptions) {
    const { bar, offset, strideBytes, shadow } = options;
    this.bar = bar;
    this.offset = offset;
    this.strideBytes = strideBytes;
    this.words = bar.words(offset, strideBytes + 4);
    this.headWord = strideBytes / 4;
    this.shadow = shadow === null ? null : shadow.doorbells;
    this.eventIndices = shadow === null ? new Uint32Array(0) : shadow.eventIndices;
    this.shadowWord = shadow === null ? 0 : shadow.word;
    this.shadowStride = strideBytes / 4;
  }

  // hot:begin

  /** Tells the controller the submission queue's new tail. */
  tail(value: number): void {
    if (this.shadow !== null && !this.asked(this.shadow, this.shadowWord, value)) return;
    this.mmio = (this.mmio + 1) | 0;
    if (this.words !== null) this.words[0] = value;
    else this.bar.write32(this.offset, value);
  }

  /** Tells the controller the completion queue's new head. */
  head(value: number): void {
    const word = this.shadowWord + this.shadowStride;
    if (this.shadow !== null && !this.asked(this.shadow, word, value)) return;
    this.mmio = (this.mmio + 1) | 0;
    if (this.words !== null) this.words[this.headWord] = value;
    else this.bar.write32(this.offset + this.strideBytes, value);
  }

  /** Stores a shadow doorbell; whether the controller wants the register written, too. */
  private asked(shadow: Uint32Array, word: number, value: number): boolean {
    const old = shadow[word]!;
    shadow[word] = value;
    this.shadowed = (this.shadowed + 1) | 0;
    // The controller stores its event index, then looks at the shadow once more; we store the
    // shadow, then look at its event index: one of us sees the other.
    fence();
    const event = this.eventIndices[word]!;
    return ((value - event - 1) & 0xffff) < ((value - old) & 0xffff);
  }

  // hot:end
}
