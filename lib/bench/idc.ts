// `bench idc`: what a channel between two processes costs. Round trips and records a second, by
// payload beside a socket and postMessage, what waking a sleeper takes, and what idle costs.

import { setTimeout as sleep } from 'node:timers/promises';
import { PenstockError } from '../errors.js';
import { Histogram } from './histogram.js';
import { twoCpus } from './idc-cpus.js';
import { IdcCrew } from './idc-crew.js';
import { LoanLoop } from './idc-loans.js';
import { Ask, sumOf, type Payload } from './idc-records.js';
import { SocketPeer, WorkerPeer } from './idc-peers.js';

export interface IdcOptions {
  /**
   * Seconds of each measurement of a round; the first two, of records alone, take four times it.
   */
  readonly runtime: number;
  readonly rounds: number;
  /** Bytes of the payloads, each a multiple of 4. */
  readonly payloads: readonly number[];
  /** Messages sent to a sleeper, for each way to sleep. */
  readonly wakes: number;
  /** Seconds for which both do nothing. */
  readonly idle: number;
  readonly signal?: AbortSignal;
  /** Told what is measured next. */
  readonly onPhase?: (what: string) => void;
}

export interface PayloadResult {
  readonly bytes: number;
  /** A record with the address, checked and answered; nobody looks at the bytes. */
  readonly untouched: Histogram;
  /** The other side adds up every word. */
  readonly read: Histogram;
  /** By the friendly path: allocated, lent, passed back, released. */
  readonly loan: Histogram;
  readonly socket: Histogram;
  readonly postMessage: Histogram;
}

export interface IdcResult {
  /** Processors that the two threads were bound to; null: there is one only. */
  readonly cpus: readonly [number, number] | null;
  readonly rtt: Histogram;
  /** Records a second one way: the median of calm windows of 1 ms, and the best of them. */
  readonly rate: {
    readonly median: number;
    readonly best: number;
    readonly windows: number;
    /** Part of the windows left out: one side did not run. */
    readonly disturbed: number;
    readonly batch: number;
    readonly size: number;
  };
  readonly postMessage: Histogram;
  readonly payloads: readonly PayloadResult[];
  readonly wake: { readonly eventLoop: Histogram; readonly park: Histogram };
  readonly idle: { readonly seconds: number; readonly cpu: number; readonly childCpu: number };
}

export const IDC_PAYLOADS: readonly number[] = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((n) => 64 * 4 ** n);
export const IDC_DEFAULTS: Omit<IdcOptions, 'signal' | 'onPhase'> = {
  runtime: 0.1,
  rounds: 3,
  payloads: IDC_PAYLOADS,
  wakes: 1000,
  idle: 3,
};
export const IDC_QUICK: typeof IDC_DEFAULTS = {
  ...IDC_DEFAULTS,
  runtime: 0.03,
  rounds: 1,
  wakes: 100,
  idle: 0.5,
};

const BATCH = 128;
const SLICE_SECONDS = 0.02;
const LONG = 4;
/** Buffers of a payload: as many as take this, so that not all is found in a cache. */
const SPREAD_BYTES = 2 ** 23;
const BUFFERS_MAX = 64;
const WAKE_SECONDS = 1;
/** A machine that is busy otherwise wakes late: fewer wakes then. */
const WAKES_MS_MAX = 8000;
const ASLEEP_MS = 1000;
const SMALL = 64;

/** Errors: ADDRESS_SPACE_IN_USE, BENCH_CHILD, PEER_GONE, INTERRUPTED. */
export async function runIdc(options: IdcOptions): Promise<IdcResult> {
  // Before this thread is bound to a processor: a worker would be bound to the same.
  const worker = new WorkerPeer();
  try {
    const cpus = twoCpus();
    const crew = await IdcCrew.start(cpus);
    try {
      return { ...(await new IdcRun(crew, worker, options).all()), cpus };
    } catch (error) {
      crew.kill();
      throw error;
    } finally {
      await crew.close();
    }
  } finally {
    await worker.close();
  }
}

