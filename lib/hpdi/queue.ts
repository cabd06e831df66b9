// Queue: the one concrete class through which every device is driven (HPDI, DESIGN "One
// interface").
//
//   const at = queue.tail;                       // index of the first free record
//   const n = queue.reserve(32);                 // records granted; 0 is back-pressure
//   for (let i = 0; i < n; i++) {
//     const r = ((at + i) & queue.mask) * 8;     // fill queue.sq[r + …]
//   }
//   queue.submit();                              // one driver call, one doorbell
//   const done = queue.poll(32);                 // completions stand in queue.cq from word 0 on
//
// Invariants: head ≤ tail (free-running 32-bit); tail - head records are granted and not yet taken
// by the driver; inFlight + (tail - head) ≤ depth; no method allocates except wait.

import { native } from '../native.js';
import { fence } from '../wire/index.js';
import type { QueueDriver } from './driver.js';
import { Cpl, Req } from './records.js';

/** How long wait() looks for completions before it goes to sleep, by how the last waits went. */
const SPIN_MIN = 1;
const SPIN_MAX = 64;
const TIMER_MS_MAX = 2 ** 31 - 1;

export class Queue {
  /** Operations that may be in flight; a power of two. */
  readonly depth: number;
  /** depth - 1: the place of record i is (i & mask) * 8. */
  readonly mask: number;
  readonly sq: Uint32Array;
  readonly cq: Uint32Array;
  /** Index of the next free record; `reserve` moves it on. */
  tail = 0;
  /** Index of the first record the driver has not taken. */
  head = 0;
  /** Operations the driver has taken and not completed. */
  inFlight = 0;
  readonly driver: QueueDriver;
  private watch = 0;
  private watchedFd = -1;
  private wake: (() => void) | null = null;
  private spins = SPIN_MIN;
  private readonly parkFds = new Int32Array(1);
  private closed = false;
  private waiting = false;
  private closing: Promise<void> | null = null;
  private readonly onClose: () => void;

  /** `onClose` is called once, when the queue is closed. */
  constructor(driver: QueueDriver, depth: number, onClose: () => void = noop) {
    if (!Number.isInteger(depth) || depth < 1 || depth > 1 << 16 || (depth & (depth - 1)) !== 0) {
      throw new RangeError(`a queue's depth is a power of two from 1 to 65536, not ${depth}`);
    }
    this.driver = driver;
    this.onClose = onClose;
    this.depth = depth;
    this.mask = depth - 1;
    this.sq = new Uint32Array(depth * Req.words);
    this.cq = new Uint32Array(depth * Cpl.words);
  }

  /**
   * Grants up to `n` free records from `tail` on and moves `tail` past them; 0 is back-pressure.
   */
  reserve(n: number): number {
    const free = this.depth - this.inFlight - ((this.tail - this.head) | 0);
    const granted = n < free ? n : free;
    this.tail = (this.tail + granted) | 0;
    return granted;
  }

  /**
   * Hands all granted records to the driver; returns how many it took. The rest stays for the next
   * call.
   */
  submit(): number {
    if (this.closed) throw new TypeError('Queue.submit: the queue is closed');
    const taken = this.driver.submit(this.sq, this.head, this.tail);
    this.head = (this.head + taken) | 0;
    this.inFlight += taken;
    // The driver may have completed some at once, without a signal: whoever sleeps looks again.
    if (this.wake !== null) this.wake();
    return taken;
  }

  /** Writes up to `max` completions to `cq` from its start and returns how many. Never blocks. */
  poll(max: number): number {
    if (this.closed) return 0;
    const done = this.driver.poll(this.cq, max < this.depth ? max : this.depth);
    this.inFlight -= done;
    return done;
  }

  /** Gives a loan back by its completion's result words; false when it is not out any more. */
  release(resultLo: number, resultHi: number): boolean {
    // As 32 bits with a sign: a word above 2^31 would be an object of the heap in the next call.
    return this.driver.release(resultLo | 0, resultHi | 0);
  }

