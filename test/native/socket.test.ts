import { once } from 'node:events';
import { closeSync, mkdtempSync, rmSync, statSync, writeFileSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { expectErrno, expectInvalid, native, openFds, startProcess } from './support.js';

const O_RDWR = 2;
let folder: string;
let before: Set<string>;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-socket-'));
});
afterAll(() => rmSync(folder, { recursive: true }));
beforeEach(() => {
  before = openFds();
});
afterEach(() => expect(openFds()).toEqual(before));

function isCloseOnExec(fd: number): boolean {
  const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1];
  return (Number.parseInt(flags ?? '', 8) & 0o2000000) !== 0;
}

function closeAll(...fds: readonly number[]): void {
  for (const fd of fds) native.fileClose(fd);
}

describe('a pair', () => {
  test('keeps message boundaries', () => {
    const [a, b] = native.unixPair();
    const data = new Uint8Array(100);
    expect(native.unixReceive(b, data)).toBeNull();
    expect(native.unixSend(a, Uint8Array.of(1, 2, 3), [])).toBe(3);
    expect(native.unixSend(a, Uint8Array.of(4), [])).toBe(1);
    expect(native.unixReceive(b, data)).toEqual({ bytes: 3, fds: [], truncated: false });
    expect([...data.subarray(0, 3)]).toEqual([1, 2, 3]);
    expect(native.unixReceive(b, data)).toEqual({ bytes: 1, fds: [], truncated: false });
    native.fileClose(a);
    expect(native.unixReceive(b, data)).toEqual({ bytes: 0, fds: [], truncated: false });
    expectErrno(() => native.unixSend(b, data, []), 'EPIPE');
    closeAll(b);
  });

  test('carries 64 descriptors, the same files, closed on exec', () => {
    const [a, b] = native.unixPair();
    const path = join(folder, 'file');
    writeFileSync(path, 'x');
    const file = native.fileOpen(path, O_RDWR, 0);
    const sent = Array.from({ length: 64 }, () => file);
    expect(native.unixSend(a, Uint8Array.of(9), sent)).toBe(1);
    const message = native.unixReceive(b, new Uint8Array(8))!;
    expect(message.fds).toHaveLength(64);
    for (const fd of message.fds) {
      expect(native.fileStat(fd)[6]).toBe(statSync(path).ino);
      expect(isCloseOnExec(fd)).toBe(true);
    }
    closeAll(...message.fds, file, a, b);
    expectErrno(() => native.fileClose(file), 'EBADF');
  });

  test('gives no descriptor of a message that was cut short', () => {
    const [a, b] = native.unixPair();
    const event = native.eventfdCreate();
    native.unixSend(a, new Uint8Array(10), [event, event]);
    const message = native.unixReceive(b, new Uint8Array(4));
    expect(message).toEqual({ bytes: 4, fds: [], truncated: true });
    closeAll(a, b, event);
  });

  test('says when it would block', () => {
    const [a, b] = native.unixPair();
    const data = new Uint8Array(4096);
    let sent = 0;
    while (native.unixSend(a, data, []) === data.length) sent++;
    expect(sent).toBeGreaterThan(0);
    expect(native.unixSend(a, data, [])).toBe(-1);
    for (let i = 0; i < sent; i++) expect(native.unixReceive(b, data)?.bytes).toBe(4096);
    expect(native.unixReceive(b, data)).toBeNull();
    closeAll(a, b);
  });

  test('names its maker as its peer', () => {
    const [a, b] = native.unixPair();
    const peer = native.unixPeer(a);
    expect(peer).toMatchObject({
      pid: process.pid,
      uid: process.getuid!(),
      gid: process.getgid!(),
    });
    expect(isCloseOnExec(peer.pidfd)).toBe(true);
    native.pidfdSignal(peer.pidfd, 0);
    closeAll(a, b, peer.pidfd);
  });

  test('refuses bad arguments and bad descriptors', () => {
    const [a, b] = native.unixPair();
    expectInvalid(() => native.unixSend(a, new Uint8Array(0), []));
    expectInvalid(() => native.unixReceive(a, new Uint8Array(0)));
    expectInvalid(() => native.unixSend(a, new Uint8Array(1), new Array<number>(65).fill(a)));
    expectInvalid(() => native.unixSend(a, new Uint8Array(1), [-1]));
    expectErrno(() => native.unixSend(a, new Uint8Array(1), [1 << 30]), 'EBADF');
    expectErrno(() => native.unixReceive(1 << 30, new Uint8Array(1)), 'EBADF');
    expectErrno(() => native.unixAccept(a), 'EINVAL');
    closeAll(a, b);
  });

  test('lets go of a view that a hostile list detaches', () => {
    const [a, b] = native.unixPair();
    const data = new Uint8Array(4096);
    const list: number[] = [];
    Object.defineProperty(list, 0, {
      enumerable: true,
      get: () => {
        structuredClone(data.buffer, { transfer: [data.buffer] });
        return a;
      },
    });
    expectInvalid(() => native.unixSend(a, data, list));
    closeAll(a, b);
  });
});

