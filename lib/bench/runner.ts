// Runs jobs: opens each device once, starts the workers of all jobs together, samples their
// progress, merges what they counted. Everything opened is closed in reverse order, also on failure
// half-way.

import { PenstockError } from '../errors.js';
import type { BlockDevice, DeviceHandle } from '../hpdi/index.js';
import { open } from '../open.js';
import { parseUri } from '../uri.js';
import { Crew } from './crew.js';
import { checkJob, geometryOf } from './job.js';
import type { WorkerOutput } from './messages.js';
import { jobResult } from './result.js';
import type { JobOptions, JobResult, Sample } from './types.js';

const SAMPLE_MS = 250;

export interface RunHooks {
  /** Called about four times a second with one sample per job: totals since counting began. */
  onSample?: (perJob: Sample[]) => void;
  /** Ends the run early: the results are partial and say `interrupted`. */
  signal?: AbortSignal;
}

/** Progress of one job over time. */
class Series {
  readonly samples: Sample[] = [];
  private startMs = 0;

  constructor(private readonly crew: Crew) {}

  take(): Sample {
    const { readIos, writeIos, measuring } = this.crew.progress();
    const { bs } = this.crew.job;
    const now = performance.now();
    if (measuring && this.startMs === 0) this.startMs = now;
    const timeMs = this.startMs === 0 ? 0 : now - this.startMs;
    const sample: Sample = {
      timeMs,
      readIos,
      writeIos,
      readBytes: readIos * bs,
      writeBytes: writeIos * bs,
    };
    if (measuring) this.samples.push(sample);
    return sample;
  }

  /** Ends the series with the totals, at the end of the measured time. */
  finish(result: JobResult): void {
    const timeMs = Math.max(result.read.runtimeMs, result.write.runtimeMs);
    while (this.samples.length > 0 && this.samples.at(-1)!.timeMs >= timeMs) this.samples.pop();
    this.samples.push({
      timeMs,
      readIos: result.read.ios,
      writeIos: result.write.ios,
      readBytes: result.read.bytes,
      writeBytes: result.write.bytes,
    });
  }
}

/** A job's share of the process's CPU time: its threads' part of all workers' own time. */
function cpuShare(outputs: readonly WorkerOutput[][], job: number): number {
  const own = outputs.map((each) => each.reduce((sum, output) => sum + output.threadCpuNs, 0));
  const all = own.reduce((sum, each) => sum + each, 0);
  return all > 0 ? own[job]! / all : 1 / outputs.length;
}

/**
 * Runs all jobs at the same time and gives their results in order. Jobs with the same URI share one
 * device. BAD_OPTION (exit code 2) for an option that does not fit; I/O errors and failed
 * verification are part of the results.
 */
export async function runJobs(
  jobs: readonly JobOptions[],
  hooks: RunHooks = {},
): Promise<JobResult[]> {
  if (jobs.length === 0) {
    throw new PenstockError('BAD_OPTION', 'no job was given', {
      hint: 'name at least one URI',
      exitCode: 2,
    });
  }
  for (const job of jobs) checkJob(job);
  assertPoolsApart(jobs);
  const devices = new Map<string, BlockDevice>();
  const crews: Crew[] = [];
  try {
    for (const { uri } of jobs) {
      if (!devices.has(uri)) devices.set(uri, await open(uri));
    }
    const geometries = jobs.map((job) => geometryOf(job, devices.get(job.uri)!.info));
    for (const [i, job] of jobs.entries()) {
      const device = devices.get(job.uri)!;
      crews.push(new Crew(job, await handleOf(device, job, jobs), geometries[i]!));
    }
    return await run(jobs, crews, devices, hooks);
  } finally {
    await Promise.all(crews.map((crew) => crew.close()));
    for (const device of [...devices.values()].reverse()) await device.close();
  }
}

/**
 * Throws NOT_SHAREABLE for two volumes of one pool: workers are threads, and a pool is open in one.
 */
function assertPoolsApart(jobs: readonly JobOptions[]): void {
  const pools = new Map<string, string>();
  for (const { uri } of jobs) {
    const { scheme, path } = parseUri(uri);
    if (scheme !== 'dedup') continue;
    const other = pools.get(path) ?? uri;
    pools.set(path, uri);
    if (other === uri) continue;
    throw new PenstockError('NOT_SHAREABLE', `${other} and ${uri} are volumes of one pool`, {
      hint: 'measure them one after the other: a pool belongs to one thread, as does a job',
      exitCode: 2,
    });
  }
}

/**
 * What a job's workers attach to. A device that belongs to the thread which opened it (a volume of
 * a pool) is let go for the one worker that uses it, which opens it itself: null.
 */
async function handleOf(
  device: BlockDevice,
  job: JobOptions,
  jobs: readonly JobOptions[],
): Promise<DeviceHandle | null> {
  try {
    return device.handle();
  } catch (error) {
    const users = jobs.filter(({ uri }) => uri === job.uri).length;
    const isAlone = job.numjobs === 1 && users === 1;
    const isOwned = error instanceof PenstockError && error.code === 'NOT_SHAREABLE';
    if (!isOwned || !isAlone) throw error;
    await device.close();
    return null;
  }
}

async function run(
  jobs: readonly JobOptions[],
  crews: readonly Crew[],
  devices: ReadonlyMap<string, BlockDevice>,
  hooks: RunHooks,
): Promise<JobResult[]> {
  await Promise.all(crews.map((crew) => crew.ready()));
  const series = crews.map((crew) => new Series(crew));
  const stop = (): void => crews.forEach((crew) => crew.stop());
  const timer = setInterval(() => {
    const samples = series.map((each) => each.take());
    hooks.onSample?.(samples);
  }, SAMPLE_MS);
  hooks.signal?.addEventListener('abort', stop);
  try {
    for (const crew of crews) crew.go();
    if (hooks.signal?.aborted === true) stop();
    const outputs = await Promise.all(crews.map((crew) => crew.finished()));
    return jobs.map((options, i) => {
      const device = devices.get(options.uri)!;
      const share = cpuShare(outputs, i);
      const cpu = crews[i]!.cpu();
      const result = jobResult(
        {
          options,
          device: { ...device.info.description },
          userUs: cpu.user * share,
          systemUs: cpu.system * share,
          aborted: hooks.signal?.aborted === true,
          series: series[i]!.samples,
          explain: (status) => {
            const { code, message, hint } = device.explain(status);
            return { code, message, hint };
          },
        },
        outputs[i]!,
      );
      series[i]!.finish(result);
      return result;
    });
  } finally {
    clearInterval(timer);
    hooks.signal?.removeEventListener('abort', stop);
  }
}
