// idc: a device that another domain serves. `idc:/run/hub.sock/disk0` is what the domain disk0 of
// the hub at /run/hub.sock gives out (`penstock driver serve`).

import { resolve } from 'node:path';
import { isMainThread } from 'node:worker_threads';
import { PenstockError } from '../errors.js';
import {
  assertHomeAlive,
  type Backend,
  type DeviceHandle,
  type DeviceInfo,
  type DriverModule,
  type QueueDriver,
  type QueueOptions,
} from '../hpdi/index.js';
import { isAlive, Liveness, type Memory } from '../memory/index.js';
import { parseDuration } from '../units.js';
import { DeviceConnection, type ConnectionOptions } from './device-connection.js';
import { explainServed } from './device-explain.js';
import { DeviceQueue } from './device-queue.js';
import type { OwnMemory } from './device-slots.js';
import { QueueTable } from './device-table.js';
import type { Domain } from './domain.js';
import { isName } from './fields.js';
import { currentDomain, joinDomain } from './join.js';
import { leasedMemory, Lessor } from './leases.js';

const QUEUES = 8;
const QUEUES_MAX = 64;
const ENTRIES = 1024;
const ENTRIES_MAX = 2 ** 14;
const RECONNECT_MS = 60_000;
/** Between two looks of an attached thread at rows of queues that nobody polls. */
const LOOK_MS = 100;

/** What a thread needs to attach. */
interface Share {
  readonly table: SharedArrayBuffer;
  readonly memory: OwnMemory;
  readonly scheme: string;
  readonly reconnects: boolean;
  /** Where it asks for memory. */
  readonly lessor: string;
}

class IdcBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'idc';
  readonly memory: Memory;
  onChange: ((info: DeviceInfo) => void) | null = null;
  readonly connection: DeviceConnection;
  private readonly domain: Domain;
  private readonly reconnects: boolean;
  private readonly liveness = new Liveness();
  private readonly queues = new Set<DeviceQueue>();
  private lessor: Lessor | null = null;

  constructor(uri: string, domain: Domain, connection: DeviceConnection, reconnects: boolean) {
    this.uri = uri;
    this.domain = domain;
    this.memory = domain.memory;
    this.connection = connection;
    this.reconnects = reconnects;
    connection.onChange = () => this.onChange?.(this.info);
    connection.onRows = () => {
      for (const queue of this.queues) queue.notice();
    };
  }

  get info(): DeviceInfo {
    const { info } = this.connection.facts;
    const { name } = this.connection;
    return { ...info, description: { ...info.description, served: `by ${name}` } };
  }

  openQueue({ depth }: QueueOptions): QueueDriver {
    const { connection, liveness, domain } = this;
    if (connection.isGone) throw serverGone(this.uri);
    const row = connection.table.claim(liveness.index, liveness.serial, this.reconnects);
    if (row < 0) throw noQueues(this.uri, connection.table);
    const queue = new DeviceQueue({
      table: connection.table,
      row,
      depth,
      info: this.info,
      memory: { slot: domain.slot, granules: domain.shared.granules },
      reconnects: this.reconnects,
      settle: (address, bytes) => connection.settle(address, bytes),
      onCut: (reason) => connection.cut(reason),
      isHomeAlive: () => true,
      onClose: (closed) => this.queues.delete(closed),
    });
    this.queues.add(queue);
    return queue;
  }

  share(): Share {
    const { domain, connection } = this;
    this.lessor ??= new Lessor(
      domain.shared.leases,
      (bytes) => domain.shared.makeSegment(bytes),
      (index, serial) => connection.isIdle(index, serial),
    );
    connection.watchOwners();
    return {
      table: connection.table.buffer,
      memory: { slot: domain.slot, granules: domain.shared.granules },
      scheme: connection.facts.scheme,
      reconnects: this.reconnects,
      lessor: this.lessor.name,
    };
  }

  explainDetail(code: number, detail: number): string {
    return explainServed(this.connection.facts.scheme, code, detail);
  }

  async refresh(): Promise<void> {
    await this.connection.refresh();
  }

  async close(): Promise<void> {
    for (const queue of [...this.queues]) await queue.close();
    this.lessor?.close();
    await this.connection.close();
    this.liveness.close();
  }
}

/** The device in another thread of the process. */
class AttachedIdcBackend implements Backend {
  readonly uri: string;
  readonly scheme = 'idc';
  readonly info: DeviceInfo;
  readonly memory: Memory;
  private readonly handle: DeviceHandle;
  private readonly shared: Share;
  private readonly table: QueueTable;
  private readonly liveness = new Liveness();
  private readonly queues = new Set<DeviceQueue>();
  private readonly timer: NodeJS.Timeout;

  constructor(handle: DeviceHandle) {
    const shared = handle.shared as Share;
    this.uri = handle.uri;
    this.info = handle.info;
    this.handle = handle;
    this.shared = shared;
    this.table = new QueueTable(shared.table);
    const { index, serial } = this.liveness;
    this.memory = leasedMemory(shared.lessor, index, serial);
    this.timer = setInterval(() => {
      for (const queue of this.queues) queue.notice();
    }, LOOK_MS).unref();
  }

