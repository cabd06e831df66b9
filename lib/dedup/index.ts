export { FORMAT_VERSION } from './layout.js';
export { checkPool, type CheckOptions, type CheckProgress } from './check.js';
export type { CheckReport, Finding, FindingKind } from './check-report.js';
export { Pool, type CreateOptions } from './pool.js';
export type { OpenOptions } from './pool-open.js';
export type { RecoveryReport } from './recovery.js';
export { DEDUP_KEYS, openVolume } from './shared.js';
export type { PoolStats } from './stats.js';
export type { TrimOptions } from './trim.js';