  /**
   * Blocks this thread until completions may be there or `timeoutUs` passed (-1: no limit); polls
   * them. 0 does not mean that the time is over: a part of a split request wakes it, too.
   */
  park(timeoutUs: number): number {
    const done = this.poll(this.depth);
    if (done > 0 || this.inFlight === 0) return done;
    const { driver } = this;
    if (driver.park !== undefined) {
      driver.park(timeoutUs);
      return this.poll(this.depth);
    }
    const again = this.armAndPoll();
    const fd = this.parkFds[0]!;
    if (again > 0 || fd < 0) return again;
    native.park(this.parkFds, timeoutUs);
    return this.poll(this.depth);
  }

  /**
   * Waits in the event loop for completions and polls them into `cq`; 0 when `deadlineMs`
   * milliseconds passed, nothing is in flight, or the queue was closed. A busy queue is polled, an
   * idle one sleeps on the device's descriptor. One wait at a time.
   */
  async wait(deadlineMs = Infinity): Promise<number> {
    if (this.waiting) throw new Error('Queue.wait: another wait of this queue is under way');
    if (Number.isNaN(deadlineMs)) throw new RangeError('Queue.wait: the deadline is not a number');
    for (let spin = 0; spin < this.spins; spin++) {
      const done = this.poll(this.depth);
      if (done > 0) {
        this.spins = Math.min(SPIN_MAX, this.spins * 2);
        return done;
      }
      if (this.inFlight === 0) return 0;
    }
    this.spins = Math.max(SPIN_MIN, this.spins >> 1);
    const until = performance.now() + deadlineMs;
    this.waiting = true;
    try {
      // A closed queue has nothing in flight, and its driver no descriptor to arm.
      while (this.inFlight > 0) {
        const done = this.armAndPoll();
        const leftMs = until - performance.now();
        if (done > 0 || this.inFlight === 0 || leftMs <= 0) return done;
        await this.sleep(this.parkFds[0]!, leftMs);
        const woken = this.poll(this.depth);
        if (woken > 0) return woken;
      }
      return 0;
    } finally {
      this.waiting = false;
    }
  }

  /** Resolves when the driver has nothing in flight; completions stay to be polled. */
  async drain(): Promise<void> {
    await this.driver.drain();
    // The drain has taken the device's signals: whoever sleeps finds the completions by looking.
    if (this.wake !== null) this.wake();
  }

  get isClosed(): boolean {
    return this.closed;
  }

  /** Drains and frees the queue. Unpolled completions are lost; a wait gives 0. */
  close(): Promise<void> {
    this.closing ??= this.closeOnce();
    return this.closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private async closeOnce(): Promise<void> {
    this.closed = true;
    this.inFlight = 0;
    if (this.wake !== null) this.wake();
    if (this.watch !== 0) native.watchClose(this.watch);
    this.watch = 0;
    try {
      await this.driver.close();
    } finally {
      this.onClose();
    }
  }

  /**
   * Arms the descriptor that it leaves in `parkFds`, and polls once more: what completed before the
   * arming gives no signal.
   */
  private armAndPoll(): number {
    const { driver } = this;
    for (;;) {
      const fd = driver.eventFd();
      driver.arm();
      fence();
      const done = this.poll(this.depth);
      this.parkFds[0] = fd;
      // The poll may have moved work to where another descriptor tells of it.
      if (done > 0 || this.inFlight === 0 || driver.eventFd() === fd) return done;
    }
  }

  /** One sleep in the event loop: until the descriptor is readable, or the time is over. */
  private sleep(fd: number, leftMs: number): Promise<void> {
    if (fd < 0) return new Promise((resolve) => setImmediate(resolve));
    if (this.watch === 0 || this.watchedFd !== fd) {
      if (this.watch !== 0) native.watchClose(this.watch);
      this.watch = native.watchOpen(fd, () => this.wake?.());
      this.watchedFd = fd;
    }
    return new Promise((resolve) => {
      // A longer time than a timer takes is made of several sleeps.
      const timer =
        leftMs === Infinity
          ? undefined
          : setTimeout(() => this.wake?.(), Math.min(Math.ceil(leftMs), TIMER_MS_MAX));
      this.wake = () => {
        this.wake = null;
        if (timer !== undefined) clearTimeout(timer);
        if (this.watch !== 0) native.watchSet(this.watch, false);
        resolve();
      };
      native.watchSet(this.watch, true);
    });
  }
}

function noop(): void {
  // A queue that nobody keeps a list of.
}