class IdcRun {
  private readonly crew: IdcCrew;
  private readonly options: IdcOptions;
  private readonly worker: WorkerPeer;

  constructor(crew: IdcCrew, worker: WorkerPeer, options: IdcOptions) {
    this.crew = crew;
    this.worker = worker;
    this.options = options;
  }

  async all(): Promise<Omit<IdcResult, 'cpus'>> {
    const { rounds, runtime, payloads } = this.options;
    await this.warmUp();
    const rtt = new Histogram();
    const postMessage = new Histogram();
    const results = payloads.map(emptyResult);
    this.crew.asker.clearWindows();
    for (let round = 0; round < rounds; round++) {
      this.tell(`records, round ${round + 1} of ${rounds}`);
      await this.records(Ask.ECHO, null, rtt, runtime * LONG);
      await this.stream(runtime * LONG);
      await withPayload(this.crew, SMALL, (payload) =>
        this.worker.run(payload, postMessage, runtime),
      );
      for (const result of results) {
        this.tell(`${result.bytes} bytes, round ${round + 1} of ${rounds}`);
        await this.payload(result, runtime);
      }
    }
    this.tell('wakes');
    const wake = { eventLoop: await this.wakes('wait'), park: await this.wakes('park') };
    this.tell('idle');
    const idle = await this.idle();
    if (this.crew.asker.wrong > 0) {
      throw new PenstockError('BENCH_CHILD', `${this.crew.asker.wrong} answers were wrong`, {
        hint: 'a channel lost or changed what was sent: report it',
      });
    }
    return { rtt, rate: this.rate(), postMessage, payloads: results, wake, idle };
  }

  /** Once through everything, so that it is compiled. */
  private async warmUp(): Promise<void> {
    this.tell('warm-up');
    const seconds = Math.min(0.2, this.options.runtime * 2);
    await this.records(Ask.ECHO, null, new Histogram(), seconds);
    await this.stream(seconds);
    await this.payload(emptyResult(SMALL), seconds / 2);
  }

  private async payload(result: PayloadResult, seconds: number): Promise<void> {
    const { crew } = this;
    const { bytes } = result;
    await withPayload(crew, bytes, async (payload) => {
      await this.records(Ask.TAKE, payload, result.untouched, seconds);
      await this.records(Ask.READ, payload, result.read, seconds);
      const socket = await SocketPeer.open(crew, bytes);
      try {
        await this.slices(seconds, (slice) => socket.run(payload, result.socket, slice));
      } finally {
        socket.close();
      }
      await this.worker.run(payload, result.postMessage, seconds);
    });
    await this.loans(bytes, result.loan, seconds);
  }

  private async records(
    op: Ask,
    payload: Payload | null,
    histogram: Histogram,
    seconds: number,
  ): Promise<void> {
    const { asker } = this.crew;
    await this.crew.order({ phase: 'spin' });
    await this.slices(seconds, (slice) => asker.ask(op, payload, histogram, slice, Infinity));
    await this.crew.stop();
  }

  private async stream(seconds: number): Promise<void> {
    await this.crew.order({ phase: 'spin' });
    await this.slices(seconds, (slice) => this.crew.asker.stream(BATCH, slice));
    await this.crew.stop();
  }

  private async loans(bytes: number, histogram: Histogram, seconds: number): Promise<void> {
    const { crew } = this;
    await crew.order({ phase: 'loans' });
    const loop = new LoanLoop(crew, bytes);
    await this.slices(seconds, (slice) => loop.run(histogram, slice));
    await loop.stop();
  }

