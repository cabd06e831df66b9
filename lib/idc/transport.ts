// Control messages between two processes: one JSON text each, with descriptors, over a seqpacket
// socket. Cold path. Nothing here blocks; what the socket does not take waits in a queue.

import { errnoCode, PenstockError } from '../errors.js';
import { native } from '../native.js';

const MESSAGE_BYTES_MAX = 32 * 1024;
/** A peer that does not read: more than this is not kept for it. */
const QUEUE_MAX = 4096;
const RETRY_MS = 5;
/** Messages taken in one turn of the event loop. */
const TURN_MAX = 64;

/** What carries control messages to one other domain, or to the hub. */
export interface Transport {
  /** Never blocks. Throws nothing when the other side is gone: that is told by `onEnd`. */
  send(message: object, fds?: readonly number[]): void;
  /** Handles up to `most` messages that are there by now, without waiting. */
  receive(most?: number): void;
  /** Messages that the other side's socket did not take yet. */
  readonly unsent: number;
  close(): void;
}

export interface TransportEvents {
  /** Descriptors are the handler's to close. A throw ends the transport. */
  onMessage(message: Record<string, unknown>, fds: number[]): void;
  /** Once: `error` is null when the other side closed in order or died. */
  onEnd(error: PenstockError | null): void;
}

interface Queued {
  readonly data: Uint8Array;
  /** Copies, closed once they are sent. */
  readonly fds: number[];
}

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

export class SocketTransport implements Transport {
  private readonly fd: number;
  private readonly events: TransportEvents;
  private readonly buffer = new Uint8Array(MESSAGE_BYTES_MAX);
  private readonly queue: Queued[] = [];
  private readonly watch: number;
  private retry: NodeJS.Timeout | null = null;
  private open = true;

  /** `fd` belongs to the transport. A `keepAlive` transport keeps the process alive. */
  constructor(fd: number, events: TransportEvents, keepAlive: boolean) {
    this.fd = fd;
    this.events = events;
    this.watch = native.watchOpen(fd, () => this.receive());
    native.watchSet(this.watch, true, keepAlive);
  }

  send(message: object, fds: readonly number[] = []): void {
    if (!this.open) return;
    const data = encoder.encode(JSON.stringify(message));
    if (data.length > MESSAGE_BYTES_MAX) {
      throw new RangeError(`a control message of ${data.length} bytes is too long`);
    }
    if (this.queue.length === 0 && this.sendNow(data, fds)) return;
    if (!this.open) return;
    if (this.queue.length >= QUEUE_MAX) {
      this.end(
        new PenstockError('PEER_STUCK', `the other side has not read ${QUEUE_MAX} messages`, {
          hint: 'it is stopped or hangs; end it, or let it go on and connect again',
        }),
      );
      return;
    }
    this.queue.push({ data, fds: fds.map((fd) => native.fileDuplicate(fd)) });
    this.retryLater();
  }

  get unsent(): number {
    return this.queue.length;
  }

  receive(most = TURN_MAX): void {
    for (let turn = 0; turn < most && this.open; turn++) {
      let received;
      try {
        received = native.unixReceive(this.fd, this.buffer);
      } catch (error) {
        if (errnoCode(error) === '') throw error;
        this.end(null);
        return;
      }
      if (received === null) return;
      if (received.bytes === 0) {
        closeAll(received.fds); // an empty message may carry some
        this.end(null);
        return;
      }
      if (received.truncated) {
        const isLong = received.bytes === this.buffer.length;
        this.end(isLong ? misbehaved('sent a message that is too long') : lostDescriptors());
        return;
      }
      this.handle(this.buffer.subarray(0, received.bytes), received.fds);
    }
  }

  /** Does what a message asks for, as if it came now: a PenstockError ends the transport. */
  attempt(work: () => void): void {
    if (!this.open) return;
    try {
      work();
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      this.end(error);
    }
  }

  close(): void {
    if (!this.open) return;
    this.open = false;
    native.watchClose(this.watch);
    native.fileClose(this.fd);
    if (this.retry !== null) clearTimeout(this.retry);
    for (const { fds } of this.queue) closeAll(fds);
    this.queue.length = 0;
  }

  private handle(data: Uint8Array, fds: number[]): void {
    let message: unknown;
    try {
      message = JSON.parse(decoder.decode(data));
    } catch {
      message = null;
    }
    if (typeof message !== 'object' || message === null || Array.isArray(message)) {
      closeAll(fds);
      this.end(misbehaved('sent a message that is no JSON object'));
      return;
    }
    this.attempt(() => this.events.onMessage(message as Record<string, unknown>, fds));
  }

  private sendNow(data: Uint8Array, fds: readonly number[]): boolean {
    try {
      return native.unixSend(this.fd, data, fds) >= 0;
    } catch (error) {
      // Descriptors under way are counted per user: they come free as others read.
      if (errnoCode(error) === 'ETOOMANYREFS') return false;
      if (errnoCode(error) === '') throw error;
      return false; // EPIPE and the like: the end is read from the socket, after what came before
    }
  }

  private retryLater(): void {
    this.retry ??= setTimeout(() => {
      this.retry = null;
      while (this.queue.length > 0 && this.sendNow(this.queue[0]!.data, this.queue[0]!.fds)) {
        closeAll(this.queue.shift()!.fds);
      }
      if (this.queue.length > 0 && this.open) this.retryLater();
    }, RETRY_MS).unref();
  }

  private end(error: PenstockError | null): void {
    if (!this.open) return;
    this.close();
    this.events.onEnd(error);
  }
}

export function closeAll(fds: readonly number[]): void {
  for (const fd of fds) native.fileClose(fd);
}

/** What a call failed with: TOO_MANY_FILES where no descriptor was left, else the error itself. */
export function tooManyFiles(cause: unknown): unknown {
  const code = errnoCode(cause);
  if (code !== 'EMFILE' && code !== 'ENFILE') return cause;
  return new PenstockError('TOO_MANY_FILES', `no descriptor is left (${code})`, {
    hint: 'raise `ulimit -n`, or close channels, queues and devices',
    exitCode: 3,
    cause,
  });
}

/** The kernel had no place for what came with a message: whose fault that is cannot be told. */
function lostDescriptors(): PenstockError {
  return new PenstockError('TOO_MANY_FILES', 'descriptors that the other side sent were lost', {
    hint: 'raise `ulimit -n` of this process, or close channels, queues and devices',
    exitCode: 3,
  });
}

/** A peer did what no honest peer does. `what` follows "the other side". */
export function misbehaved(what: string): PenstockError {
  return new PenstockError('PEER_MISBEHAVED', `the other side ${what}`, {
    hint: 'that process is damaged or hostile; end it and look at its log',
  });
}
