// A worker of the memory soak: steps when told to, ends when told to.

import { parentPort, workerData } from 'node:worker_threads';
import { Random } from './harness.js';
import { MemoryActor, type Board } from './memory-actor.js';

export interface MemoryTask {
  board: Board;
  seed: number;
  scratch: string;
  name: number;
}

const port = parentPort!;
const { board, seed, scratch, name } = workerData as MemoryTask;
const actor = new MemoryActor(board, new Random(seed), scratch, name);

port.on('message', (steps: number) => void work(steps));
port.postMessage('ready');

/** 0 steps: the end, without a word to what it holds (the environment's end closes that). */
async function work(steps: number): Promise<void> {
  if (steps === 0) process.exit(0);
  for (let step = 0; step < steps; step++) {
    actor.step();
    // Finalisers of views run between turns of the loop.
    if (step % 8 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  port.postMessage('done');
}
