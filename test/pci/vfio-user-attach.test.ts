// A vfio-user function in several threads: one connection, one lock, and threads that end at any
// moment.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { attachFunction, openVfioUser, type PciFunction } from '../../lib/pci/index.js';
import { childResult, nextMessage, startWorker } from '../fault/child.js';
import { openFds, untilFds } from '../native/support.js';
import { DEVICE_ID, Register, VfioUserServer, Word } from '../support/vfio-user-server.js';

const REGION_READ = 9;
const RESET = 13;

let folder: string;
let before: Set<string>;
let server: VfioUserServer;
let home: PciFunction;
let workers: Worker[];

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-vfio-user-'));
  workers = [];
  before = openFds();
  server = await VfioUserServer.start({ path: join(folder, 'socket') });
  home = await openVfioUser(join(folder, 'socket'), { timeoutMs: 20_000 });
});

afterEach(async () => {
  for (const worker of workers) await worker.terminate();
  await home.close();
  await server.stop();
  await untilFds(before);
  rmSync(folder, { recursive: true });
});

function start(body: string, data: unknown): Worker {
  const worker = startWorker(body, data);
  workers.push(worker);
  return worker;
}

describe('an attached environment', () => {
  it('uses registers, memory and vectors', async () => {
    home.enable();
    const fds = home.enableInterrupts(4);
    home.bar(0).words(Register.mapped, 4)![0] = 11;
    const worker = start(
      `const there = await lib.attachFunction(workerData);
       const bar = there.bar(0);
       const words = bar.words(${Register.mapped}, 8);
       const segment = lib.addressSpace().create(2 ** 21, { kind: 'device', pageBytes: 4096 });
       const reached = there.dma.reach(segment.address);
       bar.write32(${Register.dmaLo}, segment.address % 2 ** 32);
       bar.write32(${Register.dmaHi}, Math.floor(segment.address / 2 ** 32));
       bar.write32(${Register.dmaBytes}, 4);
       bar.write32(${Register.dma}, 0x77);
       const [, second] = there.enableInterrupts(2);
       bar.write32(${Register.interrupt}, 1);
       const signalled = lib.native.eventfdDrain(second);
       const id = bar.read32(${Register.id});
       const vendor = there.config.read16(0);
       words[1] = 22;
       const byte = segment.u8[3];
       await there.close();
       parentPort.postMessage({ id, vendor, reached, byte, signalled, word: words[0] });`,
      home.share(),
    );
    expect(await nextMessage(worker)).toEqual({
      id: DEVICE_ID,
      vendor: 0x1b36,
      reached: true,
      byte: 0x77,
      signalled: 1,
      word: 11,
    });
    expect(home.bar(0).read32(Register.mapped + 4)).toBe(22);
    expect(home.gone).toBe(false);
    expect(native.park(Int32Array.of(fds[0]!), 0)).toBe(-1);
  });

  it('leaves the rest to the home', async () => {
    const there = await attachFunction(structuredClone(home.share()));
    expect(() => there.enable()).toThrow(TypeError);
    expect(() => there.quiesce()).toThrow(TypeError);
    expect(() => there.disableInterrupts()).toThrow(TypeError);
    expect(() => void there.reset()).toThrow(TypeError);
    expect(() => there.enableInterrupts(1)).toThrow(RangeError);
    await there.close();
    expect(home.gone).toBe(false);
  });

  it('is refused when the home has closed the function', async () => {
    const share = home.share();
    const there = await attachFunction(share);
    await home.close();
    expect(there.gone).toBe(true);
    expect(there.bar(0).read32(Register.id)).toBe(0xffffffff);
    await expect(attachFunction(share)).rejects.toMatchObject({ code: 'DEVICE_GONE' });
    await there.close();
  });

  it('has no use for eventfds that the home took back', async () => {
    home.enableInterrupts(2);
    const there = await attachFunction(home.share());
    home.disableInterrupts();
    home.enableInterrupts(2);
    expect(() => there.enableInterrupts(1)).toThrow(
      expect.objectContaining({ code: 'DEVICE_GONE' }),
    );
    await there.close();
  });
});

describe('four threads at once', () => {
  it('each have their own replies', async () => {
    const body = `
      const { share, me } = workerData;
      const there = await lib.attachFunction(share);
      const bar = there.bar(0);
      let wrong = 0;
      for (let i = 0; i < 500; i++) {
        if (bar.read32(${Register.id}) !== ${DEVICE_ID}) wrong++;
        bar.write32(0x100 + me * 4, me * 1000 + i);
        if (bar.read32(0x100 + me * 4) !== me * 1000 + i) wrong++;
      }
      await there.close();
      parentPort.postMessage(wrong);`;
    const share = home.share();
    const answers = [0, 1, 2, 3].map((me) => nextMessage(start(body, { share, me })));
    for (let i = 0; i < 500; i++) expect(home.bar(0).read32(Register.id)).toBe(DEVICE_ID);
    expect(await Promise.all(answers)).toEqual([0, 0, 0, 0]);
    expect(home.gone).toBe(false);
  });

  it('that are terminated at any moment leave the connection to the others', async () => {
    const body = `
      const there = await lib.attachFunction(workerData);
      parentPort.postMessage('up');
      for (;;) there.bar(0).read32(${Register.id});`;
    for (let round = 0; round < 8; round++) {
      const worker = start(body, home.share());
      await nextMessage(worker);
      await new Promise((resolve) => setTimeout(resolve, round));
      await worker.terminate();
      expect(home.bar(0).read32(Register.id)).toBe(DEVICE_ID);
    }
    expect(home.gone).toBe(false);
  });

  it('pass over the reply that a thread which ended had asked for', async () => {
    const worker = start(
      `const there = await lib.attachFunction(workerData);
       parentPort.postMessage('up');
       there.bar(0).read32(${Register.id});`,
      home.share(),
    );
    server.fail('late', REGION_READ); // a second
    await nextMessage(worker);
    while (server.count(Word.fault) !== 0) await new Promise((resolve) => setTimeout(resolve, 1));
    await worker.terminate();
    expect(home.bar(0).read32(Register.id)).toBe(DEVICE_ID);
    expect(home.gone).toBe(false);
  });
});

it('a server that is silent to one is given up by all', async () => {
  const quick = await openQuick();
  const there = await attachFunction(quick.share());
  const segment = addressSpace().create(GRANULE_BYTES, { kind: 'device', pageBytes: 4096 });
  server.fail('silence', RESET);
  await expect(quick.reset()).rejects.toMatchObject({ code: 'TIMED_OUT' });
  expect(there.gone).toBe(true);
  expect(() => there.dma.reach(segment.address)).toThrow(
    expect.objectContaining({ code: 'DEVICE_GONE' }),
  );
  segment.close();
  await there.close();
});

it('a process that leaves a function open ends all the same', async () => {
  await home.close();
  const id = await childResult<number>(
    `const opened = await lib.openVfioUser(${JSON.stringify(join(folder, 'socket'))});
     process.stdout.write(JSON.stringify(opened.bar(0).read32(${Register.id})));`,
  );
  expect(id).toBe(DEVICE_ID);
  await server.until(Word.ends, 2);
});

/** In place of `home`, with a short patience. */
async function openQuick(): Promise<PciFunction> {
  await home.close();
  home = await openVfioUser(join(folder, 'socket'), { timeoutMs: 400 });
  return home;
}
