// The cold form of registers and wire structures: tables that decode, dump, document and test.
//
// Hot code uses const enums of 32-bit word indices; a table here says the same with names, offsets,
// widths and meanings, and a test holds the two together (`checkLayout`): the size is what the
// standard says, nothing overlaps, every hot index is the table's offset / 4.

/**
 * One field: `offset` in bytes, `bytes` wide, or `bits` [low, high] of the 32-bit word at `offset`.
 */
export interface Field {
  readonly name: string;
  readonly offset: number;
  readonly bytes: number;
  readonly bits?: readonly [number, number];
  readonly meaning: string;
}

export interface Layout {
  readonly name: string;
  readonly bytes: number;
  /** The standard and section, or the header, that defines it. */
  readonly source: string;
  readonly fields: readonly Field[];
}

/** Declares a structure; throws when fields overlap, stick out or are misaligned. */
export function layout(
  name: string,
  bytes: number,
  source: string,
  fields: readonly Field[],
): Layout {
  const owners = new Array<string | undefined>(bytes * 8);
  const names = new Set<string>();
  for (const field of fields) {
    const [low, high] = field.bits ?? [0, field.bytes * 8 - 1];
    if (names.has(field.name)) throw new RangeError(`${name}: two fields named ${field.name}`);
    names.add(field.name);
    if (field.bits !== undefined && (field.offset % 4 !== 0 || high > 31 || low > high)) {
      throw new RangeError(`${name}.${field.name}: bits must lie in one 32-bit word`);
    }
    if (field.offset + Math.ceil((high + 1) / 8) > bytes) {
      throw new RangeError(`${name}.${field.name}: lies outside the ${bytes} bytes`);
    }
    for (let bit = field.offset * 8 + low; bit <= field.offset * 8 + high; bit++) {
      if (owners[bit] !== undefined) {
        throw new RangeError(`${name}: ${field.name} overlaps ${owners[bit]}`);
      }
      owners[bit] = field.name;
    }
  }
  return Object.freeze({ name, bytes, source, fields: Object.freeze([...fields]) });
}

/**
 * Decodes a structure from little-endian bytes: numbers, or bigint above 32 bits; byte fields as
 * hex.
 */
export function decode(
  structure: Layout,
  data: Uint8Array,
): Record<string, number | bigint | string> {
  if (data.length < structure.bytes) {
    throw new RangeError(
      `${structure.name}: ${structure.bytes} bytes wanted, ${data.length} given`,
    );
  }
  const view = new DataView(data.buffer, data.byteOffset, structure.bytes);
  const result: Record<string, number | bigint | string> = {};
  for (const field of structure.fields) result[field.name] = decodeField(field, view, data);
  return result;
}

function decodeField(field: Field, view: DataView, data: Uint8Array): number | bigint | string {
  if (field.bits !== undefined) {
    const [low, high] = field.bits;
    const width = high - low + 1;
    const word = view.getUint32(field.offset, true) >>> low;
    return width === 32 ? word >>> 0 : word & (2 ** width - 1);
  }
  switch (field.bytes) {
    case 1:
      return view.getUint8(field.offset);
    case 2:
      return view.getUint16(field.offset, true);
    case 4:
      return view.getUint32(field.offset, true);
    case 8:
      return view.getBigUint64(field.offset, true);
    default:
      return Buffer.from(data.subarray(field.offset, field.offset + field.bytes)).toString('hex');
  }
}

/**
 * Compares a hot form (names → 32-bit word indices) with its table; returns what disagrees. Names
 * that end in Lo and Hi are the two words of one 64-bit field; `words` is the structure's size.
 */
export function checkLayout(structure: Layout, hot: Readonly<Record<string, unknown>>): string[] {
  const problems: string[] = [];
  for (const [name, index] of Object.entries(hot)) {
    if (typeof index !== 'number') continue;
    if (name === 'words') {
      if (index * 4 !== structure.bytes)
        problems.push(`words: ${index * 4} bytes, not ${structure.bytes}`);
      continue;
    }
    const field = structure.fields.find(
      (entry) => entry.name === name.replace(/(Lo|Hi)$/, '') || entry.name === name,
    );
    const offset =
      field === undefined ? -1 : field.offset + (name.endsWith('Hi') && field.bytes === 8 ? 4 : 0);
    if (offset !== index * 4) problems.push(`${name}: word ${index}, table says byte ${offset}`);
  }
  return problems;
}
