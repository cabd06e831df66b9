// LinkChannels: the channels of one link: asked for, offered, open, and closed but not yet by both.
//
// Invariants
// 1. Every half and every wake that was made here is freed once: when the channel was refused, when
//    the link ends before an answer, or when both sides have closed the channel (`sweep`).
// 2. A closed channel lingers until the other side has closed it, too: what still came on it is
//    handed to whoever closed it (RecordChannel.late), and the other may still read our half.
// 3. What an answer needs done before anything else happens is done by `wrap`, in the same step: a
//    death in the next message must find the channel known.

import { errnoCode, PenstockError } from '../errors.js';
import type { DmaBuffer, Memory } from '../memory/index.js';
import { text, u32 } from './fields.js';
import { makeHalf, openChannel, readPlace, type HalfPlace } from './half.js';
import type { PeerInfo } from './link.js';
import type { LinkWire } from './link-wire.js';
import type { RecordChannel } from './record-channel.js';
import { closeAll, misbehaved, tooManyFiles } from './transport.js';
import type { Wake } from './wake.js';

const CHANNELS_MAX = 1024;
const META_MAX = 4096;
const PORT_MAX = 64;
const TIMER_MS_MAX = 2 ** 31 - 1;

/** A channel that the other side asks for. One of accept and refuse is called, once. */
export interface Incoming {
  readonly peer: PeerInfo;
  readonly port: string;
  readonly size: number;
  /** The asker's words, at most 4096 characters; hostile. */
  readonly meta: string;
  /**
   * Errors: PEER_GONE (the asker, meanwhile), PEER_MISBEHAVED, OUT_OF_MEMORY. The asker has been
   * told of the last, and the link goes on.
   */
  accept(meta?: string): LinkChannel;
  refuse(code: string, message: string, hint?: string): void;
}

/** A channel, and what the other side said of it. */
export interface LinkChannel {
  readonly records: RecordChannel;
  readonly meta: string;
  /** Where it lies, for another thread of this process (with a wake of its own descriptor). */
  readonly own: HalfPlace;
  readonly theirs: HalfPlace;
  readonly wakeFd: number;
}

/** What channels ask of their link. */
export interface ChannelsHome {
  readonly peer: PeerInfo;
  readonly memory: Memory;
  readonly wire: LinkWire;
  /** Why the link is over. */
  readonly error: PenstockError | null;
  readonly dead: boolean;
  send(message: object, fds: readonly number[]): void;
  settle(address: number, bytes: number): boolean;
  wantService(): void;
}

interface Opening {
  readonly port: string;
  readonly place: HalfPlace;
  readonly buffer: DmaBuffer;
  readonly wake: Wake;
  readonly timer: NodeJS.Timeout;
  /** Nobody waits any more; its half and its wake stay until the other side answers. */
  expired: boolean;
  readonly done: (channel: LinkChannel) => void;
  readonly fail: (error: PenstockError) => void;
}

interface Lingering {
  readonly buffer: DmaBuffer;
  readonly records: RecordChannel;
}

export class LinkChannels {
  private readonly home: ChannelsHome;
  /** By their ports. */
  private readonly open = new Map<RecordChannel, string>();
  private readonly openings = new Map<number, Opening>();
  /** Wakes of channels that are asked for and not answered yet. */
  private readonly offered = new Set<Wake>();
  private readonly lingering = new Set<Lingering>();
  private lastId = 0;

  constructor(home: ChannelsHome) {
    this.home = home;
  }

  /** Whether halves of closed channels are left. */
  get lingers(): boolean {
    return this.lingering.size > 0;
  }

  /** Open channels and their ports. */
  get list(): Iterable<[RecordChannel, string]> {
    return this.open;
  }

