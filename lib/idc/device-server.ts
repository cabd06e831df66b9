// DeviceServer: gives an open device to the other members of this process's hub.
//
// Clients put requests on channels; the server takes them in turn, hands them to one queue of the
// device, and sends the completions back. Data is not copied: writes go from the client's memory to
// the device, reads into memory of this domain, which the client maps.
//
// It works in slices of the event loop. What has nothing to do for a while goes to sleep: a channel
// by itself, so that unused queues cost nothing, and the server when no channel is awake; it then
// sleeps on the device's descriptor, if operations are in flight there.
//
// Invariants
// 1. Each round every client has its turn, the first one another each time, and takes at most
//    QUANTUM requests. Of the device's queue it may fill its share: the depth by those that are
//    awake. So a client with deep queues holds up no other.
// 2. A client that is gone has its operations in flight completed by the device before its buffers
//    are used again, and before its memory is unmapped (`usesMemoryOf`).

import { PenstockError } from '../errors.js';
import { Cpl, Op, Status, type BlockDevice, type DeviceInfo, type Queue } from '../hpdi/index.js';
import { native } from '../native.js';
import { fence } from '../wire/index.js';
import { DeviceClient, Tally, type ClientLimits, type ClientStats } from './device-client.js';
import { DeviceOps, Kind } from './device-ops.js';
import { DEVICE_PORT, readAsk, sayFacts, STATS_PORT } from './device-protocol.js';
import { DeviceSession, type ServedLimits } from './device-session.js';
import { Watchers } from './device-watchers.js';
import type { Channel } from './channel.js';
import type { Domain } from './domain.js';
import type { Incoming, Link } from './link.js';

export interface DeviceServerOptions {
  /** Operations that the device has at a time (1024). */
  depth?: number;
  /** Limits of each client: operations a second, bytes a second. */
  limitIops?: number;
  limitBytes?: number;
  /** Bytes of this domain's memory that each client's reads may fill (512 MiB). */
  lentBytes?: number;
  /** Queues that each client may have (64). */
  queues?: number;
}

/** What `DeviceServer.stats` gives, and the stats port. */
export interface DeviceServerStats {
  readonly schema: 'penstock.device-stats/1';
  readonly name: string;
  readonly uri: string;
  readonly depth: number;
  readonly inFlight: number;
  /** Rounds of the loop so far, and times the server went to sleep. */
  readonly rounds: number;
  readonly sleeps: number;
  readonly clients: readonly ClientStats[];
}

const DEPTH = 1024;
const QUEUES = 64;
const LENT_BYTES = 512 * 2 ** 20;
/** Requests that a client may take in a turn. */
const QUANTUM = 64;
/** A client may always have so many in flight, however many clients there are. */
const SHARE_MIN = 16;
/** How long the loop goes on before the event loop has its turn. */
const SLICE_MS = 0.25;
/** Rounds between two looks at the clock. */
const CLOCK_ROUNDS = 63;
/** How long everything must be idle before the server sleeps; and one channel, in rounds. */
const IDLE_MS = 0.1;
const IDLE_ROUNDS = 2048;

const SERVED =
  (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);

export class DeviceServer {
  readonly domain: Domain;
  readonly device: BlockDevice;
  private readonly options: Required<DeviceServerOptions>;
  private readonly queue: Queue;
  private readonly ops: DeviceOps;
  private readonly limits: ServedLimits;
  private readonly clientLimits: ClientLimits;
  private readonly isLimited: boolean;
  private readonly clients = new Map<Link, DeviceClient>();
  /** Clients that have a session awake. */
  private readonly awake: DeviceClient[] = [];
  private first = 0;
  private readonly sessions: (DeviceSession | null)[] = [];
  /** Sessions with completions that were not sent yet. */
  private readonly dirty: DeviceSession[] = [];
  private dirtyCount = 0;
  /** Sessions that are over, while operations of theirs are in flight. */
  private readonly ending = new Set<DeviceSession>();
  private readonly watchers: Watchers;
  private readonly endings: (() => void)[] = [];
  private nowMs = 0;
  private turning = false;
  private deviceWatch = 0;
  private deviceFd = -1;
  private rounds = 0;
  private sleeps = 0;
  private closing: Promise<void> | null = null;

