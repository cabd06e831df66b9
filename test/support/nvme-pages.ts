// Pages of NVMe controllers for tests: random bytes from a seed, and pages whose fields are set by
// offset, from the standard and not from the tables under test.

import type { Layout } from '../../lib/wire/index.js';

/** The same bytes for the same seed (xorshift32). */
export function randomBytes(count: number, seed: number): Uint8Array {
  let state = (seed * 0x9e3779b9) >>> 0 || 1;
  return Uint8Array.from({ length: count }, () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 24;
  });
}

/** A copy whose 32-bit fields are below 2^31, for `count` structures from `offset` on. */
export function signless(page: Uint8Array, layout: Layout, offset = 0, count = 1): Uint8Array {
  const copy = page.slice();
  for (let index = 0; index < count; index++) {
    for (const field of layout.fields) {
      if (field.bytes !== 4) continue;
      copy[offset + index * layout.bytes + field.offset + 3]! &= 0x7f;
    }
  }
  return copy;
}

/** A page of zeros with numbers of 1, 2, 4 or 8 bytes, or texts, at byte offsets. */
export function pageOf(
  bytes: number,
  fields: readonly (readonly [offset: number, width: number, value: number | bigint | string])[],
): Uint8Array {
  const page = Buffer.alloc(bytes);
  for (const [offset, width, value] of fields) {
    if (typeof value === 'string') page.write(value.padEnd(width), offset, 'latin1');
    else if (width === 8) page.writeBigUInt64LE(BigInt(value), offset);
    else page.writeUIntLE(Number(value), offset, width);
  }
  return new Uint8Array(page);
}

/**
 * JSON to compare: numbers beyond 2^53 as texts, and 32-bit fields as unsigned, which nvme-cli 2.3
 * shows as signed.
 */
export function comparable(json: string): unknown {
  const exact = json.replace(/(: ?)(-?\d{16,})(?=,?\n)/g, '$1"$2"');
  return JSON.parse(exact, (_, value: unknown) =>
    typeof value === 'number' && value < 0 ? value >>> 0 : value,
  );
}