  /**
   * Asks the other side for a channel; `wrap` is called as soon as it is there. Errors: TIMED_OUT,
   * TOO_MANY_FILES, what ended the link, and what the other side refuses with.
   */
  connect<T>(
    port: string,
    options: { size: number; meta: string; timeoutMs: number },
    wrap: (channel: LinkChannel) => T,
  ): Promise<T> {
    const { size, meta, timeoutMs } = options;
    if (meta.length > META_MAX) throw new RangeError(`meta has ${META_MAX} characters at most`);
    if (port.length > PORT_MAX) throw new RangeError(`a port has ${PORT_MAX} characters at most`);
    const { home } = this;
    if (home.error !== null) return Promise.reject(home.error);
    const { place, buffer } = makeHalf(home.memory, size);
    let pair: ReturnType<LinkWire['pair']>;
    try {
      pair = home.wire.pair();
    } catch (error) {
      buffer.free();
      return Promise.reject(tooManyFiles(error) as Error);
    }
    const { wake, fds } = pair;
    const id = ++this.lastId;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.expire(id, port, timeoutMs), clamp(timeoutMs));
      const done = (channel: LinkChannel): void => resolve(wrap(channel));
      const fail = reject;
      this.openings.set(id, { port, place, buffer, wake, timer, expired: false, done, fail });
      try {
        home.send({ type: 'open', id, port, meta, ...place }, fds);
      } catch (error) {
        // The message could not wait for the socket: its descriptors had to be copied for that.
        clearTimeout(timer);
        this.openings.delete(id);
        wake.close();
        buffer.free();
        reject(tooManyFiles(error) as Error);
      } finally {
        closeAll(fds);
      }
    });
  }

  /** The other side asks for a channel: `hand` decides. `fds` stay the caller's. */
  asked(
    message: Readonly<Record<string, unknown>>,
    fds: readonly number[],
    hand: (incoming: Incoming) => void,
  ): void {
    const { home } = this;
    const { peer } = home;
    const id = u32(message, 'id');
    const port = text(message, 'port', PORT_MAX);
    const meta = text(message, 'meta', META_MAX);
    const theirs = readPlace(message, peer.slot);
    if (fds.length !== home.wire.wakeFds) throw misbehaved('asked for a channel in a wrong way');
    const wake = this.adoptWake(id, fds);
    if (wake === null) return;
    this.offered.add(wake);
    let answered = false;
    /** What accept failed with, after the other side was told. */
    let told: unknown = null;
    const answer = (): void => {
      if (answered) throw new Error('a channel is accepted or refused once');
      answered = true;
    };
    const refuse = (code: string, why: string, hint = ''): void => {
      answer();
      this.offered.delete(wake);
      wake.close();
      home.send({ type: 'refuse', id, code, message: why, hint }, []);
    };
    const accept = (said = ''): LinkChannel => {
      answer();
      if (home.error !== null) throw home.error;
      try {
        const { place, buffer } = makeHalf(home.memory, theirs.size);
        const channel = this.adopt(port, { place, buffer }, theirs, wake, said);
        home.send({ type: 'accept', id, meta: said, ...place }, []);
        return channel;
      } catch (error) {
        wake.close();
        if (error instanceof PenstockError && error.code !== 'PEER_MISBEHAVED') {
          const { code, message: why, hint } = error;
          home.send({ type: 'refuse', id, code, message: why, hint }, []);
          told = error;
        }
        throw error;
      } finally {
        this.offered.delete(wake);
      }
    };
    if (this.open.size + this.lingering.size + this.offered.size > CHANNELS_MAX) {
      refuse('TOO_MANY_CHANNELS', `there are ${CHANNELS_MAX} channels already`, 'close some');
      return;
    }
    try {
      hand({ peer, port, size: theirs.size, meta, accept, refuse });
    } catch (error) {
      // What is short here is no fault of the other side's, nor a reason to end its other channels.
      if (error !== told || told === null) throw error;
    }
  }

  accepted(message: Readonly<Record<string, unknown>>): void {
    const opening = this.takeOpening(message);
    const theirs = readPlace(message, this.home.peer.slot);
    const meta = text(message, 'meta', META_MAX);
    const { port, wake, done, fail } = opening;
    let channel: LinkChannel;
    try {
      channel = this.adopt(port, opening, theirs, wake, meta);
    } catch (error) {
      wake.close();
      fail(error as PenstockError);
      throw error;
    }
    if (opening.expired) channel.records.close();
    else done(channel);
  }

  refused(message: Readonly<Record<string, unknown>>): void {
    const opening = this.takeOpening(message);
    opening.wake.close();
    opening.buffer.free();
    const code = text(message, 'code', 64);
    const why = text(message, 'message', 1024);
    const hint = text(message, 'hint', 1024);
    const known = /^[A-Z_]+$/.test(code) ? code : 'REFUSED';
    opening.fail(new PenstockError(known, why, { hint }));
  }

  /** The link is over: channels break, after what was sent has been copied to private memory. */
  end(error: PenstockError): void {
    for (const channel of this.open.keys()) {
      channel.detach();
      channel.fail(error);
    }
    for (const { records } of this.lingering) records.detach();
    for (const { wake, buffer, timer, fail } of this.openings.values()) {
      clearTimeout(timer);
      wake.close();
      if (!buffer.freed) buffer.free();
      fail(error);
    }
    this.openings.clear();
    for (const wake of this.offered) wake.close();
    this.offered.clear();
  }

  /** Takes what still came on closed channels, and frees the halves of those both have closed. */
  sweep(): void {
    for (const entry of this.lingering) {
      const { buffer, records } = entry;
      // Not before: one that only sends nothing any more may still read our half.
      const over = this.home.dead || records.peerClosed;
      // After the look: what was sent before the end is there now.
      records.drain();
      if (!over) continue;
      this.lingering.delete(entry);
      if (!buffer.freed) buffer.free();
    }
  }

  private adopt(
    port: string,
    { place: own, buffer }: { place: HalfPlace; buffer: DmaBuffer },
    theirs: HalfPlace,
    wake: Wake,
    meta: string,
  ): LinkChannel {
    const { home } = this;
    try {
      if (!home.settle(theirs.address, 1)) {
        throw misbehaved('told of a half in no memory of its own');
      }
      const records = openChannel({ own, peer: theirs }, wake, () => {
        this.open.delete(records);
        this.lingering.add({ buffer, records });
        this.sweep();
        home.wantService();
      });
      this.open.set(records, port);
      return { records, meta, own, theirs, wakeFd: wake.fd };
    } catch (error) {
      if (!buffer.freed) buffer.free();
      throw error;
    }
  }

  /** The wake of a channel that is asked for; null: there is no descriptor, and that was told. */
  private adoptWake(id: number, fds: readonly number[]): Wake | null {
    try {
      return this.home.wire.adopt(fds);
    } catch (error) {
      const errno = errnoCode(error);
      if (errno === '') throw error;
      const message = `no descriptor is left in the process asked (${errno})`;
      const hint = 'raise its limit of open files, or close channels';
      this.home.send({ type: 'refuse', id, code: 'TOO_MANY_FILES', message, hint }, []);
      return null;
    }
  }

  private takeOpening(message: Readonly<Record<string, unknown>>): Opening {
    const id = u32(message, 'id');
    const opening = this.openings.get(id);
    if (opening === undefined) throw misbehaved('answered what was not asked');
    clearTimeout(opening.timer);
    this.openings.delete(id);
    return opening;
  }

  private expire(id: number, port: string, timeoutMs: number): void {
    const opening = this.openings.get(id);
    if (opening === undefined) return;
    opening.expired = true;
    const { name } = this.home.peer;
    opening.fail(
      new PenstockError('TIMED_OUT', `${name} did not answer on ${port} within ${timeoutMs} ms`, {
        hint: 'its process is slow, stopped, or accepts later than that; give it more time',
      }),
    );
  }
}

function clamp(ms: number): number {
  return Math.min(Math.max(0, ms), TIMER_MS_MAX);
}
