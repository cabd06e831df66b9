// Hand-made results for the tests of what prints them.

import { defaultJob } from '../../lib/bench/option-words.js';
import type {
  DirectionResult,
  HostFacts,
  JobOptions,
  JobResult,
  Sample,
} from '../../lib/bench/types.js';

export const PERCENTS = [
  1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.5, 99.9, 99.95, 99.99,
];

export const HOST: HostFacts = {
  kernel: '6.1.0',
  cpu: 'Example CPU @ 3.00GHz',
  cpus: 2,
  memoryBytes: 8 * 2 ** 30,
  node: 'v20.20.2',
  penstock: '0.1.0',
  hugepages: 'none',
  date: '2026-01-02T03:04:05.000Z',
};

export function idle(): DirectionResult {
  const clatNs = { min: 0, max: 0, mean: 0, stddev: 0, percentile: {} };
  return { ios: 0, bytes: 0, runtimeMs: 0, iops: 0, bwBytes: 0, clatNs, buckets: [] };
}

/** `ios` operations of 4 KiB in one second; percentile p is baseNs × (1 + p / 10). */
export function busy(ios: number, baseNs: number): DirectionResult {
  const percentile: Record<string, number> = {};
  for (const percent of PERCENTS) percentile[percent.toFixed(6)] = baseNs * (1 + percent / 10);
  return {
    ios,
    bytes: ios * 4096,
    runtimeMs: 1000,
    iops: ios,
    bwBytes: ios * 4096,
    clatNs: { min: baseNs, max: baseNs * 50, mean: baseNs * 6, stddev: baseNs * 2, percentile },
    buckets: [
      [baseNs * 2, ios / 4],
      [baseNs * 5, ios / 2],
      [baseNs * 50, ios / 4],
    ],
  };
}

export function jobResult(
  options: Partial<JobOptions>,
  read: DirectionResult,
  write: DirectionResult = idle(),
): JobResult {
  const series: Sample[] = [250, 500, 750, 1000].map((timeMs) => ({
    timeMs,
    readIos: (read.ios * timeMs) / 1000,
    writeIos: (write.ios * timeMs) / 1000,
    readBytes: (read.bytes * timeMs) / 1000,
    writeBytes: (write.bytes * timeMs) / 1000,
  }));
  const job = { ...defaultJob(), uri: 'file:/data/x', ...options };
  return {
    options: job,
    read,
    write,
    usrCpu: 21.4,
    sysCpu: 78.25,
    cpuNsPerIo: 1250,
    errors: 0,
    error: null,
    verify: null,
    penstock: {
      device: { driver: 'file', direct: false },
      seed: 7,
      polls: 1000,
      doorbells: 500,
      gcCount: 1,
      gcMs: 0.25,
      allocatedBytes: 12 * 1024,
    },
    series,
    interrupted: false,
  };
}
