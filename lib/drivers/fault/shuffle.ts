// Order of issue under `reorder`: records of one batch trade places before the wrapped driver
// sees them.

import { Req, type Interposed } from '../../hpdi/index.js';
import type { Random } from './random.js';

/** Each record from ring index `from` on trades with a later one by the chance (of 2^32). */
export function shuffleIssue(ring: Interposed, from: number, draws: Random, chance: number): void {
  const count = (ring.tail - from) | 0;
  for (let i = 0; i < count - 1; i++) {
    if (!draws.chance(chance)) continue;
    const a = ((from + i) & ring.mask) * Req.words;
    const other = i + 1 + draws.below(count - 1 - i);
    const b = ((from + other) & ring.mask) * Req.words;
    for (let w = 0; w < Req.words; w++) {
      const word = ring.sq[a + w]!;
      ring.sq[a + w] = ring.sq[b + w]!;
      ring.sq[b + w] = word;
    }
  }
}
