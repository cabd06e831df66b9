// Hub: admits domains, gives each a slot, and introduces them to each other. Not on the data path:
// members go on without it, and come back to it when it was restarted.
//
// Invariants
// 1. A slot is one member's at a time. When a member is gone, its slot is given out again only when
//    every member that had a link with it has said that it holds nothing of it any more, or is gone
//    itself. Generations never repeat.
// 2. Who a member is, the kernel says (SO_PEERCRED and a pidfd), not the member.
// 3. What a member sends is hostile: checked, or the connection ends.
// 4. The state file is written before anybody learns of a change.

import { createHash } from 'node:crypto';
import { chmodSync, lstatSync, unlinkSync } from 'node:fs';
import { resolve as absolute } from 'node:path';
import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';
import { integer, integers, isName, slot as slotField, text } from './fields.js';
import { HUB_VERSION, type MemberInfo } from './hub-session.js';
import {
  loadKey,
  loadState,
  makeToken,
  sameToken,
  saveState,
  startTimeOf,
  type SavedMember,
} from './hub-state.js';
import { closeAll, misbehaved, SocketTransport } from './transport.js';

const SLOT_MAX = 255;
const GREETING_MS = 5000;
const GENERATION_MAX = 2 ** 31;

export interface HubOptions {
  /** Permissions of the socket: who may connect at all (0o600). */
  mode?: number;
  /** Users and groups (of the process) that may join; anybody who can connect when left out. */
  allow?: { uids?: readonly number[]; gids?: readonly number[] };
  /** Called with one line per event, for a log. */
  log?: (line: string) => void;
}

interface Member extends SavedMember {
  /** null: not back since the hub was restarted. */
  transport: SocketTransport | null;
  pidfd: number;
  watch: number;
  /** Members it has a link with, by slot. */
  links: Set<number>;
  /** Slots of members that have said already that they hold nothing of it. */
  acknowledged: Set<number>;
}

interface Leaving {
  generation: number;
  waiting: Set<number>;
}

interface Credentials {
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
  readonly pidfd: number;
}

export class Hub {
  readonly path: string;
  private readonly listener: number;
  private readonly lock: number;
  private readonly watch: number;
  private readonly key: Buffer;
  private readonly options: HubOptions;
  private readonly members = new Map<number, Member>();
  private readonly leaving = new Map<number, Leaving>();
  /** Connections that have not said who they are. */
  private readonly strangers = new Set<() => void>();
  private nextGeneration: number;
  private closed = false;

  private constructor(path: string, lock: number, listener: number, options: HubOptions) {
    this.path = path;
    this.lock = lock;
    this.listener = listener;
    this.options = options;
    this.key = loadKey(path);
    const state = loadState(path);
    this.nextGeneration = state.nextGeneration;
    for (const { slot, generation, waiting } of state.leaving) {
      this.leaving.set(slot, { generation, waiting: new Set(waiting) });
    }
    this.watch = native.watchOpen(listener, () => this.accept());
    native.watchSet(this.watch, true);
    this.recall(state.members);
  }

  /**
   * Listens at a path. Errors: HUB_BUSY (another hub does), PERMISSION_DENIED, NOT_A_SOCKET,
   * HUB_STATE_BAD.
   */
  static listen(path: string, options: HubOptions = {}): Hub {
    const whole = absolute(path);
    const lock = takeLock(whole);
    try {
      removeStale(whole);
      const listener = native.unixListen(whole, options.mode ?? 0o600);
      try {
        return new Hub(whole, lock, listener, options);
      } catch (error) {
        native.fileClose(listener);
        unlinkSync(whole);
        throw error;
      }
    } catch (error) {
      native.fileClose(lock);
      if (error instanceof PenstockError) throw error;
      throw new PenstockError('HUB_FAILED', `no hub could be started at ${whole}`, {
        hint: 'the folder must exist and be writable, and the path shorter than 108 bytes',
        cause: error,
        exitCode: 3,
      });
    }
  }

  list(): MemberInfo[] {
    const members = [...this.members.values()].map(({ transport, ...member }) => ({
      slot: member.slot,
      generation: member.generation,
      name: member.name,
      uid: member.uid,
      gid: member.gid,
      pid: member.pid,
      state: transport === null ? 'missing' : 'member',
    }));
    const leaving = [...this.leaving].map(([slot, { generation }]) => ({
      slot,
      generation,
      name: '',
      uid: 0,
      gid: 0,
      pid: 0,
      state: 'leaving',
    }));
    return [...members, ...leaving].sort((a, b) => a.slot - b.slot);
  }

