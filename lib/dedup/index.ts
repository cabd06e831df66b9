export { checkPool, type CheckOptions, type CheckProgress } from './check.js';
export type { CheckReport, Finding, FindingKind } from './check-report.js';
export { Pool, type CreateOptions, type OpenOptions } from './pool.js';
export type { RecoveryReport } from './recovery.js';
export { DEDUP_KEYS, openVolume } from './shared.js';
export type { PoolStats } from './stats.js';
