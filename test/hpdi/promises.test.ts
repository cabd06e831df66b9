// What people call: promises over a queue, loans, gifts, and errors that explain themselves.

import { afterEach, describe, expect, it } from 'vitest';
import { LoanTable } from '../../lib/hpdi/loans.js';
import { explainStatus } from '../../lib/hpdi/status.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';
import { Flag, Op, STATUS, Status } from '../../lib/hpdi/records.js';
import { addressSpace, Memory } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { one, pattern } from '../support/requests.js';
import { StrictDriver, strictInfo } from './strict.js';

const devices: BlockDevice[] = [];
const memories: Memory[] = [];

afterEach(async () => {
  for (const device of devices.splice(0)) await device.close();
  for (const memory of memories.splice(0)) memory.close();
});

function makeMemory(): Memory {
  const memory = new Memory({ pageBytes: 4096 });
  memories.push(memory);
  return memory;
}

/** A device over a strict driver, with memory of its own. */
function strictDevice(): { device: BlockDevice; driver: StrictDriver; memory: Memory } {
  const info = strictInfo();
  const driver = new StrictDriver({ info, capacity: 16 });
  const backend: Backend = {
    uri: 'strict:',
    scheme: 'strict',
    info,
    openQueue: () => driver,
    share: () => null,
    explainDetail: (_code, detail) => `block ${detail}`,
    close: () => Promise.resolve(),
  };
  const memory = makeMemory();
  const device = new BlockDevice(backend, null, memory);
  devices.push(device);
  return { device, driver, memory };
}

describe('promises', () => {
  it('run far more operations than a queue is deep, each with its own outcome', async () => {
    const { device, driver, memory } = strictDevice();
    driver.bad.add(77);
    const buffers = Array.from({ length: 1000 }, () => memory.alloc(512));
    const outcomes = await Promise.allSettled(
      buffers.map((buffer, i) => {
        buffer.u8.fill(i % 251);
        return device.write(i % 512, buffer);
      }),
    );
    outcomes.forEach((outcome, i) => {
      expect([i, outcome.status]).toEqual([i, i % 512 === 77 ? 'rejected' : 'fulfilled']);
    });
    const failed = outcomes[77] as PromiseRejectedResult;
    expect(failed.reason).toMatchObject({
      code: 'MEDIA_ERROR',
      message: expect.stringMatching(/write at block 77 of strict:.*block 77/),
      hint: expect.stringMatching(/./),
    });
    expect(driver.violations).toEqual([]);
    for (const buffer of buffers) buffer.free();
  });

  it('settle every operation before close resolves', async () => {
    const { device, driver, memory } = strictDevice();
    const buffer = memory.alloc(512);
    const pending = Array.from({ length: 100 }, (_, i) => device.read(i, buffer));
    let settled = 0;
    for (const one of pending) void one.finally(() => settled++);
    await device.close();
    expect(settled).toBe(100);
    expect(driver.closed).toBe(true);
    await expect(device.read(0, buffer)).rejects.toMatchObject({ code: 'DEVICE_CLOSED' });
    expect(() => device.queue({ depth: 1 })).toThrow(/closed/);
    expect(() => device.handle()).toThrow(/closed/);
    await device.close();
    buffer.free();
    expect(memory.taken).toBe(0);
  });

  it('refuse what no device can do, before it reaches one', async () => {
    const { device, driver, memory } = strictDevice();
    const buffer = memory.alloc(512);
    for (const lba of [-1, 0.5, NaN, 2 ** 53]) {
      await expect(device.read(lba, buffer)).rejects.toThrow(RangeError);
      await expect(device.copy(0, lba, 1)).rejects.toThrow(RangeError);
    }
    for (const blocks of [-1, 0.5, NaN, 2 ** 32]) {
      await expect(device.discard(0, blocks)).rejects.toThrow(RangeError);
    }
    await expect(device.read(0, memory.alloc(100))).rejects.toMatchObject({ code: 'BAD_REQUEST' });
    buffer.free();
    await expect(device.read(0, buffer)).rejects.toMatchObject({ code: 'USE_AFTER_FREE' });
    for (const depth of [0, -1, 1.5, NaN, 65537]) {
      expect(() => device.queue({ depth })).toThrow(RangeError);
    }
    expect(driver.seen).toEqual([]);
  });

  it('all fail when the driver throws, and say so from then on', async () => {
    const { device, driver, memory } = strictDevice();
    const buffer = memory.alloc(512);
    await device.read(0, buffer);
    driver.submit = () => {
      throw new Error('the driver is broken');
    };
    const failed = await Promise.allSettled([device.read(0, buffer), device.read(1, buffer)]);
    for (const outcome of failed) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'DEVICE_GONE' } });
    }
    await expect(device.read(0, buffer)).rejects.toMatchObject({
      code: 'DEVICE_FAILED',
      cause: expect.objectContaining({ message: 'the driver is broken' }),
    });
    buffer.free();
  });
});

