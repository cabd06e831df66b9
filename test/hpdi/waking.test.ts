// Nobody who waits sleeps on what has happened already, and closing ends every wait.

import { afterEach, describe, expect, it } from 'vitest';
import { Adapter } from '../../lib/hpdi/adapter.js';
import { AttachedDriver } from '../../lib/hpdi/attached.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { PromiseQueue } from '../../lib/hpdi/promises.js';
import { Queue } from '../../lib/hpdi/queue.js';
import { Op, Status } from '../../lib/hpdi/records.js';
import { Liveness, Memory } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { open } from '../../lib/open.js';
import { completionAt, put } from '../support/requests.js';
import { HeldDriver, heldInfo } from './held.js';

/** Longer than anything here takes: a wait that lasts as long has missed its wake-up. */
const MISSED_MS = 10_000;
const FLUSH = { op: Op.FLUSH, tag: 7 };

const queues: Queue[] = [];
const memory = new Memory({ pageBytes: 4096 });

afterEach(async () => {
  for (const queue of queues.splice(0)) await queue.close();
  memory.close();
});

function rig(split = false): { driver: HeldDriver; queue: Queue } {
  const info = heldInfo({ maxTransferBlocks: 1 });
  const driver = new HeldDriver(info);
  const queue = new Queue(split ? new Adapter(driver, { info }, memory, 8) : driver, 8);
  queues.push(queue);
  return { driver, queue };
}

function submit(queue: Queue, request: Parameters<typeof put>[1]): void {
  expect(put(queue, request)).toBe(true);
  expect(queue.submit()).toBe(1);
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

describe('a wait that sleeps', () => {
  it('finds what completed at its submission', async () => {
    const { driver, queue } = rig();
    driver.isInstant = (op) => op === Op.FLUSH;
    submit(queue, { op: Op.READ, tag: 1, blocks: 1, address: 512 });
    const waiting = queue.wait(MISSED_MS);
    await turn();
    submit(queue, FLUSH);
    expect(await waiting).toBe(1);
    expect(completionAt(queue, 0).tag).toBe(7);
  });

  it('finds what the adapter refused meanwhile', async () => {
    const { queue } = rig(true);
    submit(queue, { op: Op.READ, tag: 1, blocks: 1, address: 512 });
    const waiting = queue.wait(MISSED_MS);
    await turn();
    submit(queue, { op: Op.COPY, tag: 2, blocks: 0, address: 0 });
    expect(await waiting).toBe(1);
    expect(completionAt(queue, 0)).toMatchObject({ tag: 2, code: Status.BAD_REQUEST });
  });

  it('finds what a drain brought', async () => {
    const { queue } = rig();
    submit(queue, FLUSH);
    const waiting = queue.wait(MISSED_MS);
    await turn();
    await queue.drain();
    expect(await waiting).toBe(1);
  });

  it('sleeps on the descriptor that tells, when its last look moved work to another', async () => {
    const { driver, queue } = rig();
    const first = driver.fd;
    const second = native.eventfdCreate();
    submit(queue, FLUSH);
    driver.onPoll = () => {
      if (driver.armed) driver.fd = second;
    };
    const waiting = queue.wait(MISSED_MS);
    await turn();
    driver.complete();
    expect(await waiting).toBe(1);
    native.fileClose(first);
  });

  it('is woken for each part of a split request', async () => {
    const { driver, queue } = rig(true);
    const buffer = memory.alloc(100 * 512);
    submit(queue, { op: Op.READ, tag: 3, blocks: 100, address: buffer.address });
    const waiting = queue.wait(MISSED_MS);
    let isOver = false;
    void waiting.finally(() => (isOver = true));
    while (!isOver) {
      // Nothing completes unless it will be heard of: an adapter that goes to sleep stays asleep.
      if (driver.armed && driver.held.length > 0) driver.complete();
      await turn();
    }
    expect(await waiting).toBe(1);
    expect(completionAt(queue, 0)).toMatchObject({ tag: 3, code: Status.OK });
    buffer.free();
  });

  it('hears of the next part when one completed while it armed', async () => {
    const { driver, queue } = rig(true);
    const buffer = memory.alloc(4 * 512);
    submit(queue, { op: Op.READ, tag: 3, blocks: 4, address: buffer.address });
    const arm = driver.arm.bind(driver);
    driver.arm = () => {
      // Before it is armed: no signal, and the look that finds it takes the arming back.
      if (driver.held.length === 4) driver.complete();
      arm();
    };
    const waiting = queue.wait(MISSED_MS);
    let isOver = false;
    void waiting.finally(() => (isOver = true));
    await turn();
    expect(driver.armed).toBe(true);
    while (!isOver) {
      if (driver.armed && driver.held.length > 0) driver.complete();
      await turn();
    }
    expect(await waiting).toBe(1);
    buffer.free();
  });

  it('takes a deadline beyond what a timer takes', async () => {
    const { driver, queue } = rig();
    const warnings: string[] = [];
    const listen = (warning: Error): number => warnings.push(warning.name);
    process.on('warning', listen);
    submit(queue, FLUSH);
    const waiting = queue.wait(2 ** 40);
    await turn();
    driver.complete();
    expect(await waiting).toBe(1);
    await turn();
    process.off('warning', listen);
    expect(warnings).not.toContain('TimeoutOverflowWarning');
    await expect(queue.wait(NaN)).rejects.toThrow(RangeError);
  });

  it('is the only one, also on a device that is polled', async () => {
    const { driver, queue } = rig();
    native.fileClose(driver.fd);
    driver.fd = -1;
    submit(queue, FLUSH);
    const waiting = queue.wait(MISSED_MS);
    await expect(queue.wait()).rejects.toThrow(/another wait/);
    driver.complete();
    expect(await waiting).toBe(1);
  });
});

describe('park', () => {
  it('finds what completed while the adapter armed', () => {
    const { driver, queue } = rig(true);
    submit(queue, FLUSH);
    const arm = driver.arm.bind(driver);
    driver.arm = () => {
      driver.complete(); // before it is armed: there is no signal
      arm();
    };
    expect(queue.park(-1)).toBe(1);
  });
});

describe('park on an attached queue', () => {
  it('sleeps until the device signals', () => {
    const { driver } = rig();
    const home = new Liveness();
    const queue = new Queue(new AttachedDriver(driver, home.index, home.serial, 8), 8);
    submit(queue, FLUSH);
    const arm = driver.arm.bind(driver);
    driver.arm = () => {
      arm();
      driver.complete();
      // One look comes between arming and sleeping; what it brings ends the sleep before it begins.
    };
    expect(queue.park(-1)).toBe(1);
    expect(driver.armed).toBe(false);
    home.close();
    expect(put(queue, FLUSH)).toBe(true);
    queue.submit();
    expect(queue.park(-1)).toBe(1);
    expect(completionAt(queue, 0).code).toBe(Status.DEVICE_GONE);
  });
});

describe('closing', () => {
  it('is over for everybody when it is over', async () => {
    const { driver, queue } = rig();
    let finish = (): void => undefined;
    driver.onClose = () => new Promise((resolve) => (finish = resolve));
    let over = 0;
    const both = [queue.close(), queue.close()];
    for (const close of both) void close.then(() => over++);
    await turn();
    expect(over).toBe(0);
    finish();
    await Promise.all(both);
  });

  it('goes on when a part of it fails, and tells the first failure', async () => {
    const driver = new HeldDriver();
    let closed = 0;
    const backend: Backend = {
      uri: 'held:',
      scheme: 'held',
      info: driver.info,
      openQueue: () => driver,
      share: () => null,
      explainDetail: () => '',
      close: async () => {
        closed++;
      },
    };
    driver.onClose = () => Promise.reject(new Error('first'));
    const device = new BlockDevice(backend, null, memory);
    device.queue({ depth: 4 });
    device.queue({ depth: 4 });
    await expect(device.close()).rejects.toThrow('first');
    expect(closed).toBe(1);
    native.fileClose(driver.fd);
  });

  it('makes an end of what is stuck in the device', async () => {
    const device = await open('ram:1MiB?fault.stuck=1');
    const buffer = device.memory.alloc(512);
    const outcomes = Promise.allSettled([device.read(0, buffer), device.flush()]);
    await device.close();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'TIMED_OUT' } });
    }
    buffer.free();
  });
});

