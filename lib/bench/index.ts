export { runJobs, type RunHooks } from './runner.js';
export { Histogram, PERCENTILES, type HistogramState } from './histogram.js';
export type {
  Direction,
  DirectionResult,
  HostFacts,
  JobOptions,
  JobResult,
  LatencySummary,
  Sample,
  VerifyFailure,
} from './types.js';