describe('listen and connect', () => {
  test.each([
    ['a path', () => join(folder, 'socket')],
    ['an abstract name', () => `\0penstock-${process.pid}`],
  ])('by %s, with credentials and a descriptor across', (_name, makePath) => {
    const path = makePath();
    const listener = native.unixListen(path, 0o600);
    expect(native.unixAccept(listener)).toBe(-1);
    const client = native.unixConnect(path);
    const served = native.unixAccept(listener);
    expect([listener, client, served].every(isCloseOnExec)).toBe(true);
    const peer = native.unixPeer(served);
    expect(peer.pid).toBe(process.pid);
    const event = native.eventfdCreate();
    native.unixSend(client, Uint8Array.of(1), [event]);
    const [received] = native.unixReceive(served, new Uint8Array(1))!.fds;
    native.eventfdSignal(received!);
    expect(native.eventfdDrain(event)).toBe(1);
    closeAll(received!, event, peer.pidfd, served, client, listener);
    expectErrno(() => native.unixConnect(path), 'ECONNREFUSED');
  });

  test('gives the file exactly the wanted mode', () => {
    for (const mode of [0o600, 0o666, 0o660]) {
      const path = join(folder, `mode-${mode}`);
      const listener = native.unixListen(path, mode);
      expect(statSync(path).mode & 0o777).toBe(mode);
      expectErrno(() => native.unixListen(path, mode), 'EADDRINUSE');
      closeAll(listener);
    }
  });

  test('refuses paths that no socket can have', () => {
    for (const path of ['', '\0', 'x'.repeat(108), 'a\0b', `\0${'x'.repeat(108)}`]) {
      expectInvalid(() => native.unixListen(path, 0o600));
      expectInvalid(() => native.unixConnect(path));
    }
    expectErrno(() => native.unixConnect(join(folder, 'nobody')), 'ENOENT');
    const longest = `\0${'x'.repeat(107)}`;
    closeAll(native.unixListen(longest, 0o600));
  });

  test('knows a peer in another process, and its death', async () => {
    const path = join(folder, 'peer');
    const listener = native.unixListen(path, 0o600);
    const child = startProcess(
      `native.unixConnect(process.argv[1]); process.stdout.write('in'); process.stdin.resume();`,
      path,
    );
    await once(child.stdout, 'data');
    const served = native.unixAccept(listener);
    const peer = native.unixPeer(served);
    expect(peer.pid).toBe(child.pid);
    expect(native.park(Int32Array.of(peer.pidfd), 0)).toBe(-1);
    const exited = once(child, 'exit');
    native.pidfdSignal(peer.pidfd, 9);
    expect(await exited).toEqual([null, 'SIGKILL']);
    expect(native.park(Int32Array.of(peer.pidfd), 5_000_000)).toBe(0);
    expect(native.unixReceive(served, new Uint8Array(1))).toMatchObject({ bytes: 0 });
    closeAll(served, peer.pidfd, listener);
  });
});

test('a descriptor that Node closed behind the addon’s back can come again', () => {
  const event = native.eventfdCreate();
  closeSync(event);
  const again = native.eventfdCreate();
  expect(again).toBe(event);
  closeAll(again);
});
