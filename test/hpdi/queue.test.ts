// The queue's own promises, kept with a driver that does exactly what a test tells it.

import { afterEach, describe, expect, it } from 'vitest';
import { Cpl, Req } from '../../lib/hpdi/records.js';
import { Queue } from '../../lib/hpdi/queue.js';
import type { QueueDriver } from '../../lib/hpdi/driver.js';
import { native } from '../../lib/native.js';

class ScriptedDriver implements QueueDriver {
  readonly counters = { doorbells: 0, polls: 0 };
  /** Records taken at most per submit. */
  take = Infinity;
  /** Tags taken and not completed. */
  readonly held: number[] = [];
  /** Of those, how many the next polls may complete. */
  completable = 0;
  /** What happens when the queue arms: the moment between a look and a sleep. */
  onArm: () => void = () => undefined;
  readonly fd = native.eventfdCreate();
  armed = 0;
  closed = 0;

  submit(sq: Uint32Array, head: number, tail: number): number {
    const mask = sq.length / Req.words - 1;
    let taken = 0;
    for (let at = head; at !== tail && taken < this.take; at = (at + 1) | 0, taken++) {
      this.held.push(sq[(at & mask) * Req.words + Req.tag]!);
    }
    return taken;
  }

  poll(cq: Uint32Array, max: number): number {
    this.counters.polls++;
    const count = Math.min(max, this.completable, this.held.length);
    for (let i = 0; i < count; i++) cq[i * Cpl.words] = this.held.shift()!;
    this.completable -= count;
    return count;
  }

  complete(count: number): void {
    this.completable += count;
    native.eventfdSignal(this.fd);
  }

  arm(): void {
    this.armed++;
    native.eventfdDrain(this.fd);
    this.onArm();
  }

  eventFd(): number {
    return this.fd;
  }

  release(): boolean {
    return true;
  }

  drain(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    if (this.closed++ === 0) native.fileClose(this.fd);
    return Promise.resolve();
  }
}

const queues: Queue[] = [];

afterEach(async () => {
  for (const queue of queues.splice(0)) await queue.close();
});

function rig(depth = 8): { driver: ScriptedDriver; queue: Queue } {
  const driver = new ScriptedDriver();
  const queue = new Queue(driver, depth);
  queues.push(queue);
  return { driver, queue };
}

/** Reserves up to n records and numbers them from `tag` on. */
function fill(queue: Queue, n: number, tag = 0): number {
  const at = queue.tail;
  const granted = queue.reserve(n);
  for (let i = 0; i < granted; i++) {
    queue.sq[((at + i) & queue.mask) * Req.words + Req.tag] = tag + i;
  }
  return granted;
}

function tags(queue: Queue, count: number): number[] {
  return Array.from({ length: count }, (_, i) => queue.cq[i * Cpl.words]!);
}

describe('a queue', () => {
  it.each([0, 3, 1.5, -8, 2 ** 17, NaN])('of depth %d is refused', (depth) => {
    const driver = new ScriptedDriver();
    expect(() => new Queue(driver, depth)).toThrow(RangeError);
    native.fileClose(driver.fd);
  });

  it('grants no more than its depth, counting what is in flight and what is not taken', () => {
    const { driver, queue } = rig();
    expect(fill(queue, 100)).toBe(8);
    expect(queue.reserve(1)).toBe(0);
    driver.take = 5;
    expect(queue.submit()).toBe(5);
    expect(queue.inFlight).toBe(5);
    expect(queue.reserve(1)).toBe(0);
    driver.completable = 2;
    expect(queue.poll(8)).toBe(2);
    expect(fill(queue, 8, 8)).toBe(2);
    driver.take = Infinity;
    expect(queue.submit()).toBe(5);
    driver.completable = 8;
    expect(queue.poll(8)).toBe(8);
    expect(tags(queue, 8)).toEqual([2, 3, 4, 5, 6, 7, 8, 9]);
    expect(queue.inFlight).toBe(0);
  });

  it('keeps order and count over the wrap of its free-running indices', () => {
    const { driver, queue } = rig();
    queue.head = queue.tail = 0x7ffffffc;
    const seen: number[] = [];
    for (let tag = 0; tag < 40;) {
      tag += fill(queue, 3, tag);
      queue.submit();
      driver.completable = 3;
      seen.push(...tags(queue, queue.poll(8)));
    }
    expect(seen).toEqual(seen.map((_, i) => i));
    expect(queue.tail).toBeLessThan(0);
    expect(queue.reserve(100)).toBe(8);
  });

  it('polls no more than it is asked for, nor than it has room for', () => {
    const { driver, queue } = rig();
    fill(queue, 8);
    queue.submit();
    driver.completable = 8;
    expect(queue.poll(3)).toBe(3);
    expect(queue.poll(1000)).toBe(5);
    expect(queue.poll(8)).toBe(0);
  });
});

