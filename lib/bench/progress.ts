// The words that the main thread and the workers of one job share. Law "one writer": the control
// words are written by the main thread, each worker's words by that worker alone.

/** Int32 words that the main thread writes. */
export const enum Control {
  /** 0: wait, 1: run. Workers sleep on it (Atomics.wait) before the run. */
  go = 0,
  /** Not 0: issue nothing more. Also what an idle worker sleeps on. */
  stop = 1,
  words = 2,
}

/** Float64 words of one worker; 16 are two cache lines, so that no two workers share one. */
export const enum Progress {
  readIos = 0,
  writeIos = 1,
  /** A Phase. */
  phase = 2,
  words = 16,
}

export const enum Phase {
  starting = 0,
  ramp = 1,
  measuring = 2,
  verifying = 3,
  finished = 4,
}

const CONTROL_BYTES = 128;

/** Shared bytes for a job of `workers` workers. */
export function allocateProgress(workers: number): SharedArrayBuffer {
  return new SharedArrayBuffer(CONTROL_BYTES + workers * Progress.words * 8);
}

export function controlWords(shared: SharedArrayBuffer): Int32Array {
  return new Int32Array(shared, 0, Control.words);
}

export function progressWords(shared: SharedArrayBuffer, worker: number): Float64Array {
  const offset = CONTROL_BYTES + worker * Progress.words * 8;
  return new Float64Array(shared, offset, Progress.words);
}
