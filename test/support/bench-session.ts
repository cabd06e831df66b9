// A job over the fake device, without a worker: what the loop and verify tests drive.

import type { Clock } from '../../lib/bench/loop.js';
import { geometryOf, shareOf } from '../../lib/bench/job.js';
import type { WorkerOutput } from '../../lib/bench/messages.js';
import { Progress } from '../../lib/bench/progress.js';
import { Session, systemClock } from '../../lib/bench/session.js';
import type { JobOptions } from '../../lib/bench/types.js';
import type { DeviceInfo } from '../../lib/hpdi/info.js';
import { Queue } from '../../lib/hpdi/queue.js';
import { defaultMemory } from '../../lib/memory/index.js';
import { FakeDriver, RecordedMemory, type FakeOptions } from './fake-driver.js';

export function testJob(changes: Partial<JobOptions> = {}): JobOptions {
  return {
    name: 'test',
    uri: 'fake:',
    rw: 'randread',
    rwmixread: 50,
    bs: 4096,
    iodepth: 8,
    numjobs: 1,
    size: 0,
    offset: 0,
    runtime: 0,
    rampTime: 0,
    rateIops: 0,
    randomDistribution: 'random',
    seed: 1,
    verify: false,
    ioSize: 0,
    dedupePercentage: 0,
    ...changes,
  };
}

export function fakeInfo(blockSize: number, blocks: number): DeviceInfo {
  return {
    blockSize,
    blocks,
    maxTransferBlocks: 2 ** 16,
    maxSegments: 0,
    addressAlign: 4,
    segmentAlign: 4,
    boundary: 0,
    atomicBlocks: 1,
    volatileCache: false,
    canLoan: false,
    loanStable: false,
    metadataBytes: 0,
    zones: null,
    operations: 0xff,
    flags: 0,
    readOnly: false,
    durable: false,
    physicalBlockSize: blockSize,
    description: {},
  };
}

export interface FakeRun {
  output: WorkerOutput;
  driver: FakeDriver;
  progress: Float64Array;
  memory: RecordedMemory;
}

export interface FakeRunOptions extends Partial<FakeOptions> {
  clock?: Clock;
  /** A device that an earlier run wrote. */
  driver?: FakeDriver;
  worker?: number;
  control?: Int32Array;
  onMeasured?: (driver: FakeDriver) => void;
}

/** Memory and device of one test; `run` jobs on them in turn. */
export class FakeBench {
  readonly memory = new RecordedMemory(defaultMemory());
  readonly driver: FakeDriver;
  private readonly info: DeviceInfo;

  constructor(options: Partial<FakeOptions> = {}) {
    const all = { blockSize: 512, blocks: 1024, ...options, memory: this.memory };
    this.driver = new FakeDriver(all);
    this.info = fakeInfo(all.blockSize, all.blocks);
  }

  run(changes: Partial<JobOptions>, options: FakeRunOptions = {}): FakeRun {
    const job = testJob(changes);
    const geometry = geometryOf(job, this.info);
    const { driver, memory } = this;
    const queue = new Queue(driver, 2 ** Math.ceil(Math.log2(job.iodepth)));
    const progress = new Float64Array(Progress.words);
    const session = new Session({
      queue,
      memory,
      clock: options.clock ?? systemClock(),
      job,
      geometry,
      share: shareOf(job, geometry, options.worker ?? 0),
      control: options.control ?? new Int32Array(new SharedArrayBuffer(8)),
      progress,
      onMeasured: () => options.onMeasured?.(driver),
    });
    try {
      return { output: session.run(), driver, progress, memory };
    } finally {
      session.close();
    }
  }
}

/** A clock that a test moves by hand: one tick is a nanosecond. */
export class FakeClock implements Clock {
  readonly words = new Uint32Array(2);
  readonly hertz = 1e9;
  /** Added at every read. */
  stepNs = 0;
  now = 0;

  readonly read = (): void => {
    this.now += this.stepNs;
    this.words[0] = this.now % 2 ** 32;
    this.words[1] = Math.floor(this.now / 2 ** 32);
  };
}