  /** Stops. Members go on by themselves; a hub that listens here again gets them back. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    native.watchClose(this.watch);
    native.fileClose(this.listener);
    for (const end of this.strangers) end();
    for (const member of this.members.values()) {
      member.transport?.close();
      this.forget(member);
    }
    const empty = this.members.size === 0 && this.leaving.size === 0;
    unlinkQuietly(this.path);
    if (empty) {
      unlinkQuietly(`${this.path}.state`);
      unlinkQuietly(`${this.path}.key`);
    }
    native.fileClose(this.lock);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** Members of before this hub's start: their slots stay theirs while their processes live. */
  private recall(saved: readonly SavedMember[]): void {
    const dead: Member[] = [];
    for (const member of saved) {
      let pidfd = -1;
      try {
        pidfd = native.pidfdOpen(member.pid);
      } catch (error) {
        if (errnoCode(error) === '') throw error;
      }
      // Opened first: the process that the pidfd stands for is the one whose start is read.
      const same = pidfd >= 0 && startTimeOf(member.pid) === member.startTime;
      if (!same && pidfd >= 0) {
        native.fileClose(pidfd);
        pidfd = -1;
      }
      const known = this.enter(member, pidfd, null);
      // Whom it had links with is not known before it is back: everybody, to be safe.
      for (const other of saved) if (other !== member) known.links.add(other.slot);
      if (!same) dead.push(known);
    }
    for (const member of dead) this.gone(member, 'is dead');
  }

  private enter(saved: SavedMember, pidfd: number, transport: SocketTransport | null): Member {
    const member: Member = {
      ...saved,
      transport,
      pidfd,
      watch: 0,
      links: new Set(),
      acknowledged: new Set(),
    };
    this.members.set(member.slot, member);
    if (pidfd >= 0) {
      member.watch = native.watchOpen(pidfd, () => this.gone(member, 'died'));
      native.watchSet(member.watch, true, false);
    }
    return member;
  }

  private forget(member: Member): void {
    if (member.watch !== 0) native.watchClose(member.watch);
    if (member.pidfd >= 0) native.fileClose(member.pidfd);
    member.watch = 0;
    member.pidfd = -1;
  }

  private accept(): void {
    for (;;) {
      let fd: number;
      try {
        fd = native.unixAccept(this.listener);
      } catch (error) {
        if (errnoCode(error) === '') throw error;
        this.log(`a connection could not be taken: ${errnoCode(error)}`);
        return;
      }
      if (fd < 0) return;
      try {
        this.greet(fd, native.unixPeer(fd));
      } catch (error) {
        if (errnoCode(error) === '') throw error; // dead already
        native.fileClose(fd);
      }
    }
  }

  /** A new connection: it has some seconds to say who it is. */
  private greet(fd: number, peer: Credentials): void {
    let member: Member | null = null;
    const transport: SocketTransport = new SocketTransport(
      fd,
      {
        onMessage: (message, fds) => {
          closeAll(fds);
          if (member === null) member = this.admit(message, peer, transport, endGreeting);
          else this.handle(member, message);
        },
        onEnd: (error) => {
          endGreeting();
          if (member === null) native.fileClose(peer.pidfd);
          else this.cutOff(member, transport, error);
        },
      },
      false,
    );
    const end = (): void => {
      transport.close();
      native.fileClose(peer.pidfd);
      endGreeting();
    };
    const timer = setTimeout(end, GREETING_MS).unref();
    const endGreeting = (): void => {
      clearTimeout(timer);
      this.strangers.delete(end);
    };
    this.strangers.add(end);
  }

  /** The first message of a connection. Null: it was refused, or asked without joining. */
  private admit(
    message: Record<string, unknown>,
    peer: Credentials,
    transport: SocketTransport,
    admitted: () => void,
  ): Member | null {
    if (message['type'] === 'list') {
      transport.send({ type: 'members', members: this.list() });
      return null;
    }
    const again = message['type'] === 'rejoin';
    if (message['type'] !== 'join' && !again) throw misbehaved('did not say who it is');
    try {
      if (message['version'] !== HUB_VERSION) {
        throw refusal('VERSION_MISMATCH', `this hub speaks version ${HUB_VERSION}`, '');
      }
      this.checkAllowed(peer);
      const member = again
        ? this.readmit(message, peer, transport)
        : this.newMember(message, peer, transport);
      admitted();
      this.save();
      const { slot, generation } = member;
      const token = makeToken(this.key, member);
      transport.send({ type: 'welcome', slot, generation, token });
      this.log(`${member.name} (pid ${member.pid}, uid ${member.uid}) has slot ${slot}`);
      this.introduceAll(member);
      return member;
    } catch (error) {
      if (!(error instanceof PenstockError) || error.code === 'PEER_MISBEHAVED') throw error;
      const { code, message: why, hint } = error;
      transport.send({ type: 'refused', code, message: why, hint });
      return null;
    }
  }

