// What the driver makes of a controller that fails, hangs, lies or goes: each operation completes
// once, with its cause, and nothing it wrote is lost.

import { afterEach, describe, expect, it } from 'vitest';
import { AdminOp, Sqe } from '../../../lib/drivers/nvme/commands.js';
import { nvmeControl, type NvmeControl } from '../../../lib/drivers/nvme/index.js';
import type { BlockDevice } from '../../../lib/hpdi/index.js';
import { openOnTwin, type TwinDevice } from '../../support/nvme-open.js';
import type { NvmeTwin, NvmeTwinOptions } from '../../support/nvme-twin/index.js';

const READ = 0x02;
const WRITE = 0x01;
const DISK = { namespaces: [{ blocks: 8192 }] };

const opened: TwinDevice[] = [];

async function openIt(
  options: NvmeTwinOptions = DISK,
  keys: Record<string, string> = {},
): Promise<{ device: BlockDevice; twin: NvmeTwin; control: NvmeControl }> {
  const pair = await openOnTwin(options, keys);
  opened.push(pair);
  return { ...pair, control: nvmeControl(pair.device)! };
}

afterEach(async () => {
  for (const { device, twin } of opened.splice(0)) {
    await device.close();
    expect(device.memory.taken).toBe(0);
    twin.stop();
    expect(twin.check()).toEqual([]);
  }
});

/** Reads the block; its code, OK when it came. */
async function readCode(device: BlockDevice, lba = 0): Promise<string> {
  const buffer = device.memory.alloc(512);
  try {
    await device.read(lba, buffer);
    return 'OK';
  } catch (error) {
    return (error as { code: string }).code;
  } finally {
    buffer.free();
  }
}

/** Writes numbered blocks all at once, runs `disturb` meanwhile, and reads all back. */
async function writeUnder(device: BlockDevice, disturb: () => Promise<void>): Promise<void> {
  const buffers = Array.from({ length: 64 }, (_, i) => {
    const buffer = device.memory.alloc(4096);
    buffer.u8.fill(i + 1);
    return buffer;
  });
  const writes = buffers.map((buffer, i) => device.write(i * 8, buffer));
  await disturb();
  await Promise.all(writes);
  for (const [i, buffer] of buffers.entries()) {
    buffer.u8.fill(0);
    await device.read(i * 8, buffer);
    expect(buffer.u8.every((byte) => byte === i + 1)).toBe(true);
    buffer.free();
  }
}

describe('a status', () => {
  it('without DNR is tried again, as often as the key says', async () => {
    const { device, twin } = await openIt(DISK, { retries: '2' });
    twin.faults.status({ opcode: READ, count: 2 }, { sct: 2, sc: 0x81 });
    expect(await readCode(device)).toBe('OK');
    twin.faults.status({ opcode: READ, count: 3 }, { sct: 2, sc: 0x81 });
    expect(await readCode(device)).toBe('MEDIA_ERROR');
    expect(await readCode(device)).toBe('OK');
  });

  it('with DNR is final, and told by its name', async () => {
    const { device, twin } = await openIt();
    twin.faults.status({ opcode: READ }, { sct: 2, sc: 0x81, dnr: true });
    const buffer = device.memory.alloc(512);
    await expect(device.read(0, buffer)).rejects.toMatchObject({
      code: 'MEDIA_ERROR',
      message: expect.stringContaining('READ_ERROR') as string,
    });
    buffer.free();
  });

  it('that asks to look at the error log has it read', async () => {
    const { device, twin, control } = await openIt(DISK, { timeout: '100ms' });
    const heard = new Promise((resolve) => control.onEvent(resolve));
    twin.faults.status({ opcode: READ }, { sct: 2, sc: 0x81, dnr: true, more: true });
    expect(await readCode(device)).toBe('MEDIA_ERROR');
    expect(await heard).toMatchObject({ kind: 'error', page: 1 });
  });
});

describe('a command that does not end', () => {
  it('is aborted, and completes with TIMED_OUT', async () => {
    const { device, twin, control } = await openIt(DISK, { timeout: '100ms' });
    twin.faults.drop({ opcode: READ });
    expect(await readCode(device)).toBe('TIMED_OUT');
    expect(control.counters).toMatchObject({ timeouts: 1, aborts: 1, resets: 0 });
    expect(await readCode(device)).toBe('OK');
  });

  it('has the controller reset where an abort does not help; others are issued again', async () => {
    const { device, twin, control } = await openIt(DISK, { timeout: '100ms' });
    twin.faults.abortFails = true;
    twin.faults.drop({ opcode: READ });
    const stuck = readCode(device);
    await writeUnder(device, async () => expect(await stuck).toBe('TIMED_OUT'));
    expect(control.counters).toMatchObject({ timeouts: 1, resets: 1 });
    expect(control.state).toBe('READY');
  });

  it('is noticed by a thread that only polls, too', async () => {
    const { device, twin } = await openIt(DISK, { timeout: '50ms' });
    const queue = device.queue({ depth: 4, split: false });
    const buffer = device.memory.alloc(512);
    twin.faults.abortFails = true;
    twin.faults.drop({ opcode: READ });
    queue.reserve(1);
    queue.sq.set([1, 77, 1, 0, 0, 0, buffer.address >>> 0, Math.floor(buffer.address / 2 ** 32)]);
    queue.submit();
    let count = 0;
    const until = performance.now() + 20_000;
    while (count === 0 && performance.now() < until) {
      twin.step();
      count = queue.poll(4); // the event loop does not turn in here
    }
    expect(Array.from(queue.cq.subarray(0, 2), (word) => word & 0xff)).toEqual([77, 11]);
    await queue.close();
    buffer.free();
  });

  it('of the admin queue ends with TIMED_OUT, and a controller that was reset', async () => {
    const { device, twin, control } = await openIt(DISK, { adminTimeout: '100ms' });
    twin.faults.drop({ qid: 0, opcode: 0x06 });
    await expect(control.identifyController()).rejects.toMatchObject({ code: 'TIMED_OUT' });
    await expect(control.identifyController()).resolves.toHaveLength(4096);
    expect(control.counters.resets).toBe(1);
    expect(await readCode(device)).toBe('OK');
  });
});

