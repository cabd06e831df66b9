// What a hub must remember over its own death, in two files beside its socket, both for its user
// alone: SOCKET.key, the secret that tokens are made with, and SOCKET.state, who has which slot.
//
// A member proves with its token (HMAC-SHA-256 of slot, generation, name and user) that the slot it
// claims after a restart is its own. The state keeps slots of members that have not come back from
// being given away, as long as their processes live.

import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { chmodSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { PenstockError } from '../errors.js';

export interface SavedMember {
  slot: number;
  generation: number;
  name: string;
  uid: number;
  gid: number;
  pid: number;
  /** Start of the process in clock ticks since boot: tells a reused pid. */
  startTime: string;
  names?: string[];
  uids?: number[];
}

export interface SavedSlot {
  slot: number;
  generation: number;
  /** Slots of the members that still hold some of it. */
  waiting: number[];
}

export interface HubState {
  version: 1;
  nextGeneration: number;
  members: SavedMember[];
  leaving: SavedSlot[];
}

export function emptyState(): HubState {
  return { version: 1, nextGeneration: 1, members: [], leaving: [] };
}

export function loadState(path: string): HubState {
  let text: string;
  try {
    text = readFileSync(`${path}.state`, 'utf8');
  } catch {
    return emptyState(); // the first start
  }
  try {
    const state = JSON.parse(text) as HubState;
    if (state.version === 1 && Array.isArray(state.members) && Array.isArray(state.leaving)) {
      return state;
    }
  } catch {
    // Said below.
  }
  throw new PenstockError('HUB_STATE_BAD', `${path}.state is not what a hub writes`, {
    hint: 'end all members of this hub, then remove the file',
    exitCode: 3,
  });
}

/** Replaces the file in one step, so that a death in between leaves the old one. */
export function saveState(path: string, state: HubState): void {
  writeFileSync(`${path}.state.new`, JSON.stringify(state), { mode: 0o600 });
  renameSync(`${path}.state.new`, `${path}.state`);
}

/** The hub's secret, made at its first start. */
export function loadKey(path: string): Buffer {
  const file = `${path}.key`;
  try {
    const key = readFileSync(file);
    if (key.length === 32) return key;
  } catch {
    // The first start.
  }
  const key = randomBytes(32);
  writeFileSync(`${file}.new`, key, { mode: 0o600 });
  chmodSync(`${file}.new`, 0o600);
  renameSync(`${file}.new`, file);
  return key;
}

export function makeToken(
  key: Buffer,
  { slot, generation, name, uid }: Pick<SavedMember, 'slot' | 'generation' | 'name' | 'uid'>,
): string {
  return createHmac('sha256', key).update(`${slot}\n${generation}\n${name}\n${uid}`).digest('hex');
}

export function sameToken(a: string, b: string): boolean {
  const [left, right] = [Buffer.from(a), Buffer.from(b)];
  return left.length === right.length && timingSafeEqual(left, right);
}

/** When a process started, in ticks since boot; '' when there is none. */
export function startTimeOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // Field 22; the name in field 2 may hold anything, up to its last parenthesis.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  } catch {
    return '';
  }
}
