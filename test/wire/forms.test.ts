// The two forms of every structure agree: const enums for hot code, tables and frozen objects for
// everybody else.

import { describe, expect, it } from 'vitest';
import * as net from '../../lib/hpdi/net.js';
import * as records from '../../lib/hpdi/records.js';
import { StatusWord } from '../../lib/memory/status.js';
import * as vfioUser from '../../lib/pci/vfio-user-protocol.js';
import * as uring from '../../lib/uring/layout.js';
import { CONTROL_LAYOUT, CQE_LAYOUT, Sqe, SQE_LAYOUT } from '../../lib/uring/layout.js';
import * as mailbox from '../../lib/idc/mailbox.js';
import * as region from '../../lib/idc/region.js';
import { checkLayout, decode, layout } from '../../lib/wire/index.js';

type Numbers = Readonly<Record<string, number>>;

const { COMPLETION, FLAGS, OPERATIONS, REQUEST, STATUS } = records;

/** The const enum of a module as the object that it is where tests run, names only. */
function enumOf(module: object, name: string): Numbers {
  const form = (module as Record<string, Numbers>)[name]!;
  const named = Object.entries(form).filter(([key]) => !/^-?\d+$/.test(key));
  expect(named.length).toBeGreaterThan(0);
  return Object.fromEntries(named);
}

describe('hot and cold forms', () => {
  it.each([
    ['Sqe', SQE_LAYOUT, 64],
    ['Cqe', CQE_LAYOUT, 16],
    ['Control', CONTROL_LAYOUT, 64],
  ])('of %s agree', (name, structure, bytes) => {
    expect(structure.bytes).toBe(bytes);
    expect(checkLayout(structure, enumOf(uring, name))).toEqual([]);
  });

  it.each([
    ['Header', vfioUser.HEADER_LAYOUT, 16],
    ['DeviceInfo', vfioUser.DEVICE_INFO_LAYOUT, 16],
    ['RegionInfo', vfioUser.REGION_INFO_LAYOUT, 32],
    ['SparseCap', vfioUser.SPARSE_CAP_LAYOUT, 16],
    ['SparseArea', vfioUser.SPARSE_AREA_LAYOUT, 16],
    ['IrqInfo', vfioUser.IRQ_INFO_LAYOUT, 16],
    ['IrqSet', vfioUser.IRQ_SET_LAYOUT, 20],
    ['RegionAccess', vfioUser.REGION_ACCESS_LAYOUT, 16],
    ['DmaMap', vfioUser.DMA_MAP_LAYOUT, 32],
    ['DmaUnmap', vfioUser.DMA_UNMAP_LAYOUT, 24],
  ])('of vfio-user %s agree', (name, structure, bytes) => {
    expect(structure.bytes).toBe(bytes);
    expect(checkLayout(structure, enumOf(vfioUser, name))).toEqual([]);
  });

  it('of regions and mailboxes agree', () => {
    expect(checkLayout(region.REGION_HEADER, enumOf(region, 'Header'))).toEqual([]);
    expect(checkLayout(mailbox.MAILBOX_CONTROL, enumOf(mailbox, 'Control'))).toEqual([]);
  });

  it('put every field of the kernel where its header does', () => {
    // linux/io_uring.h, by name: what a wrong word index would change.
    const sqe = new Uint32Array(16);
    sqe[Sqe.opcode] = 22 | (0x15 << 8) | (0x1234 << 16);
    sqe[Sqe.fd] = 7;
    sqe[Sqe.offLo] = 1;
    sqe[Sqe.offHi] = 2;
    sqe[Sqe.addrHi] = 3;
    sqe[Sqe.len] = 4096;
    sqe[Sqe.opFlags] = 5;
    sqe[Sqe.userDataLo] = 9;
    sqe[Sqe.bufIndex] = 11 | (12 << 16);
    expect(decode(SQE_LAYOUT, new Uint8Array(sqe.buffer))).toMatchObject({
      opcode: 22,
      flags: 0x15,
      ioprio: 0x1234,
      fd: 7,
      off: 2n * 2n ** 32n + 1n,
      addr: 3n * 2n ** 32n,
      len: 4096,
      opFlags: 5,
      userData: 9n,
      bufIndex: 11,
      personality: 12,
    });
  });
});

