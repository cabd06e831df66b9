// Fields of a control message, checked: whoever sent it may be hostile. All throw PEER_MISBEHAVED.

import { misbehaved } from './transport.js';

type Message = Readonly<Record<string, unknown>>;

const SLOT_MAX = 255;
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;

/** An integer field from `least` to `most`. */
export function integer(message: Message, key: string, least: number, most: number): number {
  const value = message[key];
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= least && value <= most) {
    return value;
  }
  throw misbehaved(`sent ${String(message['type'])} with a wrong ${key}`);
}

export function slot(message: Message, key: string): number {
  return integer(message, key, 1, SLOT_MAX);
}

export function u32(message: Message, key: string): number {
  return integer(message, key, 0, 0xffff_ffff);
}

/** A text of at most `most` characters; '' where it is left out. */
export function text(message: Message, key: string, most: number): string {
  const value = message[key] ?? '';
  if (typeof value === 'string' && value.length <= most) return value;
  throw misbehaved(`sent ${String(message['type'])} with a wrong ${key}`);
}

/** A list of at most `most` integers. */
export function integers(message: Message, key: string, most: number): number[] {
  const value = message[key];
  if (
    Array.isArray(value) &&
    value.length <= most &&
    value.every((entry) => Number.isSafeInteger(entry) && (entry as number) >= 0)
  ) {
    return value as number[];
  }
  throw misbehaved(`sent ${String(message['type'])} with a wrong ${key}`);
}

/** Whether a domain may have this name: letters, digits, '.', '_' and '-', at most 64. */
export function isName(name: string): boolean {
  return NAME.test(name);
}
