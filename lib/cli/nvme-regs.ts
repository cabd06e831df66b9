// `nvme show-regs`: the controller's registers as nvme-cli 2.3 prints them; with
// --human-readable, the bits of each by our tables. Difference: registers in JSON are not negative.

import { littleEndian, REGISTER_BITS, decodeRegisters, REGISTERS } from '../drivers/nvme/index.js';

/** Registers end here; what nvme-cli's binary output has. */
export const REGISTER_BYTES = 0xe1c;

const ALL_ONES = 0xffffffffn;

/** Registers that nvme-cli 2.3 does not know. */
const HIDDEN = new Set(['CMBEBS', 'CMBSWTP', 'NSSD']);

/** Text: those that also a fabrics controller has come first. */
const FIRST = ['CAP', 'VS', 'CC', 'CSTS', 'NSSR', 'CRTO'];
/** JSON: in order of their offsets but for this one, which comes after NSSR. */
const MOVED = 'CRTO';

const LABELS: Readonly<Record<string, string>> = {
  VS: 'version ',
  CMBMSC: 'cmbmsc\t',
  CMBSTS: 'cmbsts\t',
  PMRMSCL: 'pmrmscl\t',
  PMRMSCU: 'pmrmscu\t',
};
const PREFIXED = new Set(['PMRMSCL', 'PMRMSCU']);

/** Name → value, in order of their offsets. */
function registerValues(dump: Uint8Array): Map<string, bigint> {
  const shown = REGISTERS.fields.filter(({ name }) => !HIDDEN.has(name));
  return new Map(
    shown.map(({ name, offset, bytes }) => [
      name,
      littleEndian(dump.subarray(offset, offset + bytes)),
    ]),
  );
}

/** The registers as an object with nvme-cli's keys. */
export function showRegsJson(dump: Uint8Array): Record<string, bigint> {
  const values = registerValues(dump);
  const names = [...values.keys()].filter((name) => name !== MOVED);
  names.splice(names.indexOf('NSSR') + 1, 0, MOVED);
  return Object.fromEntries(names.map((name) => [name.toLowerCase(), values.get(name)!]));
}

export function showRegsText(dump: Uint8Array, humanReadable = false): string {
  const values = registerValues(dump);
  const rest = [...values.keys()].filter((name) => !FIRST.includes(name));
  const first = FIRST.filter((name) => values.get(name) !== ALL_ONES);
  const bits = humanReadable ? decodeRegisters(dump) : {};
  const lines = [...first, ...rest].flatMap((name) => {
    const value = values.get(name)!;
    const label = LABELS[name] ?? name.toLowerCase().padEnd(8);
    const prefix = PREFIXED.has(name) && value !== 0n ? '0x' : '';
    return [`${label}: ${prefix}${value.toString(16)}`, ...bitLines(name, bits[name])];
  });
  return `${lines.join('\n')}\n`;
}

function bitLines(name: string, values: Readonly<Record<string, number>> = {}): string[] {
  const fields = REGISTER_BITS[name]?.fields ?? [];
  const decoded = fields.filter((field) => field.name in values);
  const lines = decoded.map(
    (field) =>
      `\t${field.name.padEnd(8)} ${String(values[field.name]).padEnd(10)} ${field.meaning}`,
  );
  return lines.length === 0 ? [] : [...lines, ''];
}
