// The twin's I/O: what each command does, and how data pointers are walked.

import { afterEach, describe, expect, it } from 'vitest';
import { Code, type NvmeTwinOptions } from '../support/nvme-twin/index.js';
import { fillPattern, pattern } from '../support/requests.js';
import { Mini } from './mini.js';

const DNR = Code.DNR;
const READ = 2;
const WRITE = 1;
const COMPARE = 5;
let mini: Mini;

function open(options: NvmeTwinOptions = {}): Mini {
  return (mini = Mini.withQueue(options));
}

afterEach(() => mini.close());

/** Writes `blocks` of a pattern from one contiguous buffer; gives the pattern. */
function writePattern(lba: number, blocks: number, blockSize = 512): Uint8Array {
  const bytes = blocks * blockSize;
  const at = mini.pages.take(bytes);
  const data = fillPattern(mini.pages.u8(at, bytes), lba + 1);
  const list = mini.pages.take();
  const second = prpList(at, bytes, list);
  expect(mini.transfer(WRITE, lba, blocks, { prp1: at, prp2: second }).status).toBe(0);
  return Uint8Array.from(data);
}

/** PRP2 for a contiguous buffer: none, a page, or a list in `list`. */
function prpList(at: number, bytes: number, list: number): number {
  const pages = Math.ceil(((at % 4096) + bytes) / 4096);
  const first = at - (at % 4096) + 4096;
  if (pages <= 2) return pages === 2 ? first : 0;
  for (let i = 0; i < pages - 1; i++) mini.pages.put64(list + i * 8, first + i * 4096);
  return list;
}

