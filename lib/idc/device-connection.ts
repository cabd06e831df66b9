// DeviceConnection: a device of another domain, as the thread that opened it has it: the link to
// its server, and what becomes of it when the server goes (its channels: device-rows.ts).
//
//   waiting --enter--> ready --the server's end, in order or by death--> waiting, or gone
//                        | its link is over, or a queue was ended            ^
//                        +--> cut --all have let go, or it is dead ----------+
//   any of these --close--> closed
//
// Invariants
// 1. Operations that a server may still be at work at are given to no other one, and complete when
//    it has let go of them, or is dead: a server that is cut off is waited for.
// 2. Another server of the name is gone on with only when its device has the same size, and when
//    what a server acknowledged outlives it (info.durable): otherwise the device is gone.

import { PenstockError } from '../errors.js';
import type { DeviceInfo } from '../hpdi/index.js';
import { native } from '../native.js';
import { askFor, DEVICE_PORT, readFacts, type DeviceFacts } from './device-protocol.js';
import type { CutReason } from './device-queue-options.js';
import { DeviceRows } from './device-rows.js';
import { RowState, type QueueTable } from './device-table.js';
import type { Domain } from './domain.js';
import type { Link, LinkChannel } from './link.js';

export interface ConnectionOptions {
  /** Queues that can be open at a time, in all threads; operations in flight of each. */
  readonly queues: number;
  readonly entries: number;
  /** How long another server is waited for when this one is gone; 0: not at all. */
  readonly reconnectMs: number;
}

const CONNECT_MS = 5000;
const CONTROL_RECORDS = 16;
/** Between two looks at rows whose owners ended, and at channels that were ended. */
const SWEEP_MS = 50;
/** How long `close` waits for threads to let go of their queues; then it goes on by itself. */
const CLOSE_MS = 1000;

export class DeviceConnection {
  readonly domain: Domain;
  /** The domain that serves the device. */
  readonly name: string;
  facts: DeviceFacts;
  /** Told of another size; and of a change that queues of this thread should notice. */
  onChange: ((info: DeviceInfo) => void) | null = null;
  onRows: (() => void) | null = null;
  private readonly reconnectMs: number;
  private readonly rows: DeviceRows;
  private link: Link;
  private control: LinkChannel | null = null;
  private controlWatch = 0;
  private readonly endWatch: () => void;
  private timer: NodeJS.Timeout | null = null;
  private closed = false;
  /** Ends a wait for another server. */
  private readonly waits = new AbortController();

  private constructor(domain: Domain, link: Link, facts: DeviceFacts, options: ConnectionOptions) {
    this.domain = domain;
    this.name = link.peer.name;
    this.link = link;
    this.facts = facts;
    this.reconnectMs = options.reconnectMs;
    this.rows = new DeviceRows(options.queues, options.entries);
    this.table.blocks = facts.info.blocks;
    this.endWatch = domain.watchLinks({
      usesMemoryOf: (slot) => this.rows.usesMemoryOf(slot),
      onOver: (over) => {
        if (over === this.link) this.lost(over.dead ? 'dead' : 'cut');
      },
      onDead: (dead) => {
        if (dead === this.link) this.lost('dead');
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
      control.records.close();
      await connection?.close();
      throw error;
    }
  }

  get table(): QueueTable {
    return this.rows.table;
  }

  /** Takes what the server told of its memory. */
  settle(address: number, bytes: number): boolean {
    return this.link.error === null && this.link.settle(address, bytes);
  }

  get isGone(): boolean {
    const { state } = this.rows;
    if (state === RowState.cut) return this.reconnectMs === 0;
    return state !== RowState.ready && state !== RowState.waiting;
  }

  /** Asks for the device's facts anew. */
  async refresh(): Promise<void> {
    if (this.rows.state !== RowState.ready) return;
    const fresh = await askInfo(this.link);
    fresh.records.close();
    this.take(readFacts(fresh.meta));
  }

  /** A queue of this thread found its channel's end, or that the server is not to be trusted. */
  cut(reason: CutReason): void {
    if (reason === 'misbehaved') {
      this.link.end(
        new PenstockError('PEER_MISBEHAVED', `${this.name} completed what was not asked for`, {
          hint: 'that process is damaged or hostile; end it and look at its log',
        }),
      );
    }
    this.lost(reason === 'dead' ? 'dead' : 'cut');
  }

  /** Looks at rows whose owners have ended; for the time that other threads use them. */
  watchOwners(): void {
    this.schedule();
  }

  /**
   * Whether nothing of whoever had a liveness word, and has ended, is at a server any more. Rows
   * are taken back when their servers have ended; once this is closed they are not, but then all
   * their channels are, and their halves linger until the servers have ended.
   */
  isIdle(livenessIndex: number, livenessSerial: number): boolean {
    if (!this.table.isClaimedBy(livenessIndex, livenessSerial)) return true;
    const { link } = this;
    return this.closed && !this.rows.isBusy && (link.dead || !link.lingers);
  }

  /**
   * All queues of this thread are closed by now. What those of others have in flight completes with
   * DEVICE_GONE when the server has let go of it; until then, and while they have loans, they keep
   * their channels.
   */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.waits.abort(deviceClosed(this.name));
    this.endControl();
    this.rows.end(RowState.closed);
    const until = performance.now() + CLOSE_MS;
    while (this.rows.isBusy && performance.now() < until) {
      await new Promise((resolve) => setTimeout(resolve, 10));
      this.rows.sweep();
    }
    if (this.timer !== null) clearTimeout(this.timer);
    this.timer = null;
    this.finish();
  }

  /** Once nobody uses a channel any more. */
  private finish(): void {
    if (this.rows.isBusy) {
      this.schedule();
      return;
    }
    this.endWatch();
    this.rows.close();
  }

  /** Opens a channel for every row, and tells them. `control` is the caller's where it throws. */
  private async enter(link: Link, control: LinkChannel): Promise<void> {
    const channels = await this.rows.open(link);
    if (this.closed) {
      for (const { records } of channels) records.close();
      throw deviceClosed(this.name);
    }
    this.link = link;
    this.control = control;
    this.controlWatch = native.watchOpen(control.records.wakeFd, () => this.controlWoken());
    this.rows.enter(link, channels);
    this.listen();
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
      this.controlEnded(control);
      return;
    }
    native.watchSet(this.controlWatch, true, false);
  }

