// One connection to a vfio-user server: requests and their replies, one at a time.
//
// Invariants
// 1. A request takes at most `timeoutMs`, the wait for other threads included. One that took longer
//    ends the connection: a late reply must not be taken for that of another request.
// 2. Whatever the server says that the protocol does not have ends the connection too. What comes
//    in is never more than the buffer, and descriptors nobody asked for are closed.
// 3. Once the connection has ended, every request fails at once, with no system call, and the
//    server is told (the end of the stream), so that it lets go of our memory.
// 4. Where the server asks something of us (it wants memory read that it has no descriptor of), it
//    is told that we do not do that, and the wait for the reply goes on.

import { errnoCode, PenstockError } from '../errors.js';
import type { Liveness } from '../memory/index.js';
import { native } from '../native.js';
import { ConnectionLock, Shared, State } from './vfio-user-lock.js';
import { Header, HEADER_BYTES, HeaderFlag } from './vfio-user-protocol.js';

/** Of a request's body; none of ours is larger. */
const REQUEST_BYTES_MAX = 4096;
/** Of data in a message that comes in: the server is told so (`max_data_xfer_size`). */
export const DATA_BYTES_MAX = 2 ** 16;
const MESSAGE_BYTES_MAX = DATA_BYTES_MAX + 64;
/** Of a message, either way: as many as the kernel carries, less than SCM_MAX_FD. */
export const FDS_MAX = 64;
/** Views of this many bytes and less are kept. */
const KEPT_BYTES = 64;
const EOPNOTSUPP = 95;
/** For a reply that failed without saying why. */
const EIO = 5;
const ERRNO_MAX = 4095;
const NO_FDS: readonly number[] = [];

export class VfioUserClient {
  readonly address: string;
  readonly timeoutMs: number;
  /** The body of the next request, for the caller to fill. */
  readonly body: Uint32Array;
  /** The body of the last reply, as far as `request` said that it goes. */
  readonly reply: Uint32Array;
  readonly words: Int32Array;
  private readonly fd: number;
  private readonly lock: ConnectionLock;
  private readonly output: Uint32Array;
  private readonly outputBytes: Uint8Array;
  private readonly input: Uint32Array;
  private readonly inputBytes: Uint8Array;
  private readonly header: Uint8Array;
  private readonly views: (Uint8Array | undefined)[] = [];
  private readonly arrived = new Int32Array(1 + FDS_MAX);
  private fds: number[] = [];
  private failure: PenstockError | undefined;

  /** The descriptor stays the caller's. `words`: of vfio-user-lock.ts. */
  constructor(
    fd: number,
    address: string,
    words: Int32Array,
    liveness: Liveness,
    timeoutMs: number,
  ) {
    this.fd = fd;
    this.address = address;
    this.words = words;
    this.lock = new ConnectionLock(words, liveness);
    this.timeoutMs = timeoutMs;
    const output = new ArrayBuffer(HEADER_BYTES + REQUEST_BYTES_MAX);
    this.output = new Uint32Array(output);
    this.outputBytes = new Uint8Array(output);
    this.body = new Uint32Array(output, HEADER_BYTES);
    const input = new ArrayBuffer(MESSAGE_BYTES_MAX);
    this.input = new Uint32Array(input);
    this.inputBytes = new Uint8Array(input);
    this.reply = new Uint32Array(input, HEADER_BYTES);
    this.header = new Uint8Array(input, 0, HEADER_BYTES);
  }

  /** The bytes of `body` and of `reply`. */
  get bodyBytes(): Uint8Array {
    return this.outputBytes.subarray(HEADER_BYTES);
  }

  get replyBytes(): Uint8Array {
    return this.inputBytes.subarray(HEADER_BYTES);
  }

  get gone(): boolean {
    return this.words[Shared.state] !== State.open;
  }

  /**
   * Sends `body` and waits for the reply: bytes of its body, or the server's errno as a negative
   * number. Descriptors that come along are for `takeFds` when `wantsFds`. Errors: TIMED_OUT,
   * PROTOCOL_ERROR, DEVICE_GONE, each of which ends the connection.
   */
  request(command: number, bodyBytes: number, fds = NO_FDS, wantsFds = false): number {
    if (this.gone) throw this.goneError();
    const deadline = performance.now() + this.timeoutMs;
    if (!this.lock.acquire(deadline)) {
      this.fail(State.silent, this.silence('other threads wait for the server'));
    }
    try {
      if (this.gone) throw this.goneError();
      return this.exchange(command, bodyBytes, fds, deadline);
    } finally {
      if (!wantsFds || this.gone) this.dropFds();
      this.lock.release();
    }
  }

