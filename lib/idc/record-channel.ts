// RecordChannel: two rings and a way to wake, as one thread of one domain sees them. The hot path.
//
//   const at = channel.tail;
//   const n = channel.reserve(32);               // records granted; 0 is back-pressure
//   for (let i = 0; i < n; i++) {
//     const r = ((at + i) & channel.mask) * 8;   // fill channel.sq[r + …]; bit 31 of word 0
//   }                                            // is the ring's own
//   channel.submit();                            // the other side sees them
//   const got = channel.poll(32);                // records stand in channel.rq from word 0 on
//
// A channel has no lock: one thread on each side. It ends when a side closes it (`ended` on the
// other, after everything that was sent has been read), or breaks (`error`): the other side died or
// wrote what no honest side writes. Broken or ended it grants nothing; what was sent before a death
// is still delivered.

import { PenstockError } from '../errors.js';
import { native } from '../native.js';
import { End, Half, Rec } from './layout.js';
import type { RingReader, RingWriter } from './ring.js';
import type { Wake } from './wake.js';

/** How long park polls before it sleeps, in polls (some ns each), by how long it slept then. */
const SPINS_MIN = 64;
const SPINS_MAX = 1 << 15;
const SHORT_MS = 0.2;
/** The same for wait, which holds up an event loop; then turns of the loop, then sleep. */
const WAIT_SPINS_MAX = 512;
const TURNS_MAX = 16;
/** Sleeps where nobody wakes: from, to (µs). */
const BLIND_US_MIN = 50;
const BLIND_US_TURNS = 2000;
const BLIND_US_MAX = 10_000;
const TIMER_MS_MAX = 2 ** 31 - 1;

export interface ChannelEnds {
  readonly writer: RingWriter;
  readonly reader: RingReader;
  /** Headers of this side's half and of the other's. */
  readonly half: Uint32Array;
  readonly peerHalf: Uint32Array;
  readonly wake: Wake;
}

/** Free-running counts of 32 bits, as they stand in the headers, whichever thread moved them. */
export interface ChannelCounters {
  readonly sent: number;
  readonly received: number;
  /** Sent, and not taken by the other side yet. */
  readonly unread: number;
  /** Times that this side woke the other. */
  readonly wakes: number;
}

export class RecordChannel {
  /** Records that fit into each ring; a power of two. */
  readonly size: number;
  readonly mask: number;
  /** Records to be sent. */
  readonly sq: Uint32Array;
  /** Records received by the last poll. */
  readonly rq: Uint32Array;
  /** Why the channel broke; what was sent before is still delivered. */
  error: PenstockError | null = null;
  /** Gets the records that come when this side has closed, until the other does, too. */
  late: ((rq: Uint32Array, at: number) => void) | null = null;
  private readonly writer: RingWriter;
  private readonly reader: RingReader;
  private half: Uint32Array;
  private peerHalf: Uint32Array;
  private readonly peerSerial: number;
  private readonly waker: Wake;
  private spins = 1024;
  private waitSpins = 16;
  private turns = 1;
  private blindUs = BLIND_US_MIN;
  private readonly parkFds = new Int32Array(1);
  private watch = 0;
  private wakeUp: (() => void) | null = null;
  private waiting = false;
  /** The descriptor was readable: see takeSignals. */
  private signalled = false;
  private closed = false;
  private readonly onClose: () => void;

  constructor(ends: ChannelEnds, onClose: () => void = () => {}) {
    this.writer = ends.writer;
    this.reader = ends.reader;
    this.half = ends.half;
    this.peerHalf = ends.peerHalf;
    this.peerSerial = ends.peerHalf[Half.serial]!;
    this.waker = ends.wake;
    this.onClose = onClose;
    this.size = ends.writer.size;
    this.mask = ends.writer.mask;
    this.sq = ends.writer.sq;
    this.rq = ends.reader.rq;
  }

