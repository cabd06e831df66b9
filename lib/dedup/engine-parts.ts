// What an engine is made of (pool-open.ts makes it).

import type { Allocator } from './space/allocator.js';
import type { Catalogue } from './maps/catalogue.js';
import type { Checkpoint } from './durable/checkpoint.js';
import type { FingerprintIndex } from './write/fingerprint-index.js';
import type { Hasher } from './write/hasher.js';
import type { PoolIo } from './durable/io.js';
import type { Intake } from './write/intake.js';
import type { Journal } from './durable/journal.js';
import type { PageCache } from './durable/pages.js';
import type { Planner } from './write/planner.js';
import type { ReadChecks } from './volume/read-checks.js';
import type { SetTable } from './write/sets.js';
import type { Space } from './space/space.js';
import type { StageClock } from './stats/stage-clock.js';
import type { Thn } from './write/thn.js';
import type { Trees } from './maps/trees.js';
import type { Traffic } from './stats/traffic.js';

export interface EngineParts {
  readonly io: PoolIo;
  readonly pages: PageCache;
  readonly space: Space;
  readonly allocator: Allocator;
  readonly trees: Trees;
  readonly journal: Journal;
  readonly checkpoint: Checkpoint;
  readonly catalogue: Catalogue;
  readonly sets: SetTable;
  readonly hasher: Hasher;
  readonly planner: Planner;
  readonly thn: Thn;
  readonly index: FingerprintIndex;
  /** Of pools with data checksums. */
  readonly intake: Intake | null;
  readonly checks: ReadChecks | null;
  readonly clock: StageClock;
  readonly traffic: Traffic;
}
