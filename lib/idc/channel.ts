// Channel: messages between two domains, for people. Buffers go by loan: nothing is copied.
//
//   for await (const message of channel) {       // ends when the other side closes
//     use(message.u8);
//     message.release();                         // or message.reply(buffer), other.send(message)
//   }
//
// `send` takes a buffer of the domain's own memory, or a loan from anybody: it moves. The handle is
// dead afterwards (USE_AFTER_SEND, USE_AFTER_RELEASE); the buffer comes home when the last who had
// it gives it back.

import { PenstockError } from '../errors.js';
import type { DmaBuffer } from '../memory/index.js';
import { IdcOp, Msg, Rec } from './layout.js';
import type { Link, PeerInfo } from './link.js';
import { Loan } from './loan.js';
import type { LoanDesk } from './loan-desk.js';
import { Message, type SendOptions } from './message.js';
import type { RecordChannel } from './record-channel.js';
import { misbehaved } from './transport.js';

/** Messages that are kept here unread while an answer is waited for. */
const BACKLOG_MAX = 1 << 16;
/** Loans that one domain may have of another's at a time: more is back-pressure. */
export const HOLDS_MAX = 1 << 14;
const TAG_MAX = 0x7fff_ffff;
/** How long the memory of a third domain may take to be mapped, and how often that is looked at. */
const COMING_MS = 2000;
const COMING_LOOK_MS = 2;
/** Messages sent or received between two turns of the event loop, at most. */
const TURN_EVERY = 16;

interface Asked {
  readonly resolve: (message: Message) => void;
  readonly reject: (error: Error) => void;
  readonly timer: NodeJS.Timeout | undefined;
}

/** What a channel asks of its domain. */
export interface ChannelHome {
  readonly slot: number;
  readonly generation: number;
  readonly desk: LoanDesk;
  onChannelClosed(channel: Channel): void;
}

export class Channel implements AsyncIterable<Message> {
  readonly records: RecordChannel;
  readonly peer: PeerInfo;
  readonly port: string;
  /** What the other side said when the channel was opened; hostile. */
  readonly meta: string;
  /** Messages whose memory was gone, with its owner, when they came. */
  lost = 0;
  private readonly home: ChannelHome;
  private readonly link: Link;
  private backlog: Message[] = [];
  /** The first one's memory is not mapped here yet: all wait, so that their order stays. */
  private coming: { message: Message; reply: boolean }[] = [];
  private comingSince = 0;
  private sinceTurn = 0;
  private readonly asked = new Map<number, Asked>();
  private lastTag = 0;
  private pumping: Promise<void> | null = null;
  private iterating = false;
  private asking = false;

  constructor(home: ChannelHome, link: Link, records: RecordChannel, port: string, meta: string) {
    this.home = home;
    this.link = link;
    this.records = records;
    this.peer = link.peer;
    this.port = port;
    this.meta = meta;
    records.late = (rq, at) => this.refuse(rq, at);
  }

  /** Sends a buffer if it can be sent now; false is back-pressure, and it is still yours. */
  trySend(body: DmaBuffer | Loan | Message, options: SendOptions = {}): boolean {
    return this.post(IdcOp.MESSAGE, 0, body, options);
  }

  /** Sends a buffer, once there is room. Errors: PEER_GONE, PEER_MISBEHAVED, CHANNEL_CLOSED. */
  async send(body: DmaBuffer | Loan | Message, options: SendOptions = {}): Promise<void> {
    await this.postWhenFree(IdcOp.MESSAGE, 0, body, options);
    if (++this.sinceTurn >= TURN_EVERY) await this.turn();
  }

  /**
   * Sends a request and waits for its reply; TIMED_OUT after `timeoutMs`. Messages that come
   * meanwhile are kept for whoever iterates.
   */
  async request(
    body: DmaBuffer | Loan | Message,
    options: SendOptions & { timeoutMs?: number } = {},
  ): Promise<Message> {
    const tag = this.nextTag();
    const answer = new Promise<Message>((resolve, reject) => {
      const { timeoutMs } = options;
      const timer =
        timeoutMs === undefined
          ? undefined
          : setTimeout(() => this.expire(tag, timeoutMs), timeoutMs);
      this.asked.set(tag, { resolve, reject, timer });
    });
    // Rejected by a failure to send, too; nobody may be looking at it by then.
    answer.catch(() => {});
    try {
      await this.postWhenFree(IdcOp.MESSAGE, tag, body, options, options.timeoutMs);
    } catch (error) {
      this.takeAsked(tag);
      throw error;
    }
    void this.pump();
    return answer;
  }

  /** Answers a message that was a request. */
  async reply(
    message: Message,
    body: DmaBuffer | Loan | Message,
    options: SendOptions = {},
  ): Promise<void> {
    if (message.tag === 0) throw new TypeError('the message is no request');
    await this.postWhenFree(IdcOp.REPLY, message.tag, body, options);
  }

  /** A message that is here already, or null. */
  tryReceive(): Message | null {
    if (this.backlog.length === 0) this.takeComing();
    if (this.backlog.length === 0 && this.coming.length === 0) this.take(1);
    const message = this.backlog.shift() ?? null;
    if (message !== null && this.asked.size > 0) void this.pump();
    return message;
  }

