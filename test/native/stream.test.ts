import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  ended,
  expectErrno,
  expectInvalid,
  native,
  nextMessage,
  openFds,
  startProcess,
  startWorker,
} from './support.js';

const O_RDWR = 2;
const SECOND_US = 1_000_000;
let folder: string;
let before: Set<string>;
let socketCount = 0;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-stream-'));
});
afterAll(() => rmSync(folder, { recursive: true }));
beforeEach(() => {
  before = openFds();
});
afterEach(() => expect(openFds()).toEqual(before));

/** Both ends of a connection. */
function connected(): [number, number] {
  const path = join(folder, `socket-${socketCount++}`);
  const listener = native.streamListen(path, 0o600);
  const client = native.streamConnect(path);
  const served = native.unixAccept(listener);
  native.fileClose(listener);
  return [client, served];
}

function closeAll(...fds: readonly number[]): void {
  for (const fd of fds) native.fileClose(fd);
}

function receive(fd: number, bytes: number, entries = 65, timeoutUs = SECOND_US) {
  const data = new Uint8Array(bytes);
  const fds = new Int32Array(entries);
  const received = native.streamReceive(fd, data, fds, timeoutUs);
  return {
    data: [...data],
    received,
    fds: [...fds.subarray(1, 1 + Math.max(0, fds[0]!))],
    fds0: fds[0],
  };
}

function isCloseOnExec(fd: number): boolean {
  const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1];
  return (Number.parseInt(flags ?? '', 8) & 0o2000000) !== 0;
}

describe('bytes', () => {
  test('come in the parts that are asked for', () => {
    const [a, b] = connected();
    native.streamSend(a, Uint8Array.of(1, 2, 3), [], 0);
    native.streamSend(a, Uint8Array.of(4, 5), [], 0);
    expect(receive(b, 4).data).toEqual([1, 2, 3, 4]);
    expect(receive(b, 1).data).toEqual([5]);
    closeAll(a, b);
  });

  test('are fewer at the end of the stream, and none after it', () => {
    const [a, b] = connected();
    native.streamSend(a, Uint8Array.of(1, 2, 3), [], 0);
    expect(native.streamUnread(a)).toBeGreaterThan(0);
    native.streamEnd(a);
    expect(receive(b, 8).received).toBe(3);
    expect(native.streamUnread(a)).toBe(0);
    expect(receive(b, 8).received).toBe(0);
    native.streamSend(b, Uint8Array.of(9), [], 0);
    expect(receive(a, 1).data).toEqual([9]);
    expectErrno(() => native.streamSend(a, Uint8Array.of(1), [], 0), 'EPIPE');
    closeAll(a, b);
  });

  test('that do not come in time are ETIMEDOUT', () => {
    const [a, b] = connected();
    expectErrno(() => receive(b, 1, 1, 0), 'ETIMEDOUT');
    native.streamSend(a, Uint8Array.of(1), [], 0);
    expectErrno(() => receive(b, 2, 1, 1000), 'ETIMEDOUT');
    expectErrno(() => native.streamSend(a, new Uint8Array(2 ** 22), [], 1000), 'ETIMEDOUT');
    closeAll(a, b);
  });

  test('may be more than a socket holds while the other end reads', async () => {
    const [a, b] = connected();
    const worker = startWorker(
      `const data = new Uint8Array(2 ** 22);
       const got = native.streamReceive(workerData, data, new Int32Array(1), 10_000_000);
       parentPort.postMessage([got, data.reduce((sum, byte) => sum + byte, 0)]);`,
      b,
    );
    const answer = nextMessage<[number, number]>(worker);
    await once(worker, 'online');
    native.streamSend(a, new Uint8Array(2 ** 22).fill(3), [], 10 * SECOND_US);
    expect(await answer).toEqual([2 ** 22, 3 * 2 ** 22]);
    await ended(worker);
    closeAll(a, b);
  });
});

describe('looking ahead', () => {
  const peek = (fd: number, bytes: number, timeoutUs = SECOND_US) => {
    const data = new Uint8Array(bytes);
    return [native.streamPeek(fd, data, timeoutUs), ...data];
  };

  test('takes nothing, no descriptors either', () => {
    const [a, b] = connected();
    const event = native.eventfdCreate();
    native.streamSend(a, Uint8Array.of(1, 2, 3), [event], 0);
    const fds = openFds();
    expect(peek(b, 2)).toEqual([2, 1, 2]);
    expect(peek(b, 3)).toEqual([3, 1, 2, 3]);
    expect(openFds()).toEqual(fds);
    const received = receive(b, 3);
    expect(received.data).toEqual([1, 2, 3]);
    closeAll(...received.fds, event, a, b);
  });

  test('waits for all of it, but not after the end', () => {
    const [a, b] = connected();
    expectErrno(() => peek(b, 1, 0), 'ETIMEDOUT');
    native.streamSend(a, Uint8Array.of(1), [], 0);
    expectErrno(() => peek(b, 2, 5000), 'ETIMEDOUT');
    native.streamEnd(a);
    expect(peek(b, 2)).toEqual([1, 1, 0]);
    expect(receive(b, 1).data).toEqual([1]);
    expect(peek(b, 2)).toEqual([0, 0, 0]);
    closeAll(a, b);
  });

  test('sees what comes in parts', async () => {
    const [a, b] = connected();
    const worker = startWorker(
      `for (const byte of [1, 2, 3]) {
         Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 20);
         native.streamSend(workerData, Uint8Array.of(byte), [], 0);
       }`,
      a,
    );
    expect(peek(b, 3, 20 * SECOND_US)).toEqual([3, 1, 2, 3]);
    await ended(worker);
    closeAll(a, b);
  });
});

