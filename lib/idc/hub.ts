// Hub: admits domains, gives each a slot, and introduces them to each other. Not on the data path:
// members go on without it, and come back to it when it was restarted.
//
// Invariants
// 1. Who has which slot stands in Members, and in the state file before anybody learns of it.
// 2. Who a member is, the kernel says (SO_PEERCRED and a pidfd), not the member.
// 3. What a member sends is hostile: checked, or the connection ends.
// 4. A hub that lost its state, but not its key, gives no slot away before members of old had the
//    time to come back to theirs.

import { unlinkSync } from 'node:fs';
import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';
import { integer, integers, isName, slot as slotField, text } from './fields.js';
import { Door, type Caller } from './hub-door.js';
import {
  agree,
  describe,
  GENERATION_MAX,
  Members,
  SLOT_MAX,
  type Credentials,
  type Member,
} from './hub-members.js';
import { removeStale, takeLock, unlinkQuietly, wholePath } from './hub-path.js';
import { HUB_VERSION, RETRY_MS_MAX, type MemberInfo } from './hub-session.js';
import {
  loadKey,
  loadState,
  makeToken,
  sameToken,
  saveState,
  startTimeOf,
  type SavedMember,
} from './hub-state.js';
import { closeAll, misbehaved, type SocketTransport } from './transport.js';

/** Members of one message that lists them: it must fit. */
const LIST_PAGE = 100;
/** Members that look for the hub do so at least this often. */
const RECALL_MS = RETRY_MS_MAX + 500;

export interface HubOptions {
  /** Permissions of the socket: who may connect at all (0o600). */
  mode?: number;
  /** Users and groups (of the process) that may join; anybody who can connect when left out. */
  allow?: { uids?: readonly number[]; gids?: readonly number[] };
  /** Called with one line per event, for a log. */
  log?: (line: string) => void;
}

export class Hub {
  readonly path: string;
  private readonly lock: number;
  private readonly door: Door;
  private readonly key: Buffer;
  private readonly options: HubOptions;
  private readonly members: Members;
  /** What waits for members of old to come back; null: nothing does (any more). */
  private recalling: (() => void)[] | null = null;
  private recallTimer: NodeJS.Timeout | null = null;
  private closed = false;

  private constructor(path: string, lock: number, listener: number, options: HubOptions) {
    this.path = path;
    this.lock = lock;
    this.options = options;
    // In this order: a key without a state says that the state was lost.
    const { state, lost } = loadState(path);
    this.key = loadKey(path);
    this.members = new Members(state);
    this.recall(state.members);
    this.save();
    if (lost) {
      this.recalling = [];
      this.recallTimer = setTimeout(() => this.recalled(), RECALL_MS);
    }
    this.door = new Door(listener, {
      onMessage: (caller, message) => {
        if (caller.member === null) this.admit(message, caller);
        else this.handle(caller.member, message);
      },
      onEnd: ({ member, transport }, error) => {
        if (member !== null) this.cutOff(member, transport, error);
      },
      log: (line) => this.log(line),
    });
  }

  /**
   * Listens at a path. Errors: HUB_BUSY (another hub does), PERMISSION_DENIED, NOT_A_SOCKET,
   * HUB_STATE_BAD.
   */
  static listen(path: string, options: HubOptions = {}): Hub {
    const whole = wholePath(path);
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
    return this.members.list();
  }

  /** Stops. Members go on by themselves; a hub that listens here again gets them back. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    if (this.recallTimer !== null) clearTimeout(this.recallTimer);
    this.door.close();
    for (const member of this.members) {
      member.transport?.close();
      forget(member);
    }
    unlinkQuietly(this.path);
    if (this.members.isEmpty) {
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
      for (const other of saved) {
        if (other !== member) known.links.set(other.slot, other.generation);
      }
      if (!same) dead.push(known);
    }
    for (const member of dead) this.gone(member, 'is dead');
  }

  /** Members of old had their time: whoever waited goes on. */
  private recalled(): void {
    const waiting = this.recalling ?? [];
    this.recalling = null;
    for (const go of waiting) go();
  }

