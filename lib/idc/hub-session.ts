// HubSession: a domain's connection to its hub. Joins, and joins again when the hub was restarted:
// the domain shows the slot, generation and token that it was given, and whom it knows.

import { errnoCode, PenstockError } from '../errors.js';
import { addressSpace } from '../memory/index.js';
import { native } from '../native.js';
import { integer, slot, text } from './fields.js';
import type { PeerInfo } from './link.js';
import { ProcessWire, type LinkWire } from './link-wire.js';
import { closeAll, misbehaved, SocketTransport, type Transport } from './transport.js';

export const HUB_VERSION = 1;
const LIST_MAX = 1024;
const RETRY_MS = 100;
/** A domain looks for its hub at least this often. */
export const RETRY_MS_MAX = 2000;

/** Who may have a link with a domain, and so read its memory; all members when left out. */
export interface Sharing {
  readonly names?: readonly string[];
  readonly uids?: readonly number[];
}

export interface Membership {
  readonly slot: number;
  readonly generation: number;
  readonly token: string;
}

export interface SessionHome {
  /** This process has its place; before anybody is introduced. Once. */
  onPlace(place: { slot: number; generation: number }): void;
  onPeer(peer: PeerInfo, wire: LinkWire): void;
  /**
   * A domain is gone, or has `left` in order: answer with `released` once nothing of its slot is
   * held.
   */
  onGone(slot: number, generation: number, left: boolean): void;
  /** Slots and generations of the domains that this one has links with. */
  known(): readonly [number, number][];
}

export interface MemberInfo extends PeerInfo {
  /** member, missing (not back since the hub's restart), or leaving (its slot is not free yet) */
  readonly state: string;
}

/** How a domain came to its place, and learns of others: by a hub, or by regions. */
export interface Session {
  readonly connected: boolean;
  /** What others have stays mapped for good: a slot is always the same domain's. */
  readonly lasting: boolean;
  /** Gets a place (`onPlace`), or throws. */
  join(timeoutMs: number): Promise<void>;
  members(): Promise<MemberInfo[]>;
  /** Nothing of that domain's slot is held here any more. */
  released(gone: number, generation: number): void;
  close(): void;
}

export class HubSession implements Session {
  readonly path: string;
  readonly name: string;
  readonly lasting = false;
  private readonly sharing: Sharing;
  private readonly home: SessionHome;
  private transport: Transport | null = null;
  private membership: Membership | null = null;
  private answer: ((error: PenstockError | null) => void) | null = null;
  private lists: ((members: MemberInfo[]) => void)[] = [];
  /** What came of a list that comes in parts. */
  private part: MemberInfo[] = [];
  private retry: NodeJS.Timeout | null = null;
  private retryMs = RETRY_MS;
  private closed = false;
  private readonly keepAlive: boolean;

  constructor(path: string, name: string, sharing: Sharing, home: SessionHome, keepAlive: boolean) {
    this.path = path;
    this.name = name;
    this.sharing = sharing;
    this.home = home;
    this.keepAlive = keepAlive;
  }

  get connected(): boolean {
    return this.transport !== null && this.answer === null;
  }

  /** Errors: NO_HUB, PERMISSION_DENIED, and what the hub refuses with. */
  async join(timeoutMs: number): Promise<void> {
    this.connect();
    await this.greeted(timeoutMs);
  }

  /** All members as the hub knows them. */
  async members(timeoutMs = 1000): Promise<MemberInfo[]> {
    if (!this.connected) throw noHub(this.path, undefined);
    const list = new Promise<MemberInfo[]>((resolve) => this.lists.push(resolve));
    this.transport!.send({ type: 'list' });
    return withTimeout(list, timeoutMs, this.path);
  }

  /** Nothing of that domain's slot is held here any more. */
  released(gone: number, generation: number): void {
    this.transport?.send({ type: 'released', slot: gone, generation });
  }