describe('loans', () => {
  it('give the bytes until they are released, once', async () => {
    const { device, driver, memory } = strictDevice();
    driver.data.set(pattern(4 * 512, 5), 0);
    const loans = await Promise.all([0, 0, 1].map((lba) => device.readLoan(lba, 3)));
    expect(new Set(loans.map(({ address }) => address)).size).toBe(3);
    expect(Buffer.compare(loans[2]!.u8, pattern(4 * 512, 5).subarray(512))).toBe(0);
    const buffer = memory.alloc(512);
    await device.write(1, buffer);
    expect(Buffer.compare(loans[0]!.u8, pattern(3 * 512, 5))).toBe(0); // stable
    buffer.free();
    for (const loan of loans) loan.release();
    for (const loan of loans) expect(() => loan.release()).toThrow(/not out/);
    const again = await device.readLoan(0, 3);
    for (const loan of loans) expect(() => loan.release()).toThrow(/not out/);
    again.release();
  });

  it('tell each life of a buffer apart, and run out as a status', () => {
    const memory = makeMemory();
    const table = new LoanTable(memory, 4);
    const stale: [number, number][] = [];
    for (let life = 0; life < 10; life++) {
      const slot = table.take(512);
      const words: [number, number] = [table.resultLo(slot), table.resultHi(slot)];
      for (const old of stale) expect(table.release(...old)).toBe(false);
      expect(table.release(words[0], (words[1] ^ 0x1000) >>> 0)).toBe(false);
      expect(table.release(words[0] + 512, words[1])).toBe(false);
      expect(table.release(...words)).toBe(true);
      expect(table.release(...words)).toBe(false);
      stale.push(words);
    }
    const slots = [512, 4096, 512, 8192].map((bytes) => table.take(bytes));
    expect(new Set(slots.map((slot) => table.address(slot))).size).toBe(4);
    expect([table.out, table.take(512)]).toEqual([4, -1]);
    table.drop(slots[1]!);
    expect(table.out).toBe(3);
    table.close();
    expect(memory.taken).toBe(0);
  });
});

describe('a given buffer', () => {
  it('is released by the device to its pool, and only then', async () => {
    const { device, driver, memory } = strictDevice();
    const queue = device.queue({ depth: 4 });
    const given = memory.alloc(4096);
    given.u8.fill(6);
    const request = { op: Op.WRITE, flags: Flag.GIVE, lba: 3, blocks: 8, address: given.address };
    expect((await one(queue, request)).status).toBe(0);
    expect(given.freed).toBe(true);
    expect(memory.taken).toBe(0);
    expect(driver.data.subarray(3 * 512, 11 * 512).every((byte) => byte === 6)).toBe(true);
    // Given again it is no longer the giver's.
    expect((await one(queue, request)).code).toBe(Status.BAD_ADDRESS);
  });

  it('is refused when no pool holds it', async () => {
    const device = await open('ram:1MiB');
    devices.push(device);
    const segment = addressSpace().create(1, { pageBytes: 4096 });
    const queue = device.queue({ depth: 4 });
    const { address } = segment;
    const request = { op: Op.WRITE, flags: Flag.GIVE, lba: 0, blocks: 1, address };
    expect((await one(queue, request)).code).toBe(Status.BAD_ADDRESS);
    segment.close();
  });
});

describe('explain', () => {
  it.each(Object.entries(STATUS))('tells what %s means and what to do', (name, code) => {
    const plain = explainStatus(code);
    expect(plain).toMatchObject({ code: name, detail: 0 });
    expect(plain.message).not.toBe('');
    if (code !== Status.OK) expect(plain.hint).not.toBe('');
    const detailed = explainStatus((code | (5 << 8)) >>> 0, (_code, detail) => `errno ${detail}`);
    expect(detailed).toMatchObject({ code: name, detail: 5 });
    expect(detailed.message).toBe(`${plain.message} (errno 5)`);
  });

  it('has a text of its own for each code, and one for codes it does not know', () => {
    const texts = Object.values(STATUS).map((code) => explainStatus(code).message);
    expect(new Set(texts).size).toBe(texts.length);
    expect(explainStatus(200)).toMatchObject({ code: 'STATUS_200' });
    expect(explainStatus(0xffffffff)).toMatchObject({ code: 'STATUS_255', detail: 0xffffff });
  });
});