describe('commands', () => {
  it('read what was written, and zeros elsewhere', () => {
    open();
    const data = writePattern(3, 4);
    const at = mini.pages.take();
    mini.pages.u8(at, 4096).fill(9);
    expect(mini.transfer(READ, 2, 6, { prp1: at }).status).toBe(0);
    const read = mini.pages.u8(at, 4096);
    expect(read.subarray(512, 5 * 512)).toEqual(data);
    expect(read.subarray(0, 512).every((byte) => byte === 0)).toBe(true);
    expect(read.subarray(5 * 512, 6 * 512).every((byte) => byte === 0)).toBe(true);
    expect(read[6 * 512]).toBe(9);
    expect(mini.twin.violations).toEqual([]);
  });

  it('compare', () => {
    open();
    writePattern(0, 8);
    const at = mini.pages.take();
    mini.transfer(READ, 0, 8, { prp1: at });
    expect(mini.transfer(COMPARE, 0, 8, { prp1: at }).status).toBe(0);
    mini.pages.u8(at, 4096)[4095]! ^= 1;
    expect(mini.transfer(COMPARE, 0, 8, { prp1: at }).status).toBe(Code.COMPARE_FAILURE);
  });

  it('write zeroes, deallocate, verify and copy', () => {
    open();
    const data = writePattern(0, 8);
    const at = mini.pages.take();
    const read = (lba: number, blocks: number): Uint8Array => {
      expect(mini.transfer(READ, lba, blocks, { prp1: at }).status).toBe(0);
      return Uint8Array.from(mini.pages.u8(at, blocks * 512));
    };
    expect(mini.transfer(8, 2, 2, {}).status).toBe(0);
    expect(read(2, 2)).toEqual(new Uint8Array(1024));
    expect(mini.transfer(0x0c, 0, 8, {}).status).toBe(0);
    const ranges = mini.pages.take();
    mini.pages.u32(ranges, 8).set([0, 1, 0, 0, 0, 2, 5, 0]);
    const dsm = { opcode: 9, nsid: 1, prp1: ranges, dwords: [1, 4] };
    expect(mini.run(1, dsm).status).toBe(0);
    expect(read(0, 1)).toEqual(new Uint8Array(512));
    expect(read(4, 4)).toEqual(
      Uint8Array.from([
        ...data.subarray(2048, 2560),
        ...new Uint8Array(1024),
        ...data.subarray(-512),
      ]),
    );
    mini.pages.u32(ranges, 16).set([0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0]);
    const copy = { opcode: 0x19, nsid: 1, prp1: ranges, dwords: [100, 0, 1] };
    expect(mini.run(1, copy).status).toBe(0);
    expect(read(100, 1)).toEqual(data.subarray(2048, 2560));
    expect(read(101, 1)).toEqual(data.subarray(-512));
    expect(mini.twin.violations).toEqual([]);
  });

  it('end with an error beyond the namespace, the limit, or where there is none', () => {
    open({ namespaces: [{ blocks: 100 }], mdts: 1, oncs: 0 });
    const prp1 = mini.pages.take();
    const range = Code.LBA_OUT_OF_RANGE | DNR;
    expect(mini.transfer(READ, 99, 2, { prp1 }).status).toBe(range);
    const high = mini.run(1, { opcode: READ, nsid: 1, prp1, dwords: [0, 0xffffffff, 0] });
    expect(high.status).toBe(range);
    expect(mini.transfer(READ, 0, 17, { prp1 }).status).toBe(Code.INVALID_FIELD | DNR);
    expect(mini.transfer(COMPARE, 0, 1, { prp1 }).status).toBe(Code.INVALID_OPCODE | DNR);
    const elsewhere = mini.run(1, { opcode: READ, nsid: 2, prp1 });
    expect(elsewhere.status).toBe(Code.INVALID_NAMESPACE | DNR);
    mini.twin.resize(1, 10);
    expect(mini.transfer(READ, 10, 1, { prp1 }).status).toBe(range);
  });

  it('keep metadata, in a buffer of its own or between the blocks', () => {
    open({
      namespaces: [
        { blockSize: 4096, metadataBytes: 8 },
        { blockSize: 512, metadataBytes: 8, extended: true },
      ],
    });
    const data = mini.pages.take(8192);
    const tags = mini.pages.take();
    fillPattern(mini.pages.u8(data, 8192), 1);
    fillPattern(mini.pages.u8(tags, 16), 2);
    const command = { nsid: 1, prp1: data, prp2: data + 4096, mptr: tags, dwords: [5, 0, 1] };
    expect(mini.run(1, { opcode: WRITE, ...command }).status).toBe(0);
    mini.pages.u8(tags, 16).fill(0);
    expect(mini.run(1, { opcode: COMPARE, ...command }).status).toBe(Code.COMPARE_FAILURE);
    expect(mini.run(1, { opcode: READ, ...command }).status).toBe(0);
    expect(mini.pages.u8(tags, 16)).toEqual(pattern(16, 2));
    const mixed = { nsid: 2, prp1: data, dwords: [0, 0, 2] };
    expect(mini.run(1, { opcode: WRITE, ...mixed }).status).toBe(0);
    mini.pages.u8(data, 4096).fill(0);
    expect(mini.run(1, { opcode: READ, ...mixed }).status).toBe(0);
    expect(mini.pages.u8(data, 3 * 520)).toEqual(pattern(8192, 1).subarray(0, 3 * 520));
    expect(mini.pages.u8(data, 4096)[3 * 520]).toBe(0);
  });
});

describe('the volatile cache', () => {
  it('loses at a power cut what neither flush nor FUA made durable', () => {
    open();
    const write = (lba: number, value: number, flags = 0): void => {
      const prp1 = mini.pages.take();
      mini.pages.u8(prp1, 512).fill(value);
      const command = { opcode: WRITE, nsid: 1, prp1, dwords: [lba, 0, flags] };
      expect(mini.run(1, command).status).toBe(0);
    };
    write(0, 1);
    mini.run(1, { opcode: 0, nsid: 1 });
    write(0, 2);
    write(1, 3, 1 << 30);
    write(2, 4);
    write(3, 5);
    mini.twin.powerCut((_, lba) => lba === 3);
    expect(mini.reg(0x1c)).toBe(0);
    expect([0, 1, 2, 3].map((lba) => mini.twin.namespace(1).read(lba, 1)[0])).toEqual([1, 3, 0, 5]);
  });

  it('is durable at once when it is off', () => {
    open();
    mini.admin({ opcode: 9, dwords: [6, 0] });
    writePattern(0, 1);
    expect(mini.twin.namespace(1).dirtyBlocks).toBe(0);
  });
});

