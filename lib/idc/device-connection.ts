// DeviceConnection: a device of another domain, as the thread that opened it has it: the link to
// its server, a channel per queue, and what becomes of them when the server goes.
//
// Invariants
// 1. A channel that was replaced stays open, and its server's memory mapped, until the row's owner
//    has acknowledged that (`retired`): the owner may be looking at it.
// 2. Another server of the name is gone on with only when its device has the same size, and when
//    what a server acknowledged outlives it (info.durable): otherwise the device is gone.

import { PenstockError } from '../errors.js';
import type { DeviceInfo } from '../hpdi/index.js';
import { native } from '../native.js';
import { askFor, DEVICE_PORT, readFacts, type DeviceFacts } from './device-protocol.js';
import { QueueTable, Row, RowState } from './device-table.js';
import type { Domain } from './domain.js';
import { Half } from './layout.js';
import type { Link, LinkChannel } from './link.js';

export interface ConnectionOptions {
  /** Queues that can be open at a time, in all threads; operations in flight of each. */
  readonly queues: number;
  readonly entries: number;
  /** How long another server is waited for when this one is gone; 0: not at all. */
  readonly reconnectMs: number;
}

interface Retired {
  readonly row: number;
  readonly epoch: number;
  readonly link: Link;
  readonly channel: LinkChannel;
}

const CONNECT_MS = 5000;
const CONTROL_RECORDS = 16;
/** Between two looks at rows whose owners ended, and at channels that were replaced. */
const SWEEP_MS = 50;

export class DeviceConnection {
  readonly domain: Domain;
  /** The domain that serves the device. */
  readonly name: string;
  readonly table: QueueTable;
  facts: DeviceFacts;
  /** Told of another size; and of a change that queues of this thread should notice. */
  onChange: ((info: DeviceInfo) => void) | null = null;
  onRows: (() => void) | null = null;
  private readonly options: ConnectionOptions;
  private link: Link;
  private control: LinkChannel | null = null;
  private controlWatch = 0;
  private channels: (LinkChannel | null)[] = [];
  private retired: Retired[] = [];
  private readonly formerSlots = new Set<number>();
  private readonly eventFds: number[] = [];
  private readonly endWatch: () => void;
  private state: RowState = RowState.ready;
  private timer: NodeJS.Timeout | null = null;
  private closed = false;

  private constructor(domain: Domain, link: Link, facts: DeviceFacts, options: ConnectionOptions) {
    this.domain = domain;
    this.name = link.peer.name;
    this.link = link;
    this.facts = facts;
    this.options = options;
    this.table = QueueTable.create(options.queues);
    this.table.blocks = facts.info.blocks;
    for (let row = 0; row < options.queues; row++) {
      const fd = native.eventfdCreate();
      this.eventFds.push(fd);
      this.table.set(row, Row.eventFd, fd);
    }
    this.endWatch = domain.watchLinks({
      usesMemoryOf: (slot) => this.usesMemoryOf(slot),
      onOver: (over) => {
        if (over === this.link) this.lost(over.dead ? 'dead' : 'cut');
      },
      onDead: (dead) => {
        if (dead === this.link && this.state === RowState.cut) this.publishAll(RowState.gone);
      },
    });
  }

  /** Errors: TIMED_OUT, NO_SUCH_PORT, PEER_GONE, and what the server refuses with. */
  static async open(
    domain: Domain,
    name: string,
    options: ConnectionOptions,
  ): Promise<DeviceConnection> {
    const link = await domain.linkTo(name, CONNECT_MS);
    const control = await askInfo(link);
    let connection: DeviceConnection | null = null;
    try {
      connection = new DeviceConnection(domain, link, readFacts(control.meta), options);
      await connection.enter(link, control);
      return connection;
    } catch (error) {
      if (connection === null) control.records.close();
      else await connection.close();
      throw error;
    }
  }

  /** Takes what the server told of its memory. */
  settle(address: number, bytes: number): boolean {
    return this.link.error === null && this.link.settle(address, bytes);
  }

  get isGone(): boolean {
    return this.state !== RowState.ready && this.state !== RowState.waiting;
  }

  /** Asks for the device's facts anew. */
  async refresh(): Promise<void> {
    if (this.state !== RowState.ready) return;
    const fresh = await askInfo(this.link);
    fresh.records.close();
    this.take(readFacts(fresh.meta));
  }

  /** A queue of this thread found the server's end, or that it is not to be trusted. */
  cut(misbehaved: boolean): void {
    if (misbehaved) {
      this.link.end(
        new PenstockError('PEER_MISBEHAVED', `${this.name} completed what was not asked for`, {
          hint: 'that process is damaged or hostile; end it and look at its log',
        }),
      );
    }
    this.lost('dead');
  }

