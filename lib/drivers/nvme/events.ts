// Asynchronous events (NVM Express Base 2.0, section 5.2): the controller answers a request when
// something happened; the page that says more is read, which lets it report the next of its kind.

import { getLogPage, setFeature } from './admin-commands.js';
import type { BringUp } from './bring-up.js';
import { Feature, Lid } from './commands.js';
import type { ControllerFacts } from './facts.js';
import type { Task } from './steps.js';

/** Requests that are kept outstanding; the controller may take fewer. */
const REQUESTS = 4;
const NSID_ALL = 0xffffffff;
/** All SMART warnings, changed namespaces, firmware activation. */
const EVENT_CONFIG = 0x1f | (1 << 8) | (1 << 9);

export type NvmeEventKind = 'error' | 'health' | 'notice' | 'command-set' | 'vendor' | 'unknown';

/** An event as users are told of it. */
export interface NvmeEvent {
  readonly kind: NvmeEventKind;
  /** The event's own number (section 5.2.1, by kind). */
  readonly info: number;
  /** The log page that says more, as it was read; empty when it could not be. */
  readonly page: number;
  readonly log: Uint8Array;
  /** Namespaces that appeared, went or changed. */
  readonly namespaces: readonly number[];
}

const KINDS: readonly NvmeEventKind[] = ['error', 'health', 'notice'];

export interface EventResult {
  readonly kind: NvmeEventKind;
  readonly info: number;
  readonly page: number;
}

/** Dword 0 of an asynchronous event's completion. */
export function decodeEvent(dw0: number): EventResult {
  const type = dw0 & 7;
  const kind = KINDS[type] ?? (type === 6 ? 'command-set' : type === 7 ? 'vendor' : 'unknown');
  return { kind, info: (dw0 >>> 8) & 0xff, page: (dw0 >>> 16) & 0xff };
}

/** Bytes of a log page that are read at an event. */
function logBytes(page: number, facts: ControllerFacts): number {
  if (page === Lid.ERROR_INFORMATION) return Math.min(4096, facts.errorLogEntries * 64);
  if (page === Lid.CHANGED_NAMESPACES) return 4096;
  return 512;
}

/** Reads the page of an event; its bytes, or none when the controller refuses. */
export function* readEventLog(up: BringUp, facts: ControllerFacts, page: number): Task<Uint8Array> {
  if (page === 0) return new Uint8Array(0);
  const length = logBytes(page, facts);
  const { adminTimeoutMs } = up.settings;
  return yield* up.withPage(4096, function* (address, bytes) {
    const command = getLogPage(page, NSID_ALL, address, length);
    const { status } = yield* up.admin.execute(command, adminTimeoutMs);
    return status === 0 ? bytes.slice(0, length) : new Uint8Array(0);
  });
}

/** Says which events are wanted, and asks for them. */
export function* requestEvents(up: BringUp, facts: ControllerFacts): Task<void> {
  up.enter('REQUEST_EVENTS');
  const command = setFeature(Feature.ASYNC_EVENT_CONFIG, EVENT_CONFIG);
  // A controller without some of them refuses; it reports those it has all the same.
  yield* up.admin.execute(command, up.settings.adminTimeoutMs);
  const count = Math.min(REQUESTS, facts.eventRequests);
  for (let i = 0; i < count; i++) up.admin.requestEvent();
}
