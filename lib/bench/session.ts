// One worker's run over an open queue: set up, the measured part, the read-back. Apart from the
// thread it runs in, so that tests drive it over any queue.

import { GCProfiler, getHeapStatistics } from 'node:v8';
import { native } from '../native.js';
import type { Queue } from '../hpdi/index.js';
import { Histogram } from './histogram.js';
import { isShuffled, type Geometry, type Share } from './job.js';
import { Loop, type Clock, type LoopOptions } from './loop.js';
import type { WorkerOutput } from './messages.js';
import { Contents } from './pattern.js';
import { Phase, Progress } from './progress.js';
import { Slots, type SlotMemory } from './slots.js';
import type { JobOptions } from './types.js';
import { Verifier } from './verify.js';
import { ReadBackPlan, readPercent, WorkloadPlan } from './workload.js';

/** The time stamp counter of this thread. */
export function systemClock(): Clock {
  const { words, read } = native.tscClock();
  return { words: new Uint32Array(words), read, hertz: native.tscHertz() };
}

export interface SessionOptions {
  queue: Queue;
  memory: SlotMemory;
  clock: Clock;
  job: JobOptions;
  geometry: Geometry;
  share: Share;
  control: Int32Array;
  progress: Float64Array;
  /** Called when the measured part is over and the read-back begins. */
  onMeasured?: () => void;
}

/** What V8 did between two moments. */
class HeapWatch {
  private readonly profiler = new GCProfiler();
  private usedBefore = 0;
  private cpuBefore = 0;

  begin(): void {
    this.profiler.start();
    this.cpuBefore = threadCpuNs();
    this.usedBefore = getHeapStatistics().used_heap_size;
  }

  end(): { gcCount: number; gcMs: number; allocatedBytes: number; threadCpuNs: number } {
    const usedAfter = getHeapStatistics().used_heap_size;
    const cpu = threadCpuNs() - this.cpuBefore;
    const collections = this.profiler.stop().statistics;
    let allocated = 0;
    let gcMs = 0;
    let used = this.usedBefore;
    for (const { beforeGC, afterGC, cost } of collections) {
      allocated += Math.max(0, beforeGC.heapStatistics.usedHeapSize - used);
      used = afterGC.heapStatistics.usedHeapSize;
      gcMs += cost / 1000;
    }
    allocated += Math.max(0, usedAfter - used);
    return { gcCount: collections.length, gcMs, allocatedBytes: allocated, threadCpuNs: cpu };
  }
}

function threadCpuNs(): number {
  const [user, system] = native.threadCpuTime();
  return user + system;
}

/** Everything a worker holds for a job. `run` once, then `close`. */
export class Session {
  private readonly slots: Slots;
  private readonly verifier: Verifier | null;
  private readonly loop: Loop;
  private readonly loopOptions: LoopOptions;
  private readonly heap = new HeapWatch();

  constructor(private readonly options: SessionOptions) {
    const { queue, memory, clock, job, geometry, share, control, progress } = options;
    const percent = readPercent(job.rw, job.rwmixread);
    const mixed = percent > 0 && percent < 100;
    const writes = percent < 100;
    this.slots = new Slots(memory, job.iodepth, job.bs, mixed);
    try {
      this.verifier = job.verify
        ? new Verifier({
            seed: job.seed,
            blockSize: geometry.blockSize,
            unitBlocks: geometry.unitBlocks,
            firstBlock: share.firstBlock,
            units: share.units,
            dedupePercentage: job.dedupePercentage,
            depth: job.iodepth,
            writes,
          })
        : null;
      const interval = job.rateIops > 0 ? 1 / job.rateIops : 0;
      this.loopOptions = {
        queue,
        slots: this.slots,
        clock,
        control,
        progress,
        plan: new WorkloadPlan({
          rw: job.rw,
          rwmixread: job.rwmixread,
          firstBlock: share.firstBlock,
          units: share.units,
          unitBlocks: geometry.unitBlocks,
          distribution: job.randomDistribution,
          seed: job.seed,
          worker: share.worker,
          shuffled: isShuffled(job),
        }),
        reads: new Histogram(),
        writes: new Histogram(),
        unitBlocks: geometry.unitBlocks,
        operations: share.operations,
        rampSeconds: job.rampTime,
        runtimeSeconds: job.runtime,
        intervalSeconds: interval,
        firstDueSeconds: (interval * share.worker) / job.numjobs,
        verifier: this.verifier,
        contents: writes && !job.verify ? this.contents() : null,
      };
      this.loop = new Loop(this.loopOptions, () => this.heap.begin());
    } catch (error) {
      this.slots.free();
      throw error;
    }
  }

  run(): WorkerOutput {
    const { job, progress, onMeasured } = this.options;
    const outcome = this.loop.run();
    const heap = this.heap.end();
    onMeasured?.();
    let { stopped, failed, status } = outcome;
    if (this.verifier !== null && this.verifier.sequences.length > 0 && !stopped && failed === 0) {
      progress[Progress.phase] = Phase.verifying;
      const second = this.readBack(this.verifier);
      ({ stopped, failed, status } = second);
    }
    progress[Progress.phase] = Phase.finished;
    const { reads, writes } = this.loopOptions;
    return {
      reads: { counts: reads.counts, stats: reads.stats },
      writes: { counts: writes.counts, stats: writes.stats },
      readIos: outcome.reads,
      writeIos: outcome.writes,
      failed,
      status,
      measuredSeconds: outcome.measuredSeconds,
      stopped,
      polls: outcome.polls,
      doorbells: outcome.doorbells,
      ...heap,
      checkedBlocks: job.verify ? this.verifier!.checkedBlocks : 0,
      failures: this.verifier?.failures ?? [],
      failureCount: this.verifier?.failureCount ?? 0,
    };
  }

  close(): void {
    this.slots.free();
  }

  /** Reads every unit this worker wrote and checks it; not part of what is measured. */
  private readBack(verifier: Verifier): { stopped: boolean; failed: number; status: number } {
    const { geometry, share } = this.options;
    const loop = new Loop(
      {
        ...this.loopOptions,
        plan: new ReadBackPlan(share.firstBlock, geometry.unitBlocks, verifier.sequences),
        progress: new Float64Array(Progress.words),
        reads: new Histogram(),
        writes: new Histogram(),
        operations: Infinity,
        rampSeconds: 0,
        runtimeSeconds: 0,
        intervalSeconds: 0,
        firstDueSeconds: 0,
      },
      () => undefined,
    );
    return loop.run();
  }

  private contents(): Contents {
    const { job, share } = this.options;
    const contents = new Contents(job.seed, share.worker, job.dedupePercentage);
    for (const view of this.slots.writeViews) contents.prepare(view.words);
    return contents;
  }
}
