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
    return taken;
  }

  /** Writes up to `max` completions to `cq` from its start and returns how many. Never blocks. */
  poll(max: number): number {
    if (this.closed) return 0;
    const done = this.driver.poll(this.cq, max < this.depth ? max : this.depth);
    this.inFlight -= done;
    return done;
  }

  /**
   * Gives a loan back by its completion's result words; false when it is stale or given back
   * already.
   */
  release(resultLo: number, resultHi: number): boolean {
    return this.driver.release(resultLo, resultHi);
  }

  /**
   * Blocks this thread until completions are there or `timeoutUs` passed (-1: no limit); polls
   * them.
   */
  park(timeoutUs: number): number {
    const done = this.poll(this.depth);
    if (done > 0 || this.inFlight === 0) return done;
    const driver = this.driver;
    if (driver.park !== undefined) {
      driver.park(timeoutUs);
      return this.poll(this.depth);
    }
    const fd = driver.eventFd();
    if (fd < 0) return this.poll(this.depth);
    driver.arm();
    fence();
    const again = this.poll(this.depth);
    if (again > 0) return again;
    this.parkFds[0] = fd;
    native.park(this.parkFds, timeoutUs);
    return this.poll(this.depth);
  }

  /**
   * Waits in the event loop for completions and polls them into `cq`; 0 when `deadlineMs`
   * milliseconds passed or nothing is in flight. A busy queue is polled, an idle one sleeps on the
   * device's descriptor.
   */
  async wait(deadlineMs = Infinity): Promise<number> {
    let done = 0;
    for (let spin = 0; spin < this.spins; spin++) {
      done = this.poll(this.depth);
      if (done > 0) {
        this.spins = Math.min(SPIN_MAX, this.spins * 2);
        return done;
      }
      if (this.inFlight === 0) return 0;
    }
    this.spins = Math.max(SPIN_MIN, this.spins >> 1);
    const until = performance.now() + deadlineMs;
    for (;;) {
      if (this.closed) return 0; // meanwhile: the driver has no descriptor to arm any more
      const fd = this.driver.eventFd();
      this.driver.arm();
      fence();
      done = this.poll(this.depth);
      const leftMs = until - performance.now();
      if (done > 0 || this.inFlight === 0 || leftMs <= 0) return done;
      await this.sleep(fd, leftMs);
      done = this.poll(this.depth);
      if (done > 0) return done;
    }
  }

  /** Resolves when the driver has nothing in flight; completions stay to be polled. */
  drain(): Promise<void> {
    return this.driver.drain();
  }

  /** Drains and frees the queue. Unpolled completions are lost. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.wake?.();
    if (this.watch !== 0) native.watchClose(this.watch);
    this.watch = 0;
    this.inFlight = 0;
    this.onClose();
    await this.driver.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** One sleep in the event loop: until the descriptor is readable, or the time is over. */
  private sleep(fd: number, leftMs: number): Promise<void> {
    if (fd < 0) return new Promise((resolve) => setImmediate(resolve));
    if (this.wake !== null) throw new Error('Queue.wait: another wait of this queue is under way');
    if (this.watch === 0 || this.watchedFd !== fd) {
      if (this.watch !== 0) native.watchClose(this.watch);
      this.watch = native.watchOpen(fd, () => this.wake?.());
      this.watchedFd = fd;
    }
    return new Promise((resolve) => {
      const timer =
        leftMs === Infinity ? undefined : setTimeout(() => this.wake?.(), Math.ceil(leftMs));
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
