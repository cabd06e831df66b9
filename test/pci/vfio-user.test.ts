// The vfio-user client against a server in another thread: all that a driver does with a function.

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES } from '../../lib/memory/index.js';
import { native } from '../../lib/native.js';
import { openVfioUser, type PciFunction } from '../../lib/pci/index.js';
import { openFds, untilFds } from '../native/support.js';
import {
  BAR0_BYTES,
  DEVICE_ID,
  Register,
  VfioUserServer,
  Word,
  type ServerOptions,
} from '../support/vfio-user-server.js';

const RESET = 13;
const REGION_READ = 9;
const REGION_WRITE = 10;
const DMA_MAP = 2;
const SET_IRQS = 8;

let folder: string;
let before: Set<string>;
let server: VfioUserServer;
let functions: PciFunction[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-vfio-user-'));
  functions = [];
  before = openFds();
});

afterEach(async () => {
  for (const each of functions) await each.close();
  await server.stop();
  await untilFds(before);
  rmSync(folder, { recursive: true });
});

async function serve(options: Partial<ServerOptions> = {}): Promise<void> {
  server = await VfioUserServer.start({ path: join(folder, 'socket'), ...options });
}

async function openHere(timeoutMs = 20_000): Promise<PciFunction> {
  const opened = await openVfioUser(join(folder, 'socket'), { timeoutMs });
  functions.push(opened);
  return opened;
}

function deviceSegment(bytes = GRANULE_BYTES) {
  return addressSpace().create(bytes, { kind: 'device', pageBytes: 4096 });
}

describe('a function behind a socket', () => {
  it('says what it is', async () => {
    await serve();
    const opened = await openHere();
    expect(opened).toMatchObject({ address: join(folder, 'socket'), transport: 'vfio-user' });
    expect(opened.identity).toEqual({
      vendor: 0x1b36,
      device: 0x0010,
      subsystemVendor: 0x1af4,
      subsystemDevice: 0x1100,
      classCode: 0x010802,
      revision: 2,
    });
    expect(opened.config.capabilities()).toEqual([{ id: 0x11, offset: 0x40, extended: false }]);
    expect(opened.vectors).toBe(20);
    expect(opened.gone).toBe(false);
  });

  it('is found by its folder, too', async () => {
    mkdirSync(join(folder, 'nvme'));
    await serve({ path: join(folder, 'nvme', 'cntrl') });
    const opened = await openVfioUser(join(folder, 'nvme'));
    functions.push(opened);
    expect(opened.bar(0).read32(Register.id)).toBe(DEVICE_ID);
  });

  it.each([{}, { fdPerArea: true }])('has registers, trapped and mapped: %o', async (options) => {
    await serve(options);
    const bar = (await openHere()).bar(0);
    expect(bar.bytes).toBe(BAR0_BYTES);
    expect(bar.read32(Register.id)).toBe(DEVICE_ID);
    bar.write32(Register.scratch, 0xcafe);
    expect(bar.read32(Register.scratch)).toBe(0xcafe);
    expect(bar.words(Register.id, 64)).toBeNull();
    expect(bar.words(Register.mapped - 4, 8)).toBeNull();
    const requests = server.count(Word.requests);
    const words = bar.words(Register.mapped, 4096)!;
    words[3] = 77;
    expect(bar.read32(Register.mapped + 12)).toBe(77);
    bar.write32(Register.mapped2, 5);
    expect(bar.words(Register.mapped2, 4)![0]).toBe(5);
    expect(server.count(Word.requests)).toBe(requests);
  });

  it('has a BAR that is mapped as a whole, and none that is not there', async () => {
    await serve();
    const opened = await openHere();
    const words = opened.bar(2).words(0, 4096)!;
    words[0] = 9;
    expect(opened.bar(2).read32(0)).toBe(9);
    expect(() => opened.bar(1)).toThrow(expect.objectContaining({ code: 'NO_SUCH_BAR' }));
  });

  it('reads all ones where its server has no register', async () => {
    await serve();
    const opened = await openHere();
    const bar = opened.bar(0);
    expect(bar.read32(BAR0_BYTES)).toBe(0xffffffff);
    server.fail('refuse', REGION_READ);
    expect(bar.read32(Register.id)).toBe(0xffffffff);
    server.fail('refuse without errno', REGION_WRITE);
    bar.write32(Register.scratch, 1);
    expect(bar.read32(Register.id)).toBe(DEVICE_ID);
    expect(opened.gone).toBe(false);
  });

  it('has all registers trapped where nothing can be mapped', async () => {
    await serve({ trapAll: true });
    const bar = (await openHere()).bar(0);
    expect(bar.words(Register.mapped, 4096)).toBeNull();
    bar.write32(Register.mapped, 3);
    expect(bar.read32(Register.mapped)).toBe(3);
  });

  it('is reset', async () => {
    await serve();
    const opened = await openHere();
    opened.bar(0).write32(Register.scratch, 1);
    await opened.reset();
    expect(server.count(Word.resets)).toBe(1);
    expect(opened.bar(0).read32(Register.scratch)).toBe(0);
    server.fail('refuse', RESET);
    await expect(opened.reset()).rejects.toMatchObject({ code: 'RESET_FAILED' });
    expect(opened.gone).toBe(false);
  });
});

