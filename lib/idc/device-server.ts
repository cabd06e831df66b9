// DeviceServer: gives an open device to the other members of this process's hub.
//
// Clients put requests on channels; the server takes them in turn, hands them to one queue of the
// device, and sends the completions back (device-loop.ts). Data is not copied: writes go from the
// client's memory to the device, reads into memory of this domain, which the client maps.
//
// Invariants
// 1. A client that is gone has its operations in flight completed by the device before its buffers
//    are used again, and before its memory is unmapped (`usesMemoryOf`).
// 2. What one client can make this process keep is bounded, however often it opens and closes
//    channels: queues, channels that tell of changes, memory for its reads.

import { errnoCode, PenstockError } from '../errors.js';
import { Op, type BlockDevice, type DeviceInfo } from '../hpdi/index.js';
import { statusWords, StatusWord, type DmaBuffer } from '../memory/index.js';
import type { Channel } from './channel.js';
import { DeviceClient, type ClientLimits, type ClientStats } from './device-client.js';
import { DeviceLoop } from './device-loop.js';
import { DeviceOps } from './device-ops.js';
import {
  DEVICE_PORT,
  INFO_CHANNELS,
  readAsk,
  sayFacts,
  STATS_PORT,
  type AskKind,
} from './device-protocol.js';
import { DeviceSession, type ServedLimits } from './device-session.js';
import { Watchers } from './device-watchers.js';
import type { Domain } from './domain.js';
import type { Incoming, Link } from './link.js';
import type { Message } from './message.js';

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
  /**
   * Clients may write from memory of third domains: loans of theirs that they hold, without a copy
   * (false). The server cannot tell a loan from a guess: every client can then read, by way of the
   * device, all memory that any domain shares with the server.
   */
  thirdParties?: boolean;
}

/** What `DeviceServer.stats` gives, and the stats port. */
export interface DeviceServerStats {
  readonly schema: 'penstock.device-stats/1';
  readonly name: string;
  readonly uri: string;
  /** Operations that the device may have, and has. */
  readonly depth: number;
  readonly inFlight: number;
  /** Rounds of the loop so far, and times it went to sleep. */
  readonly rounds: number;
  readonly sleeps: number;
  /** Copies made in this process so far: serving makes none. */
  readonly copies: number;
  readonly clients: readonly ClientStats[];
}

const DEPTH = 1024;
const QUEUES = 64;
const LENT_BYTES = 512 * 2 ** 20;
const SWEEP_MS = 20;

const SERVED =
  (1 << Op.READ) | (1 << Op.WRITE) | (1 << Op.FLUSH) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);

export class DeviceServer {
  readonly domain: Domain;
  readonly device: BlockDevice;
  private readonly queuesMax: number;
  private readonly ops: DeviceOps;
  private readonly loop: DeviceLoop;
  private readonly limits: ServedLimits;
  private readonly clientLimits: ClientLimits;
  /** All that ever had a queue and are there, or have something left here. */
  private readonly clients = new Map<Link, DeviceClient>();
  private sweeping: NodeJS.Timeout | null = null;
  private readonly watchers = new Watchers();
  private readonly endings: (() => void)[];
  private closing: Promise<void> | null = null;

