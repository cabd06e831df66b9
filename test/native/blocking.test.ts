// Calls on threads of their own, the barrier, and VFIO's calls where there is no VFIO.

import { describe, expect, test } from 'vitest';
import { ended, expectErrno, expectInvalid, native, openFds, startWorker } from './support.js';

const RESET = 0;
const CLOSE = 1;

function whenReadable(fd: number): Promise<void> {
  return new Promise((resolve) => {
    const watch = native.watchOpen(fd, () => {
      native.watchClose(watch);
      resolve();
    });
    native.watchSet(watch, true);
  });
}

describe('a close on a thread of its own', () => {
  test('takes the descriptor at once and tells once when it is done', async () => {
    const before = openFds();
    const fd = native.eventfdCreate();
    const event = native.blockingStart(CLOSE, fd);
    expectErrno(() => native.fileClose(fd), 'EBADF');
    await whenReadable(event);
    expect(native.blockingResult(event)).toBe(0);
    expectErrno(() => native.blockingResult(event), 'EBADF');
    native.fileClose(event);
    expect(openFds()).toEqual(before);
  });

  test('is refused while the descriptor is watched, as a plain close is', () => {
    const fd = native.eventfdCreate();
    const watch = native.watchOpen(fd, () => undefined);
    expectErrno(() => native.blockingStart(CLOSE, fd), 'EBUSY');
    native.watchClose(watch);
    native.fileClose(fd);
  });

  test('goes on when the worker that started it ends', async () => {
    const before = openFds();
    const worker = startWorker(`
      for (let i = 0; i < 20; i++) native.blockingStart(1, native.eventfdCreate());
    `);
    await ended(worker);
    while (openFds().size > before.size) await new Promise((done) => setTimeout(done, 5));
    expect(openFds()).toEqual(before);
  });
});

test('what is no device is not reset, and what is not owned not closed', () => {
  const fd = native.eventfdCreate();
  const before = openFds();
  expectErrno(() => native.blockingStart(RESET, fd), 'EBADF');
  expectErrno(() => native.blockingStart(CLOSE, 4000), 'EBADF');
  expectErrno(() => native.blockingResult(fd), 'EBADF');
  expectInvalid(() => native.blockingStart(2, fd));
  expectInvalid(() => native.blockingStart(CLOSE, -1));
  expect(openFds()).toEqual(before);
  native.fileClose(fd);
});

test('the barrier works as often as it is asked for', () => {
  native.membarrier();
  native.membarrier();
});

describe('the calls of VFIO', () => {
  test('refuse descriptors that are not this environment’s', () => {
    for (const call of [
      () => native.vfioGroupStatus(4000),
      () => native.vfioGroupAttach(4000, 4001),
      () => native.vfioSetIommu(4000),
      () => native.vfioIommuInfo(4000),
      () => native.vfioMap(4000, 1),
      () => native.vfioUnmap(4000, 2 ** 36, 4096),
      () => native.vfioDeviceOpen(4000, '0000:00:00.0'),
      () => native.vfioDeviceInfo(4000),
      () => native.vfioRegionInfo(4000, 0),
      () => native.vfioIrqInfo(4000, 0),
      () => native.vfioSetIrqs(4000, 0, 0, []),
      () => native.vfioUnmaskIrq(4000, 0),
    ]) {
      expectErrno(call, 'EBADF');
    }
  });

  test('tell what they are called on that is no container, group or device', () => {
    const fd = native.eventfdCreate();
    const segment = native.segmentCreate(2 ** 21, 4096, 0);
    expectErrno(() => native.vfioGroupStatus(fd), 'ENOTTY');
    expectErrno(() => native.vfioIommuInfo(fd), 'ENOTTY');
    expectErrno(() => native.vfioMap(fd, segment), 'ENOTTY');
    expectErrno(() => native.vfioMap(fd, 0), 'EBADF');
    expectErrno(() => native.vfioUnmap(fd, 2 ** 36, 2 ** 21), 'ENOTTY');
    expectErrno(() => native.vfioSetIommu(fd), 'EOPNOTSUPP');
    // Only what vfioDeviceOpen gave is a device.
    expectErrno(() => native.vfioDeviceInfo(fd), 'EBADF');
    native.segmentClose(segment);
    native.fileClose(fd);
  });

  test('check their arguments', () => {
    const fd = native.eventfdCreate();
    expectInvalid(() => native.vfioGroupOpen(-1));
    expectInvalid(() => native.vfioGroupOpen(2 ** 31));
    expectInvalid(() => native.vfioMap(fd, -1));
    expectInvalid(() => native.vfioUnmap(fd, -1, 4096));
    expectInvalid(() => native.vfioUnmap(fd, 2 ** 44, 4096));
    expectInvalid(() => native.vfioUnmap(fd, 0, 0));
    expectInvalid(() => native.vfioDeviceOpen(fd, 'x'.repeat(65)));
    expectInvalid(() => native.vfioSetIrqs(fd, 0, 0, [-2]));
    expectInvalid(() => native.vfioSetIrqs(fd, 0, 0, new Array<number>(2049).fill(-1)));
    native.fileClose(fd);
  });
});