describe('PRPs', () => {
  it.each([0, 4, 512, 4092])('take a buffer at offset %i, by lists that go on', (offset) => {
    open({ mdts: 9, namespaces: [{ blocks: 8192 }] });
    const bytes = 2 ** 20;
    const blocks = bytes / 512;
    const at = mini.pages.take(bytes + 4096) + offset;
    fillPattern(mini.pages.u8(at, bytes), offset);
    const page = at - offset;
    const entries = Math.ceil((offset + bytes) / 4096) - 1;
    // A list that begins in the middle of a page, with room for 200 entries and a pointer.
    const list = mini.pages.take() + 4096 - 201 * 8;
    const next = mini.pages.take();
    for (let i = 0; i < entries; i++) {
      const entry = i < 200 ? list + i * 8 : next + (i - 200) * 8;
      mini.pages.put64(entry, page + 4096 * (i + 1));
    }
    mini.pages.put64(list + 200 * 8, next);
    expect(mini.transfer(WRITE, 0, blocks, { prp1: at, prp2: list }).status).toBe(0);
    // Not by toEqual, which takes seconds for a mebibyte.
    const stored = Buffer.from(mini.twin.namespace(1).read(0, blocks));
    expect(stored.equals(mini.pages.u8(at, bytes))).toBe(true);
    mini.pages.u8(page, bytes + 4096).fill(0);
    expect(mini.transfer(READ, 0, blocks, { prp1: at, prp2: list }).status).toBe(0);
    expect(Buffer.from(mini.pages.u8(at, bytes)).equals(pattern(bytes, offset))).toBe(true);
    expect(mini.pages.u8(page, offset).every((byte) => byte === 0)).toBe(true);
    expect(mini.twin.violations).toEqual([]);
  });

  it.each([
    ['PRP1 at 2', 2, 0, 1],
    ['PRP2 with an offset', 0, 512, 16],
    ['a list at 4', 0, 4, 24],
  ])('%s is refused, and a violation', (_, first, second, blocks) => {
    open();
    const prp1 = mini.pages.take() + first;
    const prp2 = mini.pages.take() + second;
    expect(mini.transfer(READ, 0, blocks, { prp1, prp2 }).status).toBe(Code.PRP_OFFSET | DNR);
    expect(mini.twin.violations).toHaveLength(1);
  });

  it('in a list may have no offset', () => {
    open();
    const prp1 = mini.pages.take();
    const list = mini.pages.take();
    mini.pages.put64(list, prp1);
    mini.pages.put64(list + 8, prp1 + 8);
    expect(mini.transfer(READ, 0, 24, { prp1, prp2: list }).status).toBe(Code.PRP_OFFSET | DNR);
  });

  it('go by the page size of CC.MPS', () => {
    mini = new Mini({ pageShiftMax: 1 });
    mini.pages.take(); // the next is at an odd page
    mini.enable(0x460081);
    expect(mini.reg(0x1c)).toBe(2);
    expect(mini.twin.violations).toEqual(['enabled with a wrong ASQ']);
    mini.close();
    mini = new Mini({ pageShiftMax: 1 });
    const whole = mini.pages.segment.address + 65536;
    mini.enable(0x460000);
    mini.setReg64(0x28, whole);
    mini.setReg64(0x30, whole + 8192);
    Object.assign(mini.pairs.get(0)!, { sq: whole, cq: whole + 8192 });
    mini.setReg(0x14, 0x460081);
    expect(mini.reg(0x1c)).toBe(1);
    // Half a page of 8 KiB is left in PRP1's page: no PRP2 is needed.
    expect(mini.admin({ opcode: 6, prp1: whole + 16384 + 4096, dwords: [1] }).status).toBe(0);
    expect(mini.twin.violations).toEqual([]);
  });
});

