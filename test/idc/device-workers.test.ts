// Threads of a client's process on one served device: queues of the table, memory on leases, and
// what becomes of them when a thread, the home or the server ends.

import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { BroadcastChannel, type Worker } from 'node:worker_threads';
import { afterAll, afterEach, describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../lib/hpdi/index.js';
import { currentDomain } from '../../lib/idc/index.js';
import { open } from '../../lib/open.js';
import { penstock } from '../cli/command.js';
import { nextMessage, startWorker } from '../fault/child.js';
import { DeviceWorld } from './device-support.js';

const world = new DeviceWorld();
const devices: BlockDevice[] = [];
const workers: Worker[] = [];
let files = 0;

afterEach(async () => {
  await Promise.all(workers.splice(0).map((worker) => worker.terminate()));
  for (const device of devices.splice(0)) await device.close();
});

afterAll(async () => {
  currentDomain()?.close();
  await world.close();
});

function newFile(): string {
  return `file:${join(world.folder, `file${files++}`)}?create=16MiB`;
}

async function openHere(uri: string): Promise<BlockDevice> {
  const device = await open(uri);
  devices.push(device);
  return device;
}

function start(body: string, data: unknown): Worker {
  const worker = startWorker(body, data);
  workers.push(worker);
  return worker;
}

/** Writes and reads over and over; posts 'on' after some, and how it ended. */
const WORK = `
  const { handle, me } = workerData;
  const device = await lib.attach(handle);
  let stop = false;
  let rounds = 0;
  let wrong = 0;
  parentPort.on('message', () => (stop = true));
  const lane = async (block) => {
    const buffer = device.memory.alloc(4096);
    while (!stop) {
      rounds++;
      const word = Math.imul(block + 1, 7919) + rounds >>> 0;
      buffer.u32.fill(word);
      await device.write(block * 8, buffer);
      buffer.u32.fill(0);
      await device.read(block * 8, buffer);
      if (!buffer.u32.every((one) => one === word)) wrong++;
      if (rounds % 200 === 0) parentPort.postMessage('on');
    }
  };
  let code = '';
  const lanes = [0, 1, 2, 3, 4, 5, 6, 7].map((i) => lane(me * 8 + i));
  await Promise.all(lanes).catch((e) => (code = e.code));
  await device.close();
  parentPort.postMessage({ code, wrong, rounds });
  parentPort.close();
`;

interface Ended {
  code: string;
  wrong: number;
  rounds: number;
}

/** The message by which a worker says how it ended. */
async function endOf(worker: Worker): Promise<Ended> {
  for (;;) {
    const message = await nextMessage<string | Ended>(worker);
    if (message !== 'on') return message as Ended;
  }
}

describe('threads of a client', () => {
  it("have queues and memory of their own, and see each other's data", async () => {
    const served = await world.serve(newFile());
    const device = await openHere(served.uri);
    const team = [0, 1, 2].map((me) => start(WORK, { handle: device.handle(), me }));
    await Promise.all(team.map((worker) => nextMessage(worker)));
    const ends = team.map(endOf);
    for (const worker of team) worker.postMessage('stop');
    for (const end of await Promise.all(ends)) {
      expect(end).toMatchObject({ code: '', wrong: 0 });
    }
    const buffer = device.memory.alloc(4096);
    await device.read(8 * 8, buffer);
    expect(buffer.u32[0]).not.toBe(0);
    expect(buffer.u32.every((word) => word === buffer.u32[0])).toBe(true);
    await device.close();
    expect(await served.end()).toBe(0);
  });

  it('that are ended in the middle leave queues and memory to the next', async () => {
    const served = await world.serve(newFile());
    const device = await openHere(`${served.uri}?queues=2`);
    const own = currentDomain()!.shared;
    const handle = device.handle();
    let leases = 0;
    for (let life = 0; life < 6; life++) {
      const worker = start(WORK, { handle, me: life });
      await nextMessage(worker);
      await worker.terminate();
      // The home takes the row back in its own time.
      const first = device.queue({ depth: 1 });
      for (let tries = 0; ; tries++) {
        try {
          await device.queue({ depth: 1 }).close();
          break;
        } catch (error) {
          expect(error).toMatchObject({ code: 'NO_QUEUES' });
          expect(tries).toBeLessThan(500);
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
      }
      await first.close();
      if (life === 2) leases = own.leases.length;
    }
    // Those of the first lives were used again.
    expect(own.leases.length).toBe(leases);
    await device.close();
    expect(await served.end()).toBe(0);
  });

  it('have no memory that another device may still read for a thread that has ended', async () => {
    const [stuck, other] = [
      await world.serve('null:16MiB?fault.stuck=1'),
      await world.serve(newFile()),
    ];
    const first = await openHere(stuck.uri);
    const second = await openHere(other.uri);
    // Segments of others that ended before are free: as many as there are could be had again.
    const before = currentDomain()!.shared.leases.length;
    const take = `
      const device = await lib.attach(workerData.handle);
      const buffers = Array.from({ length: ${before + 2} }, () => device.memory.alloc(2 ** 21));
    `;
    const writer = start(
      `${take}
      for (const buffer of buffers) void device.write(0, buffer).catch(() => {});
      setTimeout(() => parentPort.postMessage(buffers.map(({ address }) => address)), 50);`,
      { handle: first.handle() },
    );
    const inUse = await nextMessage<number[]>(writer);
    await writer.terminate();
    const body = `${take}
      parentPort.postMessage(buffers.map(({ address }) => address));
      await device.close();`;
    const reader = start(body, { handle: second.handle() });
    const given = await nextMessage<number[]>(reader);
    expect(given.filter((address) => inUse.includes(address))).toEqual([]);
    await reader.terminate();
    // With the server nothing is in flight: the next one has them again, device closed or not.
    await first.close();
    await stuck.end('SIGKILL');
    const count = currentDomain()!.shared.leases.length;
    for (let tries = 0; ; tries++) {
      const last = start(body, { handle: second.handle() });
      const had = await nextMessage<number[]>(last);
      await last.terminate();
      if (had.some((address) => inUse.includes(address))) break;
      expect(tries).toBeLessThan(100);
    }
    expect(currentDomain()!.shared.leases.length).toBeLessThanOrEqual(count + before + 2);
    await second.close();
    expect(await other.end()).toBe(0);
  });

  it('that wait for memory no more get none', async () => {
    const served = await world.serve('null:16MiB');
    const device = await openHere(served.uri);
    const { lessor } = device.handle().shared as { lessor: string };
    const channel = new BroadcastChannel(lessor);
    const bytes = 2 ** 24;
    const ask = (state: number): Int32Array => {
      const answer = new SharedArrayBuffer(12);
      const words = new Int32Array(answer);
      words[0] = state;
      channel.postMessage({ bytes, index: 0, serial: 0xffffffff, answer });
      return words;
    };
    const [GIVEN, GIVEN_UP] = [1, 3];
    const late = ask(GIVEN_UP);
    const words = ask(0);
    while (words[0] === 0) await new Promise((resolve) => setImmediate(resolve));
    channel.close();
    expect([late[0], words[0]]).toEqual([GIVEN_UP, GIVEN]);
    const { leases } = currentDomain()!.shared;
    expect(leases.filter(({ segment }) => segment.bytes === bytes)).toHaveLength(1);
    await device.close();
    expect(await served.end()).toBe(0);
  });

  it('get DEVICE_GONE when the home closes the device', async () => {
    const served = await world.serve(newFile());
    const device = await openHere(served.uri);
    const worker = start(WORK, { handle: device.handle(), me: 0 });
    await nextMessage(worker);
    const end = endOf(worker);
    await device.close();
    expect(await end).toMatchObject({ code: 'DEVICE_GONE', wrong: 0 });
    expect(await served.end()).toBe(0);
  });

  it('get DEVICE_GONE when the server is killed', async () => {
    const served = await world.serve(newFile());
    const device = await openHere(served.uri);
    const team = [0, 1].map((me) => start(WORK, { handle: device.handle(), me }));
    await Promise.all(team.map((worker) => nextMessage(worker)));
    const ends = team.map(endOf);
    await served.end('SIGKILL');
    for (const end of await Promise.all(ends)) {
      expect(end).toMatchObject({ code: 'DEVICE_GONE', wrong: 0 });
    }
  });

  it('go on with the next server', async () => {
    const file = newFile();
    let served = await world.serve(file, [], 'lasting');
    const device = await openHere(`${served.uri}?reconnect=1`);
    const team = [0, 1].map((me) => start(WORK, { handle: device.handle(), me }));
    const buffer = device.memory.alloc(4096);
    for (let life = 0; life < 3; life++) {
      await Promise.all(team.map((worker) => nextMessage(worker)));
      await device.write(4096, buffer);
      await served.end('SIGKILL');
      served = await world.serve(file, [], 'lasting');
    }
    await Promise.all(team.map((worker) => nextMessage(worker)));
    const ends = team.map(endOf);
    for (const worker of team) worker.postMessage('stop');
    for (const end of await Promise.all(ends)) {
      expect(end).toMatchObject({ code: '', wrong: 0 });
    }
    await device.write(4096, buffer);
    await device.close();
    expect(await served.end()).toBe(0);
  });

  it('run jobs of bench, which verify what they wrote', async () => {
    const file = newFile();
    const served = await world.serve(file);
    const words = ['bench', served.uri, '--rw', 'randrw', '--bs', '4k', '--iodepth', '16'];
    const verify = ['--numjobs', '2', '--runtime', '1', '--verify', '--json'];
    const { exitCode, stderr, stdout } = await penstock([...words, ...verify], {
      env: { PENSTOCK_QUIET: '1' },
    });
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    const report = JSON.parse(stdout) as { jobs: { read: { total_ios: number } }[] };
    expect(report.jobs[0]!.read.total_ios).toBeGreaterThan(0);
    expect(await served.end()).toBe(0);
    rmSync(file.slice(5).split('?')[0]!);
  });
});
