// Numbers of blocks and pages: what they say of places, and pairs of words that hold them.

import { Group } from './layout.js';

// A pbn is a number above 2^32 now and then; `%` of such is slow, and its low bits are enough.
const GROUP_MASK = Group.pages - 1;
const TWO_32 = 4294967296;

export function groupOf(pbn: number): number {
  return Math.floor(pbn / Group.pages);
}

/** A block's count in its group's count page. */
export function countIndex(pbn: number): number {
  const page = (pbn >>> 0) & GROUP_MASK;
  return (page >>> Group.extentShift) * Group.blocks + (page & 255) - Group.metaPages;
}

/** The pair of words at `at` as a number. */
export function pair(words: Uint32Array, at: number): number {
  return words[at + 1]! * TWO_32 + words[at]!;
}

export function setPair(words: Uint32Array, at: number, value: number): void {
  words[at] = value >>> 0;
  words[at + 1] = (value / TWO_32) >>> 0;
}
