import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type ConfigAccess,
  PciConfig,
  readIdentity,
  readMsiVectors,
  readMsixTable,
} from '../../lib/pci/config-space.js';

/** Config space in memory. */
function access(bytes: Uint8Array): ConfigAccess {
  return {
    read(offset, view) {
      view.set(bytes.subarray(offset, offset + view.length));
      return view.length;
    },
    write: (offset, view) => bytes.set(view, offset),
  };
}

function spaceOf(words: Readonly<Record<number, number>>, bytesTotal = 4096) {
  const bytes = new Uint8Array(bytesTotal);
  const view = new DataView(bytes.buffer);
  for (const [offset, word] of Object.entries(words)) view.setUint32(Number(offset), word, true);
  return { bytes, config: new PciConfig(access(bytes), bytesTotal) };
}

/** An NVMe controller as QEMU shows it: MSI-X, PCI Express, power management. */
const NVME = {
  0x00: 0x00101b36,
  0x04: 0x00100107,
  0x08: 0x01080202,
  0x2c: 0x11001af4,
  0x34: 0x00000040,
  0x40: 0x00408011,
  0x44: 0x00002000,
  0x80: 0x00026010,
  0x60: 0x00000001,
  0x100: 0x14810001,
  0x148: 0x00030003,
};

describe('registers', () => {
  it('are little-endian, of one, two and four bytes', () => {
    const { bytes, config } = spaceOf({ 0: 0x87654321 });
    expect(config.read8(3)).toBe(0x87);
    expect(config.read16(2)).toBe(0x8765);
    expect(config.read32(0)).toBe(0x87654321);
    config.write32(8, 0xfedcba98);
    config.write16(12, 0x1234);
    config.write8(14, 0xff);
    expect([...bytes.subarray(8, 16)]).toEqual([0x98, 0xba, 0xdc, 0xfe, 0x34, 0x12, 0xff, 0]);
  });

  it('that there are none of are a mistake of the caller', () => {
    const { config } = spaceOf({}, 256);
    expect(() => config.read32(2)).toThrow(RangeError);
    expect(() => config.read16(255)).toThrow(RangeError);
    expect(() => config.read32(256)).toThrow(RangeError);
    expect(() => config.write8(-1, 0)).toThrow(RangeError);
  });

  it.each([
    [
      'throws',
      () => {
        throw new Error('EIO');
      },
    ],
    ['gives nothing', () => 0],
  ])('read all ones when the other end %s', (_how, read) => {
    const config = new PciConfig({ read, write: () => undefined }, 4096);
    expect(config.failed).toBe(false);
    expect([config.read8(0), config.read16(0), config.read32(0)]).toEqual([
      0xff, 0xffff, 0xffffffff,
    ]);
    expect(config.failed).toBe(true);
    expect(config.capabilities()).toEqual([]);
  });
});

describe('a function', () => {
  const { config } = spaceOf(NVME);

  it('says what it is', () => {
    expect(readIdentity(config)).toEqual({
      vendor: 0x1b36,
      device: 0x0010,
      subsystemVendor: 0x1af4,
      subsystemDevice: 0x1100,
      classCode: 0x010802,
      revision: 2,
    });
  });

  it('lists its capabilities, extended ones too', () => {
    expect(config.capabilities()).toEqual([
      { id: 0x11, offset: 0x40, extended: false },
      { id: 0x10, offset: 0x80, extended: false },
      { id: 0x01, offset: 0x60, extended: false },
      { id: 0x0001, offset: 0x100, extended: true },
      { id: 0x0003, offset: 0x148, extended: true },
    ]);
  });

  it('says where its MSI-X table is', () => {
    expect(readMsixTable(config)).toEqual({ vectors: 65, bar: 0, offset: 0x2000, bytes: 1040 });
    expect(readMsiVectors(config)).toBe(0);
  });

  it('has vectors of MSI where it has that', () => {
    const msi = spaceOf({ 0x04: 0x00100000, 0x34: 0x50, 0x50: 0x008a0005 });
    expect(readMsiVectors(msi.config)).toBe(32);
    expect(readMsixTable(msi.config)).toBeNull();
  });

  it('without the status bit has no list, whatever the pointer says', () => {
    expect(spaceOf({ ...NVME, 0x04: 0x107, 0x100: 0 }).config.capabilities()).toEqual([]);
  });
});

describe('hostile lists', () => {
  it.each([
    ['a loop to itself', { 0x04: 0x100000, 0x34: 0x40, 0x40: 0x4005 }, 1],
    ['a loop of two', { 0x04: 0x100000, 0x34: 0x40, 0x40: 0x5005, 0x50: 0x4001 }, 2],
    ['a pointer into the header', { 0x04: 0x100000, 0x34: 0x10 }, 0],
    ['an extended loop', { 0x100: 0x10010001 }, 1],
    ['all ones', Object.fromEntries(Array.from({ length: 1024 }, (_, i) => [4 * i, -1])), 0],
  ])('end: %s', (_what, words, length) => {
    expect(spaceOf(words).config.capabilities()).toHaveLength(length);
  });

  it('end, whatever the bytes', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 4096, maxLength: 4096 }), (bytes) => {
        bytes[6] = bytes[6]! | 0x10;
        const config = new PciConfig(access(bytes), 4096);
        const list = config.capabilities();
        expect(new Set(list.map((one) => one.offset)).size).toBe(list.length);
        for (const { offset, extended } of list) {
          expect(offset).toBeGreaterThanOrEqual(extended ? 0x100 : 0x40);
          expect(offset).toBeLessThanOrEqual(extended ? 0xffc : 0xfc);
        }
        readMsixTable(config);
        readMsiVectors(config);
      }),
      { numRuns: 200 },
    );
  });
});
