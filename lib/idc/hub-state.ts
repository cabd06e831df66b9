// What a hub must remember over its own death, in two files beside its socket, both for its user
// alone: SOCKET.key, the secret that tokens are made with, and SOCKET.state, who has which slot.
//
// A member proves with its token (HMAC-SHA-256 of slot, generation, name and user) that the slot it
// claims after a restart is its own. The state keeps slots of members that have not come back from
// being given away, as long as their processes live.

import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto';
import { chmodSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { PenstockError } from '../errors.js';

/** 2020-01-01, in seconds. */
const EPOCH_S = 1_577_836_800;

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

/**
 * The state, and whether it was lost: a hub saves it from its start on, so a key without it says
 * that somebody removed it. Generations then go on from the clock, which no hub outruns: it would
 * have to admit more than one member per second for ever.
 */
export function loadState(path: string): { state: HubState; lost: boolean } {
  let text: string;
  try {
    text = readFileSync(`${path}.state`, 'utf8');
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw badState(path, cause);
    const lost = existsSync(`${path}.key`);
    const nextGeneration = lost ? Math.floor(Date.now() / 1000) - EPOCH_S : 1;
    return { state: { version: 1, nextGeneration, members: [], leaving: [] }, lost };
  }
  try {
    const state = JSON.parse(text) as HubState;
    if (isState(state)) return { state, lost: false };
  } catch {
    // Said below.
  }
  throw badState(path);
}

function isState(state: HubState): boolean {
  const isSlot = (slot: unknown): boolean => Number.isInteger(slot) && Number(slot) >= 1;
  return (
    state.version === 1 &&
    Number.isSafeInteger(state.nextGeneration) &&
    Array.isArray(state.members) &&
    state.members.every(
      ({ slot, generation, name, pid }) =>
        isSlot(slot) && isSlot(generation) && typeof name === 'string' && isSlot(pid),
    ) &&
    Array.isArray(state.leaving) &&
    state.leaving.every(
      ({ slot, generation, waiting }) =>
        isSlot(slot) && isSlot(generation) && Array.isArray(waiting) && waiting.every(isSlot),
    )
  );
}

function badState(path: string, cause?: unknown): PenstockError {
  return new PenstockError('HUB_STATE_BAD', `${path}.state is not what a hub writes`, {
    hint: 'end all members of this hub, then remove the file and the .key beside it',
    exitCode: 3,
    ...(cause === undefined ? {} : { cause }),
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