  /** Looks at rows whose owners have ended; for the time that other threads use them. */
  watchOwners(): void {
    this.schedule();
  }

  /** All queues of this thread are closed by now; those of others complete with DEVICE_GONE. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    if (this.state === RowState.ready || this.state === RowState.waiting) {
      this.publishAll(RowState.closed);
    }
    this.state = RowState.closed;
    this.endControl();
    for (let row = 0; row < this.channels.length; row++) this.retire(row);
    this.sweep();
    // Who has not let go of a row yet does so soon: its thread is told by the home's end.
    for (let turn = 0; turn < 100 && this.retired.length > 0; turn++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      this.sweep();
    }
    for (const { channel } of this.retired) channel.records.close();
    this.retired = [];
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
    this.endWatch();
    for (const fd of this.eventFds.splice(0)) native.fileClose(fd);
  }

  /** Opens a channel for every row, and publishes them. */
  private async enter(link: Link, control: LinkChannel): Promise<void> {
    this.link = link;
    this.control = control;
    const opened = await Promise.allSettled(
      Array.from({ length: this.table.rows }, () => this.openChannel(link)),
    );
    this.channels = opened.map((each) => (each.status === 'fulfilled' ? each.value : null));
    const failed = opened.find((each) => each.status === 'rejected');
    if (failed !== undefined || this.closed) {
      this.endControl();
      for (const channel of this.channels) channel?.records.close();
      this.channels = [];
      throw failed?.reason ?? new Error('the device was closed meanwhile');
    }
    this.controlWatch = native.watchOpen(control.records.wakeFd, () => this.controlWoken());
    this.listen();
    this.state = RowState.ready;
    for (let row = 0; row < this.table.rows; row++) this.publish(row, RowState.ready);
  }

  private openChannel(link: Link): Promise<LinkChannel> {
    return link.connect(DEVICE_PORT, this.options.entries * 2, askFor('queue'));
  }

  private publish(row: number, state: RowState): void {
    const made = this.channels[row] ?? null;
    const channel =
      made === null || state !== RowState.ready
        ? null
        : {
            places: { own: made.own, peer: made.theirs },
            slot: this.link.peer.slot,
            wakeFd: made.wakeFd,
          };
    this.table.publish(row, state, channel);
    native.eventfdSignal(this.eventFds[row]!);
  }

  private publishAll(state: RowState): void {
    this.state = state;
    for (let row = 0; row < this.table.rows; row++) this.publish(row, state);
    this.onRows?.();
  }

  /** Waits for a word of the server: that the device changed, or its end. */
  private listen(): void {
    const { control } = this;
    if (control === null) return;
    while (!control.records.arm()) {
      if (control.records.poll(CONTROL_RECORDS) > 0) {
        void this.refresh().catch(ignore);
        continue;
      }
      this.lost('dead');
      return;
    }
    native.watchSet(this.controlWatch, true, false);
  }

  private controlWoken(): void {
    native.watchSet(this.controlWatch, false);
    if (this.control?.records.disarm() === false && !this.control.records.ready) this.lost('dead');
    else this.listen();
  }

  private endControl(): void {
    if (this.controlWatch !== 0) native.watchClose(this.controlWatch);
    this.controlWatch = 0;
    this.control?.records.close();
    this.control = null;
  }

  /**
   * The server is gone. `dead`: nothing of it touches memory any more, since it is dead, or has
   * ended its channels, which it does when nothing is in flight. `cut`: it may still be at work.
   */
  private lost(how: 'dead' | 'cut'): void {
    if (this.state !== RowState.ready || this.closed) return;
    this.endControl();
    const again = how === 'dead' && this.options.reconnectMs > 0 && this.facts.info.durable;
    this.formerSlots.add(this.link.peer.slot);
    const former = [...this.channels];
    this.publishAll(again ? RowState.waiting : how === 'dead' ? RowState.gone : RowState.cut);
    // Whoever sleeps on the channel's descriptor looks up.
    for (const channel of former) if (channel !== null) native.unixShutdown(channel.wakeFd);
    if (how === 'dead') for (let row = 0; row < former.length; row++) this.retire(row);
    this.sweep();
    if (again) void this.reconnect();
  }