  private checkAllowed({ uid, gid }: Credentials): void {
    const { uids, gids } = this.options.allow ?? {};
    if (uids === undefined && gids === undefined) return;
    if (uids?.includes(uid) === true || gids?.includes(gid) === true) return;
    throw refusal(
      'PERMISSION_DENIED',
      `user ${uid} may not join this hub`,
      'whoever starts the hub says who may (--allow-uid, --allow-gid)',
    );
  }

  private newMember(
    message: Record<string, unknown>,
    peer: Credentials,
    transport: SocketTransport,
  ): Member {
    const name = text(message, 'name', 64);
    if (!isName(name)) throw misbehaved('asked for a name that cannot be one');
    for (const other of this.members.values()) {
      if (other.name !== name) continue;
      const state = other.transport === null ? ', not back since the hub was restarted' : '';
      throw refusal(
        'NAME_TAKEN',
        `${name} is taken by process ${other.pid} of user ${other.uid}${state}`,
        'choose another name, or end that process',
      );
    }
    let slot = 1;
    while (this.members.has(slot) || this.leaving.has(slot)) slot++;
    if (slot > SLOT_MAX || this.nextGeneration >= GENERATION_MAX) {
      throw refusal('HUB_FULL', 'all slots of this hub are taken', 'penstock idc ls shows by whom');
    }
    const saved = savedMember(message, peer, name, slot, this.nextGeneration++);
    return this.enter(saved, peer.pidfd, transport);
  }

  private readmit(
    message: Record<string, unknown>,
    peer: Credentials,
    transport: SocketTransport,
  ): Member {
    const slot = slotField(message, 'slot');
    const generation = integer(message, 'generation', 1, GENERATION_MAX);
    const saved = savedMember(message, peer, text(message, 'name', 64), slot, generation);
    if (!sameToken(text(message, 'token', 128), makeToken(this.key, saved))) {
      throw refusal(
        'TOKEN_REFUSED',
        'the token is none of this hub',
        'end the process, start again',
      );
    }
    const before = this.members.get(slot);
    if (
      this.leaving.has(slot) ||
      (before !== undefined && (before.generation !== generation || before.pid !== peer.pid))
    ) {
      throw refusal('SLOT_LOST', `slot ${slot} is not yours any more`, 'start the process again');
    }
    before?.transport?.close();
    if (before !== undefined) this.forget(before);
    this.nextGeneration = Math.max(this.nextGeneration, generation + 1);
    const member = this.enter(saved, peer.pidfd, transport);
    const known = message['known'];
    if (!Array.isArray(known) || known.length > SLOT_MAX) throw misbehaved('knows too many');
    for (const entry of known as unknown[]) {
      const [other, its] = integers({ entry }, 'entry', 2) as [number, number];
      if (this.members.get(other)?.generation === its) member.links.add(other);
      else transport.send({ type: 'gone', slot: other, generation: its });
    }
    for (const [gone, { generation: its, waiting }] of this.leaving) {
      if (waiting.has(slot)) transport.send({ type: 'gone', slot: gone, generation: its });
    }
    return member;
  }

  /** Links with all members that it has none with yet, as far as both want to be seen. */
  private introduceAll(member: Member): void {
    for (const other of this.members.values()) {
      if (other === member || other.transport === null || !agree(member, other)) continue;
      // After a restart both sides must know of a link for it to be one.
      if (member.links.has(other.slot) && other.links.has(member.slot)) continue;
      const [a, b] = native.unixPair();
      member.transport?.send(introduction(other), [a, other.pidfd]);
      other.transport.send(introduction(member), [b, member.pidfd]);
      closeAll([a, b]);
      member.links.add(other.slot);
      other.links.add(member.slot);
    }
  }

  private handle(member: Member, message: Record<string, unknown>): void {
    switch (message['type']) {
      case 'released':
        this.released(
          member,
          slotField(message, 'slot'),
          integer(message, 'generation', 1, GENERATION_MAX),
        );
        return;
      case 'list':
        member.transport?.send({ type: 'members', members: this.list() });
        return;
      case 'leave':
        this.gone(member, 'left');
        return;
      default:
        throw misbehaved('sent a message of no known type');
    }
  }

