// What an engine is made of (pool-open.ts makes it).

import type { Allocator } from './allocator.js';
import type { Catalogue } from './catalogue.js';
import type { Checkpoint } from './checkpoint.js';
import type { FingerprintIndex } from './fingerprint-index.js';
import type { Hasher } from './hasher.js';
import type { PoolIo } from './io.js';
import type { Intake } from './intake.js';
import type { Journal } from './journal.js';
import type { PageCache } from './pages.js';
import type { Planner } from './planner.js';
import type { ReadChecks } from './read-checks.js';
import type { SetTable } from './sets.js';
import type { Space } from './space.js';
import type { StageClock } from './stage-clock.js';
import type { Thn } from './thn.js';
import type { Trees } from './trees.js';
import type { Traffic } from './traffic.js';

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
