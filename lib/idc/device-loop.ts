// DeviceLoop: serves the sessions of all clients, in slices of the event loop.
//
// What has nothing to do for a while goes to sleep: a channel by itself, so that unused queues cost
// nothing, and the loop when no channel is awake; it then sleeps on the device's descriptor, if
// operations are in flight there.
//
// Invariants
// 1. Each round every client has its turn, the first one another each time, and takes at most
//    QUANTUM requests. Of the device's queue it may fill its share: the depth by those that are
//    awake. So a client with deep queues holds up no other.
// 2. A session that is over takes nothing; it is handed to `onBuried` when nothing of it is in
//    flight and its last completions were sent.

import { Cpl, Status } from '../hpdi/index.js';
import { native } from '../native.js';
import { fence } from '../wire/index.js';
import { Tally, type DeviceClient } from './device-client.js';
import { Kind, type DeviceOps } from './device-ops.js';
import type { DeviceSession } from './device-session.js';

/** Requests that a client may take in a turn. */
const QUANTUM = 32;
/** How long the loop goes on before the event loop has its turn. */
const SLICE_MS = 0.25;
/** Rounds between two looks at the clock, less one; and bytes after which it looks anyway. */
const CLOCK_ROUNDS = 63;
const CLOCK_BYTES = 2 ** 20;
/**
 * How long everything must be idle before the loop sleeps, from, to: the longer, the more often it
 * slept for less than SHORT_MS. And one channel, in rounds.
 */
const IDLE_MS_MIN = 0.02;
const IDLE_MS_MAX = 0.1;
const SHORT_MS = 0.25;
const IDLE_ROUNDS = 2048;
/** How long it sleeps while all that is asked for must wait: for limits, or for buffers. */
const WAITING_MS = 1;

export class DeviceLoop {
  /** Rounds so far, and times it went to sleep. */
  rounds = 0;
  sleeps = 0;
  private readonly ops: DeviceOps;
  private readonly onBuried: (session: DeviceSession) => void;
  /** By number; null: free. */
  private readonly sessions: (DeviceSession | null)[] = [];
  /** Clients that have a session awake. */
  private readonly awake: DeviceClient[] = [];
  private first = 0;
  /** Sessions with completions that were not sent yet. */
  private readonly dirty: DeviceSession[] = [];
  private dirtyCount = 0;
  /** Sessions that are over and not buried. */
  private readonly ending = new Set<DeviceSession>();
  private nowMs = 0;
  /** Bytes completed since the last look at the clock. */
  private moved = 0;
  private idleMs = IDLE_MS_MIN;
  /** When it went to sleep; 0: awake. */
  private asleepSince = 0;
  private idleSince = 0;
  private readonly onTurn: () => void;
  /** A turn is to come, at once or (`timer`) in a while. */
  private turning = false;
  private timer: NodeJS.Timeout | null = null;
  private stopped = false;
  private deviceWatch = 0;
  private deviceFd = -1;

  constructor(ops: DeviceOps, onBuried: (session: DeviceSession) => void) {
    this.ops = ops;
    this.onBuried = onBuried;
    this.onTurn = () => this.turn();
  }

  /** Number for the next session. */
  get freeId(): number {
    const free = this.sessions.indexOf(null);
    return free < 0 ? this.sessions.length : free;
  }

  add(session: DeviceSession): void {
    session.watch = native.watchOpen(session.channel.wakeFd, () => this.wakeUp(session));
    this.sessions[session.id] = session;
    this.addAwake(session);
    this.again();
  }

  dirtied(session: DeviceSession): void {
    session.dirty = true;
    this.dirty[this.dirtyCount++] = session;
  }

  /** A session takes nothing more. */
  end(session: DeviceSession): void {
    if (session.over) return;
    session.over = true;
    this.removeAwake(session);
    if (session.watch !== 0) native.watchClose(session.watch);
    session.watch = 0;
    this.ending.add(session);
    // Operations of it may be in flight at a device that nobody watches at this moment.
    this.again();
  }