  /** Leaves; the slot is free once all others have let go of it. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    if (this.retry !== null) clearTimeout(this.retry);
    this.transport?.send({ type: 'leave' });
    this.transport?.close();
    this.transport = null;
  }

  private connect(): void {
    let fd: number;
    try {
      fd = native.unixConnect(this.path);
    } catch (cause) {
      throw connectError(this.path, cause);
    }
    this.transport = new SocketTransport(
      fd,
      {
        onMessage: (message, fds) => this.handle(message, fds),
        onEnd: (error) => this.lost(error),
      },
      this.keepAlive,
    );
    const { names, uids } = this.sharing;
    const who = { version: HUB_VERSION, name: this.name, names, uids };
    if (this.membership === null) this.transport.send({ type: 'join', ...who });
    else {
      this.transport.send({ type: 'rejoin', ...who, ...this.membership, known: this.home.known() });
    }
  }

  private async greeted(timeoutMs: number): Promise<void> {
    const answer = new Promise<void>((resolve, reject) => {
      this.answer = (error) => {
        this.answer = null;
        if (error === null) resolve();
        else reject(error);
      };
    });
    try {
      await withTimeout(answer, timeoutMs, this.path);
    } catch (error) {
      this.close();
      throw error;
    }
  }

  private handle(message: Record<string, unknown>, fds: number[]): void {
    switch (message['type']) {
      case 'welcome':
        closeAll(fds);
        this.welcome(message);
        return;
      case 'refused':
        closeAll(fds);
        this.refuse(message);
        return;
      case 'peer':
        this.peer(message, fds);
        return;
      case 'gone':
        closeAll(fds);
        this.home.onGone(slot(message, 'slot'), generation(message), message['left'] === true);
        return;
      case 'members':
        closeAll(fds);
        this.listed(message);
        return;
      default:
        closeAll(fds);
        throw misbehaved('(the hub) sent a message of no known type');
    }
  }

  private listed(message: Record<string, unknown>): void {
    const { members, more } = message;
    if (Array.isArray(members)) this.part.push(...(members as MemberInfo[]));
    if (more === true && this.part.length < LIST_MAX) return;
    this.lists.shift()?.(this.part);
    this.part = [];
  }

  private welcome(message: Record<string, unknown>): void {
    const given = {
      slot: slot(message, 'slot'),
      generation: generation(message),
      token: text(message, 'token', 128),
    };
    const { membership } = this;
    if (membership !== null && membership.slot !== given.slot) {
      throw misbehaved('(the hub) gave another slot to a domain that has one');
    }
    try {
      if (membership === null) {
        addressSpace().join(given.slot);
        this.home.onPlace(given);
      }
    } catch (error) {
      this.answer?.(error as PenstockError);
      this.close();
      return;
    }
    this.membership = given;
    this.retryMs = RETRY_MS;
    this.answer?.(null);
  }

  private refuse(message: Record<string, unknown>): void {
    const code = text(message, 'code', 64);
    const error = new PenstockError(code, text(message, 'message', 1024), {
      hint: text(message, 'hint', 1024),
      exitCode: 3,
    });
    if (this.answer !== null) {
      this.answer(error);
      return;
    }
    this.close();
    this.warn('PENSTOCK_HUB_REFUSED', 'is no member of its hub any more', error);
  }

  /** Of what happens while nobody waits for an answer. */
  private warn(code: string, text: string, { message, hint }: PenstockError): void {
    process.emitWarning(`domain ${this.name} ${text}: ${message}`, { code, detail: hint });
  }

  private peer(message: Record<string, unknown>, fds: number[]): void {
    if (fds.length !== 2) {
      closeAll(fds);
      throw misbehaved('(the hub) introduced a domain without its descriptors');
    }
    let info: PeerInfo;
    try {
      info = {
        slot: slot(message, 'slot'),
        generation: generation(message),
        name: text(message, 'name', 64),
        uid: integer(message, 'uid', 0, 0xffff_ffff),
        gid: integer(message, 'gid', 0, 0xffff_ffff),
        pid: integer(message, 'pid', 0, 2 ** 31),
      };
    } catch (error) {
      closeAll(fds);
      throw error;
    }
    this.home.onPeer(info, new ProcessWire(fds[0]!, fds[1]!));
  }

  /** The hub is gone: links go on without it, and this domain comes back when it does. */
  private lost(error: PenstockError | null): void {
    this.transport = null;
    this.lists = [];
    this.part = [];
    if (this.closed) return;
    if (this.answer !== null && this.membership === null) {
      this.answer(error ?? noHub(this.path, undefined));
      return;
    }
    if (error !== null) this.warn('PENSTOCK_HUB_LOST', 'connects to its hub again', error);
    this.retryLater();
  }

  private retryLater(): void {
    const timer = setTimeout(() => {
      this.retry = null;
      try {
        this.connect();
      } catch (error) {
        if (!(error instanceof PenstockError)) throw error;
        this.retryMs = Math.min(RETRY_MS_MAX, this.retryMs * 1.5);
        this.retryLater();
      }
    }, this.retryMs);
    this.retry = this.keepAlive ? timer : timer.unref();
  }
}

function generation(message: Record<string, unknown>): number {
  return integer(message, 'generation', 1, 2 ** 31);
}

export function connectError(path: string, cause: unknown): PenstockError {
  const code = errnoCode(cause);
  if (code === 'EACCES' || code === 'EPERM') {
    return new PenstockError('PERMISSION_DENIED', `the hub at ${path} may not be joined`, {
      hint: 'the mode and owner of its socket decide who may: ask whoever started it',
      cause,
      exitCode: 3,
    });
  }
  return noHub(path, cause);
}

export function noHub(path: string, cause: unknown): PenstockError {
  return new PenstockError('NO_HUB', `no hub listens at ${path}`, {
    hint: `start one: penstock idc hub ${path}`,
    exitCode: 3,
    ...(cause === undefined ? {} : { cause }),
  });
}

export function hubSilent(path: string, timeoutMs: number): PenstockError {
  return new PenstockError('HUB_SILENT', `the hub at ${path} did not answer in ${timeoutMs} ms`, {
    hint: 'its process may be stopped or hang; end it and start another: members come back',
    exitCode: 3,
  });
}

async function withTimeout<T>(work: Promise<T>, timeoutMs: number, path: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(hubSilent(path, timeoutMs));
    }, timeoutMs);
  });
  try {
    return await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}