describe('a reset', () => {
  it('loses no write that is in flight', async () => {
    const { device, control, twin } = await openIt();
    twin.faults.delay({ opcode: WRITE, count: 64 }, 20);
    await writeUnder(device, () => control.reset());
    expect(control.counters.resets).toBe(1);
  });

  it('that is asked for, and a close, end the queues first', async () => {
    const { device, control, twin } = await openIt(DISK, { queues: '3' });
    const ended: number[] = [];
    const endsQueue = (sqe: Uint32Array): boolean => {
      if ((sqe[0]! & 0xff) === AdminOp.DELETE_IO_SQ) ended.push(sqe[Sqe.cdw10]!);
      return false;
    };
    twin.faults.drop({ qid: 0, test: endsQueue });
    await control.reset();
    expect(ended.splice(0)).toEqual([1, 2, 3]);
    await device.close();
    expect(ended).toEqual([1, 2, 3]);
  });

  it('completes with ABORTED what may not be repeated', async () => {
    const { device, control, twin } = await openIt(DISK, { retries: '0' });
    twin.faults.delay({ opcode: READ }, 1e6);
    const read = readCode(device);
    await new Promise((resolve) => setTimeout(resolve, 5));
    await control.reset();
    expect(await read).toBe('ABORTED');
  });

  it('follows a fatal status', async () => {
    const { device, twin, control } = await openIt(DISK, { timeout: '100ms' });
    await writeUnder(device, async () => twin.fail());
    expect(control.counters.resets).toBe(1);
  });

  it('resets the function when the controller does not become disabled', async () => {
    const { device, twin, control } = await openIt({ ...DISK, timeoutUnits: 1 });
    twin.faults.neverIdle = true;
    await writeUnder(device, async () => {
      const done = control.reset();
      setTimeout(() => (twin.faults.neverIdle = false), 700);
      await done;
    });
    expect(control.state).toBe('READY');
  });

  it('that the controller does not survive ends in typed errors, not in a hang', async () => {
    const { device, twin, control } = await openIt({ ...DISK, timeoutUnits: 1 });
    twin.faults.delay({ opcode: READ }, 1e6);
    const read = readCode(device);
    await new Promise((resolve) => setTimeout(resolve, 5));
    twin.faults.neverReady = true;
    await expect(control.reset()).rejects.toMatchObject({ code: 'CONTROLLER_NOT_READY' });
    expect(await read).toBe('DEVICE_GONE');
    expect(await readCode(device)).toBe('DEVICE_GONE');
    expect(control.state).toBe('FAILED');
  });
});

describe('a controller that lies', () => {
  it.each([
    ['an identifier that is not in flight', 99],
    ['an identifier beyond all', 0xffff],
  ])('with %s is reset, and the operation completes', async (_name, cid) => {
    const { device, twin, control } = await openIt(DISK, { timeout: '100ms' });
    twin.faults.wrongCid({ opcode: READ }, cid);
    expect(await readCode(device)).toBe('OK');
    expect(control.counters.resets).toBe(1);
  });

  it('completes an operation twice without effect on the next', async () => {
    const { device, twin } = await openIt(DISK, { timeout: '100ms' });
    twin.faults.twice({ opcode: READ });
    for (let i = 0; i < 20; i++) expect(await readCode(device, i)).toBe('OK');
  });

  it('grants fewer queues than asked for', async () => {
    const { device } = await openIt({ ...DISK, queuesMax: 2 });
    expect(device.info.description['queues']).toBe(2);
    const queues = [device.queue({ depth: 4 }), device.queue({ depth: 4 })];
    expect(() => device.queue({ depth: 4 })).toThrow(/all 2 queue pairs are in use/);
    for (const queue of queues) await queue.close();
    await device.queue({ depth: 4 }).close();
  });
});

