export { FORMAT_VERSION } from './layout.js';
export { Pool, type CreateOptions, type OpenOptions } from './pool.js';
export type { RecoveryReport } from './recovery.js';
export { DEDUP_KEYS, openVolume } from './shared.js';
export type { PoolStats } from './stats.js';
