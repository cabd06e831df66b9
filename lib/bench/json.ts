// The result for programs: schema 'penstock.bench/1'. Follows fio's JSON (one entry of `jobs` per
// URI and job section, workers merged), units in the keys; `--vs fio` adds `peer` and `ratio`.

import type { Comparison, Figures, Round } from './compare.js';
import type { PeerResult } from './fio.js';
import type { DirectionResult, HostFacts, JobOptions, JobResult, LatencySummary } from './types.js';

export const BENCH_SCHEMA = 'penstock.bench/1';

interface LatencyJson {
  min: number;
  max: number;
  mean: number;
  stddev: number;
  percentile: Record<string, number>;
}

export interface BenchDirectionJson {
  iops: number;
  bw_bytes: number;
  total_ios: number;
  io_bytes: number;
  runtime_ms: number;
  /** From submission to completion. */
  clat_ns: LatencyJson;
}

/** fio's own terms: `lat` begins before the submission, `clat` after it. */
export interface BenchPeerDirectionJson extends BenchDirectionJson {
  lat_ns: LatencyJson;
}

export interface BenchJobJson {
  jobname: string;
  uri: string;
  options: Record<string, string | number | boolean>;
  read: BenchDirectionJson;
  write: BenchDirectionJson;
  usr_cpu: number;
  sys_cpu: number;
  /** Failed operations, 0 when all went well. */
  error: number;
  /** The first failure, or null. */
  error_detail: { code: string; message: string; hint: string } | null;
  verify: {
    checked_blocks: number;
    /** All damaged blocks; `failures` holds the first few. */
    failure_count: number;
    failures: { kind: string; block: number; offset: number; detail: string }[];
  } | null;
  interrupted: boolean;
  penstock: {
    device: Record<string, string | number | boolean>;
    seed: number;
    polls: number;
    doorbells: number;
    gc_count: number;
    gc_ms: number;
    allocated_bytes: number;
    cpu_ns_per_io: number;
  };
}

export interface BenchPeerJobJson {
  jobname: string;
  option_set: string;
  command: string[];
  read: BenchPeerDirectionJson;
  write: BenchPeerDirectionJson;
  usr_cpu: number;
  sys_cpu: number;
  /** Whole process tree, kernel workers included. */
  cpu_ns_per_io: number;
  rounds: Record<'penstock' | 'fio', FiguresJson>[];
}

interface FiguresJson {
  iops: number;
  bw_bytes: number;
  cpu_ns_per_io: number;
  /** Ours from clat_ns, fio's from lat_ns: the same span. */
  latency_p50_ns: number;
  latency_p99_ns: number;
}

/** Penstock's median over the peer's; several jobs: their geometric mean, and each under `jobs`. */
export interface BenchRatioJson extends Record<keyof FiguresJson, number | null> {
  jobs: ({ jobname: string } & Record<keyof FiguresJson, number | null>)[];
}

export interface BenchJson {
  schema: typeof BENCH_SCHEMA;
  jobs: BenchJobJson[];
  host: {
    kernel: string;
    cpu: string;
    cpus: number;
    memory_bytes: number;
    node: string;
    penstock: string;
    hugepages: string;
    date: string;
  };
  peer?: { name: 'fio'; version: string; jobs: BenchPeerJobJson[] };
  ratio?: BenchRatioJson;
}

/** The object that `bench --json` prints. */
export function benchJson(
  results: readonly JobResult[],
  host: HostFacts,
  comparisons: readonly Comparison[] = [],
): BenchJson {
  const { memoryBytes, ...facts } = host;
  const json: BenchJson = {
    schema: BENCH_SCHEMA,
    jobs: results.map(jobJson),
    host: { ...facts, memory_bytes: memoryBytes },
  };
  const [first] = comparisons;
  if (first === undefined) return json;
  json.peer = { name: 'fio', version: first.version, jobs: comparisons.map(peerJson) };
  json.ratio = ratioJson(comparisons);
  return json;
}

function jobJson(result: JobResult): BenchJobJson {
  const { options, verify, penstock } = result;
  return {
    jobname: options.name,
    uri: options.uri,
    options: optionsJson(options),
    read: directionJson(result.read),
    write: directionJson(result.write),
    usr_cpu: result.usrCpu,
    sys_cpu: result.sysCpu,
    error: result.errors,
    error_detail: result.error,
    verify: verifyJson(verify),
    interrupted: result.interrupted,
    penstock: {
      device: penstock.device,
      seed: penstock.seed,
      polls: penstock.polls,
      doorbells: penstock.doorbells,
      gc_count: penstock.gcCount,
      gc_ms: penstock.gcMs,
      allocated_bytes: penstock.allocatedBytes,
      cpu_ns_per_io: result.cpuNsPerIo,
    },
  };
}

