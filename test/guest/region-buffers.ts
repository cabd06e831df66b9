// Buffers whose every word says which it is.

export const BUFFER_BYTES = 65536;

export function fillBuffer(words: Uint32Array, serial: number): void {
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(serial + 1, 0x9e3779b1) ^ i;
}

/** Index of the first word that is not as `fillBuffer` made it; -1: none. */
export function firstWrong(words: ArrayLike<number>, serial: number): number {
  const seed = Math.imul(serial + 1, 0x9e3779b1);
  for (let i = 0; i < words.length; i++) if (words[i] !== (seed ^ i) >>> 0) return i;
  return -1;
}
