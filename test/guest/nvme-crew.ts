// Workers with a verified load each (programs/nvme-load-worker.ts).

import { Worker } from 'node:worker_threads';
import type { DeviceHandle } from '../../lib/index.js';
import type { LoadOptions, LoadResult } from './nvme-load.js';
import type { LoadWorkerData } from './programs/nvme-load-worker.js';

export class LoadWorker {
  private readonly worker: Worker;
  private readonly result: Promise<LoadResult>;
  private readonly attached: Promise<void>;
  private readonly running: Promise<void>;

  constructor(handle: DeviceHandle, load: LoadOptions) {
    const workerData: LoadWorkerData = { handle, load };
    const program = new URL('./programs/nvme-load-worker.js', import.meta.url);
    this.worker = new Worker(program, { workerData });
    const { promise: attached, resolve: onAttached } = deferred<void>();
    const { promise: running, resolve: onRunning } = deferred<void>();
    this.attached = attached;
    this.running = running;
    this.result = new Promise((resolve, reject) => {
      let result: LoadResult | undefined;
      this.worker.on('message', (message: 'attached' | 'running' | LoadResult) => {
        if (message === 'attached') return onAttached();
        onRunning();
        if (message !== 'running') result = message;
      });
      this.worker.once('error', reject);
      // Only when the thread has ended is nothing of it open any more.
      this.worker.once('exit', () => {
        if (result !== undefined) resolve(result);
        else reject(new Error('the worker ended without a result'));
      });
    });
    this.result.catch(() => undefined); // whoever waits for it hears of it
  }

  /**
   * Starts workers and has all of them go when the last is ready: a thread takes long to start in a
   * guest whose processors are busy.
   */
  static async crew(handle: DeviceHandle, loads: readonly LoadOptions[]): Promise<LoadWorker[]> {
    const workers = loads.map((load) => new LoadWorker(handle, load));
    for (const { attached, result } of workers) await Promise.race([attached, result]);
    for (const { worker } of workers) worker.postMessage('go');
    for (const { running, result } of workers) await Promise.race([running, result]);
    return workers;
  }

  /** Lets the load come to its end; what it counted. */
  stop(): Promise<LoadResult> {
    this.worker.postMessage('stop');
    return this.result;
  }

  /** What it counted once it ends by itself: its device is gone. */
  ended(): Promise<LoadResult> {
    return this.result;
  }

  /** Ends the thread in the middle of what it does. */
  async terminate(): Promise<void> {
    await this.worker.terminate();
  }
}

function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((settle) => (resolve = settle));
  return { promise, resolve };
}
