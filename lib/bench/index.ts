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
export {
  compareWithFio,
  type CompareOptions,
  type Comparison,
  type Figures,
  type Round,
} from './compare.js';
export type { FioOptionSet, FioRunOptions, PeerResult } from './fio.js';
export { readHost } from './host.js';
export { parseJobFile, type JobFileContext, type ParsedJobFile } from './job-file.js';
export {
  BENCH_SCHEMA,
  benchJson,
  type BenchDirectionJson,
  type BenchJobJson,
  type BenchJson,
  type BenchPeerDirectionJson,
  type BenchPeerJobJson,
  type BenchRatioJson,
} from './json.js';
export {
  IDC_DEFAULTS,
  IDC_QUICK,
  runIdc,
  type IdcOptions,
  type IdcResult,
  type PayloadResult,
} from './idc.js';
export { idcJson, idcText, type IdcJson, type IdcPayloadJson, type RttJson } from './idc-json.js';
export { defaultJob, findOption, OPTION_WORDS, setOption } from './option-words.js';
export type { OptionKind, OptionWord } from './option-words.js';
export { checkReportPath, writeReport, type ReportInput } from './report.js';
export { StatusLine, type StatusStream } from './status.js';
export { benchText } from './text.js';