  /**
   * Serves from now on, on the port `device` of the domain. Closing is the caller's: the server,
   * then the device. Errors: NOT_SERVABLE.
   */
  constructor(domain: Domain, device: BlockDevice, options: DeviceServerOptions = {}) {
    assertServable(device);
    this.domain = domain;
    this.device = device;
    this.options = {
      depth: options.depth ?? DEPTH,
      limitIops: options.limitIops ?? Infinity,
      limitBytes: options.limitBytes ?? Infinity,
      lentBytes: options.lentBytes ?? LENT_BYTES,
      queues: options.queues ?? QUEUES,
    };
    const { limitIops, limitBytes, lentBytes } = this.options;
    this.isLimited = limitIops < Infinity || limitBytes < Infinity;
    this.clientLimits = { iops: limitIops, bytesPerSecond: limitBytes, lentBytes };
    this.queue = device.queue({ depth: this.options.depth, split: false });
    this.ops = new DeviceOps(this.queue);
    this.limits = servedLimits(device.nativeInfo, domain.slot);
    this.watchers = new Watchers();
    this.endings.push(
      domain.watchLinks({
        usesMemoryOf: (slot) => this.ops.memoryInUse[slot] !== 0,
        onOver: (link) => this.linkOver(link),
      }),
      device.onChange(() => this.watchers.tell()),
    );
    domain.listenRaw(DEVICE_PORT, (incoming) => this.incoming(incoming));
    domain.listen(STATS_PORT, (channel) => void this.tellStats(channel));
    domain.reporters.set(STATS_PORT, () => this.stats());
  }

  stats(): DeviceServerStats {
    return {
      schema: 'penstock.device-stats/1',
      name: this.domain.name,
      uri: this.device.uri,
      depth: this.ops.depth,
      inFlight: this.queue.inFlight,
      rounds: this.rounds,
      sleeps: this.sleeps,
      clients: [...this.clients.values()].map((client) => client.stats()),
    };
  }

