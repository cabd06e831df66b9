// Beside I/O: admin commands, identify and log pages, events, and commands that the caller made.

import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { nvmeControl, openNvmeAdmin, RAW_COMMAND } from '../../../lib/drivers/nvme/index.js';
import { Op, type BlockDevice, type Queue } from '../../../lib/hpdi/index.js';
import { open } from '../../../lib/open.js';
import { openAgain, openOnTwin } from '../../support/nvme-open.js';
import type { NvmeTwin } from '../../support/nvme-twin/index.js';
import { collect, put } from '../../support/requests.js';

let device: BlockDevice;
let twin: NvmeTwin;

beforeEach(async () => {
  ({ device, twin } = await openOnTwin({
    namespaces: [{ blocks: 1024 }, { blocks: 512, blockSize: 4096 }],
    model: 'A twin',
    serial: 'S1',
  }));
});

afterEach(async () => {
  await device.close();
  twin.stop();
  expect(twin.check()).toEqual([]);
});

describe('NvmeControl', () => {
  it('gives pages as the controller does', async () => {
    const control = nvmeControl(device)!;
    const page = await control.identifyController();
    expect(Buffer.from(page.subarray(4, 6)).toString()).toBe('S1');
    expect((await control.identifyNamespace(2))[128 + 2]).toBe(12);
    expect(await control.activeNamespaces()).toEqual([1, 2]);
    expect(await control.getLogPage({ lid: 2, nsid: 0xffffffff, bytes: 512 })).toHaveLength(512);
    expect(await control.getLogPage({ lid: 1, nsid: 0xffffffff, bytes: 8192 })).toHaveLength(8192);
    const registers = new Uint32Array(control.registers().buffer);
    expect(registers[0x1c / 4]! & 1).toBe(1); // CSTS.RDY
  });

  it('runs any admin command, and decodes what the controller refuses', async () => {
    const control = nvmeControl(device)!;
    const { dw0 } = await control.admin({ opcode: 0x0a, cdw: [0x07] });
    expect(dw0 & 0xffff).toBeGreaterThan(0);
    const data = device.memory.alloc(4096);
    await control.admin({ opcode: 0x06, cdw: [1], data });
    expect(Buffer.from(data.u8.subarray(4, 6)).toString()).toBe('S1');
    data.free();
    await expect(control.admin({ opcode: 0xc1 })).rejects.toMatchObject({
      code: 'NVME_STATUS',
      message: expect.stringContaining('INVALID_OPCODE') as string,
      hint: expect.stringMatching(/./) as string,
    });
  });

  it('refuses data that its commands cannot describe', async () => {
    const control = nvmeControl(device)!;
    const data = device.memory.alloc(16384);
    await expect(control.admin({ opcode: 6, cdw: [1], data })).rejects.toMatchObject({
      code: 'BAD_ADDRESS',
    });
    data.free();
    await expect(control.admin({ opcode: 6, cdw: [1], data })).rejects.toMatchObject({
      code: 'BAD_ADDRESS',
    });
    expect(() => control.getLogPage({ lid: 2, nsid: 1, bytes: 6 })).toThrow(RangeError);
  });

  it('tells of events, with the page that says more', async () => {
    const control = nvmeControl(device)!;
    const heard: unknown[] = [];
    const forget = control.onEvent(({ kind, info, page, log }) => {
      heard.push([kind, info, page, log.length]);
    });
    twin.event(1, 1, 2);
    while (heard.length === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    expect(heard).toEqual([['health', 1, 2, 512]]);
    forget();
  });

  it('is not there for other devices', async () => {
    const ram = await open('ram:1MiB');
    expect(nvmeControl(ram)).toBeUndefined();
    await ram.close();
  });
});

describe('namespaces of one controller', () => {
  it('share it while they have the same keys', async () => {
    const other = await openAgain(twin, {}, 2);
    expect(other.info).toMatchObject({ blockSize: 4096, blocks: 512 });
    await expect(openAgain(twin, { retries: '0' }, 2)).rejects.toMatchObject({
      code: 'DEVICE_BUSY',
    });
    await expect(openAgain(twin, {}, 7)).rejects.toMatchObject({
      code: 'NO_SUCH_NAMESPACE',
      hint: 'it has 1, 2',
    });
    const buffer = device.memory.alloc(4096);
    buffer.u8.fill(9);
    await other.write(3, buffer);
    await device.read(24, buffer);
    expect(buffer.u8.every((byte) => byte === 0)).toBe(true);
    await other.read(3, buffer);
    expect(buffer.u8.every((byte) => byte === 9)).toBe(true);
    buffer.free();
    await other.close();
  });

  it('are named by URIs, and what names none is refused', async () => {
    for (const uri of ['nvme:', 'nvme:/0', 'nvme+vhost:x/1']) {
      await expect(open(uri)).rejects.toMatchObject({ exitCode: 2 });
    }
    await expect(open('nvme:0000:ff:1f.7/1')).rejects.toMatchObject({ code: 'NO_SUCH_DEVICE' });
    await expect(openNvmeAdmin('0000:ff:1f.7')).rejects.toMatchObject({ code: 'NO_SUCH_DEVICE' });
    await expect(open('nvme:0000:ff:1f.7/1?queues=0')).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
  });
});

describe('a RAW operation', () => {
  /** A command block of the caller's; the fields that a test sets. */
  function commandBlock(fields: Record<number, number>): { address: number; free: () => void } {
    const block = device.memory.alloc(512);
    block.u32.fill(0);
    for (const [word, value] of Object.entries(fields)) block.u32[Number(word)] = value;
    return { address: block.address, free: () => block.free() };
  }

  async function run(queue: Queue, address: number): Promise<{ code: number; resultLo: number }> {
    put(queue, { op: Op.RAW, tag: 5, address });
    queue.submit();
    return (await collect(queue, 1))[0]!;
  }

  it('moves data both ways, and compares', async () => {
    const queue = device.queue({ depth: 4 });
    const data = device.memory.alloc(512);
    data.u8.fill(0x5a);
    const place = {
      [RAW_COMMAND.dataLo]: data.address >>> 0,
      [RAW_COMMAND.dataHi]: Math.floor(data.address / 2 ** 32),
      [RAW_COMMAND.dataBytes]: 512,
    };
    const write = commandBlock({ 0: 0x01, 1: 1, 10: 17, ...place });
    expect(await run(queue, write.address)).toMatchObject({ code: 0 });
    const compare = commandBlock({ 0: 0x05, 1: 1, 10: 17, ...place });
    expect(await run(queue, compare.address)).toMatchObject({ code: 0 });
    data.u8.fill(0);
    const fromDevice = { [RAW_COMMAND.flags]: RAW_COMMAND.FROM_DEVICE };
    const read = commandBlock({ 0: 0x02, 1: 1, 10: 17, ...place, ...fromDevice });
    expect(await run(queue, read.address)).toMatchObject({ code: 0 });
    expect(data.u8.every((byte) => byte === 0x5a)).toBe(true);
    data.u8[3] = 0;
    expect(await run(queue, compare.address)).toMatchObject({ code: 13 }); // MISCOMPARE
    for (const each of [write, compare, read, data]) each.free();
    await queue.close();
  });

  it('is refused where its block or its data is not what it may touch', async () => {
    const queue = device.queue({ depth: 4 });
    expect(await run(queue, 0)).toMatchObject({ code: 1 });
    const bad = commandBlock({ 0: 2, 1: 1, 16: 4096, 17: 0, 18: 512, 19: 1 });
    expect(await run(queue, bad.address)).toMatchObject({ code: 1 }); // BAD_ADDRESS
    const large = commandBlock({ 0: 2, 1: 1, 16: 4096, 17: 16, 18: 2 ** 24, 19: 1 });
    expect(await run(queue, large.address)).toMatchObject({ code: 5 }); // TOO_LARGE
    bad.free();
    large.free();
    await queue.close();
  });
});
