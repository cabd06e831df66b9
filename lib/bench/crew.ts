// The workers of one job, seen from the main thread: started together, told to stop by a word,
// waited for, and ended on failure. A worker that does not stop when told is ended by force.

import { Worker } from 'node:worker_threads';
import { PenstockError } from '../errors.js';
import type { DeviceHandle } from '../hpdi/index.js';
import { shareOf, type Geometry } from './job.js';
import type { WorkerInput, WorkerMessage, WorkerOutput } from './messages.js';
import {
  allocateProgress,
  Control,
  controlWords,
  Phase,
  Progress,
  progressWords,
} from './progress.js';
import type { JobOptions } from './types.js';

/** How long a worker may take to stop, or to start, before it is ended. */
const STOP_MS_MAX = 15_000;
/** How long after its runtime a job may take to complete what is in flight. */
const DRAIN_MS_MAX = 60_000;

/** What one worker has come to. */
interface Member {
  readonly thread: Worker;
  readonly progress: Float64Array;
  ready: boolean;
  measured: boolean;
  output: WorkerOutput | null;
  exited: boolean;
}

export class Crew {
  private readonly control: Int32Array;
  private readonly members: Member[] = [];
  private failure: Error | null = null;
  private timer: NodeJS.Timeout | undefined;
  private deadline: NodeJS.Timeout | undefined;
  private overrun: NodeJS.Timeout | undefined;
  /** Called after every change of a member. */
  private changed: () => void = () => undefined;
  private cpuAtStart: NodeJS.CpuUsage | null = null;
  private cpuOverRun: NodeJS.CpuUsage | null = null;

  constructor(
    readonly job: JobOptions,
    handle: DeviceHandle | null,
    geometry: Geometry,
  ) {
    const shared = allocateProgress(job.numjobs);
    this.control = controlWords(shared);
    for (let worker = 0; worker < job.numjobs; worker++) {
      const share = shareOf(job, geometry, worker);
      const input: WorkerInput = { handle, job, geometry, share, shared };
      this.start(input, progressWords(shared, worker));
    }
  }

  private start(input: WorkerInput, progress: Float64Array): void {
    const thread = new Worker(new URL('./worker.js', import.meta.url), { workerData: input });
    const member: Member = {
      thread,
      progress,
      ready: false,
      measured: false,
      output: null,
      exited: false,
    };
    this.members.push(member);
    thread.on('message', (message: WorkerMessage) => this.receive(member, message));
    thread.on('error', (error: unknown) => {
      const cause = error instanceof Error ? error : new Error(String(error));
      this.fail(new PenstockError('WORKER_FAILED', `a worker failed: ${cause.message}`, { cause }));
    });
    thread.on('exit', () => {
      member.exited = true;
      if (member.output === null) {
        this.fail(new PenstockError('WORKER_FAILED', 'a worker ended before its job was done'));
      }
      this.changed();
    });
  }

  private receive(member: Member, message: WorkerMessage): void {
    if (message.type === 'ready') member.ready = true;
    else if (message.type === 'measured') {
      member.measured = true;
      if (this.members.every((each) => each.measured)) {
        clearTimeout(this.overrun);
        if (this.cpuAtStart !== null) this.cpuOverRun = process.cpuUsage(this.cpuAtStart);
      }
    } else if (message.type === 'result') {
      member.output = message.output;
      // One worker's I/O error ends the job, as in fio.
      if (message.output.failed > 0) this.stop();
    } else {
      const { code, message: text, hint, exitCode } = message.failure;
      this.fail(new PenstockError(code, text, { hint, exitCode }));
    }
    this.changed();
  }

  private fail(error: Error): void {
    this.failure ??= error;
    this.stop();
    this.changed();
  }

  private until(condition: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      this.changed = () => {
        if (!condition() && this.failure === null) return;
        this.changed = () => undefined;
        resolve();
      };
      this.changed();
    });
  }

  /** Resolves when every worker has attached and allocated. */
  async ready(): Promise<void> {
    await this.until(() => this.members.every((member) => member.ready));
    if (this.failure !== null) throw this.failure;
  }

  /** Starts all workers at once. */
  go(): void {
    if (this.job.rampTime === 0) this.cpuAtStart = process.cpuUsage();
    else {
      this.timer = setTimeout(() => {
        this.cpuAtStart = process.cpuUsage();
      }, this.job.rampTime * 1000);
    }
    if (this.job.runtime > 0) {
      const runMs = (this.job.rampTime + this.job.runtime) * 1000;
      // Timers hold 31 bits of milliseconds: a run of weeks is watched by its caller.
      if (runMs < 2 ** 31 - DRAIN_MS_MAX) {
        this.overrun = setTimeout(() => this.hung(DRAIN_MS_MAX), runMs + DRAIN_MS_MAX);
      }
    }
    Atomics.store(this.control, Control.go, 1);
    Atomics.notify(this.control, Control.go);
  }

  private hung(ms: number): void {
    this.failure ??= new PenstockError(
      'DEVICE_HUNG',
      `operations on ${this.job.uri} did not complete within ${ms / 1000} s of the end`,
      { hint: 'the device or a driver below holds them; see `penstock list` and the kernel log' },
    );
    this.changed();
  }

  /** Asks all workers to issue nothing more; those that do not stop in time are ended. */
  stop(): void {
    Atomics.store(this.control, Control.stop, 1);
    Atomics.notify(this.control, Control.stop);
    Atomics.store(this.control, Control.go, 1);
    Atomics.notify(this.control, Control.go);
    this.deadline ??= setTimeout(() => this.hung(STOP_MS_MAX), STOP_MS_MAX);
  }

  /** Operations so far. `measuring` is false before the ramp's end and after the run's. */
  progress(): { readIos: number; writeIos: number; measuring: boolean } {
    let readIos = 0;
    let writeIos = 0;
    let measuring = false;
    for (const { progress } of this.members) {
      readIos += progress[Progress.readIos]!;
      writeIos += progress[Progress.writeIos]!;
      if (progress[Progress.phase] === Phase.measuring) measuring = true;
    }
    return { readIos, writeIos, measuring };
  }

  /** Resolves with every worker's output when all have ended; throws the first failure. */
  async finished(): Promise<WorkerOutput[]> {
    await this.until(() => this.members.every((member) => member.exited && member.output !== null));
    if (this.failure !== null) throw this.failure;
    return this.members.map((member) => member.output!);
  }

  /** CPU time of the process over the measured part. */
  cpu(): NodeJS.CpuUsage {
    return this.cpuOverRun ?? { user: 0, system: 0 };
  }

  /** Ends what still runs: first by asking, then by force. Never throws. */
  async close(): Promise<void> {
    clearTimeout(this.timer);
    clearTimeout(this.overrun);
    const running = this.members.filter((member) => !member.exited);
    if (running.length > 0) {
      this.stop();
      const hung = this.failure instanceof PenstockError && this.failure.code === 'DEVICE_HUNG';
      const graceMs = hung ? 0 : STOP_MS_MAX;
      const ended = (member: Member): Promise<unknown> =>
        member.exited
          ? Promise.resolve()
          : new Promise((resolve) => member.thread.once('exit', resolve));
      let grace: NodeJS.Timeout | undefined;
      const late = new Promise((resolve) => {
        grace = setTimeout(resolve, graceMs);
      });
      await Promise.race([Promise.all(running.map(ended)), late]);
      clearTimeout(grace);
      await Promise.all(running.map((member) => (member.exited ? 0 : member.thread.terminate())));
    }
    clearTimeout(this.deadline);
  }
}
