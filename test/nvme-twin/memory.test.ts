// What the twin says of addresses that a driver should not have given it. Each of these tests fails
// when the twin looks away.

import { afterEach, describe, expect, it } from 'vitest';
import { PenstockError } from '../../lib/errors.js';
import { BlockDevice, Op } from '../../lib/hpdi/index.js';
import { addressSpace, defaultMemory, GRANULE_BYTES } from '../../lib/memory/index.js';
import {
  attachTwin,
  Code,
  Dma,
  NvmeTwin,
  type NvmeTwinOptions,
  trackOperations,
  Violations,
  TwinMemory,
} from '../support/nvme-twin/index.js';
import { collect, put } from '../support/requests.js';
import { TwinBackend } from '../support/twin.js';
import { Mini } from './mini.js';

const READ = 2;
const WRITE = 1;
const TRANSFER = Code.DATA_TRANSFER_ERROR;
let mini: Mini;

function open(options: NvmeTwinOptions = {}): Mini {
  return (mini = Mini.withQueue(options));
}

function violations(): string {
  return mini.twin.check().join('\n');
}

afterEach(() => {
  mini.close();
  mini.twin.close();
});

describe('addresses', () => {
  it('outside of live memory are violations, and end the command', () => {
    open();
    const dead = 0x7fff_ffff_000;
    expect(mini.transfer(READ, 0, 1, { prp1: dead }).status).toBe(TRANSFER);
    expect(mini.transfer(READ, 0, 1, { prp1: 0 }).status).toBe(TRANSFER);
    const end = mini.pages.segment.address + GRANULE_BYTES - 512;
    expect(mini.transfer(READ, 0, 2, { prp1: end, prp2: end + 512 }).status).toBe(TRANSFER);
    const far = 2 ** 32 * 0xfffff;
    expect(mini.transfer(READ, 0, 1, { prp1: far }).status).toBe(TRANSFER);
    expect(mini.twin.violations).toHaveLength(4);
    const text = `data [0x${dead.toString(16)}, +512) is not memory the device may reach`;
    expect(violations()).toContain(text);
  });

  it('of memory that was closed are violations', () => {
    open();
    const segment = addressSpace().create(GRANULE_BYTES);
    expect(mini.transfer(READ, 0, 1, { prp1: segment.address }).status).toBe(0);
    segment.close();
    expect(mini.transfer(READ, 0, 1, { prp1: segment.address }).status).toBe(TRANSFER);
    expect(violations()).toContain('is not memory the device may reach');
  });
});

describe('memory that must be reached', () => {
  it('is refused before, and reached after; closed it stays until it is reaped', () => {
    mini = new Mini({ dma: 'reached' });
    const { dma } = mini.twin.pci;
    mini.enable();
    expect(violations()).toContain('SQ 0');
    mini.setReg(0x14, 0);
    mini.forget();
    expect(dma.reach(mini.pages.segment.address)).toBe(true);
    mini.enable();
    mini.createQueue(1);
    const segment = addressSpace().create(GRANULE_BYTES);
    const command = { prp1: segment.address };
    expect(mini.transfer(READ, 0, 1, command).status).toBe(TRANSFER);
    expect(dma.reach(segment.address)).toBe(true);
    expect(dma.map[segment.address / GRANULE_BYTES]).toBe(3);
    expect(mini.transfer(READ, 0, 1, command).status).toBe(0);
    segment.close();
    expect([dma.stale, dma.map[segment.address / GRANULE_BYTES]]).toEqual([true, 0]);
    expect(mini.transfer(READ, 0, 1, command).status).toBe(0);
    dma.collect();
    dma.reap();
    expect(dma.stale).toBe(false);
    expect(mini.transfer(READ, 0, 1, command).status).toBe(TRANSFER);
  });

  it('is not reached when the test says so', () => {
    mini = new Mini({ dma: 'reached' });
    const { dma } = mini.twin.pci;
    const { address } = mini.pages.segment;
    dma.laterTimes = 1;
    expect(dma.reach(address)).toBe(false);
    dma.refuse = () => new PenstockError('IOVA_OUT_OF_RANGE', 'no');
    expect(() => dma.reach(address)).toThrow('no');
    dma.refuse = null;
    expect(dma.reach(address)).toBe(true);
    expect(() => dma.reach(2 ** 43)).toThrow(expect.objectContaining({ code: 'BAD_ADDRESS' }));
  });

  it('is the same for another environment', () => {
    mini = new Mini({ dma: 'reached' });
    const attached = attachTwin(mini.twin.pci.share());
    const { address } = mini.pages.segment;
    expect(attached.dma.reach(address)).toBe(true);
    expect(mini.twin.memory.dma.reaches(address, 4096, Dma.writes)).toBe(true);
    mini.enable();
    expect(attached.bar(0).read32(0x1c)).toBe(1);
  });
});

