// The addon's fingerprint table, typed (floor 0): a part of Native in native-calls.ts.
//
// `table` has a power of two of words, at least one bucket's 16, or a multiple of 1024. A
// fingerprint is 4 words, a block's number 2 (lo, hi), from 1 to 2^36 - 1. With `rate`, a power of
// two up to 2^16, only those fingerprints are in the table (sampled) whose (word 0 >>> 4) % rate
// is 0.

/** fingerprints.cc, where the table's layout stands. */
export interface FingerprintCalls {
  /**
   * out gets 9 words a fingerprint: how many blocks, at most 4, then (lo, hi) of each, the newest
   * first; words beyond them are left alone. Returns how many fingerprints were sampled. A block
   * may be another fingerprint's: only 28 bits and the buckets are compared.
   */
  fingerprintProbe(
    table: Uint32Array,
    rate: number,
    fingerprints: Uint32Array,
    count: number,
    out: Uint32Array,
  ): number;
  /**
   * Makes each block its fingerprint's newest, in order. Adds to 5 words of `out`: entries that are
   * new; entries evicted from full buckets; entries dropped because they were their fingerprint's
   * fifth; fingerprints not sampled; entries that were there and became the newest. Nothing is done
   * when one of the blocks is no block's number.
   */
  fingerprintInsert(
    table: Uint32Array,
    rate: number,
    fingerprints: Uint32Array,
    blocks: Uint32Array,
    count: number,
    out: Uint32Array,
  ): void;
  /** Removes these entries, sampled or not; returns how many were there. */
  fingerprintRemove(
    table: Uint32Array,
    fingerprints: Uint32Array,
    blocks: Uint32Array,
    count: number,
  ): number;
  /** Drops what `rate` leaves out of `buckets` buckets from `from` on; returns how many entries. */
  fingerprintSweep(table: Uint32Array, rate: number, from: number, buckets: number): number;
}