describe('descriptors', () => {
  test('come with their bytes, the same files, closed on exec', () => {
    const [a, b] = connected();
    const path = join(folder, 'file');
    writeFileSync(path, 'x');
    const file = native.fileOpen(path, O_RDWR, 0);
    native.streamSend(a, Uint8Array.of(1, 2), new Array<number>(64).fill(file), 0);
    const { fds } = receive(b, 2);
    expect(fds).toHaveLength(64);
    for (const fd of fds) expect(native.fileStat(fd)[6]).toBe(statSync(path).ino);
    expect(fds.every(isCloseOnExec)).toBe(true);
    closeAll(...fds, file, a, b);
  });

  test('of several parts come together', () => {
    const [a, b] = connected();
    const event = native.eventfdCreate();
    native.streamSend(a, Uint8Array.of(1), [event], 0);
    native.streamSend(a, Uint8Array.of(2), [event, event], 0);
    const { fds, data } = receive(b, 2);
    expect(data).toEqual([1, 2]);
    expect(fds).toHaveLength(3);
    closeAll(...fds, event, a, b);
  });

  test('that do not fit are closed, all of them', () => {
    const [a, b] = connected();
    const event = native.eventfdCreate();
    native.streamSend(a, Uint8Array.of(1), [event], 0);
    native.streamSend(a, Uint8Array.of(2), [event, event], 0);
    expect(receive(b, 2, 3).fds0).toBe(-1);
    native.streamSend(a, Uint8Array.of(3), [event], 0);
    expect(receive(b, 1, 1).fds0).toBe(-1);
    closeAll(event, a, b);
  });

  test('of bytes that were cut short are closed', () => {
    const [a, b] = connected();
    const event = native.eventfdCreate();
    native.streamSend(a, Uint8Array.of(1), [event], 0);
    expectErrno(() => receive(b, 2, 65, 1000), 'ETIMEDOUT');
    native.streamSend(a, Uint8Array.of(1), [event], 0);
    native.streamEnd(a);
    expect(receive(b, 2)).toMatchObject({ received: 1, fds0: 0 });
    closeAll(event, a, b);
  });
});

test('a worker that waits can be terminated', async () => {
  const [a, b] = connected();
  const worker = startWorker(
    `parentPort.postMessage('waits');
     native.streamReceive(workerData, new Uint8Array(1), new Int32Array(1), 3_600_000_000);`,
    b,
  );
  await nextMessage(worker);
  await worker.terminate();
  closeAll(a, b);
});

test('a listener that others have filled says so', () => {
  const path = join(folder, 'full');
  const listener = native.streamListen(path, 0o600);
  const clients: number[] = [];
  const fill = () => {
    for (let i = 0; i < 10_000; i++) clients.push(native.streamConnect(path));
  };
  expectErrno(fill, 'EAGAIN');
  closeAll(...clients, listener);
});

test('the death of the other end is the end of the stream', async () => {
  const path = join(folder, 'peer');
  const listener = native.streamListen(path, 0o600);
  const child = startProcess(
    `native.streamConnect(process.argv[1]); process.stdout.write('in'); process.stdin.resume();`,
    path,
  );
  await once(child.stdout, 'data');
  const served = native.unixAccept(listener);
  const peer = native.unixPeer(served);
  expect(peer.pid).toBe(child.pid);
  const exited = once(child, 'close');
  native.pidfdSignal(peer.pidfd, 9);
  await exited;
  expect(receive(served, 1, 1, 10 * SECOND_US).received).toBe(0);
  closeAll(served, peer.pidfd, listener);
});

test('bad arguments and descriptors are refused', () => {
  const [a, b] = connected();
  const byte = new Uint8Array(1);
  const fds = new Int32Array(1);
  expectInvalid(() => native.streamSend(a, new Uint8Array(0), [], 0));
  expectInvalid(() => native.streamSend(a, byte, new Array<number>(65).fill(a), 0));
  expectInvalid(() => native.streamSend(a, byte, [-1], 0));
  expectInvalid(() => native.streamSend(a, byte, [], -1));
  expectInvalid(() => native.streamReceive(a, new Uint8Array(0), fds, 0));
  expectInvalid(() => native.streamReceive(a, byte, new Int32Array(0), 0));
  expectInvalid(() => native.streamReceive(a, byte, new Int32Array(66), 0));
  expectInvalid(() => native.streamConnect('x'.repeat(108)));
  expectErrno(() => native.streamConnect(join(folder, 'nobody')), 'ENOENT');
  expectErrno(() => native.streamSend(a, byte, [1 << 30], 0), 'EBADF');
  expectErrno(() => native.streamReceive(1 << 30, byte, fds, 0), 'EBADF');
  expectErrno(() => native.streamEnd(1 << 30), 'EBADF');
  closeAll(a, b);
});
