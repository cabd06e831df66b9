// Message: what a channel brings, and the loan that is its body.

import type { DmaBuffer } from '../memory/index.js';
import type { Channel } from './channel.js';
import type { Loan, ReadonlyBytes, ReadonlyWords } from './loan.js';

export interface SendOptions {
  /** A number of the sender's own (32 bits). */
  aux?: number;
  /** Another one. */
  aux2?: number;
}

/** A message, and the loan that is its body. Release it, reply to it, or send it on. */
export class Message {
  readonly channel: Channel;
  readonly body: Loan;
  readonly aux: number;
  readonly aux2: number;
  /** Number of the request that it is, or answers; 0: neither. */
  readonly tag: number;

  constructor(channel: Channel, body: Loan, tag: number, aux: number, aux2: number) {
    this.channel = channel;
    this.body = body;
    this.tag = tag;
    this.aux = aux;
    this.aux2 = aux2;
  }

  get bytes(): number {
    return this.body.bytes;
  }

  get u8(): ReadonlyBytes {
    return this.body.u8;
  }

  get u32(): ReadonlyWords {
    return this.body.u32;
  }

  release(): void {
    this.body.release();
  }

  /** Answers a request, with a buffer or the message's own body. */
  async reply(body: DmaBuffer | Loan | Message, options: SendOptions = {}): Promise<void> {
    await this.channel.reply(this, body, options);
  }

  [Symbol.dispose](): void {
    this.body[Symbol.dispose]();
  }
}
