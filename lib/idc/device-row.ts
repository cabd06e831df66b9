// A row of the queue table as its owner uses it: the channel opened in the owner's thread.

import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';
import { Row, type QueueTable, type RowChannel, type RowState } from './device-table.js';
import { openChannel } from './half.js';
import type { RecordChannel } from './record-channel.js';
import { tooManyFiles } from './transport.js';
import { SocketWake } from './wake.js';

export interface RowView {
  readonly epoch: number;
  readonly state: RowState;
  readonly channel: RowChannel;
}

export class OwnedRow {
  /** Signalled by the home when the row has changed, for who sleeps without a channel. */
  readonly eventFd: number;
  private readonly table: QueueTable;
  private readonly row: number;
  private open: { readonly records: RecordChannel; readonly wake: SocketWake } | null = null;
  /** Wakes of former channels, on which HPDI's queue may still have a watch. */
  private wakes: SocketWake[] = [];

  /** Takes a row that was claimed; gives it back where it throws. Errors: see failure below. */
  constructor(table: QueueTable, row: number) {
    this.table = table;
    this.row = row;
    try {
      // A descriptor of its own: the number would be another's once the home has closed it.
      this.eventFd = native.fileDuplicate(table.get(row, Row.eventFd));
    } catch (error) {
      table.giveBack(row, false);
      throw failure(error);
    }
  }

  /** The row's words as they were at one moment. */
  read(): RowView {
    const { table, row } = this;
    for (;;) {
      const epoch = table.get(row, Row.epoch);
      const state: RowState = table.get(row, Row.state);
      const channel = table.channel(row);
      if (table.get(row, Row.epoch) === epoch) return { epoch, state, channel };
    }
  }

  acknowledge(epoch: number, held: number): void {
    this.table.set(this.row, Row.held, held);
    this.table.set(this.row, Row.acked, epoch);
  }

  /** Tells the home that the channel of an epoch has ended, or that its server misbehaved. */
  found(epoch: number, misbehaved: boolean): void {
    this.table.set(this.row, Row.ended, misbehaved ? -epoch : epoch);
  }

  /** Says how many loans of channels that were let go of are left. */
  holds(count: number): void {
    this.table.set(this.row, Row.held, count);
  }

  /** The channel, or null: the row has changed meanwhile. Errors: see failure below. */
  openChannel({ epoch, channel }: RowView): RecordChannel | null {
    this.closeChannel();
    let wake: SocketWake | null = null;
    try {
      wake = new SocketWake(native.fileDuplicate(channel.wakeFd));
      // While the epoch stood, the number was that of this channel.
      if (this.stands(epoch)) {
        const records = openChannel(channel.places, wake, () => {});
        this.open = { records, wake };
        return records;
      }
      wake.close();
    } catch (error) {
      wake?.close();
      if (this.stands(epoch)) throw failure(error);
    }
    return null;
  }

  /** Lets go of the channel; it stays open, for its next owner. */
  closeChannel(): void {
    if (this.open !== null) {
      this.open.records.leave();
      this.wakes.push(this.open.wake);
    }
    this.open = null;
    this.wakes = this.wakes.filter((wake) => !closed(wake));
  }

  /** Wakes whoever sleeps on the row's event. */
  signal(): void {
    native.eventfdSignal(this.eventFd);
  }

  /** Takes the signal: whoever sleeps on it looked before. */
  drainEvent(): void {
    native.eventfdDrain(this.eventFd);
  }

  /** Gives the row back, to the next owner or (broken) to the home. */
  close(broken: boolean): void {
    this.closeChannel();
    native.fileClose(this.eventFd);
    this.table.giveBack(this.row, broken);
  }

  private stands(epoch: number): boolean {
    return this.table.get(this.row, Row.epoch) === epoch;
  }
}

/** Why a row's channel cannot be used: TOO_MANY_FILES, DEVICE_GONE, PEER_MISBEHAVED. */
function failure(cause: unknown): unknown {
  if (cause instanceof PenstockError) return cause;
  const named = tooManyFiles(cause);
  if (named !== cause || errnoCode(cause) === '') return named;
  return new PenstockError('DEVICE_GONE', 'the thread that opened the device has let it go', {
    hint: 'keep the device open until all who attach to it are done',
    cause,
  });
}

/** Whether a wake could be closed: not while somebody watches its descriptor. */
function closed(wake: SocketWake): boolean {
  try {
    wake.close();
    return true;
  } catch (error) {
    if (errnoCode(error) !== 'EBUSY') throw error;
    return false;
  }
}
