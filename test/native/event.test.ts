import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  ended,
  expectErrno,
  expectInvalid,
  makeSegment,
  native,
  nextMessage,
  openFds,
  startProcess,
  startWorker,
} from './support.js';

const O_RDONLY = 0;
const O_RDWR = 2;
const O_CREAT = 0o100;
const O_EXCL = 0o200;
let folder: string;
let before: Set<string>;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-event-'));
});
afterAll(() => rmSync(folder, { recursive: true }));
beforeEach(() => {
  before = openFds();
});
afterEach(() => expect(openFds()).toEqual(before));

/** Lets Node's loop turn until `condition` holds. */
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve));
}

describe('files', () => {
  test('open, allocate, truncate, stat, duplicate, close', () => {
    const path = join(folder, 'file');
    const fd = native.fileOpen(path, O_RDWR | O_CREAT | O_EXCL, 0o640);
    expectErrno(() => native.fileOpen(path, O_RDWR | O_CREAT | O_EXCL, 0o640), 'EEXIST');
    native.fileTruncate(fd, 12345);
    expect(native.fileStat(fd)[1]).toBe(12345);
    native.fileAllocate(fd, 0, 0, 65536);
    const copy = native.fileDuplicate(fd);
    expect(copy).not.toBe(fd);
    const expected = statSync(path);
    const [mode, bytes, blockBytes, memoryAlign, offsetAlign, device, inode] =
      native.fileStat(copy);
    expect([mode, bytes, blockBytes, device, inode]).toEqual([
      expected.mode,
      65536,
      expected.blksize,
      expected.dev,
      expected.ino,
    ]);
    for (const align of [memoryAlign!, offsetAlign!]) expect(Math.log2(align || 1) % 1).toBe(0);
    native.fileClose(fd);
    expectErrno(() => native.fileStat(fd), 'EBADF');
    native.fileClose(copy);
  });

  test('a descriptor that is not the environment’s own is not closed', async () => {
    const foreign = openSync(folder, O_RDONLY);
    expectErrno(() => native.fileClose(foreign), 'EBADF');
    expect(native.fileStat(foreign)[6]).toBe(statSync(folder).ino);
    closeSync(foreign);
    const mine = native.eventfdCreate();
    const worker = startWorker(
      `try { native.fileClose(workerData); } catch (e) { parentPort.postMessage(e.code); }`,
      mine,
    );
    expect(await nextMessage<string>(worker)).toBe('EBADF');
    await worker.terminate();
    native.fileClose(mine);
    expectErrno(() => native.fileClose(mine), 'EBADF');
  });

  test('refuse paths and sizes that cannot be', () => {
    expectInvalid(() => native.fileOpen('', O_RDONLY, 0));
    expectInvalid(() => native.fileOpen('a\0b', O_RDONLY, 0));
    expectInvalid(() => native.fileOpen('x'.repeat(5000), O_RDONLY, 0));
    expectInvalid(() => native.fileOpen(folder, -1, 0));
    expectInvalid(() => native.fileOpen(folder, O_RDONLY, 0o10000));
    expectInvalid(() => native.fileAllocate(0, 0, 0, 0));
    expectInvalid(() => native.fileTruncate(0, -1));
    expectErrno(() => native.fileOpen(join(folder, 'none'), O_RDONLY, 0), 'ENOENT');
  });

  test('only a block device has a geometry', () => {
    const fd = native.fileOpen(folder, O_RDONLY, 0);
    expectErrno(() => native.blockGeometry(fd), 'ENOTBLK');
    native.fileClose(fd);
  });
});

