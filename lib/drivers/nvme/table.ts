// Short rows for the big tables of the standard: `[name, offset, bytes, meaning]` and bits.

import type { Field } from '../../wire/index.js';

/** A field of whole bytes: name, byte offset, bytes, meaning. */
export type Row = readonly [name: string, offset: number, bytes: number, meaning: string];

export function rows(list: readonly Row[]): Field[] {
  return list.map(([name, offset, bytes, meaning]) => ({ name, offset, bytes, meaning }));
}

/** Bits of a register or field: name, lowest and highest bit as the standard counts, meaning. */
export type BitRow = readonly [name: string, low: number, high: number, meaning: string];

/** Bits of up to 64, none of them over the edge of a 32-bit word, from byte `offset` on. */
export function bits(list: readonly BitRow[], offset = 0): Field[] {
  return list.map(([name, low, high, meaning]) => {
    const word = low >>> 5;
    return {
      name,
      offset: offset + word * 4,
      bytes: 4,
      bits: [low - word * 32, high - word * 32],
      meaning,
    };
  });
}
