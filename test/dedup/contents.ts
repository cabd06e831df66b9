// Blocks of a volume by the numbers that their contents are made of (dedup-model.ts).

import type { BlockDevice } from '../../lib/hpdi/index.js';
import { contentOf, fillBlock } from '../soak/dedup-model.js';

export const PAGE = 4096;

export const range = (from: number, count: number): number[] =>
  Array.from({ length: count }, (_, i) => from + i);

export async function write(
  disk: BlockDevice,
  first: number,
  contents: readonly number[],
): Promise<void> {
  const buffer = disk.memory.alloc(contents.length * PAGE);
  for (const [i, content] of contents.entries()) fillBlock(buffer.u32, i * 1024, content);
  await disk.write(first, buffer).finally(() => buffer.free());
}

/** -1: what a block holds is made of no number. */
export async function read(disk: BlockDevice, first: number, count: number): Promise<number[]> {
  const buffer = disk.memory.alloc(count * PAGE);
  buffer.u8.fill(0xee);
  try {
    await disk.read(first, buffer);
    return range(0, count).map((i) => contentOf(buffer.u32, i * 1024));
  } finally {
    buffer.free();
  }
}
