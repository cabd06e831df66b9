// DeviceClient: a domain that uses a served device, with all its queues: its turn, its limits, its
// buffers, and what it has done so far.
//
// Invariant: there is one for as long as the other domain is there, whether it has queues or not:
// who closes its queues and opens others finds the limits and counts as it left them.

import type { Memory } from '../memory/index.js';
import { LentBuffers } from './device-buffers.js';
import type { DeviceSession } from './device-session.js';
import type { Link, PeerInfo } from './link.js';
import type { RecordChannel } from './record-channel.js';

/** What a client may do at most; Infinity: no limit. */
export interface ClientLimits {
  readonly iops: number;
  readonly bytesPerSecond: number;
  /** Bytes of the server's memory that may be lent to it, or filled for its reads. */
  readonly lentBytes: number;
}

/** Counters of one client; all but `inFlight` and `lent` since it came. */
export interface ClientStats {
  readonly name: string;
  readonly slot: number;
  readonly pid: number;
  readonly queues: number;
  readonly inFlight: number;
  readonly reads: number;
  readonly writes: number;
  readonly others: number;
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** Operations that completed with another status than OK, also those refused at once. */
  readonly errors: number;
  /** Times that requests began to wait: for its limits; for memory to read into. */
  readonly throttled: number;
  readonly deferred: number;
  /** Loans that are out, and bytes of this domain's memory that serve it. */
  readonly lent: number;
  readonly lentBytes: number;
}

/** Indices into `counts`. */
export const enum Tally {
  reads = 0,
  writes = 1,
  others = 2,
  bytesRead = 3,
  bytesWritten = 4,
  errors = 5,
  throttled = 6,
  deferred = 7,
  /** Tokens of the two buckets: operations, bytes. */
  opTokens = 8,
  byteTokens = 9,
  /** When they were filled up, in milliseconds. */
  filled = 10,
  words = 11,
}

/** What a client asks of the loop that serves it. */
export interface ClientHome {
  dirtied(session: DeviceSession): void;
  end(session: DeviceSession): void;
}

/**
 * Bytes after which a client's turn is over: the device may move them while it takes them, and
 * nobody hears of what is done before all of a round was taken.
 */
const QUANTUM_BYTES = 256 * 1024;
/** Tokens gather for this long: so much may come at once after a pause. */
const BURST_MS = 20;
const MS = 1000;

export class DeviceClient {
  readonly link: Link;
  readonly peer: PeerInfo;
  readonly buffers: LentBuffers;
  readonly counts = new Float64Array(Tally.words);
  /** All sessions, and those whose channel is polled. */
  readonly sessions = new Set<DeviceSession>();
  readonly awake: DeviceSession[] = [];
  /**
   * Channels of sessions that are over, and the owners of their buffers, until the other end has
   * ended them, too: it may still look at buffers.
   */
  readonly readers = new Map<RecordChannel, number>();
  /** Operations at the device, and how many there may be. */
  inFlight = 0;
  share = 0;
  /** Bytes that its queues may ask for before its turn is over; below 0 by one request at most. */
  bytesLeft = 0;
  /** READs of all its queues whose buffers it has not done with. */
  readsOut = 0;
  readonly isLimited: boolean;
  private readonly home: ClientHome;
  private readonly limits: ClientLimits;
  private next = 0;
  private throttled = false;
  private lastOwner = 0;

  constructor(home: ClientHome, link: Link, memory: Memory, limits: ClientLimits, align: number) {
    this.home = home;
    this.link = link;
    this.peer = link.peer;
    this.limits = limits;
    this.buffers = new LentBuffers(memory, limits.lentBytes, align);
    this.isLimited = limits.iops < Infinity || limits.bytesPerSecond < Infinity;
    this.counts[Tally.opTokens] = this.burst(limits.iops);
    this.counts[Tally.byteTokens] = this.burst(limits.bytesPerSecond);
  }

  // hot:begin

  /**
   * Serves its queues in turn, `quantum` requests and QUANTUM_BYTES at most, and one request more;
   * returns records it did something with.
   */
  serve(quantum: number, nowMs: number): number {
    let left = quantum;
    if (this.isLimited) {
      const tokens = this.tokens(nowMs);
      if (tokens < left) left = tokens;
      if (left <= 0) return 0;
    }
    const { awake } = this;
    const count = awake.length;
    let at = this.next < count ? this.next : 0;
    this.next = at + 1;
    this.bytesLeft = QUANTUM_BYTES;
    let done = 0;
    for (let i = 0; i < count && left > 0 && this.bytesLeft > 0; i++) {
      const session = awake[at];
      // It may have put itself to an end.
      if (session === undefined) break;
      const taken = session.serve(left);
      done += taken;
      left -= taken;
      at = at + 1 < count ? at + 1 : 0;
    }
    return done;
  }