  /** Ends all sessions, and completes what is in flight. */
  async close(): Promise<void> {
    for (const session of this.sessions) if (session !== null) this.end(session);
    this.stopped = true;
    const { queue } = this.ops;
    for (;;) {
      if (queue.tail !== queue.head) queue.submit();
      await queue.drain();
      this.reap(queue.poll(queue.depth));
      this.send();
      this.buryEnded();
      if (this.ending.size === 0) break;
      await new Promise((resolve) => setImmediate(resolve));
    }
    if (this.deviceWatch !== 0) native.watchClose(this.deviceWatch);
    await queue.close();
  }

  // hot:begin

  /** One turn of every client, and of the device; returns how much was done. */
  private round(): number {
    const { awake, ops } = this;
    const { queue } = ops;
    const count = awake.length;
    const fair = count > 1 ? (ops.depth / count) | 0 : ops.depth;
    const share = fair < 1 ? 1 : fair;
    let at = this.first < count ? this.first : 0;
    this.first = at + 1;
    let work = 0;
    this.rounds = (this.rounds + 1) | 0;
    for (let i = 0; i < count; i++) {
      const client = awake[at];
      if (client === undefined) break; // one has put itself to an end
      client.share = share;
      work += client.serve(QUANTUM, this.nowMs);
      at = at + 1 < count ? at + 1 : 0;
    }
    if (queue.tail !== queue.head) queue.submit();
    if (queue.inFlight > 0) work += this.reap(queue.poll(queue.depth));
    if (this.dirtyCount > 0) this.send();
    if (this.ending.size > 0) this.buryEnded();
    return work;
  }

  /** Hands the first `count` completions of the device's queue to their sessions. */
  private reap(count: number): number {
    const { ops, sessions } = this;
    const { cq } = ops.queue;
    for (let i = 0; i < count; i++) {
      const at = i * Cpl.words;
      const slot = cq[at]!;
      const status = cq[at + Cpl.status]!;
      const session = sessions[ops.sessions[slot]!]!;
      const { client } = session;
      const { buffers } = client;
      const kind = ops.kinds[slot]!;
      const buffer = ops.buffers[slot]!;
      const tag = ops.tags[slot]!;
      session.inFlight--;
      this.moved += ops.bytes[slot]!;
      if (kind === Kind.none) {
        const bytes = ops.bytes[slot]!;
        client.tally(ops.domains[slot] !== 0 ? Tally.writes : Tally.others, bytes, status);
        session.complete(tag, status, cq[at + Cpl.resultLo]!, cq[at + Cpl.resultHi]!, 0);
      } else {
        client.tally(Tally.reads, ops.bytes[slot]!, status);
        if (status !== Status.OK) {
          buffers.free(buffer);
          session.complete(tag, status, 0, 0, 0);
        } else if (session.over) {
          // The buffer would not last: to the client it is as if the server had gone before.
          buffers.free(buffer);
        } else {
          session.complete(tag, status, buffers.lo[buffer]!, buffers.hi[buffer]!, buffer);
          if (kind === Kind.loan) buffers.lend(buffer);
          else session.lendUntilDone(buffer);
        }
      }
      ops.end(slot);
    }
    return count;
  }

  /** Sends the completions of this round. */
  private send(): void {
    const { dirty } = this;
    for (let i = 0; i < this.dirtyCount; i++) {
      const session = dirty[i]!;
      session.dirty = false;
      session.channel.submit();
    }
    this.dirtyCount = 0;
  }

  // hot:end

  /** One slice of the loop; then the event loop has its turn, or everything sleeps. */
  private turn(): void {
    this.turning = false;
    this.timer = null;
    if (this.stopped) return;
    this.nowMs = performance.now();
    if (this.asleepSince > 0) this.awoke();
    const until = this.nowMs + SLICE_MS;
    let worked = false;
    for (let round = 1; this.nowMs < until; round++) {
      if (this.round() > 0) worked = true;
      if ((round & CLOCK_ROUNDS) !== 0 && this.moved < CLOCK_BYTES) continue;
      this.moved = 0;
      this.nowMs = performance.now();
      if (worked) this.idleSince = this.nowMs;
      else if (this.nowMs - this.idleSince >= this.idleMs) {
        this.rest();
        return;
      }
      // What it waits for may be the work of a thread that waits for this processor: the kernel's
      // for a file, a client's.
      else native.yieldCpu();
      worked = false;
    }
    for (const client of [...this.awake]) {
      for (const session of [...client.awake]) {
        if (session.idle > IDLE_ROUNDS && session.inFlight === 0) this.putToSleep(session);
      }
    }
    this.again();
  }