describe('promises', () => {
  const failed = (status: number): Error => new Error(`status ${status & 0xff}`);
  const flush = { word: Op.FLUSH, blocks: 0, lba: 0, address: 0 };

  it('are pumped when begun in the very turn in which the last one settled', async () => {
    const { driver, queue } = rig();
    driver.isInstant = () => true;
    const promises = new PromiseQueue(queue);
    for (let i = 0; i < 3; i++) await promises.run(flush, failed);
    expect(driver.held).toEqual([]);
  });

  it('reject when the queue is closed under them', async () => {
    const { queue } = rig();
    const promises = new PromiseQueue(queue);
    const outcomes = Promise.allSettled(
      Array.from({ length: 20 }, () => promises.run(flush, failed)),
    );
    await turn();
    await queue.close();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ reason: { message: `status ${Status.ABORTED}` } });
    }
  });

  it('keep the first failure of a driver, whatever follows from it', async () => {
    const { driver, queue } = rig();
    const promises = new PromiseQueue(queue);
    const first = promises.run(flush, failed);
    await turn();
    const submitted = driver.submit.bind(driver);
    driver.submit = () => {
      throw new Error('broken');
    };
    const second = promises.run(flush, failed);
    for (const one of await Promise.allSettled([first, second])) {
      expect(one).toMatchObject({ reason: { message: `status ${Status.DEVICE_GONE}` } });
    }
    driver.submit = submitted;
    driver.complete();
    await turn();
    await turn();
    await expect(promises.run(flush, failed)).rejects.toMatchObject({
      code: 'DEVICE_FAILED',
      cause: expect.objectContaining({ message: 'broken' }),
    });
  });

  it('are served in the order in which they were begun', async () => {
    const { driver, queue } = rig();
    driver.isInstant = () => true;
    const promises = new PromiseQueue(queue);
    const order: number[] = [];
    const all = Array.from({ length: 100 }, (_, i) =>
      promises.run(flush, failed).then(() => order.push(i)),
    );
    await Promise.all(all);
    expect(order).toEqual(Array.from({ length: 100 }, (_, i) => i));
  });
});
