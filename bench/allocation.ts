// What 10^7 operations allocate, for each driver through the one hot loop, and 10^7 records of a
// channel between domains: heap growth below 64 KiB and no garbage collection. Records of a channel
// whose reader is awake make no call out of JavaScript either, and nothing is compiled again.

import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { runMetered } from './baseline.js';
import { openLoop, fiveDrivers, tscClock, warmUp } from './five-drivers.js';
import {
  collect,
  deoptimised,
  heapCost,
  HEAP_GROWTH_MAX,
  OPERATIONS,
  traceDeoptimisations,
  type HeapCost,
} from './heap.js';
import { openRecordLoop } from './idc-records.js';
import { atMost, finish, parseOptions, program, type Bar } from './report.js';

const DEPTH = 128;
const WARM_UP_OPERATIONS = 2_000_000;
const RECORD_BATCH = 64;
const CHILD_FLAG = '--records';
const RESULT_MARK = 'RESULT ';

interface ChildResult extends HeapCost {
  wrong: number;
  wakes: number;
}

async function recordsChild(): Promise<void> {
  const loop = openRecordLoop(RECORD_BATCH);
  try {
    const warmUp = (): void => {
      for (let i = 0; i < 20; i++) loop.run(WARM_UP_OPERATIONS / 20);
    };
    warmUp();
    collect();
    // What was let go of is compiled again, on other threads: it must not land in the measurement.
    for (let i = 0; i < 4; i++) {
      warmUp();
      await sleep(100);
    }
    traceDeoptimisations(true);
    // V8 does something of its own now and then; what records cost is there every time.
    const costs: HeapCost[] = [];
    for (let i = 0; i < 3; i++) costs.push(await heapCost(() => loop.run(OPERATIONS)));
    traceDeoptimisations(false);
    const cost = costs.sort((a, b) => a.heapGrowthBytes - b.heapGrowthBytes)[1]!;
    const gcCount = Math.max(...costs.map((each) => each.gcCount));
    const result: ChildResult = { ...cost, gcCount, wrong: loop.wrong, wakes: loop.wakes };
    console.log(`${RESULT_MARK}${JSON.stringify(result)}`);
  } finally {
    loop.close();
  }
}

/** In a process of its own: deoptimisations are read from what it prints. */
async function measureRecords(): Promise<{ row: Record<string, string | number>; bars: Bar[] }> {
  const self = fileURLToPath(import.meta.url);
  const { stdout } = await runMetered(process.execPath, [self, CHILD_FLAG]);
  const at = stdout.indexOf(RESULT_MARK) + RESULT_MARK.length;
  const cost = JSON.parse(stdout.slice(at, stdout.indexOf('\n', at))) as ChildResult;
  if (cost.wrong > 0) throw new Error(`channel: ${cost.wrong} records were wrong`);
  const deopts = deoptimised(stdout).length;
  return {
    row: {
      driver: 'channel',
      'heap growth, bytes': cost.heapGrowthBytes,
      'gc entries': cost.gcCount,
      'ns/IO': (cost.elapsedMs * 1e6) / OPERATIONS,
    },
    bars: [
      atMost(
        'channel: heap growth over 10^7 records, bytes',
        cost.heapGrowthBytes,
        HEAP_GROWTH_MAX,
      ),
      atMost('channel: gc entries over 10^7 records', cost.gcCount, 0),
      atMost('channel: deoptimisations over 10^7 records', deopts, 0),
      atMost('channel: native calls over 10^7 records', cost.wakes, 0),
    ],
  };
}

async function main(): Promise<void> {
  const options = parseOptions({ rounds: 1, runtime: 1 });
  const clock = tscClock();
  await warmUp(clock, DEPTH, options.folder || undefined);
  const rows: Record<string, string | number>[] = [];
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
  const records = await measureRecords();
  rows.push(records.row);
  bars.push(...records.bars);
  finish({ schema: 'penstock.bench.allocation/1', rows, bars, rounds: [] }, options);
}

await program(() => (process.argv.includes(CHILD_FLAG) ? recordsChild() : main()));
