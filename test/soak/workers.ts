// Workers: threads attach to one device, do verified work on a part of it each, and come and go as
// chance wills: they detach, are terminated in the middle of it, or lose the thread that is home.
//
// What must hold: no block is ever seen that its only writer did not write; after the home's death
// every operation completes with DEVICE_GONE and nothing hangs; no operation of a thread that is
// gone
// reaches memory that others got since (a segment made at each death is watched); at a round's end
// the
// process has the segments, descriptors and kernel workers it had before.

import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import type { DeviceHandle } from '../../lib/hpdi/index.js';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import {
  check,
  descriptorsMore,
  footprint,
  Random,
  scratchFolder,
  sleep,
  until,
  within,
} from './harness.js';
import type { Footprint, Soak, SoakRun } from './harness.js';
import { REGION_BYTES, THREADS_MAX, type Report, type Task } from './workers-parts.js';

const ANSWER_MS = 20_000;

/** A worker of one of the two kinds, and what it has said. */
class Thread {
  readonly worker: Worker;
  readonly reports: Report[] = [];
  ended = false;
  failure: unknown = null;

  constructor(task: Task) {
    this.worker = new Worker(new URL('./workers-thread.js', import.meta.url), {
      workerData: task,
      env: { ...process.env, PENSTOCK_QUIET: '1' },
    });
    this.worker.on('message', (report: Report) => this.reports.push(report));
    this.worker.on('error', (error) => (this.failure = error));
    this.worker.on('exit', () => (this.ended = true));
  }

  has(kind: Report['kind']): boolean {
    return this.reports.some((report) => report.kind === kind);
  }

  async said(kind: Report['kind']): Promise<Report> {
    const there = (): boolean => this.has(kind) || this.ended;
    await until(`a thread's '${kind}'`, there, ANSWER_MS);
    if (this.failure !== null) throw new Error('a thread failed', { cause: this.failure });
    const report = this.reports.find((each) => each.kind === kind);
    check(report !== undefined, `a thread ended without '${kind}'`);
    return report;
  }
}

class WorkersRun implements SoakRun {
  private readonly random: Random;
  private readonly scratch = scratchFolder();
  /**
   * As the first round left it: threads that Node keeps and loops that the start made are there.
   */
  private before: Footprint | null = null;
  private readonly segments = addressSpace().list().length;

  constructor(random: Random) {
    this.random = random;
  }

  async round(index: number): Promise<number> {
    const { random } = this;
    const bytes = THREADS_MAX * REGION_BYTES;
    const file = `file:${join(this.scratch, 'device')}?create=${bytes}`;
    const uri = random.pick([`ram:${bytes}`, `ram:${bytes}?sparse=1`, file, `${file}&direct=1`]);
    try {
      await this.live(uri);
      await this.cleared();
    } catch (cause) {
      throw new Error(`round ${index}, ${uri}`, { cause });
    }
    return 1;
  }

  finish(): Promise<void> {
    return Promise.resolve();
  }

  private async live(uri: string): Promise<void> {
    const { random } = this;
    const home = new Thread({ kind: 'home', uri });
    const { handle } = (await home.said('handle')) as { handle: DeviceHandle };
    const threads: Thread[] = [];
    const watched: Segment[] = [];
    let homeLives = true;
    try {
      for (let region = 0; region < random.between(1, THREADS_MAX); region++) {
        threads.push(this.attach(handle, region));
      }
      for (const thread of threads) await thread.said('working');
      const events = random.between(1, 6);
      for (let event = 0; event < events && homeLives; event++) {
        await sleep(random.below(30));
        const region = random.below(threads.length);
        const kind = random.below(8);
        if (kind < 3) await this.terminate(threads[region]!, watched);
        else if (kind < 6) await this.detach(threads[region]!);
        else if (kind === 6 && random.chance(0.5)) homeLives = false;
        // The same part of the device, when its former writer is gone.
        if (!threads[region]!.ended) continue;
        threads[region] = this.attach(handle, region);
        if (random.chance(0.5)) await threads[region].said('working');
      }
      if (random.chance(0.5)) homeLives = false;
      if (!homeLives) await this.orphan(home, threads, watched);
      for (const thread of threads) await this.detach(thread);
      for (const segment of watched) check(isClear(segment), 'a dead thread wrote to memory');
    } finally {
      for (const thread of [...threads, home]) await thread.worker.terminate();
      for (const segment of watched) segment.close();
    }
    for (const thread of threads) {
      if (thread.failure !== null) throw new Error('a thread failed', { cause: thread.failure });
    }
  }

  private attach(handle: DeviceHandle, region: number): Thread {
    const seed = this.random.u32();
    return new Thread({ kind: 'client', handle, region, seed });
  }

  private async detach(thread: Thread): Promise<void> {
    if (thread.ended) return;
    thread.worker.postMessage('detach');
    await thread.said('done');
    await within(ANSWER_MS, 'the end of a thread', thread.worker.terminate());
  }

  /** The hard way, at any point of its work; then others take the addresses that came free. */
  private async terminate(thread: Thread, watched: Segment[]): Promise<void> {
    await within(ANSWER_MS, 'the end of a thread', thread.worker.terminate());
    if (thread.failure !== null) throw new Error('a thread failed', { cause: thread.failure });
    watched.push(addressSpace().create(GRANULE_BYTES, { pageBytes: 4096 }));
  }

  /** The home dies, gently or not; who is attached learns of it by every operation. */
  private async orphan(home: Thread, threads: Thread[], watched: Segment[]): Promise<void> {
    if (this.random.chance(0.5)) await this.terminate(home, watched);
    else await this.detach(home);
    for (const thread of threads) {
      if (thread.ended) continue;
      await thread.said('gone');
    }
  }

  private async cleared(): Promise<void> {
    await until('segments are closed', () => addressSpace().list().length === this.segments);
    if (this.before === null) {
      await sleep(500);
      this.before = footprint();
    }
    const { before } = this;
    const more = (): string[] => descriptorsMore(before, footprint());
    await until(
      'descriptors are closed',
      () => more().length === 0,
      ANSWER_MS,
      () => more().join(),
    );
    await until('kernel workers end', () => footprint().kernelWorkers <= before.kernelWorkers);
  }
}

function isClear(segment: Segment): boolean {
  return segment.u32.every((word) => word === 0);
}

export const workersSoak: Soak = {
  full: 300,
  unit: 'rounds',
  start(random) {
    return Promise.resolve(new WorkersRun(random));
  },
};