describe('counters', () => {
  test('an eventfd counts its signals', () => {
    const fd = native.eventfdCreate();
    expect(native.eventfdDrain(fd)).toBe(0);
    native.eventfdSignal(fd);
    native.eventfdSignal(fd);
    expect(native.eventfdDrain(fd)).toBe(2);
    expect(native.eventfdDrain(fd)).toBe(0);
    native.fileClose(fd);
  });

  test('a timer fires once, by interval, or not at all', () => {
    const fd = native.timerfdCreate();
    expect(native.timerfdDrain(fd)).toBe(0);
    native.timerfdSet(fd, 1_000_000, 0);
    expect(native.park(Int32Array.of(fd), 5_000_000)).toBe(0);
    expect(native.timerfdDrain(fd)).toBe(1);
    expect(native.park(Int32Array.of(fd), 3000)).toBe(-1);
    native.timerfdSet(fd, 1, 1_000_000);
    let count = 0;
    while (count < 5) {
      expect(native.park(Int32Array.of(fd), 5_000_000)).toBe(0);
      count += native.timerfdDrain(fd);
    }
    native.timerfdSet(fd, 0, 1_000_000);
    native.timerfdDrain(fd);
    expect(native.park(Int32Array.of(fd), 5000)).toBe(-1);
    native.fileClose(fd);
  });

  test('nothing is written to or read from what is no counter', () => {
    const path = join(folder, 'no-counter');
    writeFileSync(path, 'untouched');
    const file = native.fileOpen(path, O_RDWR, 0);
    const [a, b] = native.unixPair();
    for (const fd of [file, a]) {
      expectErrno(() => native.eventfdSignal(fd), 'EINVAL');
      expectErrno(() => native.eventfdDrain(fd), 'EINVAL');
    }
    expect(native.unixReceive(b, new Uint8Array(8))).toBeNull();
    expect(statSync(path).size).toBe(9);
    expectErrno(() => native.timerfdSet(file, 1, 0), 'EINVAL');
    for (const fd of [file, a, b]) native.fileClose(fd);
  });

  test('another environment’s eventfd can be signalled', async () => {
    const fd = native.eventfdCreate();
    const worker = startWorker(`native.eventfdSignal(workerData);`, fd);
    expect(await ended(worker)).toBe(0);
    expect(native.eventfdDrain(fd)).toBe(1);
    native.fileClose(fd);
  });
});

describe('processes', () => {
  test('a pidfd tells when a child ends, and signals it', async () => {
    const child = startProcess(`process.stdout.write('up'); process.stdin.resume();`);
    await once(child.stdout, 'data');
    const pidfd = native.pidfdOpen(child.pid!);
    expect(native.park(Int32Array.of(pidfd), 0)).toBe(-1);
    const exited = once(child, 'exit');
    let told = false;
    const watch = native.watchOpen(pidfd, () => {
      told = true;
      native.watchClose(watch);
    });
    native.watchSet(watch, true);
    native.pidfdSignal(pidfd, 15);
    expect(await exited).toEqual([null, 'SIGTERM']);
    await until(() => told);
    expectErrno(() => native.pidfdSignal(pidfd, 0), 'ESRCH');
    native.fileClose(pidfd);
    expectErrno(() => native.pidfdOpen(2 ** 31 - 1), 'ESRCH');
  });
});

describe('park', () => {
  test('gives the first ready descriptor, passes over negative ones, times out', () => {
    const [a, b] = [native.eventfdCreate(), native.eventfdCreate()];
    expect(native.park(Int32Array.of(a, b), 1000)).toBe(-1);
    native.eventfdSignal(b);
    expect(native.park(Int32Array.of(a, -1, b), -1)).toBe(2);
    native.eventfdSignal(a);
    expect(native.park(Int32Array.of(a, b), 0)).toBe(0);
    expect(native.park(new Int32Array(0), 1000)).toBe(-1);
    native.fileClose(a);
    native.fileClose(b);
    expectErrno(() => native.park(Int32Array.of(a), 0), 'EBADF');
  });

  test('waits for the whole of its timeout, longer than a slice too', () => {
    const start = process.hrtime.bigint();
    expect(native.park(Int32Array.of(-1), 450_000)).toBe(-1);
    expect(process.hrtime.bigint() - start >= 450_000_000n).toBe(true);
  });

  test('refuses to wait for ever for nothing', () => {
    expectInvalid(() => native.park(new Int32Array(0), -1));
    expectInvalid(() => native.park(Int32Array.of(-1), -1));
    expectInvalid(() => native.park(new Int32Array(65), 0));
  });

  test.each([
    ['park', `native.park(Int32Array.of(native.eventfdCreate()), -1);`],
    ['futexWait', `native.futexWait(workerData, 0, -1);`],
  ])('a worker blocked in %s can be terminated', async (_name, body) => {
    const segment = makeSegment();
    const worker = startWorker(`parentPort.postMessage(1); ${body}`, segment.address);
    await nextMessage(worker);
    expect(await worker.terminate()).toBe(1);
    native.segmentClose(segment.id);
  });
});

