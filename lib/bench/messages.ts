// What the main thread and a worker tell each other. All of it is structured-cloneable.

import type { DeviceHandle } from '../hpdi/index.js';
import type { HistogramState } from './histogram.js';
import type { Geometry, Share } from './job.js';
import type { JobOptions, VerifyFailure } from './types.js';

/** What a worker starts with (workerData). */
export interface WorkerInput {
  /** null: the device belongs to the thread that opens it, which is this one worker. */
  readonly handle: DeviceHandle | null;
  readonly job: JobOptions;
  readonly geometry: Geometry;
  readonly share: Share;
  /** Control and progress words, see progress.ts. */
  readonly shared: SharedArrayBuffer;
}

export interface WorkerOutput {
  readonly reads: HistogramState;
  readonly writes: HistogramState;
  readonly readIos: number;
  readonly writeIos: number;
  readonly failed: number;
  readonly status: number;
  readonly measuredSeconds: number;
  readonly stopped: boolean;
  readonly polls: number;
  readonly doorbells: number;
  readonly gcCount: number;
  readonly gcMs: number;
  readonly allocatedBytes: number;
  /** CPU nanoseconds of the worker's thread over the measured part. */
  readonly threadCpuNs: number;
  readonly checkedBlocks: number;
  readonly failures: readonly VerifyFailure[];
  readonly failureCount: number;
}

export interface WorkerFailure {
  readonly code: string;
  readonly message: string;
  readonly hint: string;
  readonly exitCode: number;
}

export type WorkerMessage =
  | { readonly type: 'ready' }
  | { readonly type: 'measured' }
  | { readonly type: 'result'; readonly output: WorkerOutput }
  | { readonly type: 'failed'; readonly failure: WorkerFailure };