describe('memory', () => {
  it('of the kind device is read and written by the server', async () => {
    await serve();
    const opened = await openHere();
    const segment = deviceSegment();
    expect(opened.dma.reach(segment.address)).toBe(true);
    expect(opened.dma.reach(segment.address + 100)).toBe(true);
    expect(server.count(Word.dmaMaps)).toBe(1);
    expect(opened.dma.map[segment.address / GRANULE_BYTES]).toBe(3);
    opened.enable();
    const bar = opened.bar(0);
    bar.write32(Register.dmaLo, (segment.address % 2 ** 32) + 4096);
    bar.write32(Register.dmaHi, Math.floor(segment.address / 2 ** 32));
    bar.write32(Register.dmaBytes, 512);
    bar.write32(Register.dma, 0xab);
    expect(segment.u8.slice(4095, 4097)).toEqual(Uint8Array.of(0, 0xab));
    expect(segment.u8.slice(4607, 4609)).toEqual(Uint8Array.of(0xab, 0));
    segment.u32[1024] = 0x01020304;
    expect(bar.read32(Register.dma)).toBe(0x01020304);
    opened.quiesce();
    expect(opened.config.read16(4) & 4).toBe(0);
    expect(bar.read32(Register.dma)).toBe(0xffffffff);
    segment.close();
  });

  it('of other kinds is not handed out', async () => {
    await serve();
    const opened = await openHere();
    for (const kind of ['private', 'shared'] as const) {
      const segment = addressSpace().create(GRANULE_BYTES, { kind, pageBytes: 4096 });
      expect(() => opened.dma.reach(segment.address)).toThrow(
        expect.objectContaining({
          code: 'SEGMENT_PRIVATE',
          hint: expect.stringContaining("new Memory({ kind: 'device' })") as string,
        }),
      );
      expect(opened.dma.map[segment.address / GRANULE_BYTES]).toBe(0);
      segment.close();
    }
    expect(server.count(Word.dmaMaps)).toBe(0);
  });

  it('that was closed is unmapped when it is reaped', async () => {
    await serve();
    const opened = await openHere();
    const segment = deviceSegment();
    opened.dma.reach(segment.address);
    segment.close();
    expect(opened.dma.stale).toBe(true);
    expect(opened.dma.map[segment.address / GRANULE_BYTES]).toBe(0);
    opened.dma.collect();
    opened.dma.reap();
    expect(opened.dma.stale).toBe(false);
    expect(server.count(Word.dmaUnmaps)).toBe(1);
  });

  it('that the server refuses is not reached, and may be tried again', async () => {
    await serve();
    const opened = await openHere();
    const segment = deviceSegment();
    server.fail('refuse', DMA_MAP);
    expect(() => opened.dma.reach(segment.address)).toThrow(
      expect.objectContaining({ code: 'DMA_MAP_FAILED' }),
    );
    expect(opened.dma.map[segment.address / GRANULE_BYTES]).toBe(0);
    expect(opened.dma.reach(segment.address)).toBe(true);
    segment.close();
  });
});

describe('interrupts', () => {
  it('come by eventfd, more of them than one message carries', async () => {
    await serve({ fdsMax: 8 });
    const opened = await openHere();
    const fds = opened.enableInterrupts(20);
    expect(fds).toHaveLength(20);
    expect(server.count(Word.irqSets)).toBe(3);
    for (const vector of [0, 7, 8, 19]) {
      opened.bar(0).write32(Register.interrupt, vector);
      expect(native.park(Int32Array.of(fds[vector]!), 0)).toBe(0);
      expect(native.eventfdDrain(fds[vector]!)).toBe(1);
    }
    opened.disableInterrupts();
    expect(server.count(Word.irqSets)).toBe(4);
    expect(opened.enableInterrupts(1)).toHaveLength(1);
  });

  it('go one descriptor a message to a server that says nothing else', async () => {
    await serve({ fdsMax: 0 });
    const opened = await openHere();
    const failed = () => opened.enableInterrupts(2);
    // This one takes none at all then: half of them is as good as none.
    expect(failed).toThrow(expect.objectContaining({ code: 'INTERRUPTS_FAILED' }));
    expect(() => opened.enableInterrupts(21)).toThrow(RangeError);
  });

  it('that were half enabled are given back', async () => {
    await serve();
    const opened = await openHere();
    server.fail('refuse', SET_IRQS, 1);
    const fds = openFds();
    expect(() => opened.enableInterrupts(20)).toThrow(
      expect.objectContaining({ code: 'INTERRUPTS_FAILED' }),
    );
    await untilFds(fds);
    expect(opened.enableInterrupts(20)).toHaveLength(20);
  });

  it('can be masked only where the table is mapped', async () => {
    await serve();
    expect((await openHere()).vectorControl(0)).toBeNull();
  });
});

describe('closing', () => {
  it('waits until the server let go, and leaves the device without bus master', async () => {
    await serve();
    const opened = await openHere();
    const segment = deviceSegment();
    opened.dma.reach(segment.address);
    opened.enable();
    opened.enableInterrupts(4);
    await opened.close();
    await opened.close();
    expect(server.count(Word.ends)).toBe(1);
    expect(opened.gone).toBe(true);
    expect(opened.bar(0).read32(Register.id)).toBe(0xffffffff);
    expect(() => opened.share()).toThrow(expect.objectContaining({ code: 'DEVICE_GONE' }));
    segment.close();
    const again = await openHere();
    expect(again.config.read16(4)).toBe(0);
  });

  it('is not held up by a server that does nothing', async () => {
    await serve();
    const opened = await openHere(400);
    server.fail('late', RESET);
    await expect(opened.reset()).rejects.toMatchObject({ code: 'TIMED_OUT' });
    await opened.close();
  });

  it('takes the bus master bit from a device that was left with it', async () => {
    await serve({ command: 7 });
    const opened = await openHere();
    expect(opened.config.read16(4)).toBe(3);
  });
});
