// What `bench idc` holds channels against, in the same run and with the same payloads, which the
// other side adds up whole: a socket between the two processes, which copies twice, and postMessage
// to a worker, which clones.

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

/** Round trips of the payload by postMessage, as the structured clone has it: copied. */
export class WorkerPeer {
  private readonly worker: Worker;
  private readonly clock: Clock;
  private failure: Error | null = null;

  constructor() {
    const { words, read } = native.tscClock();
    this.clock = { words: new Uint32Array(words), read, hertz: native.tscHertz() };
    this.worker = new Worker(new URL('./idc-echo.js', import.meta.url), { execArgv: [] });
    this.worker.on('error', (error) => (this.failure = error as Error));
  }

  async run(payload: Payload, histogram: Histogram, seconds: number): Promise<void> {
    const { words, read, hertz } = this.clock;
    const { worker } = this;
    // Of its own: a clone takes the whole ArrayBuffer that a view lies in.
    const sent = payload.words[0]!.slice();
    const sum = payload.sums[0]!;
    await new Promise<void>((resolve, reject) => {
      let last = 0;
      let until = 0;
      const onAnswer = (answer: number): void => {
        read();
        const now = words[1]! * TWO32 + words[0]!;
        histogram.record(Math.round(((now - last) * 1e9) / hertz), 1);
        if (answer !== ((sum + sent[0]!) | 0)) {
          worker.off('message', onAnswer);
          reject(wrong('postMessage did not carry what was sent'));
          return;
        }
        if (now > until || this.failure !== null) {
          worker.off('message', onAnswer);
          if (this.failure === null) resolve();
          else reject(this.failure);
          return;
        }
        ask(now);
      };
      const ask = (now: number): void => {
        last = now;
        sent[0] = (sent[0]! + 1) >>> 0;
        worker.postMessage(sent);
      };
      worker.on('message', onAnswer);
      read();
      const now = words[1]! * TWO32 + words[0]!;
      until = now + seconds * hertz;
      ask(now);
    });
  }

  async close(): Promise<void> {
    const ended = once(this.worker, 'exit');
    await this.worker.terminate();
    await ended.catch(() => undefined);
  }
}

function wrong(message: string): PenstockError {
  return new PenstockError('BENCH_CHILD', message, { hint: 'run it again; then report it' });
}
