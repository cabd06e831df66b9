// What a driver gives to HPDI: a Backend per open device, a QueueDriver per queue.

import type { Memory } from '../memory/index.js';
import type { DeviceInfo } from './info.js';

/**
 * One queue of one device. Called once per batch, never per operation. A driver copies what it
 * needs out of a request record before `submit` returns; the record is the caller's again then.
 */
export interface QueueDriver {
  /**
   * Takes the records sq[head], …, sq[tail - 1] in order (free-running indices; the place of index
   * i is (i & (sq.length / 8 - 1)) * 8). Returns how many it took: fewer is back-pressure. A record
   * that is wrong is taken and completes with its error.
   */
  submit(sq: Uint32Array, head: number, tail: number): number;
  /** Writes up to `max` completions to cq from word 0 on and returns how many. Never blocks. */
  poll(cq: Uint32Array, max: number): number;
  /**
   * Asks for a signal on eventFd() at the next completion. The caller fences and polls once more.
   */
  arm(): void;
  /**
   * A descriptor that becomes readable on completion once armed; -1 when poll never needs a wait.
   */
  eventFd(): number;
  /**
   * Blocks this thread until a completion may be there, at most `timeoutUs`; without it HPDI polls
   * eventFd.
   */
  park?(timeoutUs: number): void;
  /**
   * Gives a loan back: false when it is not one that is out (stale or double release). The words
   * are 32 bits, with or without a sign.
   */
  release(resultLo: number, resultHi: number): boolean;
  /** Resolves when nothing is in flight in the device. Completions stay to be polled. */
  drain(): Promise<void>;
  /** Drains, then frees all the queue held. */
  close(): Promise<void>;
  /** Counters since the queue was opened, for benchmarks and `info`. */
  readonly counters: QueueCounters;
}

export interface QueueCounters {
  /** Times the device was told: doorbells, io_uring_enter calls. */
  doorbells: number;
  /** Polls of the device's completion ring. */
  polls: number;
}

export interface QueueOptions {
  /** Operations in flight; rounded up to a power of two. */
  depth: number;
  /** Takes any request and splits or bounces it to the device's limits (default true). */
  split?: boolean;
}

/** What travels to a worker (structured clone) so that it can attach to a device. */
export interface DeviceHandle<Info = DeviceInfo> {
  readonly uri: string;
  readonly scheme: string;
  readonly info: Info;
  /** The home's liveness word: its index, and its value while the home lives. */
  readonly liveness: number;
  readonly livenessSerial: number;
  /** The driver's own: descriptors, addresses. */
  readonly shared: unknown;
}

/** An open device as its driver sees it; a block device unless it says otherwise. */
export interface Backend<Info = DeviceInfo, Options = QueueOptions> {
  readonly uri: string;
  readonly scheme: string;
  /**
   * Current facts; a driver replaces the object when they change (size change, namespace event).
   */
  readonly info: Info;
  /** The kind of memory that the device can reach (default private: any). */
  readonly memoryKind?: 'private' | 'device';
  /** The memory itself, where it is not this environment's own of that kind. */
  readonly memory?: Memory | undefined;
  openQueue(options: Options): QueueDriver;
  /** The part of a handle that is the driver's own; attaches with the module's `attach`. */
  share(): unknown;
  /** Text for the detail bits of a status word (errno, NVMe status, …). */
  explainDetail(code: number, detail: number): string;
  /** Called when info changes. */
  onChange?: ((info: Info) => void) | null;
  /** Re-reads size and the like. */
  refresh?(): Promise<void>;
  /**
   * Takes the device for this opening of it alone, among those that ask for that, until it is
   * closed. Throws DEVICE_BUSY. Devices of which there are no other openings have none.
   */
  claim?(): void;
  close(): Promise<void>;
}

/** What a driver's folder exports as `driver`: found by URI scheme in lib/open.ts. */
export interface DriverModule {
  readonly scheme: string;
  /** Keys of the URI's query with one line of help each. */
  readonly keys: Readonly<Record<string, string>>;
  /** What may stand behind `+` in the URI; none when left out. */
  readonly transports?: readonly string[];
  open(
    path: string,
    query: ReadonlyMap<string, string>,
    uri: string,
    transport?: string,
  ): Promise<Backend>;
  attach(handle: DeviceHandle): Promise<Backend>;
}
