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
export { compareWithFio, type CompareOptions, type Comparison } from './compare.js';
export { readHost } from './host.js';
export { parseJobFile, type JobFileContext, type ParsedJobFile } from './job-file.js';
export { BENCH_SCHEMA, benchJson, type BenchJson } from './json.js';
export { defaultJob, findOption, OPTION_WORDS, setOption } from './option-words.js';
export type { OptionKind, OptionWord } from './option-words.js';
export { checkReportPath, writeReport, type ReportInput } from './report.js';
export { StatusLine } from './status.js';
export { benchText } from './text.js';