  /** Sends `body` with no reply to come and no wait: false where that cannot be. */
  post(command: number, bodyBytes: number): boolean {
    if (this.gone || !this.lock.acquire(0)) return false;
    try {
      this.send(command, HeaderFlag.command | HeaderFlag.noReply, bodyBytes, NO_FDS, 0);
      return true;
    } catch {
      return false; // the connection has ended, and the caller is closing it anyway
    } finally {
      this.lock.release();
    }
  }

  /** The descriptors of the last reply; the caller closes them. */
  takeFds(): number[] {
    const { fds } = this;
    this.fds = [];
    return fds;
  }

  /**
   * For a watch on the socket: takes what the server said unasked, above all that it went away.
   * Returns at once where another thread waits for a reply.
   */
  listen(): void {
    if (this.gone || !this.lock.acquire(0)) return;
    try {
      if (this.gone || native.park(Int32Array.of(this.fd), 0) !== 0) return;
      const deadline = performance.now() + this.timeoutMs;
      this.receive(deadline);
      if (!this.passOver(deadline)) {
        this.confuse('a request of the server or the end of the stream', this.described());
      }
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error; // else `fail` has noted it
    } finally {
      this.dropFds();
      this.lock.release();
    }
  }

  /** Memory of what was sent and the server has not read; 0 where that cannot be told. */
  get unread(): number {
    try {
      return native.streamUnread(this.fd);
    } catch {
      return 0; // the descriptor is closed
    }
  }

  /** Ends the connection; the first reason stays. */
  end(state: State): void {
    this.dropFds();
    if (Atomics.compareExchange(this.words, Shared.state, State.open, state) !== State.open) return;
    try {
      native.streamEnd(this.fd);
    } catch (error) {
      if (errnoCode(error) === '') throw error; // an errno: the other end is gone already
    }
  }

  /** Throws what ended the connection, where something did. */
  assertOpen(): void {
    if (this.gone) throw this.failure ?? this.goneError();
  }

  goneError(): PenstockError {
    const closed = this.words[Shared.state] === State.closed;
    const why = closed ? 'was closed' : 'is gone: the connection to its server has ended';
    return new PenstockError('DEVICE_GONE', `${this.address} ${why}`, {
      hint: 'open it again once its server is there',
      ...(this.failure === undefined ? {} : { cause: this.failure }),
    });
  }

  /** PROTOCOL_ERROR, and the end of the connection: what was to come, and what came. */
  confuse(expected: string, came: string): never {
    this.fail(
      State.confused,
      new PenstockError(
        'PROTOCOL_ERROR',
        `${this.address}: the server broke the protocol: expected ${expected}, came ${came}`,
        { hint: 'the server is wrong, or of a version that this client does not know' },
      ),
    );
  }

  private exchange(
    command: number,
    bodyBytes: number,
    fds: readonly number[],
    deadline: number,
  ): number {
    this.dropFds();
    const id = (this.words[Shared.messageId]! + 1) & 0xffff;
    this.words[Shared.messageId] = id;
    this.words[Shared.pending] = 1;
    this.send(command, HeaderFlag.command, bodyBytes, fds, this.left(deadline));
    for (;;) {
      this.receive(deadline);
      const first = this.input[Header.messageId]!;
      const isReply = (this.input[Header.type]! & HeaderFlag.typeMask) === HeaderFlag.reply;
      if (isReply && first === (id | (command << 16)) >>> 0) break;
      if (!this.passOver(deadline)) {
        this.confuse(`the reply to message ${id}, command ${command}`, this.described());
      }
    }
    this.words[Shared.pending] = 0;
    if ((this.input[Header.type]! & HeaderFlag.error) === 0) {
      return this.input[Header.bytes]! - HEADER_BYTES;
    }
    this.dropFds();
    const errno = this.input[Header.error]!;
    return errno === 0 || errno > ERRNO_MAX ? -EIO : -errno;
  }

  private send(
    command: number,
    flags: number,
    bodyBytes: number,
    fds: readonly number[],
    timeoutUs: number,
  ): void {
    const bytes = HEADER_BYTES + bodyBytes;
    this.output[Header.messageId] = (this.words[Shared.messageId]! | (command << 16)) >>> 0;
    this.output[Header.bytes] = bytes;
    this.output[Header.type] = flags;
    this.output[Header.error] = 0;
    try {
      native.streamSend(this.fd, this.outputBytes.subarray(0, bytes), fds, timeoutUs);
    } catch (cause) {
      this.failCall(cause);
    }
  }

