// How one side of a channel wakes the other from its sleep.
//
// Between processes it is a message of one byte on a socket of the channel's own. A socket, because
// a send that must not block is told so by its call: what a peer does to an eventfd that it shares
// (filling it, making it blocking) would stop whoever signals it. The socket also ends with its
// holder, so a sleeper learns of a death at once. Between virtual machines there is nothing, and
// sleepers look from time to time.

import { errnoCode } from '../errors.js';
import { native } from '../native.js';

export interface Wake {
  /** Readable when this side is woken, or the other is gone; -1: there is no such thing. */
  readonly fd: number;
  /** Wakes the other side. Never blocks, never throws. */
  wake(): void;
  /** Takes what woke this side; false when the other side's end is closed. */
  drain(): boolean;
  close(): void;
}

const BYTE = new Uint8Array([1]);
const SINK = new Uint8Array(8);
const NONE: readonly number[] = [];
/** Wakes taken by one drain: a peer that floods is no reason to stay here. */
const DRAIN_MAX = 64;

export class SocketWake implements Wake {
  readonly fd: number;
  private open = true;

  /** `fd` is a connected seqpacket socket; it belongs to the wake from now on. */
  constructor(fd: number) {
    this.fd = fd;
  }

  /** Looks by taking a signal, if there is one: for a wake that nobody uses yet. */
  isSocket(): boolean {
    try {
      const message = native.unixReceive(this.fd, SINK);
      for (const fd of message?.fds ?? []) native.fileClose(fd);
      return true;
    } catch (error) {
      if (errnoCode(error) === '') throw error;
      return errnoCode(error) !== 'ENOTSOCK';
    }
  }

  wake(): void {
    if (!this.open) return;
    try {
      native.unixSend(this.fd, BYTE, NONE);
    } catch (error) {
      if (errnoCode(error) === '') throw error; // the other side is gone: its reader ends too
    }
  }

  drain(): boolean {
    if (!this.open) return false;
    try {
      for (let i = 0; i < DRAIN_MAX; i++) {
        const message = native.unixReceive(this.fd, SINK);
        if (message === null) return true;
        for (const fd of message.fds) native.fileClose(fd);
        if (message.bytes === 0) return false;
      }
      return true;
    } catch (error) {
      if (errnoCode(error) === '') throw error;
      return false;
    }
  }

  close(): void {
    if (this.open) native.fileClose(this.fd);
    this.open = false;
  }
}

/** Where nobody can be woken: sleepers sleep for short times only. */
export const NO_WAKE: Wake = Object.freeze({
  fd: -1,
  wake() {
    // The other side looks by itself.
  },
  drain: () => true,
  close() {
    // Nothing was opened.
  },
});