  private enter(saved: SavedMember, pidfd: number, transport: SocketTransport | null): Member {
    const member = this.members.enter(saved, pidfd, transport);
    if (pidfd >= 0) {
      member.watch = native.watchOpen(pidfd, () => this.gone(member, 'died'));
      native.watchSet(member.watch, true, false);
    }
    return member;
  }

  /** The first message of a connection: it joins, comes back, or asks without joining. */
  private admit(message: Record<string, unknown>, caller: Caller): void {
    const { transport } = caller;
    const { type } = message;
    if (type === 'list') {
      this.sendList(transport);
      return;
    }
    if (type !== 'join' && type !== 'rejoin') throw misbehaved('did not say who it is');
    if (type === 'join' && this.recalling !== null) {
      this.recalling.push(() => {
        if (caller.member === null) transport.attempt(() => this.admit(message, caller));
      });
      return;
    }
    try {
      if (message['version'] !== HUB_VERSION) {
        throw refusal('VERSION_MISMATCH', `this hub speaks version ${HUB_VERSION}`, '');
      }
      this.checkAllowed(caller.peer);
      const member =
        type === 'join' ? this.newMember(message, caller) : this.readmit(message, caller);
      caller.member = member;
      caller.greeted();
      this.save();
      const { slot, generation } = member;
      const token = makeToken(this.key, member);
      transport.send({ type: 'welcome', slot, generation, token });
      this.log(`${member.name} (pid ${member.pid}, uid ${member.uid}) has slot ${slot}`);
      if (type === 'rejoin') this.tellGone(member, message);
      this.introduceAll(member);
    } catch (error) {
      if (!(error instanceof PenstockError) || error.code === 'PEER_MISBEHAVED') throw error;
      const { code, message: why, hint } = error;
      transport.send({ type: 'refused', code, message: why, hint });
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

  private newMember(message: Record<string, unknown>, { peer, transport }: Caller): Member {
    const name = text(message, 'name', 64);
    if (!isName(name)) throw misbehaved('asked for a name that cannot be one');
    const other = this.members.named(name);
    if (other !== undefined) {
      const state = other.transport === null ? ', not back since the hub was restarted' : '';
      throw refusal(
        'NAME_TAKEN',
        `${name} is taken by process ${other.pid} of user ${other.uid}${state}`,
        'choose another name, or end that process',
      );
    }
    const who = describe(message, peer, name, { slot: 0, generation: 0 });
    const place = this.members.place();
    if (place === null) {
      throw refusal('HUB_FULL', 'all slots of this hub are taken', 'penstock idc ls shows by whom');
    }
    return this.enter({ ...who, ...place }, peer.pidfd, transport);
  }

  private readmit(message: Record<string, unknown>, { peer, transport }: Caller): Member {
    const slot = slotField(message, 'slot');
    const generation = integer(message, 'generation', 1, GENERATION_MAX);
    const known = readKnown(message);
    const who = describe(message, peer, text(message, 'name', 64), { slot, generation });
    if (!sameToken(text(message, 'token', 128), makeToken(this.key, who))) {
      throw refusal(
        'TOKEN_REFUSED',
        'the token is none of this hub',
        'end the process, start again',
      );
    }
    const before = this.members.at(slot);
    const lost =
      before === undefined
        ? this.members.isLeaving(slot)
        : before.generation !== generation || before.pid !== peer.pid;
    if (lost) {
      throw refusal('SLOT_LOST', `slot ${slot} is not yours any more`, 'start the process again');
    }
    if (before !== undefined) {
      before.transport?.close();
      forget(before);
    }
    const member = this.enter(who, peer.pidfd, transport);
    for (const [other, its] of known) member.links.set(other, its);
    return member;
  }

  /** Tells a member that is back of whom it knows and who is gone. */
  private tellGone(member: Member, message: Record<string, unknown>): void {
    const tell = (): void => {
      if (this.members.at(member.slot) !== member) return;
      for (const [slot, generation] of readKnown(message)) {
        if (this.members.at(slot)?.generation === generation) continue;
        member.links.delete(slot);
        if (this.members.hold(member, slot, generation)) continue;
        member.transport?.send({ type: 'gone', slot, generation });
      }
      for (const gone of this.members.heldBy(member.slot)) {
        member.transport?.send({ type: 'gone', ...gone });
      }
      this.save();
    };
    if (this.recalling === null) tell();
    else this.recalling.push(tell);
  }

  /** Links with all members that it has none with yet, as far as both want to be seen. */
  private introduceAll(member: Member): void {
    for (const other of this.members) {
      if (other === member || other.transport === null || !agree(member, other)) continue;
      // After a restart both sides must know of a link for it to be one.
      const known =
        member.links.get(other.slot) === other.generation &&
        other.links.get(member.slot) === member.generation;
      if (!known) this.introduce(member, other);
    }
  }

  private introduce(a: Member, b: Member): void {
    let pair: [number, number];
    try {
      pair = native.unixPair();
    } catch (error) {
      if (errnoCode(error) === '') throw error;
      this.log(`${a.name} and ${b.name} could not be introduced: ${errnoCode(error)}`);
      return;
    }
    a.transport?.send(introduction(b), [pair[0], b.pidfd]);
    b.transport?.send(introduction(a), [pair[1], a.pidfd]);
    closeAll(pair);
    a.links.set(b.slot, b.generation);
    b.links.set(a.slot, a.generation);
  }

  private handle(member: Member, message: Record<string, unknown>): void {
    switch (message['type']) {
      case 'released': {
        const slot = slotField(message, 'slot');
        this.members.released(member, slot, integer(message, 'generation', 1, GENERATION_MAX));
        this.save();
        return;
      }
      case 'list':
        if (member.transport !== null) this.sendList(member.transport);
        return;
      case 'leave':
        this.gone(member, 'left', true);
        return;
      default:
        throw misbehaved('sent a message of no known type');
    }
  }

  private sendList(transport: Member['transport']): void {
    const members = this.list();
    for (let at = 0; at === 0 || at < members.length; at += LIST_PAGE) {
      const page = members.slice(at, at + LIST_PAGE);
      transport?.send({ type: 'members', members: page, more: at + LIST_PAGE < members.length });
    }
  }

  /** A member's connection ended without a word. */
  private cutOff(member: Member, transport: SocketTransport, error: PenstockError | null): void {
    if (this.members.at(member.slot) !== member || member.transport !== transport) return;
    if (error !== null) this.log(`${member.name} is cut off: ${error.message}`);
    this.gone(member, error === null ? 'is gone' : 'was cut off');
  }

  /** `left`: by its own word it reads nothing of the others' any more, though it may live on. */
  private gone(member: Member, how: string, left = false): void {
    const { slot, generation, name } = member;
    if (this.members.at(slot) !== member) return;
    const told = this.members.remove(member);
    member.transport?.close();
    forget(member);
    this.log(`${name} (slot ${slot}) ${how}`);
    this.save();
    for (const other of told) other.transport?.send({ type: 'gone', slot, generation, left });
  }

  private save(): void {
    try {
      saveState(this.path, this.members.state());
    } catch (error) {
      // Members are better served by a hub that could not be restarted than by none.
      this.log(`the state could not be saved: ${String(error)}`);
    }
  }

  private log(line: string): void {
    this.options.log?.(line);
  }
}

function forget(member: Member): void {
  if (member.watch !== 0) native.watchClose(member.watch);
  if (member.pidfd >= 0) native.fileClose(member.pidfd);
  member.watch = 0;
  member.pidfd = -1;
}

/** Slots and generations of the domains that a member has links with, or holds memory of. */
function readKnown(message: Record<string, unknown>): [number, number][] {
  const { known } = message;
  if (!Array.isArray(known) || known.length > 2 * SLOT_MAX) throw misbehaved('knows too many');
  return (known as unknown[]).map((entry) => {
    const pair = integers({ ...message, known: entry }, 'known', 2);
    const [slot = 0, generation = 0] = pair;
    if (pair.length !== 2 || slot < 1 || slot > SLOT_MAX || generation > GENERATION_MAX) {
      throw misbehaved('knows a domain that cannot be one');
    }
    return [slot, generation];
  });
}

function introduction({ slot, generation, name, uid, gid, pid }: SavedMember): object {
  return { type: 'peer', slot, generation, name, uid, gid, pid };
}

function refusal(code: string, message: string, hint: string): PenstockError {
  return new PenstockError(code, message, { hint });
}
