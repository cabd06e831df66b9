// What 10^7 operations allocate, for each driver through the one hot loop: heap growth below 64 KiB
// and no garbage collection.

import { openLoop, fiveDrivers, tscClock, warmUp } from './five-drivers.js';
import { collect, heapCost, HEAP_GROWTH_MAX, OPERATIONS } from './heap.js';
import { atMost, finish, parseOptions, program, type Bar } from './report.js';

const DEPTH = 128;
const WARM_UP_OPERATIONS = 2_000_000;

await program(async () => {
  const options = parseOptions({ rounds: 1, runtime: 1 });
  const clock = tscClock();
  await warmUp(clock, DEPTH, options.folder || undefined);
  const rows = [];
  const bars: Bar[] = [];
  for (const [name, uri] of Object.entries(fiveDrivers(options.folder || undefined))) {
    const { loop, close } = await openLoop(uri, DEPTH, clock);
    try {
      loop.run(WARM_UP_OPERATIONS);
      collect();
      // The collection lets go of compiled code, which is made again: not the hot path's doing.
      loop.run(WARM_UP_OPERATIONS);
      const cost = await heapCost(() => loop.run(OPERATIONS));
      if (loop.failures > 0) throw new Error(`${name}: ${loop.failures} operations failed`);
      rows.push({
        driver: name,
        'heap growth, bytes': cost.heapGrowthBytes,
        'gc entries': cost.gcCount,
        'ns/IO': (cost.elapsedMs * 1e6) / OPERATIONS,
      });
      const growth = `${name}: heap growth over 10^7 operations, bytes`;
      bars.push(atMost(growth, cost.heapGrowthBytes, HEAP_GROWTH_MAX));
      bars.push(atMost(`${name}: gc entries over 10^7 operations`, cost.gcCount, 0));
    } finally {
      await close();
    }
  }
  finish({ schema: 'penstock.bench.allocation/1', rows, bars, rounds: [] }, options);
});
