// DeviceRows: the rows of a device's queue table, as their home keeps them: a channel to the server
// for each, and what becomes of channels when the server, the device or a row's owner goes.
//
// Invariants
// 1. A channel that was ended stays open, and its server's memory mapped, until the row's owner has
//    let go of it (`acked`) and has no loan left that came by it (`held`). An owner that lives is
//    waited for, however long it is blocked.
// 2. A channel whose owner died goes to nobody else: another one is opened, once the server has
//    done what came on it. Until then nobody can claim the row.

import { PenstockError } from '../errors.js';
import { native } from '../native.js';
import { askFor, DEVICE_PORT } from './device-protocol.js';
import { QueueTable, Row, RowState } from './device-table.js';
import type { Link, LinkChannel } from './link.js';

interface Retired {
  readonly row: number;
  readonly epoch: number;
  readonly link: Link;
  readonly channel: LinkChannel;
}

/** Between two looks at whether a server has let go of a channel, and two tries to open another. */
const REPAIR_MS = 50;

export class DeviceRows {
  readonly table: QueueTable;
  /** What rows were told last; none is ready before `enter`. */
  state: RowState = RowState.waiting;
  private readonly entries: number;
  private link: Link | null = null;
  private readonly channels: (LinkChannel | null)[];
  private retired: Retired[] = [];
  private readonly repairing = new Set<number>();
  private readonly eventFds: number[] = [];

  /** `entries`: operations in flight of each row. */
  constructor(rows: number, entries: number) {
    this.table = QueueTable.create(rows);
    this.entries = entries;
    this.channels = Array.from({ length: rows }, () => null);
    for (let row = 0; row < rows; row++) {
      const fd = native.eventfdCreate();
      this.eventFds.push(fd);
      this.table.set(row, Row.eventFd, fd);
    }
  }

  /** Asks a server for a channel for every row: for all, or it throws. */
  async open(link: Link): Promise<LinkChannel[]> {
    const opened = await Promise.allSettled(this.channels.map(() => this.openOne(link)));
    const channels = opened.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
    const failed = opened.find((each) => each.status === 'rejected');
    if (failed === undefined && link.error === null) return channels;
    for (const { records } of channels) records.close();
    throw failed?.reason ?? link.error;
  }

  /** Tells every row of its channel. */
  enter(link: Link, channels: readonly LinkChannel[]): void {
    this.link = link;
    this.state = RowState.ready;
    for (const [row, channel] of channels.entries()) {
      this.channels[row] = channel;
      this.publish(row, RowState.ready);
    }
  }

  /**
   * Tells every row that its server is gone, or why nothing goes to it any more; and the server
   * that nothing comes any more: it completes what it has, and then closes its side.
   */
  end(state: RowState): void {
    this.state = state;
    for (let row = 0; row < this.table.rows; row++) this.publish(row, state);
    for (const [row, channel] of this.channels.entries()) {
      if (channel === null) continue;
      this.channels[row] = null;
      const epoch = this.table.get(row, Row.epoch);
      this.retired.push({ row, epoch, link: this.link!, channel });
      channel.records.fail(new PenstockError('PEER_GONE', 'the device is used no more'));
      // Whoever sleeps on it looks up.
      native.unixShutdown(channel.wakeFd);
    }
    this.sweep();
  }

  /** Whether no owner uses a channel that was ended. */
  get settled(): boolean {
    return this.retired.every((entry) => this.isLeft(entry));
  }

  /** Whether channels that were ended are still open. */
  get isBusy(): boolean {
    return this.retired.length > 0;
  }

  usesMemoryOf(slot: number): boolean {
    return this.retired.some(({ link }) => link.peer.slot === slot);
  }

  /** What the owner of a row has found of its server that its home has not. */
  get found(): 'ended' | 'misbehaved' | null {
    const { table } = this;
    for (let row = 0; row < table.rows; row++) {
      const ended = table.get(row, Row.ended);
      if (Math.abs(ended) !== table.get(row, Row.epoch) || !table.isOwned(row)) continue;
      return ended < 0 ? 'misbehaved' : 'ended';
    }
    return null;
  }

  /** Closes channels that nobody looks at any more, and takes rows back whose owners ended. */
  sweep(): void {
    const { table } = this;
    this.retired = this.retired.filter((entry) => {
      const { row, channel } = entry;
      if (!this.isLeft(entry) || (table.isOwned(row) && table.get(row, Row.held) > 0)) return true;
      channel.records.close();
      return false;
    });
    if (this.state === RowState.closed) return;
    for (let row = 0; row < table.rows; row++) {
      if (table.get(row, Row.claim) === 0 || table.isOwned(row) || this.repairing.has(row))
        continue;
      void this.repair(row);
    }
  }

  /** After `end`, when it is not busy any more. */
  close(): void {
    for (const fd of this.eventFds.splice(0)) native.fileClose(fd);
  }

  private isLeft({ row, epoch }: Retired): boolean {
    return !this.table.isOwned(row) || this.table.get(row, Row.acked) >= epoch;
  }

  private openOne(link: Link): Promise<LinkChannel> {
    return link.connect(DEVICE_PORT, this.entries * 2, askFor('queue'));
  }

  private publish(row: number, state: RowState): void {
    const made = state === RowState.ready ? this.channels[row]! : null;
    const channel =
      made === null
        ? null
        : {
            places: { own: made.own, peer: made.theirs },
            slot: this.link!.peer.slot,
            wakeFd: made.wakeFd,
          };
    this.table.publish(row, state, channel);
    native.eventfdSignal(this.eventFds[row]!);
  }

  /** A row whose owner ended in the middle of its work: its channel goes, another comes. */
  private async repair(row: number): Promise<void> {
    const channel = this.channels[row]!;
    if (channel !== null) {
      this.repairing.add(row);
      this.publish(row, RowState.broken);
      this.channels[row] = null;
      channel.records.close();
      await this.replace(row, this.link!, channel);
      this.repairing.delete(row);
      if (this.state === RowState.closed) return;
    }
    this.table.giveBack(row, false);
  }

  /** Opens another channel for a row, as long as the server is there. */
  private async replace(row: number, link: Link, old: LinkChannel): Promise<void> {
    const isOver = (): boolean =>
      this.state !== RowState.ready || link !== this.link || this.channels[row] !== null;
    while (!isOver() && !old.records.peerClosed) await pause();
    while (!isOver()) {
      try {
        const fresh = await this.openOne(link);
        if (isOver()) {
          fresh.records.close();
        } else {
          this.channels[row] = fresh;
          this.publish(row, RowState.ready);
        }
        return;
      } catch (error) {
        if (!(error instanceof PenstockError)) throw error;
        // It is stopped, or its link is about to end; the row waits.
        await pause();
      }
    }
  }
}

function pause(): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, REPAIR_MS).unref());
}
