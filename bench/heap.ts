// What a stretch of hot loop costs the heap: growth in bytes, garbage collections, deoptimisations.

import { PerformanceObserver } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { getHeapStatistics, setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';

export const HEAP_GROWTH_MAX = 64 << 10;
export const OPERATIONS = 1e7;

export interface HeapCost {
  heapGrowthBytes: number;
  gcCount: number;
  elapsedMs: number;
}

/** Runs `work`, which must be synchronous, and gives what it allocated. */
export async function heapCost(work: () => void): Promise<HeapCost> {
  let gcCount = 0;
  const observer = new PerformanceObserver((list) => {
    gcCount += list.getEntries().length;
  });
  observer.observe({ entryTypes: ['gc'] });
  // What came before must not be counted: let its entries arrive first.
  await sleep(50);
  gcCount = 0;
  const before = getHeapStatistics().used_heap_size;
  const start = performance.now();
  work();
  const elapsedMs = performance.now() - start;
  const heapGrowthBytes = getHeapStatistics().used_heap_size - before;
  await sleep(50);
  observer.disconnect();
  return { heapGrowthBytes, gcCount, elapsedMs };
}

/** A full collection, so that what stands in the heap before a measurement is no garbage. */
export function collect(): void {
  setFlagsFromString('--expose-gc');
  const run = runInNewContext('gc') as () => void;
  run();
}

/** V8 prints one line for each deoptimisation from now on: for a child whose output is read. */
export function traceDeoptimisations(isOn: boolean): void {
  setFlagsFromString(isOn ? '--trace-deopt' : '--no-trace-deopt');
}

/** Names ('' for none) of the functions that deoptimised, from a traced process's output. */
export function deoptimised(output: string): string[] {
  const line = /^\[bailout \(.*?begin\. deoptimizing \S+ <JSFunction ?([^ >]*) \(sfi/gm;
  return [...output.matchAll(line)].map((match) => match[1] ?? '');
}