  /** Completes what was taken, then ends all clients' queues. The device stays open. */
  close(): Promise<void> {
    this.closing ??= this.closeOnce();
    return this.closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** @internal */
  dirtied(session: DeviceSession): void {
    session.dirty = true;
    this.dirty[this.dirtyCount++] = session;
  }

  /** @internal A session takes nothing more; it goes when nothing of it is in flight. */
  ended(session: DeviceSession): void {
    if (session.over) return;
    session.over = true;
    this.removeAwake(session);
    if (session.watch !== 0) native.watchClose(session.watch);
    session.watch = 0;
    if (session.inFlight > 0) this.ending.add(session);
    else this.bury(session);
  }

  // hot:begin

  /** One turn of every client, and of the device; returns how much was done. */
  private round(): number {
    const { awake, queue } = this;
    const count = awake.length;
    const fair = count > 1 ? (this.ops.depth / count) | 0 : this.ops.depth;
    const share = fair < SHARE_MIN ? SHARE_MIN : fair;
    let at = this.first < count ? this.first : 0;
    this.first = at + 1;
    let work = 0;
    this.rounds = (this.rounds + 1) | 0;
    for (let i = 0; i < count; i++) {
      const client = awake[at];
      if (client === undefined) break; // it put itself to an end
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
    const { cq } = this.queue;
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
      if (kind === Kind.none) {
        const bytes = ops.bytes[slot]!;
        client.tally(ops.domains[slot] !== 0 ? Tally.writes : Tally.others, bytes, status);
        session.complete(tag, status, cq[at + Cpl.resultLo]!, cq[at + Cpl.resultHi]!, 0);
      } else {
        client.tally(Tally.reads, ops.bytes[slot]!, status);
        if (status !== Status.OK || session.over) {
          buffers.free(buffer);
          session.complete(tag, status, 0, 0, 0);
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
      if (!session.channel.isClosed) session.channel.submit();
    }
    this.dirtyCount = 0;
  }

  // hot:end

  /** One slice of the loop; then the event loop has its turn, or everything sleeps. */
  private turn(): void {
    this.turning = false;
    if (this.closing !== null) return;
    this.nowMs = performance.now();
    const until = this.nowMs + SLICE_MS;
    let idleSince = this.nowMs;
    let worked = false;
    for (let round = 1; this.nowMs < until; round++) {
      if (this.round() > 0) worked = true;
      if ((round & CLOCK_ROUNDS) !== 0) continue;
      this.nowMs = performance.now();
      if (worked) idleSince = this.nowMs;
      else if (this.nowMs - idleSince >= IDLE_MS) {
        this.rest();
        return;
      }
      worked = false;
    }
    for (const client of [...this.awake]) {
      for (const session of [...client.awake]) {
        if (session.idle > IDLE_ROUNDS && session.inFlight === 0) this.putToSleep(session);
      }
    }
    this.again();
  }

  private again(): void {
    if (this.turning) return;
    this.turning = true;
    setImmediate(() => this.turn());
  }

  /** Nothing was to be done for a while: goes to sleep, if nothing comes meanwhile. */
  private rest(): void {
    let awake = 0;
    for (const client of [...this.awake]) {
      for (const session of [...client.awake]) if (!this.putToSleep(session)) awake++;
    }
    const { queue } = this;
    if (awake > 0) {
      // Who is throttled has requests that must wait.
      if (!this.isLimited || queue.inFlight > 0) this.again();
      else this.later();
      return;
    }
    if (queue.inFlight > 0) {
      const fd = queue.driver.eventFd();
      queue.driver.arm();
      fence();
      const work = this.round();
      if (work > 0 || fd < 0 || queue.driver.eventFd() !== fd) {
        this.again();
        return;
      }
      this.watchDevice(fd);
    }
    this.sleeps++;
  }

  private later(): void {
    this.turning = true;
    setTimeout(() => this.turn(), 1);
  }

  /** False: it has something to do, or is at its end. */
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
    const open = session.channel.disarm();
    if (!open && !session.channel.ready) {
      this.ended(session);
      return;
    }
    this.addAwake(session);
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
    removeFrom(client.awake, session);
    if (client.awake.length === 0) removeFrom(this.awake, client);
  }

  /** A client asks for what the device is, or for a queue. */
  private incoming(incoming: Incoming): void {
    let kind;
    try {
      kind = readAsk(incoming.meta);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      incoming.refuse(error.code, error.message, error.hint);
      return;
    }
    if (kind === 'info') {
      this.watchers.add(incoming.accept(sayFacts(this.facts())).records);
      return;
    }
    const link = this.domain.links.get(incoming.peer.slot)!;
    const client = this.clientOf(link);
    if (client.sessions.size >= this.options.queues) {
      const most = this.options.queues;
      const hint = 'close another, or open the device with fewer: ?queues=4';
      incoming.refuse('NO_QUEUES', `a client has ${most} queues of this device at most`, hint);
      return;
    }
    const { records } = incoming.accept();
    const free = this.sessions.indexOf(null);
    const id = free < 0 ? this.sessions.length : free;
    const session = new DeviceSession(id, client, records, this.ops, this.limits);
    this.sessions[id] = session;
    client.sessions.add(session);
    session.watch = native.watchOpen(records.wakeFd, () => this.wakeUp(session));
    this.addAwake(session);
    this.again();
  }

  private clientOf(link: Link): DeviceClient {
    const known = this.clients.get(link);
    if (known !== undefined) return known;
    const { addressAlign } = this.device.nativeInfo;
    const { memory } = this.domain;
    const client = new DeviceClient(this, link, memory, this.clientLimits, addressAlign);
    this.clients.set(link, client);
    return client;
  }

  private linkOver(link: Link): void {
    for (const session of [...(this.clients.get(link)?.sessions ?? [])]) this.ended(session);
    // Operations of it may be in flight at a device that nobody watches at this moment.
    this.again();
  }

  private buryEnded(): void {
    for (const session of this.ending) if (session.inFlight === 0) this.bury(session);
  }

  private bury(session: DeviceSession): void {
    const { client } = session;
    this.ending.delete(session);
    session.end();
    this.sessions[session.id] = null;
    client.sessions.delete(session);
    if (client.sessions.size > 0) return;
    client.buffers.close();
    this.clients.delete(client.link);
  }

  private facts(): { scheme: string; info: DeviceInfo } {
    const { operations } = this.limits;
    return {
      scheme: this.device.backend.scheme,
      info: { ...this.device.nativeInfo, operations },
    };
  }

  private async tellStats(channel: Channel): Promise<void> {
    try {
      for await (const question of channel) {
        const text = Buffer.from(JSON.stringify(this.stats()));
        const body = this.domain.alloc(text.length);
        body.u8.set(text);
        if (question.tag === 0) {
          question.release();
          await channel.send(body);
        } else {
          const reply = question.reply(body);
          await reply;
          question.release();
        }
      }
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error; // the asker is gone
    } finally {
      channel.close();
    }
  }

  private async closeOnce(): Promise<void> {
    this.domain.listenRaw(DEVICE_PORT, null);
    this.domain.listenRaw(STATS_PORT, null);
    this.domain.reporters.delete(STATS_PORT);
    for (const client of [...this.clients.values()]) {
      for (const session of [...client.sessions]) this.ended(session);
    }
    const { queue } = this;
    while (this.ending.size > 0) {
      if (queue.tail !== queue.head) queue.submit();
      await queue.drain();
      this.reap(queue.poll(queue.depth));
      this.send();
      this.buryEnded();
      await new Promise((resolve) => setImmediate(resolve));
    }
    for (const end of this.endings) end();
    this.watchers.close();
    if (this.deviceWatch !== 0) native.watchClose(this.deviceWatch);
    await queue.close();
  }
}

function removeFrom<T>(list: T[], entry: T): void {
  const at = list.indexOf(entry);
  if (at >= 0) list.splice(at, 1);
}

/** Throws NOT_SERVABLE for a device that cannot reach the memory of other domains. */
function assertServable(device: BlockDevice): void {
  if (device.backend.memoryKind !== 'device') return;
  throw new PenstockError(
    'NOT_SERVABLE',
    `${device.uri} reaches memory of its own kind only, not that of other domains`,
    { hint: 'its back end is a process that maps memory for writing, which domains never share' },
  );
}

function servedLimits(info: DeviceInfo, slot: number): ServedLimits {
  return {
    blockSize: info.blockSize,
    maxBlocks: info.maxTransferBlocks,
    operations: (info.operations & SERVED) | (1 << Op.READ_LOAN),
    readOnly: info.readOnly,
    slot,
  };
}