describe('futex', () => {
  test('wakes a worker that sleeps on a word of shared memory', async () => {
    const segment = makeSegment();
    segment.u32[3] = 7;
    const worker = startWorker(
      `parentPort.postMessage(0);
       parentPort.postMessage(native.futexWait(workerData, 7, 60e6));`,
      segment.address + 12,
    );
    await nextMessage(worker);
    const result = nextMessage<number>(worker);
    const end = ended(worker);
    let woken = 0;
    await until(() => {
      woken = native.futexWake(segment.address + 12, 1);
      return woken === 1;
    });
    expect(await result).toBe(0);
    await end;
    expect(native.futexWake(segment.address + 12, 1)).toBe(0);
    native.segmentClose(segment.id);
  });

  test('sees a changed value, times out, and wakes nobody for a count of 0', () => {
    const segment = makeSegment();
    segment.u32[0] = 0xfffffffe;
    expect(native.futexWait(segment.address, 1, -1)).toBe(1);
    expect(native.futexWait(segment.address, 0xfffffffe, 2000)).toBe(2);
    expect(native.futexWait(segment.address, 0xfffffffe, 0)).toBe(2);
    expect(native.futexWake(segment.address, 0)).toBe(0);
    expectInvalid(() => native.futexWait(segment.address + 2, 0, 0));
    native.segmentClose(segment.id);
    expectInvalid(() => native.futexWait(segment.address, 0, 0));
    expectInvalid(() => native.futexWake(0, 1));
  });
});

describe('watches', () => {
  test('call back while active, level triggered, and never when stopped', async () => {
    const fd = native.eventfdCreate();
    let calls = 0;
    const watch = native.watchOpen(fd, () => {
      calls++;
      if (calls % 3 === 0) native.eventfdDrain(fd);
    });
    native.eventfdSignal(fd);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(calls).toBe(0);
    native.watchSet(watch, true);
    native.watchSet(watch, true);
    await until(() => calls === 3);
    native.eventfdSignal(fd);
    await until(() => calls === 6);
    native.watchSet(watch, false);
    native.eventfdSignal(fd);
    await new Promise((resolve) => setTimeout(resolve, 5));
    expect(calls).toBe(6);
    native.watchClose(watch);
    expectInvalid(() => native.watchClose(watch));
    expectInvalid(() => native.watchSet(watch, true));
    native.fileClose(fd);
  });

  test('are one per descriptor, which stays open for them', async () => {
    const fd = native.eventfdCreate();
    const watch = native.watchOpen(fd, () => undefined);
    expectErrno(() => native.watchOpen(fd, () => undefined), 'EEXIST');
    expectErrno(() => native.fileClose(fd), 'EBUSY');
    native.watchClose(watch);
    native.watchClose(native.watchOpen(fd, () => undefined));
    native.fileClose(fd);
  });

  test('refuse what cannot be polled', () => {
    const path = join(folder, 'not-pollable');
    writeFileSync(path, '');
    const file = native.fileOpen(path, O_RDWR, 0);
    expectErrno(() => native.watchOpen(file, () => undefined), 'EPERM');
    native.fileClose(file);
    expectErrno(() => native.watchOpen(1 << 30, () => undefined), 'EBADF');
    expectInvalid(() => native.watchOpen(0, 5 as unknown as () => void));
  });

  test('keep a process alive only when active', async () => {
    const idle = startProcess(`
      native.watchOpen(native.eventfdCreate(), () => {});
      const watch = native.watchOpen(native.eventfdCreate(), () => {});
      native.watchSet(watch, true, true);`);
    expect(await once(idle, 'exit')).toEqual([0, null]);
    const busy = startProcess(`
      const fd = native.timerfdCreate();
      const watch = native.watchOpen(fd, () => {
        native.timerfdDrain(fd);
        native.watchSet(watch, false);
        process.stdout.write('fired');
      });
      native.watchSet(watch, true);
      native.timerfdSet(fd, 20e6, 0);
    `);
    const [output] = (await once(busy.stdout, 'data')) as [Buffer];
    expect(output.toString()).toBe('fired');
    expect(await once(busy, 'exit')).toEqual([0, null]);
  });

  test('an exception in the callback is uncaught, and the watch goes on', async () => {
    const child = startProcess(`
      const seen = [];
      const fd = native.eventfdCreate();
      process.on('uncaughtException', (error) => {
        seen.push(error.message);
        if (seen.length === 3) {
          native.watchClose(watch);
          process.stdout.write(seen.join());
        } else native.eventfdSignal(fd);
      });
      const watch = native.watchOpen(fd, () => {
        native.eventfdDrain(fd);
        throw new Error('e' + seen.length);
      });
      native.watchSet(watch, true);
      native.eventfdSignal(fd);
    `);
    const [output] = (await once(child.stdout, 'data')) as [Buffer];
    expect(output.toString()).toBe('e0,e1,e2');
    expect(await once(child, 'exit')).toEqual([0, null]);
  });

  test('run microtasks after the callback', async () => {
    const fd = native.eventfdCreate();
    const order: string[] = [];
    const watch = native.watchOpen(fd, () => {
      native.eventfdDrain(fd);
      void Promise.resolve().then(() => order.push('microtask'));
      setImmediate(() => order.push('immediate'));
      order.push('callback');
    });
    native.watchSet(watch, true);
    native.eventfdSignal(fd);
    await until(() => order.length === 3);
    expect(order).toEqual(['callback', 'microtask', 'immediate']);
    native.watchClose(watch);
    native.fileClose(fd);
  });
});

