// Fan-in and fan-out, made of channels that have one writer and one reader each: no ring is shared.

import type { DmaBuffer } from '../memory/index.js';
import type { Channel } from './channel.js';
import type { Loan } from './loan.js';
import type { Message, SendOptions } from './message.js';

const TURN_EVERY = 16;

/** Messages of several channels, taken in turn so that none waits behind a busy one. */
export class FanIn implements AsyncIterable<Message> {
  private readonly channels: Channel[] = [];
  /** Channels that are waited on: one wait each, however often `receive` is called. */
  private readonly waited = new Set<Channel>();
  private next = 0;
  private sinceTurn = 0;
  private wake: (() => void) | null = null;

  constructor(channels: Iterable<Channel> = []) {
    for (const channel of channels) this.add(channel);
  }

  /** Channels can come at any time; those that are over are closed, and leave by themselves. */
  add(channel: Channel): void {
    this.channels.push(channel);
    this.wake?.();
  }

  get size(): number {
    return this.channels.length;
  }

  /** A message that is here already, or null. */
  tryReceive(): Message | null {
    for (let tried = 0; tried < this.channels.length; tried++) {
      this.next = this.next >= this.channels.length - 1 ? 0 : this.next + 1;
      const message = this.channels[this.next]!.tryReceive();
      if (message !== null) return message;
    }
    return null;
  }

  /**
   * The next message of any channel; null when all are over, in order or not (a channel's
   * `records.error` says which).
   */
  async receive(): Promise<Message | null> {
    for (;;) {
      const message = this.tryReceive();
      if (message !== null) {
        // As a channel does: the process must hear of other things, too.
        if (++this.sinceTurn >= TURN_EVERY) {
          this.sinceTurn = 0;
          await new Promise((resolve) => setImmediate(resolve));
        }
        return message;
      }
      for (let i = this.channels.length - 1; i >= 0; i--) {
        const channel = this.channels[i]!;
        if (!channel.isOver) continue;
        this.channels.splice(i, 1);
        channel.close();
      }
      if (this.channels.length === 0) return null;
      for (const channel of this.channels) this.watch(channel);
      await new Promise<void>((resolve) => (this.wake = resolve));
      this.wake = null;
    }
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Message> {
    for (;;) {
      const message = await this.receive();
      if (message === null) return;
      yield message;
    }
  }

  private watch(channel: Channel): void {
    if (this.waited.has(channel)) return;
    this.waited.add(channel);
    void channel.arrival().finally(() => {
      this.waited.delete(channel);
      this.wake?.();
    });
  }
}

/** Sends each message to the channel that has most room; where they are equal, to the next. */
export class FanOut {
  private readonly channels: Channel[] = [];
  private next = 0;

  constructor(channels: Iterable<Channel> = []) {
    for (const channel of channels) this.add(channel);
  }

  add(channel: Channel): void {
    this.channels.push(channel);
  }

  /** Channels that are not over; with 0 of them nothing can be sent any more. */
  get size(): number {
    for (let i = this.channels.length - 1; i >= 0; i--) {
      const { records } = this.channels[i]!;
      if (records.peerEnded || records.isClosed || records.error !== null) {
        this.channels.splice(i, 1);
      }
    }
    return this.channels.length;
  }

  /** The channel that took it, or null: all are full (back-pressure) or over (`size` is 0). */
  trySend(body: DmaBuffer | Loan | Message, options: SendOptions = {}): Channel | null {
    let best: Channel | null = null;
    let most = 0;
    const count = this.size;
    for (let i = 0; i < count; i++) {
      const channel = this.channels[(this.next + i) % count]!;
      const { free } = channel.records;
      if (free > most) [best, most] = [channel, free];
    }
    if (best === null) return null;
    this.next = (this.channels.indexOf(best) + 1) % count;
    return best.trySend(body, options) ? best : null;
  }
}
