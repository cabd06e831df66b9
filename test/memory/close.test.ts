// Closing never unmaps under a view, and a view never sees memory that is someone else's.

import { readdirSync, readlinkSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { childResult, nextMessage, startWorker } from '../fault/child.js';

const opened: Segment[] = [];

afterEach(() => {
  while (opened.length > 0) opened.pop()!.close();
});

function make(bytes = GRANULE_BYTES): Segment {
  const segment = addressSpace().create(bytes, { pageBytes: 4096 });
  opened.push(segment);
  return segment;
}

describe('a view of a closed segment', () => {
  it('reads zeros, and what it writes reaches nobody', () => {
    const first = make();
    first.u8.fill(0x11);
    const stale = first.u8;
    first.close();
    expect(stale.findIndex((byte) => byte !== 0)).toBe(-1);
    const later = Array.from({ length: 16 }, () => make());
    for (const segment of later) {
      expect(segment.address).not.toBe(first.address);
      segment.u8.fill(0x22);
    }
    stale.fill(0x33);
    for (const segment of later) {
      expect(segment.u8.findIndex((byte) => byte !== 0x22)).toBe(-1);
    }
    expect(stale[GRANULE_BYTES - 1]).toBe(0x33);
  });

  it('is refused by native code at once', () => {
    const segment = make();
    const other = make();
    const [lo, hi] = [segment.address >>> 0, Math.floor(segment.address / 2 ** 32)];
    const entry = Uint32Array.of(lo, hi, other.address >>> 0, hi, 64, 0, 0, 0);
    expect(native.copyList(entry, 1)).toBe(1);
    segment.close();
    expect(native.copyList(entry, 1)).toBe(0);
  });

  it('may be closed twice', () => {
    const segment = make();
    segment.close();
    segment.close();
    expect(segment.closed).toBe(true);
  });
});

describe('an address range', () => {
  it('is used again only when no ArrayBuffer over it is left in any environment', async () => {
    const result = await childResult(
      `
      const collect = async () => {
        for (let i = 0; i < 5; i++) { gc(); await new Promise((r) => setTimeout(r, 5)); }
      };
      const space = lib.addressSpace();
      let segment = space.create(1, { pageBytes: 4096 });
      const { address } = segment;
      const worker = startWorker(\`
        let view = lib.addressSpace().find(workerData).u8;
        parentPort.on('message', async () => {
          view = null;
          lib.addressSpace().find(workerData); // learns that it is closed
          for (let i = 0; i < 5; i++) { gc(); await new Promise((r) => setTimeout(r, 5)); }
          parentPort.postMessage('gone');
        });
        parentPort.postMessage('holding');
      \`, address);
      await nextMessage(worker);
      segment.close();
      segment = null;
      const reused = () => {
        const made = Array.from({ length: 4 }, () => space.create(1, { pageBytes: 4096 }));
        const again = made.some((one) => one.address === address);
        for (const one of made) one.close();
        return again;
      };
      await collect();
      const whileHeld = reused();
      worker.postMessage('let go');
      await nextMessage(worker);
      await collect();
      const afterwards = reused();
      await worker.terminate();
      console.log(JSON.stringify({ whileHeld, afterwards }));
    `,
      { nodeOptions: ['--expose-gc'] },
    );
    expect(result).toEqual({ whileHeld: false, afterwards: true });
  });

  it('comes back when the worker that held a view ends', async () => {
    const result = await childResult(
      `
      const space = lib.addressSpace();
      let segment = space.create(1, { pageBytes: 4096 });
      segment.u8.fill(9);
      const { address } = segment;
      const worker = startWorker(\`
        globalThis.view = lib.addressSpace().find(workerData).u8;
        parentPort.on('message', () => undefined);
        parentPort.postMessage('holding');
      \`, address);
      await nextMessage(worker);
      segment.close();
      segment = null;
      await worker.terminate();
      for (let i = 0; i < 5; i++) { gc(); await new Promise((r) => setTimeout(r, 5)); }
      const again = space.create(1, { pageBytes: 4096 });
      console.log(JSON.stringify({ same: again.address === address, byte: again.u8[0] }));
    `,
      { nodeOptions: ['--expose-gc'] },
    );
    expect(result).toEqual({ same: true, byte: 0 });
  });

  it('stays what it is under four workers that read while segments close and open', async () => {
    const control = new Int32Array(new SharedArrayBuffer(4));
    const victims = Array.from({ length: 8 }, () => make());
    for (const victim of victims) victim.u32.fill(0x600d600d);
    const body = `
      const control = new Int32Array(workerData.control);
      const views = workerData.addresses.map((address) => lib.addressSpace().find(address).u32);
      parentPort.postMessage('ready');
      let foreign = 0, zeros = 0, rounds = 0;
      while (Atomics.load(control, 0) === 0) {
        for (const view of views) {
          for (let i = 0; i < view.length; i += 1021) {
            const word = view[i];
            if (word === 0) zeros++;
            else if (word !== 0x600d600d) foreign++;
          }
        }
        rounds++;
      }
      parentPort.postMessage({ foreign, zeros, rounds });
    `;
    const data = { control: control.buffer, addresses: victims.map((one) => one.address) };
    const workers = Array.from({ length: 4 }, () => startWorker(body, data));
    await Promise.all(workers.map((worker) => nextMessage(worker)));
    for (const victim of victims) {
      victim.close();
      for (let i = 0; i < 8; i++) {
        const other = make();
        other.u32.fill(0xbadbad00);
        if (i % 2 === 0) other.close();
      }
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const answers = workers.map((worker) =>
      nextMessage<{ foreign: number; zeros: number; rounds: number }>(worker),
    );
    Atomics.store(control, 0, 1);
    for (const { foreign, zeros, rounds } of await Promise.all(answers)) {
      expect(foreign).toBe(0);
      expect(zeros).toBeGreaterThan(0);
      expect(rounds).toBeGreaterThan(0);
    }
  });
});

describe('the end of an environment', () => {
  it('closes its segments, its descriptors and its liveness word', async () => {
    const fds = openFds();
    const worker = startWorker(`
      const space = lib.addressSpace();
      const segments = [1, 2, 3].map(() => space.create(1, { kind: 'shared', pageBytes: 4096 }));
      const liveness = new lib.Liveness();
      const ring = lib.Ring.open({ entries: 4 });
      parentPort.postMessage({
        ids: segments.map((one) => one.id), address: segments[0].address,
        fds: [...segments.map((one) => one.descriptor()), lib.native.eventfdCreate(), ring.fd],
        index: liveness.index, serial: liveness.serial,
      });
      setInterval(() => ring.ready(), 1000);
    `);
    const told = await nextMessage<{
      ids: number[];
      address: number;
      fds: number[];
      index: number;
      serial: number;
    }>(worker);
    const { isAlive } = await import('../../lib/memory/index.js');
    const view = addressSpace().find(told.address)!.u8;
    view.fill(0x44);
    expect(isAlive(told.index, told.serial)).toBe(true);
    expect(native.segmentIds()).toEqual(expect.arrayContaining(told.ids));
    await worker.terminate();
    expect(isAlive(told.index, told.serial)).toBe(false);
    expect(native.segmentIds().filter((id) => told.ids.includes(id))).toEqual([]);
    expect(addressSpace().find(told.address)).toBeUndefined();
    expect(view.findIndex((byte) => byte !== 0)).toBe(-1);
    expect(openFds().filter((one) => !fds.includes(one))).toEqual([]);
  });
});

/** What this process's descriptors stand for; of workers that ended just now some may still go. */
function openFds(): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [`${fd} ${readlinkSync(`/proc/self/fd/${fd}`)}`];
    } catch {
      return []; // the folder's own
    }
  });
}