  private released(member: Member, slot: number, generation: number): void {
    const other = this.members.get(slot);
    // It saw the death before this hub did.
    if (other?.generation === generation) other.acknowledged.add(member.slot);
    const leaving = this.leaving.get(slot);
    if (leaving?.generation !== generation) return;
    leaving.waiting.delete(member.slot);
    this.freeSlots();
  }

  /** A member's connection ended without a word. */
  private cutOff(member: Member, transport: SocketTransport, error: PenstockError | null): void {
    if (this.members.get(member.slot) !== member || member.transport !== transport) return;
    if (error !== null) this.log(`${member.name} is cut off: ${error.message}`);
    this.gone(member, error === null ? 'is gone' : 'was cut off');
  }

  private gone(member: Member, how: string): void {
    const { slot, generation, name, links, acknowledged } = member;
    if (this.members.get(slot) !== member) return;
    this.members.delete(slot);
    member.transport?.close();
    this.forget(member);
    this.log(`${name} (slot ${slot}) ${how}`);
    const waiting = new Set<number>();
    for (const other of this.members.values()) {
      if (!links.has(other.slot) && !other.links.has(slot)) continue;
      if (!acknowledged.has(other.slot)) waiting.add(other.slot);
      other.links.delete(slot);
      other.acknowledged.delete(slot);
      other.transport?.send({ type: 'gone', slot, generation });
    }
    this.leaving.set(slot, { generation, waiting });
    for (const other of this.leaving.values()) other.waiting.delete(slot);
    this.freeSlots();
  }

  private freeSlots(): void {
    for (const [slot, { waiting }] of this.leaving)
      if (waiting.size === 0) this.leaving.delete(slot);
    this.save();
  }

  private save(): void {
    saveState(this.path, {
      version: 1,
      nextGeneration: this.nextGeneration,
      members: [...this.members.values()].map(
        ({ slot, generation, name, uid, gid, pid, startTime, names, uids }) => ({
          slot,
          generation,
          name,
          uid,
          gid,
          pid,
          startTime,
          ...(names === undefined ? {} : { names }),
          ...(uids === undefined ? {} : { uids }),
        }),
      ),
      leaving: [...this.leaving].map(([slot, { generation, waiting }]) => ({
        slot,
        generation,
        waiting: [...waiting],
      })),
    });
  }

  private log(line: string): void {
    this.options.log?.(line);
  }
}

function savedMember(
  message: Record<string, unknown>,
  { uid, gid, pid }: Credentials,
  name: string,
  slot: number,
  generation: number,
): SavedMember {
  const { names, uids } = message;
  if (names !== undefined) {
    if (
      !Array.isArray(names) ||
      names.length > 1024 ||
      !names.every((n) => typeof n === 'string')
    ) {
      throw misbehaved('shares with names that cannot be any');
    }
  }
  return {
    slot,
    generation,
    name,
    uid,
    gid,
    pid,
    startTime: startTimeOf(pid),
    ...(names === undefined ? {} : { names: names as string[] }),
    ...(uids === undefined ? {} : { uids: integers(message, 'uids', 1024) }),
  };
}

/** Whether each lets the other map its memory. */
function agree(a: SavedMember, b: SavedMember): boolean {
  const lets = (who: SavedMember, other: SavedMember): boolean =>
    (who.names?.includes(other.name) ?? true) && (who.uids?.includes(other.uid) ?? true);
  return lets(a, b) && lets(b, a);
}

function introduction({ slot, generation, name, uid, gid, pid }: SavedMember): object {
  return { type: 'peer', slot, generation, name, uid, gid, pid };
}

function refusal(code: string, message: string, hint: string): PenstockError {
  return new PenstockError(code, message, { hint });
}

/** An abstract name that the kernel frees with its holder: one hub at a path at a time. */
function takeLock(path: string): number {
  try {
    const name = createHash('sha256').update(path).digest('hex');
    return native.unixListen(`\0penstock-hub-${name}`, 0o600);
  } catch (cause) {
    if (errnoCode(cause) !== 'EADDRINUSE') throw cause;
    throw new PenstockError('HUB_BUSY', `a hub is at ${path} already`, {
      hint: 'use that one, or choose another path',
      cause,
      exitCode: 3,
    });
  }
}

/** A socket that a dead hub left. */
function removeStale(path: string): void {
  let facts;
  try {
    facts = lstatSync(path);
  } catch {
    return; // nothing there
  }
  if (!facts.isSocket()) {
    throw new PenstockError('NOT_A_SOCKET', `${path} is there and no socket`, {
      hint: 'choose another path for the hub',
      exitCode: 3,
    });
  }
  chmodSync(path, 0o600);
  unlinkSync(path);
}

function unlinkQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // Somebody has removed it.
  }
}
