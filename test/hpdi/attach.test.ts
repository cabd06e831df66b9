// Four workers on one device: own queues, one address space, verified data; and what becomes of
// them
// when the device's home goes.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BlockDevice, DeviceHandle } from '../../lib/hpdi/index.js';
import { attach, open } from '../../lib/open.js';
import { nextMessage, startWorker } from '../fault/child.js';

let folder: string;
const devices: BlockDevice[] = [];
const workers: Worker[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-attach-'));
});

afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.terminate()));
  for (const device of devices.splice(0)) await device.close();
  rmSync(folder, { recursive: true });
});

async function openHere(uri: string): Promise<BlockDevice> {
  const device = await open(uri.replace('FOLDER', folder));
  devices.push(device);
  return device;
}

function start(body: string, data: unknown): Worker {
  const worker = startWorker(body, data);
  workers.push(worker);
  return worker;
}

const URIS = ['ram:16MiB', 'ram:1TiB?sparse=1', 'file:FOLDER/data?create=16MiB'];

describe.each(URIS)('%s', (uri) => {
  it('is used by four workers at once, each its part, and all see all', async () => {
    const device = await openHere(uri);
    const body = `
      const { handle, me } = workerData;
      const device = await lib.attach(handle);
      const COUNT = 64;
      const buffers = Array.from({ length: COUNT }, () => device.memory.alloc(4096));
      const word = (lba) => Math.imul(lba + 1, 2654435761) >>> 0;
      await Promise.all(buffers.map((buffer, i) => {
        const lba = (i * 4 + me) * 8;
        buffer.u32.fill(word(lba));
        return device.write(lba, buffer);
      }));
      await device.flush();
      parentPort.postMessage(device.memory.alloc(512).address);
      await new Promise((resolve) => parentPort.once('message', resolve));
      // Now what the next one wrote.
      let wrong = 0;
      await Promise.all(buffers.map(async (buffer, i) => {
        const lba = (i * 4 + (me + 1) % 4) * 8;
        buffer.u8.fill(0);
        await device.read(lba, buffer);
        if (!buffer.u32.every((one) => one === word(lba))) wrong++;
      }));
      await device.close();
      parentPort.postMessage(wrong);
    `;
    const team = [0, 1, 2, 3].map((me) => start(body, { handle: device.handle(), me }));
    const addresses = await Promise.all(team.map((worker) => nextMessage<number>(worker)));
    expect(new Set(addresses).size).toBe(4);
    const answers = team.map((worker) => nextMessage<number>(worker));
    for (const worker of team) worker.postMessage('go');
    expect(await Promise.all(answers)).toEqual([0, 0, 0, 0]);
    const buffer = device.memory.alloc(4096);
    await device.read(8 * 17, buffer);
    expect(buffer.u32[1023]).toBe(Math.imul(8 * 17 + 1, 2654435761) >>> 0);
    buffer.free();
  });

  it.each(['closes', 'ends'])(
    'completes everything with DEVICE_GONE when the home %s',
    async (how) => {
      const home = start(
        `
      const device = await lib.open(workerData);
      parentPort.on('message', () => device.close().then(() => parentPort.postMessage('closed')));
      parentPort.postMessage(device.handle());
    `,
        uri.replace('FOLDER', folder),
      );
      const handle = await nextMessage<DeviceHandle>(home);
      const body = `
      const { handle, control } = workerData;
      const stop = new Int32Array(control);
      const device = await lib.attach(handle);
      const DEPTH = 32;
      const queue = device.queue({ depth: DEPTH });
      const memory = new lib.Memory();
      const buffers = Array.from({ length: DEPTH }, () => memory.alloc(4096));
      const free = buffers.map((_, i) => i);
      const out = new Set();
      const codes = {};
      let submitted = 0, completed = 0, twice = 0, afterGone = 0, posted = false;
      const started = Date.now();
      while ((codes.DEVICE_GONE ?? 0) < 500 && Date.now() - started < 20000) {
        let at = queue.tail;
        const granted = queue.reserve(free.length);
        for (let i = 0; i < granted; i++, at++) {
          const tag = free.pop();
          const r = (at & queue.mask) * 8;
          const lba = (submitted * 37 % 2048) * 8;
          const { address } = buffers[tag];
          queue.sq.set([submitted % 2 ? 1 : 3, tag, 8, 0, lba, 0, address >>> 0,
            Math.floor(address / 2 ** 32)], r);
          out.add(tag);
          submitted++;
        }
        queue.submit();
        const done = queue.park(1000);
        for (let i = 0; i < done; i++) {
          const tag = queue.cq[i * 4];
          if (!out.delete(tag)) twice++;
          free.push(tag);
          completed++;
          const { code } = device.explain(queue.cq[i * 4 + 1]);
          codes[code] = (codes[code] ?? 0) + 1;
          if (code !== 'DEVICE_GONE' && codes.DEVICE_GONE > 0) afterGone++;
        }
        if (!posted && completed > 1000) {
          posted = true;
          Atomics.add(stop, 0, 1);
        }
      }
      while (out.size > 0 && Date.now() - started < 25000) {
        const done = queue.park(1000);
        for (let i = 0; i < done; i++) { out.delete(queue.cq[i * 4]); completed++; }
      }
      await queue.close();
      memory.close();
      let refused = '';
      const last = device.read(0, device.memory.alloc(512));
      await last.catch((error) => { refused = error.code; });
      await device.close();
      parentPort.postMessage({ submitted, completed, twice, afterGone, refused, codes,
        lost: out.size });
    `;
      const control = new Int32Array(new SharedArrayBuffer(4));
      const team = [0, 1, 2, 3].map(() => start(body, { handle, control: control.buffer }));
      const answers = team.map((worker) =>
        nextMessage<Record<string, number> & { codes: Record<string, number>; refused: string }>(
          worker,
        ),
      );
      while (Atomics.load(control, 0) < 4) await new Promise((resolve) => setTimeout(resolve, 2));
      if (how === 'ends') await home.terminate();
      else {
        const closed = nextMessage(home);
        home.postMessage('close');
        await closed;
      }
      for (const answer of await Promise.all(answers)) {
        expect(answer).toMatchObject({ lost: 0, twice: 0, afterGone: 0, refused: 'DEVICE_GONE' });
        expect(answer['completed']).toBe(answer['submitted']);
        expect(Object.keys(answer.codes).sort()).toEqual(['DEVICE_GONE', 'OK']);
      }
    },
  );

  it('cannot be attached to once its home has closed it', async () => {
    const device = await openHere(uri);
    const handle = device.handle();
    await device.close();
    await expect(attach(handle)).rejects.toMatchObject({ code: 'DEVICE_GONE' });
  });
});

describe('an attached queue whose home is gone', () => {
  it('refuses every part of a split request, however shallow it is', async () => {
    const device = await openHere('file:FOLDER/wide?create=16MiB');
    const attached = await attach(device.handle());
    const queue = attached.queue({ depth: 1 });
    const list = attached.memory.alloc(4096);
    const buffer = attached.memory.alloc(2 ** 20);
    await device.close();
    const { fillList, one } = await import('../support/requests.js');
    const pieces = Array.from({ length: 64 }, (_, i) => ({
      address: buffer.address + i * 1024 + (i === 0 ? 1 : 0),
      bytes: i === 0 ? 1023 : i === 63 ? 1025 : 1024,
    }));
    const request = { op: 1, tag: 5, lba: 0, blocks: 128, ...fillList(list, pieces) };
    expect(await one(queue, request)).toMatchObject({ tag: 5, code: 10 });
    list.free();
    buffer.free();
    await attached.close();
  });
});
