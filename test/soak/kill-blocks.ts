// The blocks that the kill soak's child writes and its parent reads: sequence, position, and words
// that follow from both, so that a torn or misplaced block shows.

export const WRITERS = 3;
export const REGION_BLOCKS = 512;
export const BLOCK_BYTES = 4096;

/** Words: sequence low, sequence high, block index, then a chain from these. */
export function fillBlock(words: Uint32Array, index: number, sequence: number): void {
  words[0] = sequence >>> 0;
  words[1] = Math.floor(sequence / 2 ** 32);
  words[2] = index;
  chain(words, words);
}

export function sequenceOf(block: Buffer): number {
  return block.readUInt32LE(0) + block.readUInt32LE(4) * 2 ** 32;
}

/** Whether a block is one that was written here as a whole, or was never written. */
export function blockIsWhole(block: Buffer, index: number): boolean {
  if (block.every((byte) => byte === 0)) return true;
  if (block.readUInt32LE(8) !== index) return false;
  const words = new Uint32Array(block.buffer, block.byteOffset, BLOCK_BYTES / 4);
  const wanted = new Uint32Array(words.length);
  chain(words, wanted);
  return words.every((word, i) => i < 3 || word === wanted[i]);
}

function chain(from: Uint32Array, to: Uint32Array): void {
  let state = from[0]! ^ Math.imul(from[2]! + 1, 0x9e3779b1);
  for (let i = 3; i < BLOCK_BYTES / 4; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    to[i] = state;
  }
}