  /** Index of the next free record; `reserve` moves it on. */
  get tail(): number {
    return this.writer.tail;
  }

  // hot:begin

  /** Grants up to `n` records from `tail` on; 0 is back-pressure, or the channel is over. */
  reserve(n: number): number {
    const granted = this.error === null ? this.writer.reserve(n) : 0;
    if (granted === 0 && this.writer.broken) this.misbehaved('its index of records taken');
    return granted;
  }

  /** Sends what was granted; wakes the other side if it sleeps. */
  submit(): void {
    if (this.closed) throw new TypeError('RecordChannel.submit: the channel is closed');
    if (this.writer.submit()) this.signal();
  }

  /** Copies up to `max` received records to `rq` and returns how many. Never blocks. */
  poll(max: number): number {
    return this.closed ? 0 : this.reader.poll(max);
  }

  // hot:end

  /** Whether records are there to be polled. */
  get ready(): boolean {
    return !this.closed && this.reader.ready;
  }

  /** The other side has closed its end in order, and all that it sent has been read. */
  get ended(): boolean {
    return this.closed || (this.peerEnded && !this.reader.ready);
  }

  /**
   * The other side sends nothing any more, by its own word; there may be something to be read. Once
   * this side is closed, too, the other's half may be that of another channel already.
   */
  get peerEnded(): boolean {
    return this.peerHalf[Half.ended] !== End.open;
  }

  /** The other side has closed its end: it looks at nothing of this side's any more either. */
  get peerClosed(): boolean {
    const { peerHalf } = this;
    // Its half may be free by now, since this side has closed, too, and something else there.
    return peerHalf[Half.ended] === End.closed || peerHalf[Half.serial] !== this.peerSerial;
  }

  /** Nothing more comes: ended, or broken and read to its end. */
  get over(): boolean {
    return this.ended || (this.error !== null && !this.reader.ready);
  }

  get isClosed(): boolean {
    return this.closed;
  }

  /** Records that `reserve` would grant. */
  get free(): number {
    if (this.error !== null || this.closed) return 0;
    const { free } = this.writer;
    if (this.writer.broken) this.misbehaved('its index of records taken');
    return free;
  }

  /** The other side's header. */
  get peerHeader(): Uint32Array {
    return this.peerHalf;
  }

  /** Records sent that the other side has not taken yet. */
  get unread(): number {
    return this.writer.unread;
  }

  /** The other side sleeps, or is about to: the next submit wakes it. */
  get peerAsleep(): boolean {
    return this.peerHalf[Half.sleeping] !== 0;
  }

  get counters(): ChannelCounters {
    const { half, peerHalf } = this;
    const sent = half[Half.sent]!;
    return {
      sent,
      received: half[Half.consumed]!,
      unread: (sent - peerHalf[Half.consumed]!) >>> 0,
      wakes: half[Half.wakes]!,
    };
  }

  /** Records that `reserve` would grant, when `n` are wanted; looks at the other side only then. */
  room(n: number): number {
    if (this.error !== null) return 0;
    const room = this.writer.room(n);
    if (this.writer.broken) this.misbehaved('its index of records taken');
    return room;
  }

  /** Index of the next record that poll gives. */
  get taken(): number {
    return this.reader.head;
  }

  /** This side's header. */
  get header(): Uint32Array {
    return this.half;
  }

  /**
   * For who waits on many channels at once: says that this side is about to sleep on `wakeFd`.
   * False: there is something to be seen, and it stays awake. `disarm` must follow a true.
   */
  arm(): boolean {
    if (this.closed || !this.reader.arm()) return false;
    // Set before the peer looked for a sleeper, or seen here.
    if (!this.over) return true;
    this.reader.disarm();
    return false;
  }

  /** Ends a sleep that `arm` began, and takes the signals. False: the other end is closed. */
  disarm(): boolean {
    if (this.closed) return false;
    this.reader.disarm();
    return this.waker.drain();
  }

