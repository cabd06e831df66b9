// What `bench idc` holds channels against, in the same run and with the same payloads, which the
// other side adds up whole: a socket between the two processes, which copies twice; process.send
// between them, and postMessage to a worker, which clone.

import type { ChildProcess, Serializable } from 'node:child_process';
import { once } from 'node:events';
import { unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { PenstockError } from '../errors.js';
import { native } from '../native.js';
import type { Histogram } from './histogram.js';
import type { IdcCrew } from './idc-crew.js';
import type { Payload } from './idc-records.js';
import type { Clock } from './loop.js';

const TWO32 = 2 ** 32;
const ACCEPT_MS = 10_000;
const STREAM_US = 5_000_000;
const SLICE_SECONDS = 0.02;

/** Round trips of the payload over a unix socket (SOCK_STREAM), both sides blocking. */
export class SocketPeer {
  private readonly fd: number;
  private readonly clock: Clock;
  private sent = 0;

  private constructor(fd: number, clock: Clock) {
    this.fd = fd;
    this.clock = clock;
  }

  static async open(crew: IdcCrew, bytes: number): Promise<SocketPeer> {
    const path = join(crew.folder, 'socket');
    const listener = native.streamListen(path, 0o600);
    try {
      await crew.order({ phase: 'socket', path, bytes });
      const until = performance.now() + ACCEPT_MS;
      let fd = native.unixAccept(listener);
      while (fd < 0 && performance.now() < until) {
        await sleep(1);
        fd = native.unixAccept(listener);
      }
      if (fd < 0) throw wrong('the other process does not connect its socket');
      return new SocketPeer(fd, crew.clock);
    } finally {
      native.fileClose(listener);
      unlinkSync(path);
    }
  }

  /** A slice; takes as many round trips as go into it. */
  run(payload: Payload, histogram: Histogram, seconds: number): void {
    const { words, read, hertz } = this.clock;
    const answer = new Uint32Array(1);
    const answerBytes = new Uint8Array(answer.buffer);
    const fds = new Int32Array(8);
    read();
    let last = words[1]! * TWO32 + words[0]!;
    const until = last + Math.min(seconds, SLICE_SECONDS) * hertz;
    while (last < until) {
      const buffer = this.sent++ % payload.words.length;
      payload.words[buffer]![0] = this.sent;
      native.streamSend(this.fd, payload.octets[buffer]!, [], STREAM_US);
      if (native.streamReceive(this.fd, answerBytes, fds, STREAM_US) !== answerBytes.length) {
        throw wrong('the other process closed its socket');
      }
      read();
      const now = words[1]! * TWO32 + words[0]!;
      if ((answer[0]! | 0) !== ((payload.sums[buffer]! + this.sent) | 0)) {
        throw wrong('the socket did not carry what was sent');
      }
      histogram.record(Math.round(((now - last) * 1e9) / hertz), 1);
      last = now;
    }
  }

  close(): void {
    native.fileClose(this.fd);
  }
}

/** Round trips of the payload by messages that are structured clones, through event loops. */
abstract class MessagePeer {
  private readonly clock = openClock();
  private failure: Error | null = null;

  protected abstract send(payload: Uint32Array): void;
  /** Calls back with each answer, a sum, until the function that it gives is called. */
  protected abstract listen(onAnswer: (sum: unknown) => void): () => void;

  protected fail(error: Error): void {
    this.failure ??= error;
  }

  async run(payload: Payload, histogram: Histogram, seconds: number): Promise<void> {
    const { words, read, hertz } = this.clock;
    // Of its own: a clone takes the whole ArrayBuffer that a view lies in.
    const sent = payload.words[0]!.slice();
    const sum = payload.sums[0]!;
    await new Promise<void>((resolve, reject) => {
      let last = 0;
      const stop = this.listen((answer) => {
        read();
        const now = words[1]! * TWO32 + words[0]!;
        histogram.record(Math.round(((now - last) * 1e9) / hertz), 1);
        if (answer !== ((sum + sent[0]!) | 0)) this.fail(wrong('a clone is not what was sent'));
        if (now < until && this.failure === null) {
          ask(now);
          return;
        }
        stop();
        if (this.failure === null) resolve();
        else reject(this.failure);
      });
      const ask = (now: number): void => {
        last = now;
        sent[0] = (sent[0]! + 1) >>> 0;
        this.send(sent);
      };
      read();
      const now = words[1]! * TWO32 + words[0]!;
      const until = now + seconds * hertz;
      ask(now);
    });
  }
}

/** postMessage to a worker of this process. */
export class WorkerPeer extends MessagePeer {
  private readonly worker: Worker;

  constructor() {
    super();
    this.worker = new Worker(new URL('./idc-echo.js', import.meta.url), { execArgv: [] });
    this.worker.on('error', (error) => this.fail(error as Error));
  }

  protected override send(payload: Uint32Array): void {
    this.worker.postMessage(payload);
  }

  protected override listen(onAnswer: (sum: unknown) => void): () => void {
    this.worker.on('message', onAnswer);
    return () => this.worker.off('message', onAnswer);
  }

  async close(): Promise<void> {
    const ended = once(this.worker, 'exit');
    await this.worker.terminate();
    await ended.catch(() => undefined);
  }
}

/** process.send to the other process, which answers while it does nothing else. */
export class ProcessPeer extends MessagePeer {
  private readonly child: ChildProcess;

  constructor(child: ChildProcess) {
    super();
    this.child = child;
  }

  protected override send(payload: Uint32Array): void {
    this.child.send(payload as unknown as Serializable);
  }

  protected override listen(onAnswer: (sum: unknown) => void): () => void {
    const onEnd = (): void => onAnswer(this.fail(wrong('the other process ended')));
    this.child.on('message', onAnswer).on('exit', onEnd);
    return () => this.child.off('message', onAnswer).off('exit', onEnd);
  }
}

function openClock(): Clock {
  const { words, read } = native.tscClock();
  return { words: new Uint32Array(words), read, hertz: native.tscHertz() };
}

function wrong(message: string): PenstockError {
  return new PenstockError('BENCH_CHILD', message, { hint: 'run it again; then report it' });
}