  /**
   * Serves from now on, on the port `device` of the domain. The device stays the caller's, to be
   * closed after the server. Errors: NOT_SERVABLE.
   */
  constructor(domain: Domain, device: BlockDevice, options: DeviceServerOptions = {}) {
    assertServable(device);
    const { limitIops = Infinity, limitBytes = Infinity, lentBytes = LENT_BYTES } = options;
    this.domain = domain;
    this.device = device;
    this.queuesMax = options.queues ?? QUEUES;
    this.clientLimits = { iops: limitIops, bytesPerSecond: limitBytes, lentBytes };
    const { thirdParties = false } = options;
    this.limits = servedLimits(device.nativeInfo, domain.slot, thirdParties);
    this.ops = new DeviceOps(device.queue({ depth: options.depth ?? DEPTH, split: false }));
    this.loop = new DeviceLoop(this.ops, (session) => this.buried(session));
    this.endings = [
      domain.watchLinks({
        usesMemoryOf: (slot) => this.ops.memoryInUse[slot] !== 0,
        onOver: (link) => {
          for (const session of this.clients.get(link)?.sessions ?? []) this.loop.end(session);
        },
        onDead: (link) => {
          const client = this.clients.get(link);
          if (client !== undefined) this.letGo(client);
        },
      }),
      device.onChange(() => this.watchers.tell()),
    ];
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
      inFlight: this.ops.queue.inFlight,
      rounds: this.loop.rounds >>> 0,
      sleeps: this.loop.sleeps,
      copies: statusWords()[StatusWord.copies]!,
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

  /** A client asks for what the device is, or for a queue. */
  private incoming(incoming: Incoming): void {
    let kind: AskKind;
    try {
      kind = readAsk(incoming.meta, incoming.size);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      incoming.refuse(error.code, error.message, error.hint);
      return;
    }
    const link = this.domain.links.get(incoming.peer.slot)!;
    if (kind === 'info') this.newWatcher(link, incoming);
    else this.newSession(this.clientOf(link), incoming);
  }

  private newWatcher(link: Link, incoming: Incoming): void {
    if (this.watchers.countOf(link) >= INFO_CHANNELS) {
      const why = `a client has ${INFO_CHANNELS} channels that tell of this device at most`;
      incoming.refuse('TOO_MANY_CHANNELS', why, 'open the device once, and share it by its handle');
      return;
    }
    this.watchers.add(link, incoming.accept(sayFacts(this.facts())).records);
  }

  private newSession(client: DeviceClient, incoming: Incoming): void {
    client.letGo(this.isGone(client));
    if (client.queues >= this.queuesMax) {
      const hint = 'close another, or open the device with fewer: ?queues=4';
      const why = `a client has ${this.queuesMax} queues of this device at most`;
      incoming.refuse('NO_QUEUES', why, hint);
      return;
    }
    const { records } = incoming.accept();
    const id = this.loop.freeId;
    const session = new DeviceSession(id, client, records, this.ops, this.limits);
    client.sessions.add(session);
    try {
      this.loop.add(session);
    } catch (error) {
      if (errnoCode(error) === '') throw error;
      // No descriptor is left to wait for it: the client finds its end.
      client.sessions.delete(session);
      session.end();
      this.letGo(client);
    }
  }

  private clientOf(link: Link): DeviceClient {
    const known = this.clients.get(link);
    if (known !== undefined) return known;
    const { addressAlign } = this.device.nativeInfo;
    const { memory } = this.domain;
    const client = new DeviceClient(this.loop, link, memory, this.clientLimits, addressAlign);
    this.clients.set(link, client);
    return client;
  }

  /** Nothing of a session is in flight any more. */
  private buried(session: DeviceSession): void {
    const { client } = session;
    session.end();
    client.sessions.delete(session);
    this.letGo(client);
  }

  /** Frees what a client does not look at any more; one that is gone is forgotten after that. */
  private letGo(client: DeviceClient): void {
    const isGone = this.isGone(client);
    if (client.letGo(isGone) && isGone) this.clients.delete(client.link);
    if (client.readers.size > 0) this.sweepLater();
  }

  private isGone({ link }: DeviceClient): boolean {
    return this.domain.links.get(link.peer.slot) !== link;
  }

  private sweepLater(): void {
    this.sweeping ??= setTimeout(() => {
      this.sweeping = null;
      for (const client of this.clients.values()) this.letGo(client);
    }, SWEEP_MS).unref();
  }

  private facts(): { scheme: string; info: DeviceInfo } {
    const { operations } = this.limits;
    return {
      scheme: this.device.backend.scheme,
      info: { ...this.device.nativeInfo, operations },
    };
  }

  /** Answers every message with the statistics as they are then, as JSON. */
  private async tellStats(channel: Channel): Promise<void> {
    try {
      for await (const question of channel) await this.answer(channel, question);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error; // the asker is gone
    } finally {
      channel.close();
    }
  }

  private async answer(channel: Channel, question: Message): Promise<void> {
    let body: DmaBuffer | null = null;
    try {
      const text = Buffer.from(JSON.stringify(this.stats()));
      body = this.domain.alloc(text.length);
      body.u8.set(text);
      if (question.tag === 0) await channel.send(body);
      else await question.reply(body);
    } finally {
      // Also where the asker is gone: its memory stays mapped, and its slot taken, until then.
      if (body?.freed === false) body.free();
      question[Symbol.dispose]();
    }
  }

  private async closeOnce(): Promise<void> {
    this.domain.listenRaw(DEVICE_PORT, null);
    this.domain.listenRaw(STATS_PORT, null);
    this.domain.reporters.delete(STATS_PORT);
    await this.loop.close();
    for (const end of this.endings) end();
    // Last: to the clients it says that nothing of theirs is in flight here.
    this.watchers.close();
  }
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

function servedLimits(info: DeviceInfo, slot: number, thirdParties: boolean): ServedLimits {
  return {
    blockSize: info.blockSize,
    maxBlocks: info.maxTransferBlocks,
    operations: (info.operations & SERVED) | (1 << Op.READ_LOAN),
    readOnly: info.readOnly,
    slot,
    thirdParties,
  };
}
