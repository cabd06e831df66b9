// The thread of one worker: attaches to the device, says it is ready, sleeps until the go word,
// runs.
//
// Order of life: attach, queue, session; closed in reverse, also on failure. A failure becomes a
// message, so that the main thread can tell a refused option from a crash.

import { parentPort, workerData, type MessagePort } from 'node:worker_threads';
import { PenstockError } from '../errors.js';
import { attach, open } from '../open.js';
import type { WorkerFailure, WorkerInput, WorkerMessage } from './messages.js';
import { Control, controlWords, progressWords } from './progress.js';
import { Session, systemClock } from './session.js';

function describe(error: unknown): WorkerFailure {
  if (error instanceof PenstockError) {
    const { code, message, hint, exitCode } = error;
    return { code, message, hint, exitCode };
  }
  const message = error instanceof Error ? (error.stack ?? error.message) : String(error);
  return { code: 'WORKER_FAILED', message, hint: '', exitCode: 1 };
}

async function work(input: WorkerInput, port: MessagePort): Promise<void> {
  const post = (message: WorkerMessage): void => port.postMessage(message);
  const { job, geometry, share, shared } = input;
  const control = controlWords(shared);
  const device = input.handle === null ? await open(job.uri) : await attach(input.handle);
  try {
    const { maxTransferBlocks, boundary } = device.info;
    const split = geometry.unitBlocks > maxTransferBlocks || boundary > 0;
    const queue = device.queue({ depth: job.iodepth, split });
    try {
      const session = new Session({
        queue,
        memory: device.memory,
        clock: systemClock(),
        job,
        geometry,
        share,
        control,
        progress: progressWords(shared, share.worker),
        onMeasured: () => post({ type: 'measured' }),
      });
      try {
        post({ type: 'ready' });
        Atomics.wait(control, Control.go, 0);
        const output = session.run();
        post({ type: 'result', output });
      } finally {
        session.close();
      }
    } finally {
      await queue.close();
    }
  } finally {
    await device.close();
  }
}

if (parentPort !== null) {
  const port = parentPort;
  try {
    await work(workerData as WorkerInput, port);
  } catch (error) {
    port.postMessage({ type: 'failed', failure: describe(error) } satisfies WorkerMessage);
  }
  port.close();
}