describe('SGLs', () => {
  const DATA = 0x00;
  const BUCKET = 0x10;
  const SEGMENT = 0x20;
  const LAST = 0x30;

  /** A read whose descriptor in the entry is (type, address, bytes). */
  function read(blocks: number, type: number, address: number, bytes: number, psdt = 1): number {
    const { sq, tail } = mini.pairs.get(1)!;
    const dwords = [0, 0, blocks - 1];
    mini.submit(1, { opcode: READ, nsid: 1, psdt, prp1: address, dwords }, false);
    mini.pages.u32(sq + tail * 64 + 32, 2).set([bytes, (type << 24) >>> 0]);
    mini.ring(1);
    return mini.wait(1).status;
  }

  it('are refused by a controller without them', () => {
    open();
    expect(read(1, DATA, mini.pages.take(), 512)).toBe(Code.INVALID_FIELD | DNR);
  });

  it('of one data block, and of segments in a chain', () => {
    open({ sgls: 1 });
    const data = writePattern(0, 16);
    const at = mini.pages.take(16384);
    expect(read(16, DATA, at + 13, 8192)).toBe(0);
    expect(mini.pages.u8(at + 13, 8192)).toEqual(data);
    mini.pages.u8(at, 16384).fill(0);
    const first = mini.pages.take();
    const second = mini.pages.take();
    mini.pages.putSgl(first, DATA, at + 1, 700);
    mini.pages.putSgl(first + 16, DATA, at + 5000, 3396);
    mini.pages.putSgl(first + 32, LAST, second, 32);
    mini.pages.putSgl(second, BUCKET, 0, 4000);
    mini.pages.putSgl(second + 16, DATA, at + 9000, 96);
    expect(read(16, SEGMENT, first, 48)).toBe(0);
    expect(mini.pages.u8(at + 1, 700)).toEqual(data.subarray(0, 700));
    expect(mini.pages.u8(at + 5000, 3396)).toEqual(data.subarray(700, 4096));
    expect(mini.pages.u8(at + 9000, 96)).toEqual(data.subarray(8096));
    expect(mini.pages.u8(at + 701, 4299).every((byte) => byte === 0)).toBe(true);
    expect(mini.twin.violations).toEqual([]);
  });

  it('are refused where they are wrong, each a violation', () => {
    open({ sgls: 2 });
    const at = mini.pages.take();
    const list = mini.pages.take();
    const put = (i: number, type: number, bytes: number, address = at): void =>
      mini.pages.putSgl(list + i * 16, type, address, bytes);
    const wrong: [number, () => number][] = [
      [Code.SGL_LENGTH, () => read(1, DATA, at, 508)],
      [Code.SGL_LENGTH, () => read(1, DATA, at, 516)],
      [Code.SGL_LENGTH, () => read(1, DATA, at + 2, 512)],
      [Code.SGL_TYPE, () => read(1, 0x40, at, 512)],
      [Code.SGL_TYPE, () => read(1, 0x01, at, 512)],
      [Code.SGL_SEGMENT, () => read(1, LAST, list, 0)],
      [Code.SGL_SEGMENT, () => read(1, LAST, list, 24)],
      [Code.SGL_SEGMENT, () => read(1, LAST, list + 4, 16)],
      [Code.SGL_TYPE, () => (put(0, SEGMENT, 16, list), read(1, LAST, list, 16))],
      [Code.SGL_SEGMENT, () => (put(0, DATA, 512), read(1, SEGMENT, list, 16))],
      [Code.SGL_TYPE, () => (put(0, LAST, 16, list), put(1, DATA, 512), read(1, LAST, list, 32))],
      [Code.SGL_COUNT, () => (put(0, SEGMENT, 16, list), read(1, SEGMENT, list, 16))],
    ];
    for (const [i, [status, run]] of wrong.entries()) {
      expect(run(), `case ${i}`).toBe(status | DNR);
      expect(mini.twin.violations, `case ${i}`).toHaveLength(i + 1);
    }
  });

  it('may be longer than the data where the controller says so', () => {
    open({ sgls: 1, sglExcess: true });
    expect(read(1, DATA, mini.pages.take(), 4096)).toBe(0);
    expect(mini.twin.violations).toEqual([]);
  });
});

