// How a queue sleeps: on the eventfd of its interrupt vector, which stays masked while the queue
// polls where the MSI-X table can be reached (PCI Local Bus 3.0, section 6.8.2), so that a busy
// queue costs no interrupts.

import { native } from '../../native.js';

const SLICE_US = 100_000;

export interface QueueInterrupt {
  readonly eventFd: number;
  /** The vector's control word in the MSI-X table, to mask it while the queue polls. */
  readonly control: { readonly words: Uint32Array; readonly index: number } | null;
}

export class QueueSleep {
  /** -1 without interrupts: whoever waits polls. */
  readonly eventFd: number;
  private readonly control: QueueInterrupt['control'];
  private readonly fds: Int32Array;
  private armed = false;

  constructor(interrupt: QueueInterrupt | null) {
    this.eventFd = interrupt?.eventFd ?? -1;
    this.control = interrupt?.control ?? null;
    this.fds = new Int32Array([this.eventFd]);
    this.mask(1);
  }

  /** Asks for a signal at the next completion. The caller fences and polls once more. */
  arm(): void {
    if (this.eventFd < 0) return;
    // What was signalled before counts as seen by that poll.
    native.eventfdDrain(this.eventFd);
    this.armed = true;
    this.mask(0);
  }

  disarm(): void {
    if (!this.armed) return;
    this.armed = false;
    this.mask(1);
  }

  /** Blocks the thread until the signal comes, at most `leftUs`, and not for long. */
  block(leftUs: number): void {
    if (leftUs > 0) native.park(this.fds, Math.ceil(Math.min(SLICE_US, leftUs)));
  }

  private mask(bit: number): void {
    if (this.control !== null) this.control.words[this.control.index] = bit;
  }
}