  /**
   * The next message; null when the channel ended in order: this side is closed then, too. Errors:
   * PEER_GONE, PEER_MISBEHAVED.
   */
  async receive(): Promise<Message | null> {
    for (;;) {
      const message = this.tryReceive();
      if (message !== null) {
        if (++this.sinceTurn >= TURN_EVERY) await this.turn();
        return message;
      }
      if (this.isOver) {
        this.close();
        const { error } = this.records;
        if (error === null || (error.code === 'PEER_GONE' && this.records.peerEnded)) return null;
        throw error;
      }
      await this.some();
    }
  }

  /**
   * Now and then a turn of the loop: who always finds a message, or room for one, would never let
   * the process hear of anything else.
   */
  private turn(): Promise<void> {
    this.sinceTurn = 0;
    return new Promise((resolve) => setImmediate(resolve));
  }

  /** Nothing more comes but what is here. */
  get isOver(): boolean {
    return this.records.over && this.coming.length === 0;
  }

  /** Resolves when a message is here, or the channel is over. */
  async arrival(): Promise<void> {
    while (this.backlog.length === 0 && !this.isOver) await this.some();
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Message> {
    if (this.iterating) throw new Error('a channel has one iteration at a time');
    this.iterating = true;
    try {
      for (;;) {
        const message = await this.receive();
        if (message === null) return;
        yield message;
      }
    } finally {
      this.iterating = false;
    }
  }

  /** Takes all that has come: what a dead peer sent is here afterwards. */
  takeAll(): void {
    while (this.take(this.records.size)) {
      // Until the ring is empty: nobody writes to it any more.
    }
  }

  /** Ends the channel; messages that nobody took are released. */
  close(): void {
    if (this.records.isClosed) return;
    this.takeAllQuietly();
    this.records.close();
    this.releaseAll();
    const error =
      this.records.error ??
      new PenstockError('CHANNEL_CLOSED', 'the channel was closed', {
        hint: 'close it once all answers are there',
      });
    for (const tag of [...this.asked.keys()]) this.takeAsked(tag)?.reject(error);
    this.home.onChannelClosed(this);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private takeAllQuietly(): void {
    try {
      for (let i = 0; i < 4; i++) if (!this.take(this.records.size)) return;
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
    }
  }

  /** Gives back all that nobody took. */
  private releaseAll(): void {
    for (const message of this.backlog) message[Symbol.dispose]();
    for (const { message } of this.coming) message[Symbol.dispose]();
    this.backlog = [];
    this.coming = [];
  }

  /** What comes after the close goes back to where it belongs. */
  private refuse(rq: Uint32Array, at: number): void {
    try {
      this.accept(rq, at);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
    }
    this.releaseAll();
  }

  private nextTag(): number {
    do {
      this.lastTag = this.lastTag === TAG_MAX ? 1 : this.lastTag + 1;
    } while (this.asked.has(this.lastTag));
    return this.lastTag;
  }

  private expire(tag: number, timeoutMs: number): void {
    this.takeAsked(tag)?.reject(this.timedOut(timeoutMs));
  }

  private timedOut(timeoutMs: number): PenstockError {
    return new PenstockError('TIMED_OUT', `no answer from ${this.peer.name} in ${timeoutMs} ms`, {
      hint: 'it is slow, stopped, or does not answer on this port',
    });
  }

  private takeAsked(tag: number): Asked | undefined {
    const asked = this.asked.get(tag);
    this.asked.delete(tag);
    if (asked?.timer !== undefined) clearTimeout(asked.timer);
    return asked;
  }

  private async postWhenFree(
    op: IdcOp,
    tag: number,
    body: DmaBuffer | Loan | Message,
    options: SendOptions,
    timeoutMs = Infinity,
  ): Promise<void> {
    const until = performance.now() + timeoutMs;
    for (let turn = 0; !this.post(op, tag, body, options); turn++) {
      if (performance.now() >= until) throw this.timedOut(timeoutMs);
      this.home.desk.service();
      // A few turns of the loop, then a timer: the other side is slow, or stopped.
      if (turn < 16) await new Promise((resolve) => setImmediate(resolve));
      else await new Promise((resolve) => setTimeout(resolve, 1));
    }
  }

  private post(
    op: IdcOp,
    tag: number,
    body: DmaBuffer | Loan | Message,
    options: SendOptions,
  ): boolean {
    const { records } = this;
    const { desk } = this.home;
    const loan = body instanceof Message ? body.body : body;
    const isOwn = !(loan instanceof Loan);
    // Comes before the looks at the channel: it may end the link.
    if (isOwn) desk.beforeLending(this.peer.slot, HOLDS_MAX);
    this.assertUsable();
    if (records.free === 0) {
      if (records.error !== null) throw records.error; // found out just now
      return false;
    }
    const { address, bytes } = loan;
    let hi: number;
    let ownerGeneration: number;
    if (isOwn) {
      // Where the other side has not been told of all segments, the buffer may lie in one of those.
      if (this.link.hasUnsent || desk.ledger.holdsOf(this.peer.slot) >= HOLDS_MAX) return false;
      desk.assertShared(loan);
      hi = desk.lend(loan, this.peer.slot);
      ({ generation: ownerGeneration } = this.home);
    } else {
      if (loan.released) loan.release(); // throws
      if (!desk.pass(loan, this.link)) return false;
      ({ hi, ownerGeneration } = loan);
    }
    const { sq } = records;
    const at = (records.tail & records.mask) << Rec.shift;
    records.reserve(1); // there is room: this thread alone sends
    sq[at + Msg.op] = op;
    sq[at + Msg.tag] = tag;
    sq[at + Msg.bytes] = bytes;
    sq[at + Msg.aux] = options.aux ?? 0;
    sq[at + Msg.aux2] = options.aux2 ?? 0;
    sq[at + Msg.ownerGeneration] = ownerGeneration;
    sq[at + Msg.addressLo] = address >>> 0;
    sq[at + Msg.addressHi] = hi;
    records.submit();
    return true;
  }

  private assertUsable(): void {
    const { records } = this;
    if (records.error !== null) throw records.error;
    if (!records.isClosed && !records.peerEnded) return;
    throw new PenstockError('CHANNEL_CLOSED', `the channel with ${this.peer.name} is closed`, {
      hint: 'the other side has closed it, or this one; connect again',
    });
  }

  /** Waits until something came; whoever waits meanwhile shares the wait. */
  private some(): Promise<void> {
    this.pumping ??= this.more().finally(() => (this.pumping = null));
    return this.pumping;
  }

  private async more(): Promise<void> {
    if (this.coming.length > 0) {
      await new Promise((resolve) => setTimeout(resolve, COMING_LOOK_MS));
      this.takeComing();
      return;
    }
    await this.records.arrival();
    this.take(this.records.size);
  }

  /** Receives until no answer is waited for any more. */
  private async pump(): Promise<void> {
    if (this.asking) return;
    this.asking = true;
    while (this.asked.size > 0 && !this.isOver && this.backlog.length < BACKLOG_MAX) {
      await this.some();
    }
    this.asking = false;
    if (this.asked.size === 0 || !this.isOver) return;
    const error =
      this.records.error ??
      new PenstockError('CHANNEL_CLOSED', `${this.peer.name} closed the channel`, {
        hint: 'it will not answer any more; connect again',
      });
    for (const tag of [...this.asked.keys()]) this.takeAsked(tag)?.reject(error);
  }

  private take(max: number): boolean {
    const count = this.records.poll(max);
    this.sort(count);
    return count > 0;
  }

  /** Makes messages of the first `count` records received. A bad one breaks the channel. */
  private sort(count: number): void {
    const { rq } = this.records;
    for (let i = 0; i < count; i++) {
      try {
        this.accept(rq, i << Rec.shift);
      } catch (error) {
        if (!(error instanceof PenstockError) || error.code !== 'PEER_MISBEHAVED') throw error;
        // What else was received is still looked at: it may be another domain's memory.
        this.records.fail(error);
      }
    }
  }

  private accept(rq: Uint32Array, at: number): void {
    const op = rq[at + Msg.op]!;
    const bytes = rq[at + Msg.bytes]!;
    const tag = rq[at + Msg.tag]!;
    if ((op !== IdcOp.MESSAGE && op !== IdcOp.REPLY) || tag > TAG_MAX) {
      throw misbehaved('sent a record that is no message');
    }
    const { desk } = this.home;
    const loan = desk.receive(this.link, {
      lo: rq[at + Msg.addressLo]!,
      hi: rq[at + Msg.addressHi]!,
      bytes,
      ownerGeneration: rq[at + Msg.ownerGeneration]!,
    });
    // The memory went with its owner before it got here: there is nothing to be delivered.
    if (loan === null) {
      this.lost++;
      return;
    }
    const message = new Message(this, loan, tag, rq[at + Msg.aux]!, rq[at + Msg.aux2]!);
    const reply = op === IdcOp.REPLY;
    if (this.coming.length === 0 && desk.stateOf(loan) === 'here') this.deliver(message, reply);
    else {
      if (this.coming.length === 0) this.comingSince = performance.now();
      this.coming.push({ message, reply });
    }
  }

  /** Delivers what has come to be readable, in order; what never will be is given back. */
  private takeComing(): void {
    const { desk } = this.home;
    while (this.coming.length > 0) {
      const { message, reply } = this.coming[0]!;
      const state = desk.stateOf(message.body);
      const late = performance.now() - this.comingSince > COMING_MS;
      if (state === 'coming' && !late) return;
      this.coming.shift();
      this.comingSince = performance.now();
      if (state === 'here') this.deliver(message, reply);
      else {
        this.lost++;
        message.release();
      }
    }
  }

  private deliver(message: Message, reply: boolean): void {
    if (!reply) {
      this.backlog.push(message);
      return;
    }
    const asked = this.takeAsked(message.tag);
    // Nobody waits any more (TIMED_OUT).
    if (asked === undefined) message.release();
    else asked.resolve(message);
  }
}