  /** Counts requests taken, and bytes that they move. */
  took(requests: number, bytes: number): void {
    if (!this.isLimited) return;
    const { counts } = this;
    counts[Tally.opTokens] = counts[Tally.opTokens]! - requests;
    counts[Tally.byteTokens] = counts[Tally.byteTokens]! - bytes;
  }

  /** Counts a completed operation. */
  tally(which: Tally, bytes: number, status: number): void {
    const { counts } = this;
    this.inFlight--;
    if (status !== 0) {
      counts[Tally.errors] = counts[Tally.errors]! + 1;
      return;
    }
    counts[which] = counts[which]! + 1;
    if (which === Tally.reads) counts[Tally.bytesRead] = counts[Tally.bytesRead]! + bytes;
    else if (which === Tally.writes)
      counts[Tally.bytesWritten] = counts[Tally.bytesWritten]! + bytes;
  }

  dirtied(session: DeviceSession): void {
    this.home.dirtied(session);
  }

  deferred(): void {
    this.counts[Tally.deferred] = this.counts[Tally.deferred]! + 1;
  }

  refused(): void {
    this.counts[Tally.errors] = this.counts[Tally.errors]! + 1;
  }

  /**
   * Requests that the limits allow now. Bytes are counted when they are known: the next turn waits
   * for what this one took too much.
   */
  private tokens(nowMs: number): number {
    const { counts, limits } = this;
    const passed = nowMs - counts[Tally.filled]!;
    if (passed > 0) {
      counts[Tally.filled] = nowMs;
      counts[Tally.opTokens] = this.fill(counts[Tally.opTokens]!, limits.iops, passed);
      counts[Tally.byteTokens] = this.fill(
        counts[Tally.byteTokens]!,
        limits.bytesPerSecond,
        passed,
      );
    }
    const allowed = counts[Tally.byteTokens]! > 0 ? counts[Tally.opTokens]! : 0;
    if (allowed >= 1) {
      this.throttled = false;
      return allowed;
    }
    if (!this.throttled && this.waits()) {
      this.throttled = true;
      counts[Tally.throttled] = counts[Tally.throttled]! + 1;
    }
    return 0;
  }

  private waits(): boolean {
    const { awake } = this;
    for (let i = 0; i < awake.length; i++) if (awake[i]!.waits) return true;
    return false;
  }

  private fill(tokens: number, perSecond: number, passedMs: number): number {
    const most = this.burst(perSecond);
    const filled = tokens + (perSecond * passedMs) / MS;
    return filled < most ? filled : most;
  }

  // hot:end

  /** Whether a range of another domain's memory can be read here, once messages were taken. */
  settle(lo: number, hi: number, bytes: number): boolean {
    // Only its own memory can be under way on its link.
    return this.link.error === null && this.link.settle(hi * 2 ** 32 + lo, bytes);
  }

  /**
   * Takes back what it has done with of all its queues, also of those that sleep: it wakes nobody
   * to say `done`. Whether that was anything.
   */
  reclaim(): boolean {
    const before = this.readsOut;
    for (const session of this.sessions) if (!session.over) session.reclaim();
    return this.readsOut < before;
  }

  newOwner(): number {
    return ++this.lastOwner;
  }

  /** Queues of which something is left: also those that are over and not ended by the client. */
  get queues(): number {
    return this.sessions.size + this.readers.size;
  }

  /**
   * Takes back the buffers that nobody looks at any more; true when no queue is left, and no
   * buffer. `isGone`: the domain is not there any more.
   */
  letGo(isGone: boolean): boolean {
    for (const [channel, owner] of this.readers) {
      if (!isGone && !channel.peerClosed) continue;
      this.readers.delete(channel);
      this.buffers.freeOf(owner);
    }
    if (this.sessions.size > 0 || this.readers.size > 0) return false;
    this.buffers.close();
    return true;
  }

  ended(session: DeviceSession): void {
    this.home.end(session);
  }

  stats(): ClientStats {
    const count = (which: Tally): number => this.counts[which]!;
    return {
      name: this.peer.name,
      slot: this.peer.slot,
      pid: this.peer.pid,
      queues: this.queues,
      inFlight: this.inFlight,
      reads: count(Tally.reads),
      writes: count(Tally.writes),
      others: count(Tally.others),
      bytesRead: count(Tally.bytesRead),
      bytesWritten: count(Tally.bytesWritten),
      errors: count(Tally.errors),
      throttled: count(Tally.throttled),
      deferred: count(Tally.deferred),
      lent: this.buffers.lent,
      lentBytes: this.buffers.bytes,
    };
  }

  /** Operations, or bytes, that may come at once: what gathers in a while, one at least. */
  private burst(perSecond: number): number {
    return perSecond === Infinity ? Infinity : Math.max(1, (perSecond * BURST_MS) / MS);
  }
}