function verifyJson(verify: JobResult['verify']): BenchJobJson['verify'] {
  if (verify === null) return null;
  const { checkedBlocks, failureCount, failures } = verify;
  return { checked_blocks: checkedBlocks, failure_count: failureCount, failures };
}

/** The job's options under fio's words. */
function optionsJson(options: JobOptions): BenchJobJson['options'] {
  return {
    rw: options.rw,
    rwmixread: options.rwmixread,
    bs: options.bs,
    iodepth: options.iodepth,
    numjobs: options.numjobs,
    size: options.size,
    offset: options.offset,
    runtime: options.runtime,
    ramp_time: options.rampTime,
    rate_iops: options.rateIops,
    random_distribution: options.randomDistribution,
    randseed: options.seed,
    verify: options.verify,
    io_size: options.ioSize,
    dedupe_percentage: options.dedupePercentage,
  };
}

function directionJson(part: DirectionResult): BenchDirectionJson {
  return {
    iops: part.iops,
    bw_bytes: part.bwBytes,
    total_ios: part.ios,
    io_bytes: part.bytes,
    runtime_ms: part.runtimeMs,
    clat_ns: latencyJson(part.clatNs),
  };
}

function peerDirectionJson(peer: PeerResult, name: 'read' | 'write'): BenchPeerDirectionJson {
  const lat = latencyJson(peer[name].clatNs);
  return { ...directionJson(peer[name]), lat_ns: lat, clat_ns: latencyJson(peer.clatNs[name]) };
}

function latencyJson({ min, max, mean, stddev, percentile }: LatencySummary): LatencyJson {
  return { min: finite(min), max, mean: finite(mean), stddev: finite(stddev), percentile };
}

/** An idle direction has no least latency; JSON has no Infinity. */
function finite(value: number): number {
  return Number.isFinite(value) ? value : 0;
}

function peerJson({ peer, rounds }: Comparison): BenchPeerJobJson {
  return {
    jobname: peer.jobname,
    option_set: peer.optionSet,
    command: peer.command,
    read: peerDirectionJson(peer, 'read'),
    write: peerDirectionJson(peer, 'write'),
    usr_cpu: peer.usrCpu,
    sys_cpu: peer.sysCpu,
    cpu_ns_per_io: peer.cpuNsPerIo,
    rounds: rounds.map(roundJson),
  };
}

function roundJson({ penstock, fio }: Round): BenchPeerJobJson['rounds'][number] {
  return { penstock: figuresJson(penstock), fio: figuresJson(fio) };
}

function figuresJson(figures: Figures): FiguresJson {
  return {
    iops: figures.iops,
    bw_bytes: figures.bwBytes,
    cpu_ns_per_io: figures.cpuNsPerIo,
    latency_p50_ns: figures.latencyP50Ns,
    latency_p99_ns: figures.latencyP99Ns,
  };
}

function ratioJson(comparisons: readonly Comparison[]): BenchRatioJson {
  const ratios = comparisons.map(({ ratio }) => ratio);
  const mean = (key: keyof Figures): number | null => {
    const logs = ratios.map((ratio) => Math.log(ratio[key]));
    return defined(Math.exp(logs.reduce((sum, log) => sum + log, 0) / logs.length));
  };
  return {
    iops: mean('iops'),
    bw_bytes: mean('bwBytes'),
    cpu_ns_per_io: mean('cpuNsPerIo'),
    latency_p50_ns: mean('latencyP50Ns'),
    latency_p99_ns: mean('latencyP99Ns'),
    jobs: comparisons.map(({ job, ratio }) => ({
      jobname: job.name,
      iops: defined(ratio.iops),
      bw_bytes: defined(ratio.bwBytes),
      cpu_ns_per_io: defined(ratio.cpuNsPerIo),
      latency_p50_ns: defined(ratio.latencyP50Ns),
      latency_p99_ns: defined(ratio.latencyP99Ns),
    })),
  };
}

/** A ratio to nothing is null. */
function defined(value: number): number | null {
  return Number.isFinite(value) ? value : null;
}