  /** Becomes readable when this side is woken, or the other is gone; -1: nobody wakes. */
  get wakeFd(): number {
    return this.waker.fd;
  }

  /**
   * Blocks this thread until records are there or `timeoutUs` passed (-1: no limit); polls them.
   * 0 too when the channel is over, or somebody else's signal ended the sleep.
   */
  park(timeoutUs: number): number {
    for (let spin = 0; spin < this.spins; spin++) {
      const count = this.reader.poll(this.size);
      if (count > 0) return count;
    }
    if (this.closed || this.over || timeoutUs === 0) return this.poll(this.size);
    this.takeSignals();
    if (!this.reader.arm()) return this.poll(this.size);
    // Set before the peer looked for a sleeper, or seen here.
    if (!this.over) {
      const before = performance.now();
      this.sleepThread(timeoutUs);
      // Who slept for a moment only should have looked for longer.
      const short = performance.now() - before < SHORT_MS;
      this.spins = short
        ? Math.min(SPINS_MAX, this.spins * 2)
        : Math.max(SPINS_MIN, this.spins >> 1);
    }
    this.reader.disarm();
    const count = this.poll(this.size);
    if (count > 0) return count;
    this.takeSignals();
    return this.poll(this.size);
  }

  /**
   * Waits in the event loop for records and polls them; 0 when `deadlineMs` milliseconds passed or
   * the channel is over. Polls for a moment, goes through some turns of the loop, then sleeps on
   * the channel's descriptor and costs nothing. One wait at a time.
   */
  async wait(deadlineMs = Infinity): Promise<number> {
    await this.arrival(deadlineMs);
    return this.poll(this.size);
  }

  /** As `wait`, but polls nothing: for who shares the channel with others of its thread. */
  async arrival(deadlineMs = Infinity): Promise<void> {
    if (this.waiting) throw new Error('RecordChannel.wait: another wait is under way');
    if (Number.isNaN(deadlineMs)) throw new RangeError('wait: the deadline is not a number');
    for (let spin = 0; spin < this.waitSpins; spin++) {
      if (!this.ready) continue;
      this.waitSpins = Math.min(WAIT_SPINS_MAX, this.waitSpins * 2);
      return;
    }
    this.waitSpins = Math.max(1, this.waitSpins >> 1);
    this.waiting = true;
    try {
      await this.waitLonger(performance.now() + deadlineMs);
    } finally {
      this.waiting = false;
    }
  }

  /** Breaks the channel: nothing is sent any more; what was received can still be read. */
  fail(error: PenstockError): void {
    this.error ??= error;
    this.half[Half.ended] = End.sent;
    if (this.wakeUp !== null) this.wakeUp();
    this.signal();
  }

  /**
   * Copies what the other side sent to private memory: its own is about to go. No view of it is
   * left here, so that its slot comes free though somebody keeps the channel.
   */
  detach(): void {
    this.peerHalf = this.peerHalf.slice();
    this.writer.detach(this.peerHalf);
    this.reader.detach();
  }

  /** After `close`: hands what still came to `late`. */
  drain(): void {
    const { late } = this;
    // Not from a half that is another channel's by now.
    if (late === null || this.peerHalf[Half.serial] !== this.peerSerial) return;
    const count = this.reader.poll(this.size);
    for (let i = 0; i < count; i++) late(this.rq, i << Rec.shift);
  }