  private controlWoken(): void {
    const { control } = this;
    if (control === null) return;
    native.watchSet(this.controlWatch, false);
    if (!control.records.disarm() && !control.records.ready) this.controlEnded(control);
    else this.listen();
  }

  /** A server closes this channel when nothing is in flight; otherwise its end came another way. */
  private controlEnded({ records }: LinkChannel): void {
    this.endControl();
    this.lost(records.peerClosed ? 'dead' : 'cut');
  }

  private endControl(): void {
    if (this.controlWatch !== 0) native.watchClose(this.controlWatch);
    this.controlWatch = 0;
    this.control?.records.close();
    this.control = null;
  }

  /**
   * The server is gone. `dead`: nothing of it touches memory any more, since it is dead, or has
   * closed its channels. `cut`: it may still be at work.
   */
  private lost(how: 'dead' | 'cut'): void {
    const { rows } = this;
    if (this.closed) {
      // Threads that have not let go of their queues wait for the server.
      if (how === 'dead' && rows.isBusy) rows.end(RowState.gone);
    } else if (how === 'dead' && (rows.state === RowState.ready || rows.state === RowState.cut)) {
      this.goOn();
    } else if (rows.state === RowState.ready) {
      rows.end(RowState.cut);
      this.onRows?.();
      this.schedule();
      this.lookAtCut();
    }
  }

  /** Whether a server that is cut off has let go of all that it had. */
  private lookAtCut(): void {
    if (this.rows.state === RowState.cut && this.rows.settled) this.goOn();
  }

  /** Nothing is in flight at the server any more: another one is waited for, or the device gone. */
  private goOn(): void {
    const { rows, link } = this;
    this.endControl();
    const trusted = link.error?.code !== 'PEER_MISBEHAVED';
    const again = trusted && this.reconnectMs > 0 && this.facts.info.durable;
    rows.end(again ? RowState.waiting : RowState.gone);
    this.onRows?.();
    this.schedule();
    if (again) void this.reconnect();
  }

  private get isWaiting(): boolean {
    return this.rows.state === RowState.waiting && !this.closed && !this.domain.isClosed;
  }

  private async reconnect(): Promise<void> {
    const until = performance.now() + this.reconnectMs;
    while (this.isWaiting) {
      const leftMs = until - performance.now();
      if (leftMs <= 0) break;
      try {
        if (await this.tryAgain(leftMs)) return;
        break;
      } catch (error) {
        if (!(error instanceof PenstockError)) throw error;
        // It came and went, or does not serve yet.
        if (this.isWaiting) {
          await new Promise((resolve) => setTimeout(resolve, Math.min(SWEEP_MS, leftMs)));
        }
      }
    }
    if (this.closed || this.rows.state !== RowState.waiting) return;
    this.rows.end(RowState.gone);
    this.onRows?.();
  }

  /** False: there is a server, but of another device. */
  private async tryAgain(leftMs: number): Promise<boolean> {
    const link = await this.domain.linkTo(this.name, leftMs, this.waits.signal);
    const control = await askInfo(link);
    try {
      if (this.closed) throw deviceClosed(this.name);
      const facts = readFacts(control.meta);
      if (!sameDevice(this.facts.info, facts.info)) {
        control.records.close();
        return false;
      }
      await this.enter(link, control);
      this.take(facts);
    } catch (error) {
      control.records.close();
      throw error;
    }
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

  private schedule(): void {
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.sweep();
    }, SWEEP_MS).unref();
  }

  private sweep(): void {
    const { rows } = this;
    rows.sweep();
    if (this.closed) {
      this.finish();
      return;
    }
    const found = rows.state === RowState.ready ? rows.found : null;
    if (found !== null) this.cut(found);
    if (rows.state === RowState.cut) {
      // Queues that nobody polls look, too.
      this.onRows?.();
      this.lookAtCut();
    }
    this.schedule();
  }
}

function askInfo(link: Link): Promise<LinkChannel> {
  return link.connect(DEVICE_PORT, CONTROL_RECORDS, askFor('info'));
}

function deviceClosed(name: string): PenstockError {
  return new PenstockError('DEVICE_CLOSED', `the device that ${name} serves was closed meanwhile`, {
    hint: 'open it again, or close it later',
  });
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
