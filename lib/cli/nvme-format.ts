// Numbers and identifiers as nvme-cli prints them.

import type { Field, Layout } from '../wire/index.js';

/** C's `%#x`: 0 has no prefix. */
export function hex(value: number | bigint): string {
  return value === 0 || value === 0n ? '0' : `0x${value.toString(16)}`;
}

export type Value = number | bigint | string;

/**
 * The fields of a page in the order of its table, with the values of its parsed form; fields that
 * `hidden` names, and those that are not in the parsed form, left out.
 */
export function fieldsOf(
  layout: Layout,
  values: object,
  hidden: ReadonlySet<string> = new Set(),
): [Field, Value][] {
  const byName = values as Readonly<Record<string, Value | undefined>>;
  return layout.fields.flatMap((field): [Field, Value][] => {
    const value = byName[field.name];
    return value === undefined || hidden.has(field.name) ? [] : [[field, value]];
  });
}

/**
 * A value in JSON: 64 bits as a number, 128 bits as text, since readers of JSON with doubles would
 * round it.
 */
export function jsonValue(field: Field, value: Value): Value {
  return typeof value === 'bigint' && field.bytes === 16 ? value.toString() : value;
}

const SI_SUFFIXES = ['Q', 'R', 'Y', 'Z', 'E', 'P', 'T', 'G', 'M', 'k'] as const;

/** `1.02 TB`: two decimals and the suffix, by powers of 1000; `blank` before a missing suffix. */
export function siBytes(bytes: bigint): { readonly number: string; readonly suffix: string } {
  for (const [index, suffix] of SI_SUFFIXES.entries()) {
    const magnitude = 1000n ** BigInt(SI_SUFFIXES.length - index);
    if (bytes >= magnitude) return { number: hundredths(bytes, magnitude), suffix };
  }
  return { number: hundredths(bytes, 1n), suffix: '' };
}

function hundredths(value: bigint, magnitude: bigint): string {
  const rounded = (value * 200n + magnitude) / (2n * magnitude);
  return `${rounded / 100n}.${String(rounded % 100n).padStart(2, '0')}`;
}