  /** The time that a sleeper takes to answer, once it sleeps. */
  private async wakes(phase: 'wait' | 'park'): Promise<Histogram> {
    const { crew } = this;
    const histogram = new Histogram();
    await crew.order({ phase });
    const until = performance.now() + WAKES_MS_MAX;
    for (let i = 0; i < this.options.wakes && performance.now() < until; i++) {
      await this.asleep();
      if (crew.asker.ask(Ask.ECHO, null, histogram, WAKE_SECONDS, 1) === 0) {
        throw new PenstockError('BENCH_CHILD', 'the other process was not woken within a second', {
          hint: 'is it stopped?',
        });
      }
    }
    await crew.stop();
    return histogram;
  }

  private async asleep(): Promise<void> {
    const until = performance.now() + ASLEEP_MS;
    do {
      await sleep(1);
      await this.crew.turn();
      this.look();
    } while (!this.crew.records.peerAsleep && performance.now() < until);
  }

  /** CPU time of both, as a part of one processor's, while both wait in their event loops. */
  private async idle(): Promise<IdcResult['idle']> {
    const { crew } = this;
    const { idle: seconds } = this.options;
    const childBefore = await crew.order({ phase: 'wait' });
    const before = process.cpuUsage();
    const start = performance.now();
    await crew.records.wait(seconds * 1000);
    const { user, system } = process.cpuUsage(before);
    const elapsedUs = (performance.now() - start) * 1000;
    await crew.stop();
    const childUs = (await crew.order({ phase: 'cpu' })) - childBefore;
    return {
      seconds: elapsedUs / 1e6,
      cpu: (user + system) / elapsedUs,
      childCpu: childUs / elapsedUs,
    };
  }

  /** Runs `work` for `seconds` in slices, between which the event loop sees who died. */
  private async slices(seconds: number, work: (seconds: number) => void): Promise<void> {
    const until = performance.now() + seconds * 1000;
    while (performance.now() < until) {
      work(Math.min(SLICE_SECONDS, seconds));
      await this.crew.turn();
      this.look();
    }
  }

  private look(): void {
    if (this.options.signal?.aborted !== true) return;
    throw new PenstockError('INTERRUPTED', 'interrupted before there were results', {
      exitCode: 130,
    });
  }

  private rate(): IdcResult['rate'] {
    const { asker, records } = this.crew;
    const windows = asker.windows.slice(0, asker.calm).sort();
    const { disturbed } = asker;
    return {
      median: windows[windows.length >> 1] ?? 0,
      best: windows[windows.length - 1] ?? 0,
      windows: windows.length,
      disturbed,
      batch: BATCH,
      size: records.size,
    };
  }

  private tell(what: string): void {
    this.options.onPhase?.(what);
  }
}

function emptyResult(bytes: number): PayloadResult {
  return {
    bytes,
    untouched: new Histogram(),
    read: new Histogram(),
    loan: new Histogram(),
    socket: new Histogram(),
    postMessage: new Histogram(),
  };
}

/** Gives buffers of `bytes` with words in them to `work`, and takes them back. */
async function withPayload(
  { domain }: IdcCrew,
  bytes: number,
  work: (payload: Payload) => Promise<void>,
): Promise<void> {
  const count = Math.min(BUFFERS_MAX, Math.max(2, Math.floor(SPREAD_BYTES / bytes)));
  const buffers = Array.from({ length: count }, () => domain.alloc(bytes));
  try {
    const words = buffers.map(({ u32 }) => u32);
    for (const list of words) for (let i = 0; i < list.length; i++) list[i] = i * 0x9e37;
    await work({
      bytes,
      words,
      octets: buffers.map(({ u8 }) => u8),
      lo: Uint32Array.from(buffers, ({ address }) => address >>> 0),
      hi: Uint32Array.from(buffers, ({ address }) => Math.floor(address / 2 ** 32)),
      sums: Int32Array.from(words, (list) => sumOf(list, 1, list.length)),
    });
  } finally {
    for (const buffer of buffers) if (!buffer.freed) buffer.free();
  }
}