  /** Ends this side: the other reads what was sent, then finds the end. What came is lost. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.reader.disarm();
    this.half[Half.ended] = End.closed;
    this.signal();
    if (this.wakeUp !== null) this.wakeUp();
    if (this.watch !== 0) native.watchClose(this.watch);
    this.watch = 0;
    this.waker.close();
    // A wait that is under way would write to it after it is freed.
    this.reader.letGo();
    this.half = new Uint32Array(Half.words);
    this.onClose();
  }

  /** Lets go of this side without an end: another thread goes on with it. Its wake stays open. */
  leave(): void {
    if (this.closed) return;
    this.closed = true;
    this.reader.disarm();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private signal(): void {
    this.half[Half.wakes] = this.half[Half.wakes]! + 1;
    this.waker.wake();
  }

  private misbehaved(what: string): void {
    this.fail(
      new PenstockError('PEER_MISBEHAVED', `the other side of the channel wrote ${what} wrongly`, {
        hint: 'that process is damaged or hostile; the channel is over',
      }),
    );
  }

  private async waitLonger(until: number): Promise<void> {
    for (let turn = 0; turn < this.turns && !this.over; turn++) {
      await new Promise((resolve) => setImmediate(resolve));
      if (!this.ready) continue;
      this.turns = Math.min(TURNS_MAX, this.turns * 2);
      return;
    }
    this.turns = Math.max(1, this.turns >> 1);
    for (;;) {
      this.takeSignals();
      if (this.closed || this.over) return;
      const leftMs = until - performance.now();
      if (leftMs <= 0) return;
      // The other side may have ended after the look above: its signal comes after its word.
      if (this.reader.arm() && !this.over) await this.sleepLoop(leftMs);
      // Closed meanwhile: the half may be another's by now.
      if (this.closed) return;
      this.reader.disarm();
      if (!this.ready) continue;
      this.blindUs = BLIND_US_MIN;
      return;
    }
  }

  private sleepThread(timeoutUs: number): void {
    const { fd } = this.waker;
    this.parkFds[0] = fd;
    if (fd < 0) {
      const most = timeoutUs < 0 ? this.blindUs : Math.min(timeoutUs, this.blindUs);
      native.park(this.parkFds, most);
      this.blindUs = this.ready ? BLIND_US_MIN : Math.min(BLIND_US_MAX, this.blindUs * 2);
      return;
    }
    if (native.park(this.parkFds, timeoutUs) === 0) this.signalled = true;
  }

  private sleepLoop(leftMs: number): Promise<void> {
    const { fd } = this.waker;
    if (fd >= 0 && this.watch === 0) {
      this.watch = native.watchOpen(fd, () => {
        this.signalled = true;
        this.wakeUp?.();
      });
    }
    if (fd < 0 && this.blindUs < BLIND_US_TURNS) {
      // Nobody will wake us: turns of the loop first, then sleeps that become longer.
      this.blindUs += BLIND_US_MIN / 4;
      return new Promise((resolve) => setImmediate(resolve));
    }
    const sleepMs = fd < 0 ? Math.min(leftMs, this.blindUs / 1000) : leftMs;
    if (fd < 0) this.blindUs = Math.min(BLIND_US_MAX, this.blindUs * 2);
    return new Promise((resolve) => {
      const timer =
        sleepMs === Infinity
          ? undefined
          : setTimeout(() => this.wakeUp?.(), Math.min(Math.ceil(sleepMs), TIMER_MS_MAX));
      this.wakeUp = () => {
        this.wakeUp = null;
        if (timer !== undefined) clearTimeout(timer);
        if (this.watch !== 0) native.watchSet(this.watch, false);
        resolve();
      };
      if (this.watch !== 0) native.watchSet(this.watch, true);
    });
  }

  /**
   * What woke this side is taken when it is about to sleep again, or finds nothing: calls of the
   * kernel that nobody who waits for an answer should wait for.
   */
  private takeSignals(): void {
    if (!this.signalled) return;
    this.signalled = false;
    if (!this.waker.drain()) this.gone();
  }

  /** The other end of the wake is closed: in order, or by the death of its process. */
  private gone(): void {
    if (this.peerEnded) return;
    this.fail(
      new PenstockError('PEER_GONE', 'the other side of the channel is gone', {
        hint: 'connect again once it is back',
      }),
    );
  }
}
