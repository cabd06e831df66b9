import { closeSync, mkdtempSync, openSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { native, type VfioRegionRecord } from '../../lib/native.js';
import { type BarWindow, MappedBar, mappableAreas, vectorControlIn } from '../../lib/pci/bar.js';

const READ_WRITE_MMAP = 7;

function region(change: Partial<VfioRegionRecord>): VfioRegionRecord {
  return {
    flags: READ_WRITE_MMAP,
    bytes: 0x4000,
    offset: 0,
    sparse: 0,
    areas: [],
    msixMappable: 0,
    ...change,
  };
}

describe('what of a BAR is mapped', () => {
  const table = { offset: 0x2000, bytes: 0x410 };

  it.each([
    ['all of it without a table', region({}), null, [[0, 0x4000]]],
    ['nothing where the kernel maps nothing', region({ flags: 3 }), null, []],
    ['the table too where the kernel says so', region({ msixMappable: 1 }), table, [[0, 0x4000]]],
    [
      'not its pages elsewhere',
      region({}),
      table,
      [
        [0, 0x2000],
        [0x3000, 0x1000],
      ],
    ],
    ['nothing that is no whole page', region({ bytes: 0x1800 }), null, [[0, 0x1000]]],
    [
      'nothing of a page that is all table',
      region({ bytes: 0x1000 }),
      { offset: 0, bytes: 64 },
      [],
    ],
    [
      'the areas that the kernel lists, inside the BAR',
      region({ sparse: 1, areas: [0x1000, 0x1000, 0x3000, 0x5000] }),
      table,
      [
        [0x1000, 0x1000],
        [0x3000, 0x1000],
      ],
    ],
  ])('%s', (_what, info, msix, areas) => {
    expect(mappableAreas(info, msix)).toEqual(areas);
  });
});

describe('a BAR', () => {
  let folder: string;
  let fd: number;
  let windows: BarWindow[];
  let suspected = 0;
  const trapped = new Uint32Array(4096).fill(0x7777);

  function open(withTrapped = true): MappedBar {
    const access = {
      read(offset: number, view: Uint8Array) {
        view.set(new Uint8Array(trapped.buffer, offset, 4));
        return 4;
      },
      write(offset: number, view: Uint8Array) {
        trapped[offset / 4] = new Uint32Array(view.slice().buffer)[0]!;
      },
    };
    const share = { index: 2, bytes: 0x4000, windows };
    return new MappedBar(share, withTrapped ? access : null, () => suspected++);
  }

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'penstock-bar-'));
    const path = join(folder, 'registers');
    writeFileSync(path, Buffer.alloc(0x4000, 0x11));
    fd = native.fileOpen(path, 2, 0);
    const map = (offset: number, bytes: number): BarWindow => ({
      offset,
      bytes,
      region: native.regionMap(fd, offset, bytes, true),
    });
    windows = [map(0, 0x1000), map(0x2000, 0x2000)];
  });

  afterAll(() => {
    for (const window of windows) native.regionClose(window.region);
    native.fileClose(fd);
    rmSync(folder, { recursive: true });
  });

  it('reads and writes mapped parts as words', () => {
    const bar = open();
    expect(bar.read32(0x2ffc)).toBe(0x11111111);
    bar.write32(0x10, 0xdeadbeef);
    expect(bar.words(0, 0x1000)![4]).toBe(0xdeadbeef);
    const doorbells = bar.words(0x3000, 16)!;
    doorbells[1] = 7;
    expect(bar.read32(0x3004)).toBe(7);
    expect(bar.lost).toBe(false);
  });

  it('reaches the other parts by calls, and gives no words of them', () => {
    const bar = open();
    expect(bar.words(0x1000, 4)).toBeNull();
    expect(bar.words(0xffc, 8)).toBeNull();
    expect(bar.read32(0x1000)).toBe(0x7777);
    bar.write32(0x1004, 0x80000001);
    expect(bar.read32(0x1004)).toBe(0x80000001);
  });

  it('reads all ones where there is nothing, and takes stores to it', () => {
    const bar = open();
    expect(bar.read32(0x4000)).toBe(0xffffffff);
    bar.write32(0x4000, 1);
    expect(bar.words(0x3ff0, 32)).toBeNull();
    expect(() => bar.read32(2)).toThrow(RangeError);
    expect(() => bar.words(0, 6)).toThrow(RangeError);
  });

  it('has its owner look when a register reads as a device that is gone', () => {
    const bar = open();
    bar.write32(0, 5);
    suspected = 0;
    bar.read32(0);
    expect(suspected).toBe(0);
    bar.write32(0, 0);
    bar.read32(0);
    bar.write32(0, 0xffffffff);
    bar.read32(0);
    expect(suspected).toBe(2);
  });

  it('without calls says so for what is not mapped', () => {
    const bar = open(false);
    expect(bar.read32(4)).toBe(0x11111111);
    expect(() => bar.read32(0x1000)).toThrow(TypeError);
    expect(() => bar.write32(0x1000, 0)).toThrow(TypeError);
  });

  it('has the mask words of its vectors', () => {
    const bar = open();
    const table = { vectors: 3, bar: 2, offset: 0x2000, bytes: 48 };
    const control = vectorControlIn(bar, table, 2)!;
    control.words[control.index] = 1;
    expect(bar.read32(0x2000 + 2 * 16 + 12)).toBe(1);
    expect(vectorControlIn(bar, table, 3)).toBeNull();
    expect(vectorControlIn(bar, { ...table, offset: 0x1000 }, 0)).toBeNull();
    expect(vectorControlIn(undefined, table, 0)).toBeNull();
  });

  it('is lost when what is behind it vanishes', () => {
    const path = join(folder, 'vanishing');
    writeFileSync(path, Buffer.alloc(0x2000, 0x22));
    const file = native.fileOpen(path, 2, 0);
    const id = native.regionMap(file, 0, 0x2000, true);
    const share = { index: 0, bytes: 0x2000, windows: [{ offset: 0, bytes: 0x2000, region: id }] };
    const bar = new MappedBar(share, null, () => undefined);
    closeSync(openSync(path, 'r'));
    truncateSync(path, 0);
    expect(bar.lost).toBe(false);
    expect(bar.read32(0x1000)).toBe(0xffffffff);
    expect(bar.lost).toBe(true);
    native.regionClose(id);
    native.fileClose(file);
  });
});