describe('wait', () => {
  it('gives 0 at once when nothing is in flight', async () => {
    const { queue } = rig();
    expect(await queue.wait()).toBe(0);
  });

  it('wakes by the descriptor', async () => {
    const { driver, queue } = rig();
    fill(queue, 2);
    queue.submit();
    setTimeout(() => driver.complete(2), 5);
    expect(await queue.wait()).toBe(2);
    expect(driver.armed).toBeGreaterThan(0);
  });

  it('finds what came between its last look and its sleep', async () => {
    const { driver, queue } = rig();
    fill(queue, 1);
    queue.submit();
    driver.onArm = () => {
      driver.completable = 1; // and no signal: only the look after arming can find it
    };
    expect(await queue.wait()).toBe(1);
  });

  it('gives 0 at its deadline and can wait again', async () => {
    const { driver, queue } = rig();
    fill(queue, 1);
    queue.submit();
    expect(await queue.wait(5)).toBe(0);
    expect(await queue.wait(0)).toBe(0);
    driver.complete(1);
    expect(await queue.wait(5000)).toBe(1);
  });

  it('refuses a second waiter, and does not lose the first', async () => {
    const { driver, queue } = rig();
    fill(queue, 1);
    queue.submit();
    const first = queue.wait();
    await expect(queue.wait()).rejects.toThrow(/another wait/);
    driver.complete(1);
    expect(await first).toBe(1);
  });

  it('ends when the queue is closed', async () => {
    const { driver, queue } = rig();
    fill(queue, 1);
    queue.submit();
    const waiting = queue.wait();
    await new Promise((resolve) => setTimeout(resolve, 5));
    await queue.close();
    expect(await waiting).toBe(0);
    expect(driver.closed).toBe(1);
  });
});

describe('park', () => {
  it('gives at once what is there, or 0 when nothing is in flight', () => {
    const { driver, queue } = rig();
    expect(queue.park(-1)).toBe(0);
    fill(queue, 1);
    queue.submit();
    driver.completable = 1;
    expect(queue.park(-1)).toBe(1);
    expect(driver.armed).toBe(0);
  });

  it('finds what came before its sleep, and what wakes it', () => {
    const { driver, queue } = rig();
    fill(queue, 2);
    queue.submit();
    driver.onArm = () => {
      driver.completable = 1;
    };
    expect(queue.park(-1)).toBe(1);
    driver.onArm = () => native.eventfdSignal(driver.fd);
    expect(queue.park(-1)).toBe(0); // signalled without a completion: the caller looks again
    driver.onArm = () => undefined;
    expect(queue.park(100)).toBe(0);
  });
});

describe('a closed queue', () => {
  it('takes nothing, gives nothing, and closes its driver once', async () => {
    const { driver, queue } = rig();
    fill(queue, 2);
    queue.submit();
    await queue.close();
    await queue.close();
    expect(driver.closed).toBe(1);
    driver.completable = 2;
    expect(queue.poll(8)).toBe(0);
    expect(queue.inFlight).toBe(0);
    expect(await queue.wait()).toBe(0);
    expect(queue.park(-1)).toBe(0);
    expect(() => queue.submit()).toThrow(/closed/);
  });
});
