// Fan-in and fan-out, made of channels that have one writer and one reader each: no ring is shared.

import type { DmaBuffer } from '../memory/index.js';
import type { Channel, Message, SendOptions } from './channel.js';
import type { Loan } from './loan.js';

/** Messages of several channels, taken in turn so that none waits behind a busy one. */
export class FanIn implements AsyncIterable<Message> {
  private readonly channels: Channel[] = [];
  private next = 0;
  private wake: (() => void) | null = null;

  constructor(channels: Iterable<Channel> = []) {
    for (const channel of channels) this.add(channel);
  }

  /** Channels can come at any time; those that are over leave by themselves. */
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
   * The next message of any channel; null when all are over, in order or not (a channel's `error`
   * says which).
   */
  async receive(): Promise<Message | null> {
    for (;;) {
      const message = this.tryReceive();
      if (message !== null) return message;
      for (let i = this.channels.length - 1; i >= 0; i--) {
        if (this.channels[i]!.records.over) this.channels.splice(i, 1);
      }
      if (this.channels.length === 0) return null;
      const added = new Promise<void>((resolve) => (this.wake = resolve));
      await Promise.race([added, ...this.channels.map((channel) => channel.arrival())]);
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

  get size(): number {
    return this.channels.length;
  }

  /** The channel that took it, or null: all are full (back-pressure) or over. */
  trySend(body: DmaBuffer | Loan | Message, options: SendOptions = {}): Channel | null {
    let best: Channel | null = null;
    let most = 0;
    const count = this.channels.length;
    for (let i = 0; i < count; i++) {
      const channel = this.channels[(this.next + i) % count]!;
      const free = channel.records.over ? 0 : channel.records.free;
      if (free > most) [best, most] = [channel, free];
    }
    if (best === null) return null;
    this.next = (this.channels.indexOf(best) + 1) % count;
    return best.trySend(body, options) ? best : null;
  }
}
