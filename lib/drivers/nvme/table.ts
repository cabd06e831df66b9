// How the tables of this driver are written: short rows that become a `layout()`, and from the same
// rows a typed reader, so that no field's place stands twice.

import type { Field } from '../../wire/index.js';
import { fixedText, hexText, littleEndian, trimmedText } from './text.js';

/**
 * A field of whole bytes: name, byte offset, bytes, meaning. Its kind, where it is not a
 * little-endian number: `text` is ASCII, `bytes` an identifier or something structured.
 */
export type Row = readonly [
  name: string,
  offset: number,
  bytes: number,
  meaning: string,
  kind?: 'text' | 'bytes',
];

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

type ValueOf<R> = R extends readonly [string, number, number, string, string]
  ? string
  : R extends readonly [string, number, 8 | 16, string]
    ? bigint
    : number;

/** What `readRows` gives: numbers, bigint for 8 and 16 bytes, text, and identifiers as hex. */
export type Read<Rows extends readonly Row[]> = {
  readonly [R in Rows[number] as R[0]]: ValueOf<R>;
};

/**
 * Reads a structure by its rows. Text is trimmed, what is not printable in it escaped; `padded`
 * keeps its padding. Throws RangeError when the data are shorter than the structure.
 */
export function readRows<const Rows extends readonly Row[]>(
  list: Rows,
  data: Uint8Array,
  padded = false,
): Read<Rows> {
  const result: Record<string, number | bigint | string> = {};
  for (const [name, offset, bytes, , kind] of list) {
    if (offset + bytes > data.length) {
      throw new RangeError(`${name}: ends at ${offset + bytes}, ${data.length} bytes given`);
    }
    const part = data.subarray(offset, offset + bytes);
    if (kind === 'text') result[name] = padded ? fixedText(part) : trimmedText(part);
    else if (kind === 'bytes') result[name] = hexText(part);
    else result[name] = bytes > 4 ? littleEndian(part) : Number(littleEndian(part));
  }
  return result as Read<Rows>;
}
