// Numbers above 2^32 as pairs of words, low and high.

const TWO_32 = 4294967296;

/** The pair of words at `at` as a number. */
export function pair(words: Uint32Array, at: number): number {
  return words[at + 1]! * TWO_32 + words[at]!;
}

export function setPair(words: Uint32Array, at: number, value: number): void {
  words[at] = value >>> 0;
  words[at + 1] = (value / TWO_32) >>> 0;
}