  private async reconnect(): Promise<void> {
    const until = performance.now() + this.options.reconnectMs;
    while (this.state === RowState.waiting && !this.closed) {
      const leftMs = until - performance.now();
      if (leftMs <= 0) break;
      try {
        if (await this.tryAgain(leftMs)) return;
        break;
      } catch (error) {
        if (!(error instanceof PenstockError)) throw error;
        // It came and went, or does not serve yet.
        await new Promise((resolve) => setTimeout(resolve, Math.min(SWEEP_MS, leftMs)));
      }
    }
    if (this.state === RowState.waiting) this.publishAll(RowState.gone);
  }

  /** False: there is a server, but of another device. */
  private async tryAgain(leftMs: number): Promise<boolean> {
    const link = await this.domain.linkTo(this.name, leftMs);
    const control = await askInfo(link);
    let facts: DeviceFacts;
    try {
      facts = readFacts(control.meta);
      if (!sameDevice(this.facts.info, facts.info)) {
        control.records.close();
        return false;
      }
    } catch (error) {
      control.records.close();
      throw error;
    }
    await this.enter(link, control);
    this.take(facts);
    this.onRows?.();
    return true;
  }

  private take(facts: DeviceFacts): void {
    const before = this.facts.info;
    if (facts.info.blockSize !== before.blockSize) return;
    this.facts = facts;
    this.table.blocks = facts.info.blocks;
    if (facts.info.blocks !== before.blocks) this.onChange?.(facts.info);
  }

  /** A row's channel is not to be used any more: it goes once its owner knows. */
  private retire(row: number): void {
    const channel = this.channels[row];
    if (channel === null || channel === undefined) return;
    this.channels[row] = null;
    const epoch = this.table.get(row, Row.epoch);
    this.retired.push({ row, epoch, link: this.link, channel });
    this.schedule();
  }

  private usesMemoryOf(slot: number): boolean {
    if (this.retired.some(({ link }) => link.peer.slot === slot)) return true;
    if (!this.formerSlots.has(slot)) return false;
    for (let row = 0; row < this.table.rows; row++) {
      if (this.table.get(row, Row.held) > 0) return true;
    }
    return false;
  }

  private schedule(): void {
    if (this.timer !== null) return;
    this.timer = setTimeout(() => {
      this.timer = null;
      this.sweep();
      if (!this.closed || this.retired.length > 0) this.schedule();
    }, SWEEP_MS).unref();
  }

  /** Closes channels that nobody looks at any more, and takes rows back whose owners ended. */
  private sweep(): void {
    this.retired = this.retired.filter(({ row, epoch, channel }) => {
      if (this.table.isOwned(row) && this.table.get(row, Row.acked) < epoch) return true;
      channel.records.close();
      return false;
    });
    if (this.closed) return;
    for (let row = 0; row < this.table.rows; row++) {
      if (this.table.get(row, Row.claim) !== 0 && !this.table.isOwned(row)) this.repair(row);
    }
  }

  /** A row whose owner ended in the middle of its work: its channel goes, another comes. */
  private repair(row: number): void {
    const channel = this.channels[row];
    if (channel !== null && channel !== undefined) {
      this.publish(row, RowState.broken);
      this.channels[row] = null;
      channel.records.close();
      void this.replace(row, channel);
    } else if (
      this.state !== RowState.ready &&
      this.table.get(row, Row.state) !== RowState.broken
    ) {
      this.table.giveBack(row, false);
    }
  }

  /** Another channel for a row, once the server has done what came on the old one. */
  private async replace(row: number, old: LinkChannel): Promise<void> {
    const { link } = this;
    const { peerHeader } = old.records;
    while (!link.dead && peerHeader[Half.ended] === 0) {
      await new Promise((resolve) => setTimeout(resolve, SWEEP_MS).unref());
    }
    try {
      const fresh = this.state === RowState.ready ? await this.openChannel(link) : null;
      if (fresh !== null && (this.closed || link !== this.link || this.state !== RowState.ready)) {
        fresh.records.close();
      } else if (fresh !== null) {
        this.channels[row] = fresh;
      }
    } catch (error) {
      // Otherwise the server is gone, and all rows with it.
      if (!(error instanceof PenstockError)) throw error;
    }
    if (this.closed) return;
    this.publish(row, this.channels[row] === null ? this.state : RowState.ready);
    this.table.giveBack(row, false);
  }
}

function askInfo(link: Link): Promise<LinkChannel> {
  return link.connect(DEVICE_PORT, CONTROL_RECORDS, askFor('info'));
}

function sameDevice(before: DeviceInfo, now: DeviceInfo): boolean {
  return (
    before.blockSize === now.blockSize &&
    before.blocks === now.blocks &&
    now.durable &&
    !(now.readOnly && !before.readOnly)
  );
}

function ignore(): void {
  // Told elsewhere: by the link's end.
}
