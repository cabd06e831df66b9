// `nvme id-ns`: Identify Namespace as nvme-cli 2.3 prints it. Difference: a number of formats above
// 64, which no page has, is not followed beyond the page's 64.

import {
  type IdentifyNamespace,
  LBA_FORMATS_MAX,
  NAMESPACE_LAYOUT,
  parseNamespace,
} from '../drivers/nvme/index.js';
import { fieldsOf, hex, jsonValue } from './nvme-format.js';

/** Printed only where nsfeat says that the controller fills them in. */
const HINTS = ['npwg', 'npwa', 'npdg', 'npda', 'nows'];
const HINTS_VALID = 0x10;

const HEXADECIMAL = new Set([
  ...['nsze', 'ncap', 'nuse', 'nsfeat', 'flbas', 'mc', 'dpc', 'dps', 'nmic', 'rescap', 'fpi'],
]);

function hidden(namespace: IdentifyNamespace): Set<string> {
  return new Set(['vs', ...((namespace.nsfeat & HINTS_VALID) !== 0 ? [] : HINTS)]);
}

/** nvme-cli's order where it is not the page's. */
const JSON_TAIL = ['mssrl', 'mcl', 'msrc', 'nulbaf', 'anagrpid', 'endgid', 'eui64', 'nguid'];
const JSON_MIDDLE = ['nsattr', 'nvmsetid', ...HINTS];
const TEXT_TAIL = ['anagrpid', 'nsattr', 'nvmsetid', 'endgid', 'nguid', 'eui64'];

/** The page as an object with nvme-cli's keys and types. */
export function idNsJson(page: Uint8Array): Record<string, unknown> {
  const namespace = parseNamespace(page);
  const fields = fieldsOf(NAMESPACE_LAYOUT, namespace, hidden(namespace));
  const byName = new Map(fields.map(([field, value]) => [field.name, jsonValue(field, value)]));
  const json: Record<string, unknown> = {};
  for (const name of reordered([...byName.keys()], [...JSON_MIDDLE, ...JSON_TAIL])) {
    json[name] = byName.get(name);
  }
  const count = Math.min(namespace.nlbaf + 1, LBA_FORMATS_MAX);
  json['lbafs'] = namespace.lbaFormats.slice(0, count);
  return json;
}

export function idNsText(page: Uint8Array, nsid: number): string {
  const namespace = parseNamespace(page);
  const fields = fieldsOf(NAMESPACE_LAYOUT, namespace, hidden(namespace));
  const byName = new Map(fields.map(([field, value]) => [field.name, value]));
  const lines = reordered([...byName.keys()], TEXT_TAIL).map((name) => {
    const value = byName.get(name)!;
    // One of its labels ends in a tab.
    const label = name === 'nsattr' ? 'nsattr\t' : name.padEnd(8);
    const decimal = typeof value === 'string' || !HEXADECIMAL.has(name);
    return `${label}: ${decimal ? value : hex(value)}`;
  });
  const heading = `NVME Identify Namespace ${nsid}:`;
  return [heading, ...lines, ...formatLines(namespace), ''].join('\n');
}

/** `names` with those of `tail` at the end, in the tail's order. */
function reordered(names: readonly string[], tail: readonly string[]): string[] {
  const head = names.filter((name) => !tail.includes(name));
  return [...head, ...tail.filter((name) => names.includes(name))];
}

function formatLines(namespace: IdentifyNamespace): string[] {
  const { lbaFormats, formatCount, formatIndex } = namespace;
  return lbaFormats.slice(0, formatCount).map(({ ms, ds, rp }, index) => {
    const numbers = [`ms:${pad(ms, 3)}`, `lbads:${pad(ds, 2)}`, `rp:${hex(rp)}`].join(' ');
    const inUse = index === formatIndex ? '(in use)' : '';
    return `lbaf ${String(index).padStart(2)} : ${numbers} ${inUse}`;
  });
}

function pad(value: number, columns: number): string {
  return String(value).padEnd(columns);
}