describe('workers', () => {
  const echo = `
    const [inbound, outbound] = workerData;
    let left = 100;
    const watch = native.watchOpen(inbound, () => {
      if (native.eventfdDrain(inbound) === 0) return;
      native.eventfdSignal(outbound);
      if (--left === 0) native.watchClose(watch);
    });
    native.watchSet(watch, true);
    parentPort.postMessage('ready');
  `;

  test('two workers play ping-pong by their watches', async () => {
    const [a, b] = [native.eventfdCreate(), native.eventfdCreate()];
    const workers = [startWorker(echo, [a, b]), startWorker(echo, [b, a])];
    const ends = workers.map(ended);
    await Promise.all(workers.map((worker) => nextMessage(worker)));
    native.eventfdSignal(a);
    expect(await Promise.all(ends)).toEqual([0, 0]);
    expect(native.eventfdDrain(a)).toBe(1);
    native.fileClose(a);
    native.fileClose(b);
  });

  test('a worker with live watches is terminated, its descriptors closed', async () => {
    for (let round = 0; round < 5; round++) {
      const worker = startWorker(`
        for (let i = 0; i < 20; i++) {
          const fd = native.eventfdCreate();
          const watch = native.watchOpen(fd, () => undefined);
          native.watchSet(watch, i % 2 === 0);
          if (i % 4 === 0) native.eventfdSignal(fd);
        }
        native.unixPair();
        parentPort.postMessage('ready');
      `);
      await nextMessage(worker);
      expect(openFds().size).toBeGreaterThan(before.size + 40);
      await worker.terminate();
      expect(openFds()).toEqual(before);
    }
  });

  test('a worker that just ends closes its descriptors', async () => {
    const worker = startWorker(`
      native.fileOpen('/dev/null', 0, 0);
      native.timerfdCreate();
      native.fileDuplicate(0);
      native.pidfdOpen(process.pid);
    `);
    expect(await ended(worker)).toBe(0);
    expect(openFds()).toEqual(before);
  });

  test('an environment that ends inside a callback is no harm', async () => {
    const worker = startWorker(`
      const fd = native.eventfdCreate();
      native.watchSet(native.watchOpen(fd, () => process.exit(7)), true);
      native.eventfdSignal(fd);
    `);
    expect(await ended(worker)).toBe(7);
  });
});