describe('shadow doorbells', () => {
  it('tell the device without a register, and by it where the index asks', () => {
    open({ shadowDoorbells: 'lazy', mapped: 'none' });
    const shadow = mini.pages.take();
    const events = mini.pages.take();
    const config = { opcode: 0x7c, prp1: shadow, prp2: events };
    expect(mini.admin(config).status).toBe(0);
    const tails = mini.pages.u32(shadow, 4);
    const index = mini.pages.u32(events, 4);
    const submit = (): void => {
      mini.submit(1, { opcode: 0, nsid: 1 }, false);
      tails[2] = mini.pairs.get(1)!.tail;
    };
    submit();
    expect(mini.twin.step()).toBe(0);
    mini.ring(1);
    submit();
    expect(mini.twin.step()).toBe(2);
    expect(index[2]).toBe(2);
    submit();
    expect(mini.twin.step()).toBe(0);
    mini.ring(1);
    expect(mini.twin.step()).toBe(1);
    expect(mini.twin.violations).toEqual([]);
  });

  it('are looked at all the time by a device that polls them', () => {
    open({ shadowDoorbells: 'polled' });
    const shadow = mini.pages.take();
    const events = mini.pages.take();
    mini.admin({ opcode: 0x7c, prp1: shadow, prp2: events });
    mini.twin.step();
    expect(mini.pages.u32(events, 4)[2]).toBe(0xffff);
    mini.submit(1, { opcode: 0, nsid: 1 }, false);
    mini.pages.u32(shadow, 4)[2] = 1;
    expect(mini.twin.step()).toBe(1);
    const refused = Mini.ready();
    expect(refused.admin({ opcode: 0x7c, prp1: shadow }).status).toBe(Code.INVALID_OPCODE | DNR);
    refused.close();
  });
});

describe('the controller memory buffer', () => {
  it('holds a submission queue', () => {
    mini = new Mini({ cmbBytes: 65536 });
    mini.twin.pci.enable();
    expect([mini.reg(0x38), mini.reg(0x3c)]).toEqual([0, 0]);
    const base = 0x3000_0000_000;
    mini.setReg(0x54, Math.floor(base / 2 ** 32));
    mini.setReg(0x50, ((base % 2 ** 32) + 3) >>> 0);
    expect(mini.reg(0x38) & 7).toBe(2);
    expect(mini.reg(0x3c) >>> 12).toBe(16);
    mini.enable();
    const { cq } = mini.pair(1);
    const size = (7 << 16) | 1;
    expect(mini.admin({ opcode: 5, prp1: cq, dwords: [size, 1] }).status).toBe(0);
    const sq = { opcode: 1, prp1: base + 4096, dwords: [size, 1 | (1 << 16)] };
    expect(mini.admin(sq).status).toBe(0);
    const words = mini.twin.pci.bar(2).words(4096, 512)!;
    words.set([0x00050000, 1], 0);
    mini.ring(1, 1);
    expect(mini.wait(1)).toMatchObject({ cid: 5, status: 0 });
    expect(mini.twin.violations).toEqual([]);
  });
});
