import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { ended, expectErrno, expectInvalid, native, nextMessage, startWorker } from './support.js';

const flags = readFileSync('/proc/cpuinfo', 'utf8');
const steady = /\bconstant_tsc\b/.test(flags) && /\bnonstop_tsc\b/.test(flags);

describe('affinity', () => {
  test('is a thread’s own', async () => {
    const before = native.cpuAffinity();
    expect(before.length).toBeGreaterThan(0);
    expect(before.every((cpu, i) => Number.isInteger(cpu) && cpu > (before[i - 1] ?? -1))).toBe(
      true,
    );
    const last = before.at(-1)!;
    const worker = startWorker(
      `native.setCpuAffinity([workerData]); parentPort.postMessage(native.cpuAffinity());`,
      last,
    );
    expect(await nextMessage<number[]>(worker)).toEqual([last]);
    await worker.terminate();
    expect(native.cpuAffinity()).toEqual(before);
    native.setCpuAffinity(before);
    expect(native.cpuAffinity()).toEqual(before);
  });

  test('refuses nonsense', () => {
    expectInvalid(() => native.setCpuAffinity([]));
    expectInvalid(() => native.setCpuAffinity([-1]));
    expectInvalid(() => native.setCpuAffinity([8192]));
    expectInvalid(() => native.setCpuAffinity([0.5]));
    expectErrno(() => native.setCpuAffinity([8191]), 'EINVAL');
  });
});

function ticks(clock: { words: ArrayBuffer; read: () => void }): number {
  const words = new Uint32Array(clock.words);
  clock.read();
  return words[1]! * 2 ** 32 + words[0]!;
}

describe('time stamp counter', () => {
  test('ticks at the stated rate', async () => {
    const hertz = native.tscHertz();
    if (steady) expect(hertz).toBeGreaterThan(1e8);
    else expect(hertz).toBe(1e9);
    const clock = native.tscClock();
    const startNs = process.hrtime.bigint();
    const start = ticks(clock);
    await new Promise((resolve) => setTimeout(resolve, 50));
    const seconds = (ticks(clock) - start) / hertz;
    const wall = Number(process.hrtime.bigint() - startNs) / 1e9;
    expect(seconds).toBeLessThanOrEqual(wall * 1.001);
    expect(seconds).toBeGreaterThanOrEqual(0.049);
  });

  test('never runs backwards', () => {
    const clock = native.tscClock();
    let before = 0;
    for (let i = 0; i < 10000; i++) {
      const now = ticks(clock);
      expect(now >= before).toBe(true);
      before = now;
    }
  });

  test('is measured once for all threads', async () => {
    const body = `parentPort.postMessage(native.tscHertz());`;
    const workers = [startWorker(body), startWorker(body), startWorker(body)];
    const ends = workers.map(ended);
    const rates = await Promise.all(workers.map((worker) => nextMessage<number>(worker)));
    expect(rates).toEqual(rates.map(() => native.tscHertz()));
    await Promise.all(ends);
  });

  test('gives each clock words of its own, which outlive the clock’s function', () => {
    const [a, b] = [native.tscClock(), native.tscClock()];
    a.read();
    expect(new Uint32Array(a.words)).not.toEqual(new Uint32Array(2));
    expect(new Uint32Array(b.words)).toEqual(new Uint32Array(2));
    expect(a.words.byteLength).toBeGreaterThanOrEqual(8);
  });

  test('survives collection in either order', async () => {
    const worker = startWorker(`
      require('node:v8').setFlagsFromString('--expose-gc');
      const gc = require('node:vm').runInNewContext('gc');
      const reads = [], words = [];
      for (let i = 0; i < 2000; i++) {
        const clock = native.tscClock();
        if (i % 2) reads.push(clock.read); else words.push(new Uint32Array(clock.words));
      }
      setImmediate(() => {
        gc();
        setImmediate(() => {
          for (const read of reads) read();
          parentPort.postMessage(words.every((w) => w[0] === 0 && w[1] === 0));
        });
      });
    `);
    const end = ended(worker);
    expect(await nextMessage<boolean>(worker)).toBe(true);
    expect(await end).toBe(0);
  });
});

test('pause takes at most a million', () => {
  native.pause(0);
  native.pause(1000);
  expectInvalid(() => native.pause(1000001));
  expectInvalid(() => native.pause(-1));
});

test('two threads that poll on one processor have turns by yielding it', async () => {
  const words = new Int32Array(new SharedArrayBuffer(4));
  const [cpu] = native.cpuAffinity();
  // Without yielding, each of 2 × 3000 turns would last a scheduler's slice.
  const players = [0, 1].map((side) =>
    startWorker(
      `const { words, cpu, side } = workerData;
      native.setCpuAffinity([cpu]);
      for (let turn = 0; turn < 3000; turn++) {
        while ((Atomics.load(words, 0) & 1) !== side) native.yieldCpu();
        Atomics.add(words, 0, 1);
      }
      parentPort.postMessage(Atomics.load(words, 0));`,
      { words, cpu, side },
    ),
  );
  const ends = players.map(ended);
  await Promise.all(ends);
  expect(words[0]).toBe(6000);
});

test('the CPU time of a thread grows as it works, and is not the process’s', async () => {
  const [user, system] = native.threadCpuTime();
  let sum = 0;
  const start = process.cpuUsage();
  while (process.cpuUsage(start).user < 60_000) for (let i = 0; i < 1e5; i++) sum += i;
  expect(sum).toBeGreaterThan(0);
  const [userAfter, systemAfter] = native.threadCpuTime();
  expect(userAfter + systemAfter).toBeGreaterThan(user + system);
  const worker = startWorker(`parentPort.postMessage(native.threadCpuTime());`);
  const [otherUser, otherSystem] = await nextMessage<[number, number]>(worker);
  const whole = process.cpuUsage();
  expect(otherUser + otherSystem).toBeLessThan((whole.user + whole.system) * 1000);
  await worker.terminate();
});