describe('a removal', () => {
  it.each([0xffffffff, 0])('(registers read %i) completes what is in flight', async (value) => {
    const { device, twin, control } = await openIt(DISK, { timeout: '100ms' });
    twin.faults.delay({ opcode: READ, count: 32 }, 1e6);
    const reads = Array.from({ length: 32 }, (_, i) => readCode(device, i));
    await new Promise((resolve) => setTimeout(resolve, 5));
    twin.remove(value);
    expect(new Set(await Promise.all(reads))).toEqual(new Set(['DEVICE_GONE']));
    expect(control.state).toBe('GONE');
    expect(await readCode(device)).toBe('DEVICE_GONE');
    expect(() => device.queue({ depth: 4 })).toThrow(/does not answer any more/);
  });

  it('that is asked for gives the device back', async () => {
    const { device, twin, control } = await openIt();
    twin.requestRemoval();
    expect(control.state).toBe('GONE');
    expect(await readCode(device)).toBe('DEVICE_GONE');
  });
});

describe('opening', () => {
  const failing: [string, (twin: NvmeTwin) => void][] = [
    ['CONTROLLER_NOT_READY', (twin) => (twin.faults.neverReady = true)],
    ['DEVICE_GONE', (twin) => twin.remove()],
    ['NVME_STATUS', (twin) => twin.faults.status({ qid: 0, opcode: 0x06 }, { sc: 6 })],
    ['NVME_STATUS', (twin) => twin.faults.status({ qid: 0, opcode: 0x05 }, { sct: 1, sc: 2 })],
    ['NVME_STATUS', (twin) => twin.faults.status({ qid: 0, opcode: 0x01 }, { sct: 1, sc: 1 })],
    [
      'BAD_NAMESPACE',
      (twin) => (twin.faults.identify = (cns, _nsid, page) => cns === 0 && spoil(page)),
    ],
  ];

  function spoil(page: Uint8Array): void {
    page[26] = 63; // a format that is not there
  }

  it.each(failing)('rejects with %s and leaves nothing', async (code, disturb) => {
    const { NvmeTwin } = await import('../../support/nvme-twin/index.js');
    const { openAgain } = await import('../../support/nvme-open.js');
    const twin = new NvmeTwin({ ...DISK, timeoutUnits: 1, address: `failing-${code}` });
    twin.start();
    disturb(twin);
    await expect(openAgain(twin)).rejects.toMatchObject({
      code,
      hint: expect.any(String) as string,
    });
    twin.stop();
    expect(twin.check()).toEqual([]);
  });
});

describe('namespaces', () => {
  it('that grow and shrink are told of, and their new size holds', async () => {
    const { device, twin } = await openIt();
    const changed = new Promise((resolve) => device.onChange(resolve));
    expect(await readCode(device, 8191)).toBe('OK');
    twin.resize(1, 4096);
    expect(await changed).toMatchObject({ blocks: 4096 });
    expect(await readCode(device, 4096)).toBe('BAD_RANGE');
    expect(await readCode(device, 4095)).toBe('OK');
  });

  it('that are removed while they are used complete with DEVICE_GONE', async () => {
    const { device, twin } = await openIt({ namespaces: [{ blocks: 64 }, { blocks: 64 }] });
    const changed = new Promise((resolve) => device.onChange(resolve));
    twin.removeNamespace(1);
    expect(await changed).toMatchObject({ blocks: 0 });
    expect(await readCode(device)).toBe('DEVICE_GONE');
  });
});

describe('a command with a field that the controller calls invalid', () => {
  const invalid = { sc: 0x02, dnr: true };

  it('was to a namespace that went, though nobody had heard of that yet', async () => {
    const { device, twin } = await openIt({ namespaces: [{ blocks: 64 }, { blocks: 64 }] });
    twin.faults.status({ opcode: READ, count: Infinity }, invalid);
    const code = readCode(device);
    await new Promise((resolve) => setTimeout(resolve, 20));
    twin.removeNamespace(1);
    expect(await code).toBe('DEVICE_GONE');
  });

  it('is tried once more, and is a bad request where the namespace stays', async () => {
    const { device, twin } = await openIt();
    twin.faults.status({ opcode: READ, count: 2 }, invalid);
    expect(await readCode(device)).toBe('BAD_REQUEST');
    expect(await readCode(device)).toBe('OK');
  });
});

describe('injected errors', () => {
  it('strike by operation, after some, and so many', async () => {
    const { device, control } = await openIt();
    control.inject({ op: 'READ', skip: 1, count: 2, status: 0x4281 });
    const codes = [];
    for (let i = 0; i < 4; i++) codes.push(await readCode(device));
    expect(codes).toEqual(['OK', 'MEDIA_ERROR', 'MEDIA_ERROR', 'OK']);
  });

  it('can delay a command, and lose one', async () => {
    const { device, control } = await openIt(DISK, { timeout: '100ms' });
    control.inject({ op: 'READ', delayMs: 20 });
    const before = performance.now();
    expect(await readCode(device)).toBe('OK');
    expect(performance.now() - before).toBeGreaterThanOrEqual(19);
    control.inject({ op: 'READ', drop: true });
    expect(await readCode(device)).toBe('TIMED_OUT');
    expect(() => control.inject({ op: 'READ' })).toThrow(/status, a delay or a loss/);
  });
});
