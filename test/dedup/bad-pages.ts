// A device with pages that it cannot read before they are written again.

import { BlockDevice, Cpl, Op, Req, Status, type Backend } from '../../lib/hpdi/index.js';
import type { QueueDriver, QueueOptions } from '../../lib/hpdi/driver.js';
import { PAGE } from './contents.js';

/** A device over a memory that outlives it; reads of pages in `bad` are MEDIA_ERROR. */
export function withBadPages(ram: Backend, bad: Set<number>): BlockDevice {
  const inner = Object.create(ram) as Backend;
  inner.close = async () => {};
  inner.openQueue = (options) => queueOf(ram, options, bad);
  return new BlockDevice(inner);
}

function queueOf(ram: Backend, options: QueueOptions, bad: Set<number>): QueueDriver {
  const driver = ram.openQueue(options);
  const failing = new Set<number>();
  const perPage = PAGE / ram.info.blockSize;
  const look = (sq: Uint32Array, at: number): void => {
    const op = sq[at]! & 0xff;
    if (op !== Op.READ && op !== Op.WRITE) return;
    const first = Math.floor(sq[at + Req.lbaLo]! / perPage);
    const end = (sq[at + Req.lbaLo]! + sq[at + Req.blocks]!) / perPage;
    for (let page = first; page < end; page++) {
      if (op === Op.WRITE) bad.delete(page);
      else if (bad.has(page)) failing.add(sq[at + Req.tag]!);
    }
  };
  const wrapped: Partial<QueueDriver> = {
    submit: (sq, head, tail) => {
      const taken = driver.submit(sq, head, tail);
      const mask = sq.length / Req.words - 1;
      for (let i = 0; i < taken; i++) look(sq, ((head + i) & mask) * Req.words);
      return taken;
    },
    poll: (cq, max) => {
      const count = driver.poll(cq, max);
      for (let i = 0; i < count; i++) {
        const at = i * Cpl.words;
        if (failing.delete(cq[at + Cpl.tag]!)) cq[at + Cpl.status] = Status.MEDIA_ERROR;
      }
      return count;
    },
  };
  return new Proxy(driver, {
    get: (target, key): unknown => {
      const own = wrapped[key as keyof QueueDriver] ?? target[key as keyof QueueDriver];
      return typeof own === 'function' ? own.bind(target) : own;
    },
  });
}