describe('what the package exports', () => {
  it.each([
    ['OPERATIONS', OPERATIONS, 'Op'],
    ['REQUEST', REQUEST, 'Req'],
    ['COMPLETION', COMPLETION, 'Cpl'],
    ['STATUS', STATUS, 'Status'],
  ])('as %s equals the enum and cannot be changed', (_name, cold, hot) => {
    expect(cold).toEqual(enumOf(records, hot));
    expect(Object.isFrozen(cold)).toBe(true);
    const values = Object.values(enumOf(records, hot));
    expect(new Set(values).size).toBe(values.length);
  });

  it.each([
    ['SEND_OFFLOADS', net.SEND_OFFLOADS, 'NetSend'],
    ['RECEIVE_FLAGS', net.RECEIVE_FLAGS, 'NetReceive'],
  ])('as %s equals the enum, one bit of the lower sixteen each', (_name, cold, hot) => {
    const bits = Object.values(enumOf(net, hot));
    expect(cold).toEqual(enumOf(net, hot));
    expect(Object.isFrozen(cold)).toBe(true);
    expect(bits).toEqual(bits.map((_, place) => 1 << place));
    expect(bits.length).toBeLessThanOrEqual(16);
  });

  it('as FLAGS equals the enum without its mask, one bit each inside the mask', () => {
    const { mask, ...flags } = enumOf(records, 'Flag');
    expect(FLAGS).toEqual(flags);
    for (const bit of Object.values(flags)) {
      expect(Math.log2(bit) % 1).toBe(0);
      expect(bit & mask!).toBe(bit);
    }
  });
});

describe('records', () => {
  it('have the sizes DESIGN gives and no word twice', () => {
    const sizes = { Req: 8, Cpl: 4, Sg: 4 };
    for (const [name, size] of Object.entries(sizes)) {
      const { words, ...indices } = enumOf(records, name);
      expect(words).toBe(size);
      const used = Object.values(indices);
      expect(new Set(used).size).toBe(used.length);
      expect(Math.max(...used)).toBeLessThan(words!);
    }
  });

  it('fit operation codes and statuses into eight bits', () => {
    for (const name of ['Op', 'Status']) {
      for (const value of Object.values(enumOf(records, name))) expect(value).toBeLessThan(256);
    }
  });

  it('keep the status words of all mappings apart', () => {
    expect(StatusWord.liveness - StatusWord.lost).toBe(4096);
    expect(StatusWord.lost).toBeGreaterThan(StatusWord.lostCount);
  });
});

describe('layout', () => {
  const field = (name: string, offset: number, bytes: number, bits?: [number, number]) => ({
    name,
    offset,
    bytes,
    meaning: '',
    ...(bits === undefined ? {} : { bits }),
  });

  it.each([
    ['overlapping fields', [field('a', 0, 4), field('b', 3, 2)], /b overlaps a/],
    ['overlapping bits', [field('a', 0, 4, [0, 8]), field('b', 0, 4, [8, 9])], /b overlaps a/],
    ['two of one name', [field('a', 0, 1), field('a', 1, 1)], /two fields named a/],
    ['a field that sticks out', [field('a', 6, 4)], /outside/],
    ['bits that stick out', [field('a', 8, 4, [0, 3])], /outside/],
    ['bits over the word', [field('a', 0, 4, [30, 32])], /one 32-bit word/],
    ['bits off the word', [field('a', 2, 4, [0, 3])], /one 32-bit word/],
    ['bits the wrong way round', [field('a', 0, 4, [5, 3])], /one 32-bit word/],
  ])('refuses %s', (_what, fields, message) => {
    expect(() => layout('S', 8, 'test', fields)).toThrow(message);
  });

  it('decodes bits, every width, and bytes as hex', () => {
    const structure = layout('S', 24, 'test', [
      field('low', 0, 4, [0, 3]),
      field('high', 0, 4, [4, 31]),
      field('whole', 4, 4, [0, 31]),
      field('byte', 8, 1),
      field('half', 10, 2),
      field('long', 12, 8),
      field('name', 20, 3),
    ]);
    const data = new Uint8Array(40);
    data.set([0x21, 0x43, 0x65, 0x87, 0xff, 0xff, 0xff, 0xff, 200, 0, 0x34, 0x12], 8);
    data.set([1, 0, 0, 0, 0, 0, 0, 0x80, 0xab, 0xcd, 0x0e], 20);
    expect(decode(structure, data.subarray(8))).toEqual({
      low: 1,
      high: 0x8765432,
      whole: 0xffffffff,
      byte: 200,
      half: 0x1234,
      long: 2n ** 63n + 1n,
      name: 'abcd0e',
    });
    expect(() => decode(structure, data.subarray(20))).toThrow(/24 bytes wanted, 20 given/);
  });

  it('is found out by its check when the hot form is wrong', () => {
    const structure = layout('S', 16, 'test', [field('a', 0, 4), field('b', 8, 8)]);
    expect(checkLayout(structure, { a: 0, bLo: 2, bHi: 3, words: 4 })).toEqual([]);
    expect(checkLayout(structure, { a: 1, bLo: 3, bHi: 2, words: 5, c: 0 })).toHaveLength(5);
  });
});
