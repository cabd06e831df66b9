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
  const collections: number[] = [];
  const observer = new PerformanceObserver((list) => {
    for (const { startTime } of list.getEntries()) collections.push(startTime);
  });
  observer.observe({ entryTypes: ['gc'] });
  await sleep(50);
  const before = usedHeap();
  const start = performance.now();
  work();
  const end = performance.now();
  const heapGrowthBytes = usedHeap() - before;
  // Entries come later. V8 collects in idle time, too, which is not the work's doing.
  await sleep(50);
  observer.disconnect();
  const gcCount = collections.filter((at) => at >= start && at < end).length;
  return { heapGrowthBytes, gcCount, elapsedMs: end - start };
}

function usedHeap(): number {
  return getHeapStatistics().used_heap_size;
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
