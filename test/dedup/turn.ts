import type { Pool } from '../../lib/dedup/index.js';

/** A round of a pool's engine, and a turn of the event loop. */
export async function turn(pool: Pool): Promise<void> {
  pool.engine.run();
  await new Promise((resolve) => setImmediate(resolve));
}
