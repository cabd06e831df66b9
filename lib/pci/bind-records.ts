// What a device was before it was bound: one file per device below /run/penstock, which is gone
// with the binding itself at the next boot. Written before the first change and removed after the
// last, so that whatever a crash leaves behind can be put back.

import { type FunctionFacts, readFacts } from './facts.js';
import type { Machine } from './machine.js';
import type { Root } from './root.js';

export const RECORDS_FOLDER = '/run/penstock';
const SCHEMA = 'penstock.bind-record/1';
const FILE = /^bind-(.+)\.json$/;

export interface BindRecord {
  readonly address: string;
  readonly vendor: number;
  readonly device: number;
  /** The driver it is bound to, or was about to be. */
  readonly driver: string;
  /** '' for none. */
  readonly originalDriver: string;
  readonly originalOverride: string;
  /** ISO 8601. */
  readonly since: string;
}

/**
 * `bound`; `half-bound`: some changes were made, not all; `unchanged`: none was, or all were put
 * back; `gone`: no such function any more; `replaced`: another device has its address now.
 */
export type BindState = 'bound' | 'half-bound' | 'unchanged' | 'gone' | 'replaced';

export function recordPath(address: string): string {
  return `${RECORDS_FOLDER}/bind-${address}.json`;
}

export function recordText(record: BindRecord): string {
  return `${JSON.stringify({ schema: SCHEMA, ...record }, null, 2)}\n`;
}

/** Null when there is none, or none that can be read: what it was before is then not known. */
export function readRecord(root: Root, address: string): BindRecord | null {
  try {
    const found = JSON.parse(root.read(recordPath(address))) as BindRecord & { schema: string };
    const { schema, ...record } = found;
    return schema === SCHEMA && record.address === address ? record : null;
  } catch {
    return null;
  }
}

/** Addresses that have a record, readable or not. */
export function recordedAddresses(root: Root): string[] {
  return root.list(RECORDS_FOLDER).flatMap((name) => FILE.exec(name)?.[1] ?? []);
}

export function forget(machine: Machine, address: string): void {
  machine.remove(recordPath(address));
}

/** How far it got: by what the device is now, so that no crash can make it wrong. */
export function bindState(root: Root, record: BindRecord): BindState {
  const facts = readFacts(root, record.address);
  if (facts === null) return 'gone';
  return stateOf(facts, record);
}

function stateOf(facts: FunctionFacts, record: BindRecord): BindState {
  if (facts.vendor !== record.vendor || facts.device !== record.device) return 'replaced';
  if (facts.driver === record.driver && facts.driverOverride === record.driver) return 'bound';
  const asBefore =
    facts.driver === record.originalDriver && facts.driverOverride === record.originalOverride;
  return asBefore ? 'unchanged' : 'half-bound';
}
