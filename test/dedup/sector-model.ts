// A volume in sectors of 512 bytes, as it must be to the byte: what each sector holds is made of a
// number (0: zeros); after a failed write it may be the old one or the new one.

import { expect } from 'vitest';

export const SECTOR = 512;
const WORDS = SECTOR / 4;

export function fillSector(words: Uint32Array, at: number, content: number): void {
  for (let i = 0; i < WORDS; i++) {
    words[at * WORDS + i] = content === 0 ? 0 : Math.imul(content, 0x9e3779b1) + i;
  }
}

/** The number that a sector's bytes were made of; -1: it is none. */
export function contentOf(words: Uint32Array, at: number): number {
  const first = words[at * WORDS]!;
  // The inverse of the factor modulo 2^32.
  const content = Math.imul(first, 0x0e8b2f51) >>> 0;
  for (let i = 1; i < WORDS; i++) {
    const wanted = content === 0 ? 0 : (Math.imul(content, 0x9e3779b1) + i) >>> 0;
    if (words[at * WORDS + i] !== wanted) return -1;
  }
  return content;
}

export class SectorModel {
  readonly sectors: number;
  private readonly contents: Uint32Array;
  /** What a sector may hold instead. */
  private readonly others = new Map<number, number[]>();

  constructor(sectors: number) {
    this.sectors = sectors;
    this.contents = new Uint32Array(sectors);
  }

  /** A write was acknowledged; `contents` by sector. */
  holds(first: number, contents: readonly number[]): void {
    contents.forEach((content, i) => {
      this.contents[first + i] = content;
      this.others.delete(first + i);
    });
  }

  /** A write failed. */
  mayHold(first: number, contents: readonly number[]): void {
    contents.forEach((content, i) => {
      const others = this.others.get(first + i);
      if (others === undefined) this.others.set(first + i, [content]);
      else others.push(content);
    });
  }

  /** What was read is what is there. */
  compare(first: number, words: Uint32Array): void {
    for (let i = 0; i < words.length / WORDS; i++) {
      const content = contentOf(words, i);
      if (content === this.contents[first + i]) continue;
      const others = this.others.get(first + i) ?? [];
      const wanted = [this.contents[first + i], ...others];
      expect(wanted, `sector ${first + i} holds ${content}`).toContain(content);
    }
  }
}