describe('operations', () => {
  it('may use their own buffers, as they are used, and only while they last', () => {
    open();
    const { memory } = mini.twin;
    const page = mini.pages.take();
    memory.allow(page, 1024, Dma.writes);
    expect(mini.transfer(READ, 0, 2, { prp1: page }).status).toBe(0);
    expect(mini.transfer(READ, 0, 2, { prp1: page + 512 }).status).toBe(TRANSFER);
    expect(violations()).toContain('written outside of live operations');
    memory.disallow(page, 1024, Dma.writes);
    expect(mini.transfer(READ, 0, 1, { prp1: page }).status).toBe(TRANSFER);
    memory.allow(page, 512, Dma.reads);
    memory.allow(page + 512, 512, Dma.reads);
    expect(mini.transfer(WRITE, 0, 2, { prp1: page }).status).toBe(0);
    expect(mini.transfer(READ, 0, 1, { prp1: page }).status).toBe(TRANSFER);
    memory.disallow(page, 512, Dma.reads);
    expect(() => memory.disallow(page, 512, Dma.reads)).toThrow('not allowed');
    expect(mini.twin.violations).toHaveLength(3);
  });

  it('never reach into rings, nor lists into buffers', () => {
    open();
    const { memory } = mini.twin;
    const { cq } = mini.pairs.get(1)!;
    expect(mini.transfer(READ, 0, 1, { prp1: cq }).status).toBe(TRANSFER);
    expect(violations()).toContain('in CQ 1');
    const page = mini.pages.take(16384);
    memory.allow(page, 16384, Dma.writes);
    for (let i = 0; i < 3; i++) mini.pages.put64(page + 4096 + i * 8, page + i * 4096);
    const command = { prp1: page, prp2: page + 4096 };
    expect(mini.transfer(READ, 0, 32, command).status).toBe(TRANSFER);
    expect(violations()).toContain('PRP list');
    const identify = { opcode: 6, prp1: page, dwords: [1] };
    expect(mini.admin(identify).status).toBe(TRANSFER);
    expect(violations()).toContain('admin data');
  });

  it('keep their lists until they complete', () => {
    open();
    const page = mini.pages.take(16384);
    const list = mini.pages.take();
    for (let i = 0; i < 3; i++) mini.pages.put64(list + i * 8, page + (i + 1) * 4096);
    mini.twin.faults.delay({ qid: 1, count: 2 }, 2);
    const command = { opcode: READ, nsid: 1, prp1: page, prp2: list, dwords: [0, 0, 31] };
    mini.run(1, command);
    expect(violations()).toBe('');
    const cid = mini.submit(1, command);
    mini.twin.step();
    mini.pages.put64(list, page + 4096 * 2);
    mini.wait(1);
    expect(violations()).toBe(`SQ 1: command ${cid}'s data pointer changed in flight`);
  });

  it('do not touch what was freed, and nor does anyone else', () => {
    open();
    const { memory } = mini.twin;
    const page = mini.pages.take();
    memory.free(page, 4096);
    memory.checkFreed();
    expect(mini.twin.violations).toEqual([]);
    expect(mini.transfer(READ, 0, 1, { prp1: page }).status).toBe(TRANSFER);
    mini.pages.u8(page, 4096)[100] = 1;
    expect(violations()).toContain('after its free');
    expect(violations()).toContain(`byte 100 of freed [0x${page.toString(16)}, +4096) written`);
    memory.allow(page, 512, Dma.writes, 'late buffer');
    expect(violations()).toContain('late buffer');
    memory.disallow(page, 512, Dma.writes);
    memory.reuse(page, 4096);
    const count = mini.twin.violations.length;
    memory.allow(page, 512, Dma.writes);
    memory.free(page, 4096);
    expect(mini.twin.violations).toHaveLength(count + 1);
  });
});

describe('a tracked device', () => {
  it('allows what is in flight, by record, list entry and access', async () => {
    mini = new Mini();
    const found = new Violations();
    const memory = new TwinMemory(found, 'live');
    memory.open = true;
    const device = new BlockDevice(trackOperations(new TwinBackend({ latencyPolls: 2 }), memory));
    const queue = device.queue({ depth: 4, split: false });
    const buffer = defaultMemory().alloc(4096);
    const { address } = buffer;
    const may = (at: number, access: Dma): boolean => memory.data(at, 512, access) !== null;
    try {
      expect(may(address, Dma.reads)).toBe(false);
      put(queue, { op: Op.READ, tag: 7, blocks: 2, lba: 0, address });
      put(queue, { op: Op.WRITE, tag: 7, blocks: 1, lba: 4, address: address + 2048 });
      queue.submit();
      expect([may(address + 512, Dma.writes), may(address + 1024, Dma.writes)]).toEqual([
        true,
        false,
      ]);
      expect([may(address + 2048, Dma.reads), may(address + 2048, Dma.writes)]).toEqual([
        true,
        false,
      ]);
      const done = await collect(queue, 2);
      expect(done.map(({ tag, status }) => [tag, status])).toEqual([
        [7, 0],
        [7, 0],
      ]);
      expect(may(address, Dma.reads)).toBe(false);
      expect(found.list.length).toBeGreaterThan(0);
    } finally {
      await device.close();
      buffer.free();
    }
  });
});

describe('the twin as a whole', () => {
  it('is connected to again after its function was closed', async () => {
    mini = new Mini();
    const twin = new NvmeTwin();
    const first = twin.pci;
    first.enable();
    expect(twin.pci).toBe(first);
    await first.close();
    expect(() => first.bar(0)).toThrow('closed');
    expect(twin.pci).not.toBe(first);
    twin.pci.enable();
    expect(twin.pci.bar(0).read32(8)).toBe(0x20000);
    expect(() => twin.pci.bar(1)).toThrow(expect.objectContaining({ code: 'NO_SUCH_BAR' }));
  });
});