  /**
   * Takes a whole message, or none of it: a thread that is terminated meanwhile leaves it to the
   * next. Two system calls for that, once it is there.
   */
  private receive(deadline: number): void {
    let received = 0;
    try {
      received = native.streamPeek(this.fd, this.header, this.left(deadline));
    } catch (cause) {
      this.failCall(cause);
    }
    if (received < HEADER_BYTES) this.fail(State.ended, this.endOfStream(received));
    const bytes = this.input[Header.bytes]!;
    if (bytes < HEADER_BYTES || bytes > MESSAGE_BYTES_MAX) {
      this.confuse(`a message of ${HEADER_BYTES} to ${MESSAGE_BYTES_MAX} bytes`, `one of ${bytes}`);
    }
    try {
      const whole = this.viewOf(bytes);
      received = native.streamReceive(this.fd, whole, this.arrived, this.left(deadline));
    } catch (cause) {
      this.failCall(cause);
    }
    const count = this.arrived[0]!;
    for (let i = 1; i <= count; i++) this.fds.push(this.arrived[i]!);
    if (count < 0) this.confuse(`at most ${FDS_MAX} descriptors in a message`, 'more');
    if (received < bytes) this.fail(State.ended, this.endOfStream(received));
  }

  private viewOf(bytes: number): Uint8Array {
    const known = this.views[bytes];
    if (known !== undefined) return known;
    const view = this.inputBytes.subarray(0, bytes);
    if (bytes <= KEPT_BYTES) this.views[bytes] = view;
    return view;
  }

  /**
   * Takes a message that is not the awaited reply: a request of the server, which is refused, or
   * what an environment that has ended had asked for. False for anything else.
   */
  private passOver(deadline: number): boolean {
    const flags = this.input[Header.type]!;
    const type = flags & HeaderFlag.typeMask;
    if (type === HeaderFlag.reply && this.words[Shared.orphans]! > 0) {
      this.words[Shared.orphans]!--;
    } else if (type === HeaderFlag.command) {
      if ((flags & HeaderFlag.noReply) === 0) this.refuse(deadline);
    } else {
      return false;
    }
    this.dropFds();
    return true;
  }

  private refuse(deadline: number): void {
    const answer = new Uint32Array(Header.words);
    answer[Header.messageId] = this.input[Header.messageId]!;
    answer[Header.bytes] = HEADER_BYTES;
    answer[Header.type] = HeaderFlag.reply | HeaderFlag.error;
    answer[Header.error] = EOPNOTSUPP;
    try {
      native.streamSend(this.fd, new Uint8Array(answer.buffer), NO_FDS, this.left(deadline));
    } catch (cause) {
      this.failCall(cause);
    }
  }

  /** Microseconds; a server that keeps talking without replying is over its time too. */
  private left(deadline: number): number {
    const left = deadline - performance.now();
    if (left < 0) this.fail(State.silent, this.silence());
    return Math.ceil(left * 1000);
  }

  private failCall(cause: unknown): never {
    const code = errnoCode(cause);
    if (code === '') throw cause;
    if (code === 'ETIMEDOUT') this.fail(State.silent, this.silence());
    this.fail(State.ended, this.endOfStream(0, cause));
  }

  private fail(state: State, error: PenstockError): never {
    this.failure ??= error;
    this.end(state);
    throw error;
  }

  private silence(why = 'the server does not answer'): PenstockError {
    const message = `${this.address}: no reply within ${this.timeoutMs} ms: ${why}`;
    return new PenstockError('TIMED_OUT', message, {
      hint: 'look whether the server hangs; the function is gone until it is opened again',
    });
  }

  private endOfStream(received: number, cause?: unknown): PenstockError {
    const where = received === 0 ? '' : ', in the middle of a message';
    const message = `${this.address}: the server closed the connection${where}`;
    return new PenstockError('DEVICE_GONE', message, {
      hint: 'it ended, or gave the function up: start it and open again',
      ...(cause === undefined ? {} : { cause }),
    });
  }

  private described(): string {
    const first = this.input[Header.messageId]!;
    const flags = this.input[Header.type]!.toString(16);
    return `message ${first & 0xffff}, command ${first >>> 16}, flags 0x${flags}`;
  }

  private dropFds(): void {
    if (this.fds.length === 0) return;
    for (const fd of this.takeFds()) native.fileClose(fd);
  }
}