  openQueue({ depth }: QueueOptions): QueueDriver {
    const { table, liveness, shared, handle } = this;
    const row = table.claim(liveness.index, liveness.serial, shared.reconnects);
    if (row < 0) throw noQueues(this.uri, table);
    const queue = new DeviceQueue({
      table,
      row,
      depth,
      info: this.info,
      memory: shared.memory,
      reconnects: shared.reconnects,
      settle: null,
      onCut: () => {
        // The home finds it in the row.
      },
      isHomeAlive: () => isAlive(handle.liveness, handle.livenessSerial),
      onClose: (closed) => this.queues.delete(closed),
    });
    this.queues.add(queue);
    return queue;
  }

  share(): unknown {
    throw new PenstockError('NOT_SHAREABLE', `${this.uri} is shared by the thread that opened it`, {
      hint: 'post the handle of the device that was opened',
    });
  }

  explainDetail(code: number, detail: number): string {
    return explainServed(this.shared.scheme, code, detail);
  }

  async close(): Promise<void> {
    clearInterval(this.timer);
    for (const queue of [...this.queues]) await queue.close();
    // Its segments are leased: the next thread may have them from now on.
    this.liveness.close();
  }
}

export const driver: DriverModule = {
  scheme: 'idc',
  keys: {
    name: 'name of this process in the hub, if it has not joined yet (client-PID)',
    queues: `queues that can be open at a time, in all threads (${QUEUES})`,
    entries: `operations in flight of each queue at most, a power of two (${ENTRIES})`,
    reconnect: '1 or a duration: wait for another server when this one is gone (off)',
  },

  async open(path, query, uri) {
    const { hub, name } = splitPath(path, uri);
    const options = readOptions(query);
    const domain = await domainOf(hub, query.get('name'));
    const connection = await DeviceConnection.open(domain, name, options);
    return new IdcBackend(uri, domain, connection, options.reconnectMs > 0);
  },

  async attach(handle) {
    assertHomeAlive(handle);
    return new AttachedIdcBackend(handle);
  },
};

/** `/run/hub.sock/disk0`: the hub's socket, and the domain that serves. */
function splitPath(path: string, uri: string): { hub: string; name: string } {
  const slash = path.lastIndexOf('/');
  const hub = path.slice(0, Math.max(0, slash));
  const name = path.slice(slash + 1);
  if (hub !== '' && isName(name)) return { hub, name };
  throw new PenstockError('BAD_URI', `the URI '${uri}' does not name a served device`, {
    hint: 'write idc:/run/hub.sock/disk0: the socket of a hub, then the name of the device there',
    exitCode: 2,
  });
}

function readOptions(query: ReadonlyMap<string, string>): ConnectionOptions {
  const entries = readNumber('entries', query.get('entries'), ENTRIES, ENTRIES_MAX);
  if (!Number.isInteger(Math.log2(entries))) {
    throw badOption(`entries=${entries} is no power of two`, 'write 256, 512 or 1024');
  }
  return {
    queues: readNumber('queues', query.get('queues'), QUEUES, QUEUES_MAX),
    entries,
    reconnectMs: readReconnect(query.get('reconnect')),
  };
}

function readReconnect(text: string | undefined): number {
  if (text === undefined || text === '0' || text === 'false') return 0;
  if (text === '1' || text === 'true') return RECONNECT_MS;
  return parseDuration(text) * 1000;
}

function readNumber(key: string, text: string | undefined, standard: number, most: number): number {
  if (text === undefined) return standard;
  const value = Number(text);
  if (/^\d+$/.test(text) && value >= 1 && value <= most) return value;
  throw badOption(`${key}=${text} is no number from 1 to ${most}`, `leave it out for ${standard}`);
}

function badOption(message: string, hint: string): PenstockError {
  return new PenstockError('BAD_OPTION', message, { hint, exitCode: 2 });
}

/** This process's domain in the hub; joins it where that was not done yet. */
async function domainOf(hub: string, name: string | undefined): Promise<Domain> {
  const domain = currentDomain();
  if (domain === null) {
    const joining = joinDomain(hub, { name: name ?? `client-${process.pid}` });
    return isMainThread || name !== undefined ? joining : joining.catch(ofOtherThread);
  }
  if (resolve(domain.hub) === resolve(hub)) return domain;
  throw new PenstockError('DOMAIN_JOINED', `this process is ${domain.name} of ${domain.hub}`, {
    hint: 'a process joins one hub, once: open devices of another hub in another process',
    exitCode: 2,
  });
}

/** In a worker, a name with this process's number is taken by another thread of it. */
function ofOtherThread(error: unknown): never {
  if (!(error instanceof PenstockError) || error.code !== 'NAME_TAKEN') throw error;
  throw new PenstockError('DOMAIN_JOINED', 'another thread of this process has joined the hub', {
    hint: 'open devices of the hub there; pools on them, too, which belong to one thread',
    exitCode: 2,
    cause: error,
  });
}

function serverGone(uri: string): PenstockError {
  return new PenstockError('DEVICE_GONE', `${uri}: whoever served it is gone`, {
    hint: 'open it again once it is served again; ?reconnect=1 does so by itself',
  });
}

function noQueues(uri: string, table: QueueTable): PenstockError {
  if (table.rows > 0 && table.isGone) return serverGone(uri);
  return new PenstockError('NO_QUEUES', `${uri}: all ${table.rows} queues are in use`, {
    hint: 'close a queue, or open the device with more: ?queues=32',
  });
}
