// What goes into a benchmark and what comes out of it. Words are fio's; keys carry their units.

export type Direction = 'read' | 'write' | 'randread' | 'randwrite' | 'rw' | 'randrw';

/** One job: one URI under one workload, run by `numjobs` workers. */
export interface JobOptions {
  name: string;
  uri: string;
  rw: Direction;
  /** Percent of reads in rw and randrw. */
  rwmixread: number;
  /** Bytes per operation; a multiple of the device's block size. */
  bs: number;
  iodepth: number;
  numjobs: number;
  /** Bytes of the device used, from `offset` on; 0: to its end. */
  size: number;
  offset: number;
  /** Seconds; 0: until `ioSize` bytes (or `size`) are done once. */
  runtime: number;
  /** Seconds before counting begins. */
  rampTime: number;
  /** Operations a second and worker, open loop; 0: closed. Latency counts from when one was due. */
  rateIops: number;
  /** `random`, or `zipf:THETA`, `pareto:H`, `normal:DEVIATION` in percent of the range. */
  randomDistribution: string;
  seed: number;
  verify: boolean;
  /** Bytes to transfer in all by each worker; 0: `size`. Ignored when `runtime` ends first. */
  ioSize: number;
  /** Percent of written blocks that repeat earlier contents. */
  dedupePercentage: number;
}

export interface LatencySummary {
  min: number;
  max: number;
  mean: number;
  stddev: number;
  /** fio's key form: '50.000000' → nanoseconds. */
  percentile: Record<string, number>;
}

export interface DirectionResult {
  ios: number;
  bytes: number;
  runtimeMs: number;
  iops: number;
  bwBytes: number;
  clatNs: LatencySummary;
  /** Non-empty histogram buckets: [upper bound in ns, count], ascending. */
  buckets: [number, number][];
}

/** One sample of progress, for the status line and the report: totals since counting began. */
export interface Sample {
  timeMs: number;
  readIos: number;
  writeIos: number;
  readBytes: number;
  writeBytes: number;
}

/** The first few damaged blocks that verify found. */
export interface VerifyFailure {
  kind: 'torn' | 'stale' | 'misplaced' | 'corrupt' | 'unwritten';
  /** Number of the damaged block (in units of the job's bs) and its byte offset on the device. */
  block: number;
  offset: number;
  detail: string;
}

export interface JobResult {
  options: JobOptions;
  read: DirectionResult;
  write: DirectionResult;
  /** Percent of one CPU, as fio prints; and the process's own CPU time over the measured part. */
  usrCpu: number;
  sysCpu: number;
  cpuNsPerIo: number;
  /** Failed operations: 0, or the first error. */
  errors: number;
  error: { code: string; message: string; hint: string } | null;
  /** Blocks of `bs` checked, damaged ones counted, the first few of those. */
  verify: { checkedBlocks: number; failureCount: number; failures: VerifyFailure[] } | null;
  penstock: {
    device: Record<string, string | number | boolean>;
    seed: number;
    polls: number;
    doorbells: number;
    gcCount: number;
    gcMs: number;
    allocatedBytes: number;
  };
  series: Sample[];
  /** True when the run ended early by a signal: results are partial. */
  interrupted: boolean;
}

export interface HostFacts {
  kernel: string;
  cpu: string;
  cpus: number;
  memoryBytes: number;
  node: string;
  penstock: string;
  hugepages: string;
  date: string;
}