  /** How long it looks before the next sleep depends on how long the last ones were. */
  private awoke(): void {
    const short = this.nowMs - this.asleepSince < SHORT_MS;
    this.idleMs = short
      ? Math.min(IDLE_MS_MAX, this.idleMs * 2)
      : Math.max(IDLE_MS_MIN, this.idleMs / 2);
    this.asleepSince = 0;
    this.idleSince = this.nowMs;
  }

  private again(): void {
    this.hurry();
    if (this.turning || this.stopped) return;
    this.turning = true;
    setImmediate(this.onTurn);
  }

  /** What waits for a while does so no more. */
  private hurry(): void {
    if (this.timer === null) return;
    clearTimeout(this.timer);
    this.timer = null;
    this.turning = false;
  }

  /** Nothing was to be done for a while: goes to sleep, if nothing comes meanwhile. */
  private rest(): void {
    let awake = 0;
    let waiting = 0;
    for (const client of [...this.awake]) {
      for (const session of [...client.awake]) {
        if (this.putToSleep(session)) continue;
        // It waits for a buffer, or, for all that is known here, for its limit.
        if (session.pending || client.isLimited) waiting++;
        else awake++;
      }
    }
    const { queue } = this.ops;
    if (awake > 0 || (waiting > 0 && queue.inFlight > 0)) {
      this.again();
      return;
    }
    if (waiting > 0) {
      this.later();
      return;
    }
    if (queue.inFlight > 0) {
      const fd = queue.driver.eventFd();
      queue.driver.arm();
      fence();
      const work = this.round();
      // The device may tell by another descriptor now, or by none.
      if (work > 0 || fd < 0 || queue.driver.eventFd() !== fd) {
        this.again();
        return;
      }
      this.watchDevice(fd);
    }
    this.sleeps++;
    this.asleepSince = this.nowMs;
  }

  private later(): void {
    this.turning = true;
    this.timer = setTimeout(this.onTurn, WAITING_MS);
  }

  /** False: it has something to do. */
  private putToSleep(session: DeviceSession): boolean {
    if (session.pending) return false;
    if (!session.channel.arm()) {
      session.look();
      return session.over;
    }
    this.removeAwake(session);
    native.watchSet(session.watch, true, false);
    return true;
  }

  private wakeUp(session: DeviceSession): void {
    if (session.over) return;
    native.watchSet(session.watch, false);
    if (!session.channel.disarm() && !session.channel.ready) {
      this.end(session);
      return;
    }
    this.addAwake(session);
    this.hurry();
    if (!this.turning) this.turn();
  }

  private watchDevice(fd: number): void {
    if (this.deviceWatch === 0 || this.deviceFd !== fd) {
      if (this.deviceWatch !== 0) native.watchClose(this.deviceWatch);
      this.deviceFd = fd;
      this.deviceWatch = native.watchOpen(fd, () => {
        native.watchSet(this.deviceWatch, false);
        if (!this.turning) this.turn();
      });
    }
    native.watchSet(this.deviceWatch, true, true);
  }

  private addAwake(session: DeviceSession): void {
    const { client } = session;
    session.idle = 0;
    if (client.awake.length === 0) this.awake.push(client);
    client.awake.push(session);
  }

  private removeAwake(session: DeviceSession): void {
    const { client } = session;
    if (!removeFrom(client.awake, session)) return;
    if (client.awake.length === 0) removeFrom(this.awake, client);
  }

  private buryEnded(): void {
    // What is left in it would keep views of a dead client's memory.
    if (this.dirtyCount === 0) this.dirty.length = 0;
    for (const session of this.ending) {
      if (session.inFlight > 0 || session.dirty) continue;
      this.ending.delete(session);
      this.sessions[session.id] = null;
      this.onBuried(session);
    }
  }
}

function removeFrom<T>(list: T[], entry: T): boolean {
  const at = list.indexOf(entry);
  if (at >= 0) list.splice(at, 1);
  return at >= 0;
}
