// What every soak stands on: a seeded source of choices, the loop over rounds, its report, and a
// watchdog that ends a run in which nothing moves any more.

import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';

/** A run under way; `round` gives how many units (rounds, records, operations) it did. */
export interface SoakRun {
  round(index: number): Promise<number>;
  /** Ends the run, also after a failure, and checks what must be as it was before. */
  finish(): Promise<void>;
}

export interface Soak {
  /** Units of a full run. */
  readonly full: number;
  /** What is counted. */
  readonly unit: string;
  start(random: Random): Promise<SoakRun>;
}

export interface Limits {
  seed: number;
  units: number;
  seconds: number;
}

const STALL_MS = 60_000;
const PROGRESS_MS = 5_000;

/** 32-bit xorshift-multiply generator (splitmix32): small, seeded, good enough to choose by. */
export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = seed >>> 0;
  }

  u32(): number {
    this.state = (this.state + 0x9e3779b9) >>> 0;
    let z = this.state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return (z ^ (z >>> 16)) >>> 0;
  }

  /** An integer from 0 to n - 1. */
  below(n: number): number {
    return Math.floor((this.u32() / 2 ** 32) * n);
  }

  /** An integer from `min` to `max`. */
  between(min: number, max: number): number {
    return min + this.below(max - min + 1);
  }

  chance(probability: number): boolean {
    return this.u32() < probability * 2 ** 32;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)]!;
  }
}

/** Runs a soak and prints its result; the number of failures (0 or 1). */
export async function runSoak(name: string, soak: Soak, limits: Limits): Promise<number> {
  console.log(`${name}: seed ${limits.seed}, ${limits.units} ${soak.unit}`);
  const beat = watchdog(name, limits.seed);
  const until = performance.now() + limits.seconds * 1000;
  let units = 0;
  let failures = 0;
  let shownAt = performance.now();
  const startedAt = shownAt;
  let run: SoakRun | undefined;
  try {
    run = await soak.start(new Random(limits.seed));
    for (let round = 0; units < limits.units && performance.now() < until; round++) {
      units += await run.round(round);
      Atomics.add(beat.words, 0, 1);
      if (performance.now() - shownAt < PROGRESS_MS) continue;
      shownAt = performance.now();
      console.log(`${name}: ${units} of ${limits.units} ${soak.unit}`);
    }
  } catch (error) {
    failures = 1;
    console.log(`${name}: failed after ${units} ${soak.unit}:`, error);
  }
  try {
    await run?.finish();
  } catch (error) {
    failures = 1;
    console.log(`${name}: the end is not like the beginning:`, error);
  }
  await beat.stop();
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  console.log(`${name}: ${seconds} s`);
  if (failures > 0) {
    console.log(`repeat: npm run soak -- ${name} --seed ${limits.seed} --rounds ${limits.units}`);
  }
  console.log(`${name}: ${units} ${soak.unit}, ${failures} failures, seed ${limits.seed}`);
  return failures;
}

/** Kills this process when no round ends for a minute: a hang of this thread stops no other. */
function watchdog(name: string, seed: number): { words: Int32Array; stop: () => Promise<void> } {
  const words = new Int32Array(new SharedArrayBuffer(4));
  const code = `
    const { workerData } = require('node:worker_threads');
    const { writeSync } = require('node:fs');
    let seen = -1;
    setInterval(() => {
      const now = Atomics.load(workerData.words, 0);
      if (now === seen) {
        writeSync(2, workerData.text);
        process.kill(process.pid, 'SIGKILL');
      }
      seen = now;
    }, ${STALL_MS});`;
  const text = `${name}: nothing moved for ${STALL_MS / 1000} s, seed ${seed}\n`;
  const worker = new Worker(code, { eval: true, workerData: { words, text } });
  worker.unref();
  return {
    words,
    stop: async () => {
      await worker.terminate();
    },
  };
}

export function check(good: boolean, what: string): asserts good {
  if (!good) throw new Error(what);
}

/** Rejects when the promise has not settled in time. */
export async function within<T>(ms: number, what: string, promise: Promise<T>): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * A folder of its own below the system's; it goes when the process ends, and it ends by any error.
 */
export function scratchFolder(): string {
  const path = mkdtempSync(join(tmpdir(), 'penstock-soak-'));
  process.on('exit', () => rmSync(path, { recursive: true, force: true }));
  return path;
}

export function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Waits until the condition holds. */
export async function until(
  what: string,
  holds: () => boolean,
  ms = 10_000,
  why = () => '',
): Promise<void> {
  const end = performance.now() + ms;
  while (!holds()) {
    if (performance.now() > end) throw new Error(`${what}: not within ${ms} ms ${why()}`);
    await sleep(5);
  }
}

/** What a soak leaves behind shows here: descriptors, threads, free hugepages. */
export interface Footprint {
  /** What each open descriptor is. */
  descriptors: string[];
  kernelWorkers: number;
  hugepagesFree: number;
}

export function footprint(): Footprint {
  let kernelWorkers = 0;
  for (const thread of readdirSync('/proc/self/task')) {
    try {
      const name = readFileSync(`/proc/self/task/${thread}/comm`, 'utf8');
      if (name.startsWith('iou-')) kernelWorkers++;
    } catch (error) {
      // The thread ended between the list and the look.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
  return {
    descriptors: readdirSync('/proc/self/fd').map(describeDescriptor),
    kernelWorkers,
    hugepagesFree: hugepagesFree(),
  };
}

function describeDescriptor(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`).replace(/\d+/g, 'N');
  } catch (error) {
    // The one that the folder was listed by.
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    return 'closed';
  }
}

/** Kinds of descriptors of which there are more now. Node leaks some when a thread ends. */
export function descriptorsMore(before: Footprint, now: Footprint): string[] {
  const count = (list: string[], kind: string): number => list.filter((x) => x === kind).length;
  return [...new Set(now.descriptors)]
    .map((kind) => ({ kind, more: count(now.descriptors, kind) - count(before.descriptors, kind) }))
    .filter(({ kind, more }) => more > 0 && !/\.(js|json|node)$/.test(kind))
    .map(({ kind, more }) => `${more} more ${kind}`);
}

export function hugepagesFree(): number {
  const found = /^HugePages_Free:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'utf8'));
  return Number(found?.[1] ?? 0);
}
