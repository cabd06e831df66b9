// Memory: threads make, share, view and close segments at random; see memory-actor.ts for what
// they check. Workers come and go every round, and what they leave open their end closes; the main
// thread keeps its views of it, which must never show another's memory.

import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { addressSpace } from '../../lib/memory/index.js';
import { check, footprint, Random, scratchFolder, within, type Footprint } from './harness.js';
import { descriptorsMore, type Soak, type SoakRun } from './harness.js';
import { MemoryActor, PLACES, type Board } from './memory-actor.js';
import type { MemoryTask } from './memory-thread.js';

const WORKERS = 3;
const STEPS = 50;
const ANSWER_MS = 30_000;

class MemoryRun implements SoakRun {
  private readonly random: Random;
  private readonly scratch = scratchFolder();
  private readonly board: Board = {
    segments: new SharedArrayBuffer(PLACES * 4),
    buffers: new SharedArrayBuffer(PLACES * 4),
  };
  private readonly actor: MemoryActor;
  private readonly segmentsBefore = addressSpace().list().length;
  private before: Footprint | null = null;

  constructor(random: Random) {
    this.random = random;
    this.actor = new MemoryActor(this.board, new Random(random.u32()), this.scratch, WORKERS + 1);
  }

  async round(): Promise<number> {
    const workers = Array.from({ length: WORKERS }, (_, index) => this.worker(index + 1));
    try {
      await this.heard(workers);
      const all = this.heard(workers);
      for (const worker of workers) worker.postMessage(STEPS);
      for (let step = 0; step < STEPS; step++) {
        this.actor.step();
        await new Promise((resolve) => setImmediate(resolve));
      }
      await all;
      this.actor.clearBoard();
      check(this.actor.taken === 0, `${this.actor.taken} buffers did not come home`);
    } finally {
      await this.end(workers);
    }
    this.before ??= footprint();
    const more = descriptorsMore(this.before, footprint()).filter((kind) => /memfd/.test(kind));
    check(more.length === 0, `descriptors were left: ${more.join()}`);
    return STEPS * (WORKERS + 1);
  }

  finish(): Promise<void> {
    this.actor.end();
    const left = addressSpace().list().length - this.segmentsBefore;
    check(left === 0, `${left} segments were left`);
    return Promise.resolve();
  }

  private worker(name: number): Worker {
    const { board, random, scratch } = this;
    const workerData: MemoryTask = { board, seed: random.u32(), scratch, name };
    return new Worker(new URL('./memory-thread.js', import.meta.url), { workerData });
  }

  /** Until each of the workers has said something; rejects when one fails. */
  private async heard(workers: readonly Worker[]): Promise<void> {
    const words = workers.map((worker) => once(worker, 'message'));
    await within(ANSWER_MS, 'an answer of the workers', Promise.all(words));
  }

  /** By their own hand, or by ours. */
  private async end(workers: readonly Worker[]): Promise<void> {
    const ended = workers.map((worker) => {
      if (this.random.chance(0.5)) return worker.terminate();
      worker.postMessage(0);
      return once(worker, 'exit');
    });
    await within(ANSWER_MS, 'the end of the workers', Promise.all(ended));
  }
}

export const memorySoak: Soak = {
  full: 10_000,
  unit: 'steps',
  start(random) {
    return Promise.resolve(new MemoryRun(random));
  },
};
