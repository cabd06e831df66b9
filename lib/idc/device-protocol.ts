// What a device's server and its clients say to each other when a channel is opened: JSON texts of
// at most 4096 characters, hostile both ways. Records are in layout.ts.
//
// A client asks once for what the device is (`info`), and then for queues: a channel each. On such
// a channel it sends HPDI's request records as they are, and LOAN_BACK records; completions come
// back. READ has no address on this way: like READ_LOAN it completes with a buffer of the server's
// memory, which the server may use again once the client's index `done` has passed the completion.

import { PenstockError } from '../errors.js';
import type { DeviceInfo } from '../hpdi/index.js';
import { integer, text } from './fields.js';
import { misbehaved } from './transport.js';

/** Ports of a domain that serves a device. */
export const DEVICE_PORT = 'device';
export const STATS_PORT = 'stats';

export const DEVICE_PROTOCOL = 1;
const META_MAX = 4096;
const DESCRIPTION_KEYS_MAX = 32;
const DESCRIPTION_TEXT_MAX = 128;
const BLOCK_SIZE_MAX = 2 ** 16;

/** Channels that tell of one device (`info`), for each client, and the records of their rings. */
export const INFO_CHANNELS = 16;
const INFO_RECORDS_MAX = 64;

/** What a client wants of the device port. */
export type AskKind = 'info' | 'queue';

/** What a server says of its device. */
export interface DeviceFacts {
  /** Scheme of the device behind it. */
  readonly scheme: string;
  readonly info: DeviceInfo;
}

export function askFor(kind: AskKind): string {
  return JSON.stringify({ version: DEVICE_PROTOCOL, kind });
}

/** What was asked for, by a channel of that size. Throws VERSION_MISMATCH, PEER_MISBEHAVED. */
export function readAsk(meta: string, size: number): AskKind {
  const ask = parse(meta);
  if (ask['version'] !== DEVICE_PROTOCOL) {
    throw new PenstockError(
      'VERSION_MISMATCH',
      `devices are served here by version ${DEVICE_PROTOCOL} of the protocol`,
      { hint: 'run the same release in all domains of a hub' },
    );
  }
  const { kind } = ask;
  if (kind !== 'info' && kind !== 'queue') throw misbehaved('asked a device for nothing known');
  if (kind === 'info' && size > INFO_RECORDS_MAX) throw misbehaved('asked too much of a device');
  return kind;
}

/** The answer to `info`; what is for people only is cut where it would not fit. */
export function sayFacts({ scheme, info }: DeviceFacts): string {
  const entries = Object.entries(info.description)
    .slice(0, DESCRIPTION_KEYS_MAX)
    .map(([key, value]) => [
      key.slice(0, DESCRIPTION_TEXT_MAX),
      typeof value === 'string' ? value.slice(0, DESCRIPTION_TEXT_MAX) : value,
    ]);
  for (;;) {
    const described = { ...info, description: Object.fromEntries(entries) as object };
    const meta = JSON.stringify({ version: DEVICE_PROTOCOL, scheme, info: described });
    if (meta.length <= META_MAX) return meta;
    entries.pop();
  }
}

/** The facts that a server told. Throws PEER_MISBEHAVED. */
export function readFacts(meta: string): DeviceFacts {
  const answer = parse(meta);
  const { info } = answer;
  if (typeof info !== 'object' || info === null) throw misbehaved('told of no device');
  const facts: Record<string, unknown> = { ...info, type: 'a device' };
  const whole = (key: string, least: number, most: number): number =>
    integer(facts, key, least, most);
  const u32 = (key: string): number => whole(key, 0, 0xffff_ffff);
  const power = (key: string, least: number, most: number): number => {
    const value = whole(key, least, most);
    if (!Number.isInteger(Math.log2(value)))
      throw misbehaved(`told of a device with a wrong ${key}`);
    return value;
  };
  return {
    scheme: text(answer, 'scheme', 64),
    info: {
      blockSize: power('blockSize', 512, BLOCK_SIZE_MAX),
      blocks: whole('blocks', 0, Number.MAX_SAFE_INTEGER),
      maxTransferBlocks: whole('maxTransferBlocks', 1, 0xffff_ffff),
      maxSegments: 0,
      addressAlign: power('addressAlign', 1, BLOCK_SIZE_MAX),
      segmentAlign: power('segmentAlign', 1, BLOCK_SIZE_MAX),
      boundary: u32('boundary'),
      atomicBlocks: whole('atomicBlocks', 1, 0xffff_ffff),
      volatileCache: facts['volatileCache'] === true,
      canLoan: true,
      loanStable: true,
      metadataBytes: 0,
      zones: null,
      operations: whole('operations', 0, 0x7fff_ffff),
      flags: u32('flags'),
      readOnly: facts['readOnly'] === true,
      durable: facts['durable'] === true,
      physicalBlockSize: power('physicalBlockSize', 512, 2 ** 30),
      description: readDescription(facts['description']),
    },
  };
}

function readDescription(value: unknown): Record<string, string | number | boolean> {
  if (typeof value !== 'object' || value === null) return {};
  const entries = Object.entries(value).slice(0, DESCRIPTION_KEYS_MAX);
  return Object.fromEntries(
    entries.filter((entry): entry is [string, string | number | boolean] =>
      ['string', 'number', 'boolean'].includes(typeof entry[1]),
    ),
  );
}

function parse(meta: string): Record<string, unknown> {
  try {
    const value = JSON.parse(meta) as unknown;
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      return value as Record<string, unknown>;
    }
  } catch {
    // As if it were no object.
  }
  throw misbehaved('said something of a device that is no JSON object');
}
