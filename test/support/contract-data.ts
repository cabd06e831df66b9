// The contract suite's first part: data goes where it should, in every shape a request may have.

import { afterEach, describe, expect, it } from 'vitest';
import { Flag, Op, Status, type Queue } from '../../lib/hpdi/index.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import type { Contract } from './contract.js';
import { modelContract } from './contract-model.js';
import { collect, fillList, fillPattern, one, pattern, put, run } from './requests.js';

export function dataContract(contract: Contract): void {
  const { data } = contract.expectations;

  /** Bytes of `blocks` blocks at `lba`, read by a request of their own. */
  async function read(queue: Queue, lba: number, blocks: number): Promise<Buffer> {
    const buffer = contract.buffer(blocks * contract.blockSize);
    buffer.u8.fill(0xee);
    const done = await one(queue, { op: Op.READ, blocks, lba, address: buffer.address });
    expect(done.code).toBe(Status.OK);
    const bytes = Buffer.from(buffer.u8);
    buffer.free();
    return bytes;
  }

  async function write(queue: Queue, lba: number, blocks: number, seed: number): Promise<Buffer> {
    const buffer = contract.buffer(blocks * contract.blockSize);
    fillPattern(buffer.u8, seed);
    const done = await one(queue, { op: Op.WRITE, blocks, lba, address: buffer.address });
    expect(done.code).toBe(Status.OK);
    const bytes = Buffer.from(buffer.u8);
    buffer.free();
    return bytes;
  }

  /** Compares with one line of output, not with a diff of megabytes. */
  function same(got: Uint8Array, wanted: Uint8Array): void {
    if (!data) return;
    const at = got.length === wanted.length ? got.findIndex((byte, i) => byte !== wanted[i]) : 0;
    expect(at, 'first differing byte').toBe(-1);
  }

  describe('data', () => {
    afterEach(() => contract.tidy());

    it('reads back what was written, at the first, last and odd blocks', async () => {
      const queue = contract.queue();
      const { blocks } = contract.device.info;
      for (const lba of [0, 1, 7, 333, blocks - 2, blocks - 1]) {
        const wanted = await write(queue, lba, 1, lba + 1);
        same(await read(queue, lba, 1), wanted);
      }
    });

    it('takes every size up to and over its largest transfer', async () => {
      const queue = contract.queue();
      const max = contract.maxBlocks;
      for (const blocks of [2, 3, max - 1, max, max + 1, 2 * max + 3]) {
        if (blocks < 1) continue;
        const lba = 5;
        const before = await write(queue, lba + blocks, 1, 99);
        const wanted = await write(queue, lba, blocks, blocks);
        same(await read(queue, lba, blocks), wanted);
        same(await read(queue, lba + blocks, 1), before);
      }
    });

    it('bounces buffers that are not aligned', async () => {
      const queue = contract.queue();
      const blocks = 3;
      const bytes = blocks * contract.blockSize;
      const buffer = contract.buffer(bytes + 512);
      for (const offset of [1, 2, 3, 4, 8, 100, 511]) {
        const address = buffer.address + offset;
        const inside = buffer.u8.subarray(offset, offset + bytes);
        const wanted = Buffer.from(fillPattern(inside, offset));
        expect((await one(queue, { op: Op.WRITE, blocks, lba: 9, address })).code).toBe(0);
        buffer.u8.fill(0xee);
        expect((await one(queue, { op: Op.READ, blocks, lba: 9, address })).code).toBe(0);
        same(inside, wanted);
        // Not a byte outside of the buffer that was named.
        expect(buffer.u8.subarray(0, offset).every((byte) => byte === 0xee)).toBe(true);
        expect(buffer.u8.subarray(offset + bytes).every((byte) => byte === 0xee)).toBe(true);
      }
      buffer.free();
    });

    it('scatters and gathers lists of odd lengths, and leaves the list alone', async () => {
      const queue = contract.queue();
      const blocks = 8;
      const bytes = blocks * contract.blockSize;
      const space = contract.buffer(bytes * 2);
      const list = contract.buffer(4096);
      const lengths = [1, 511, 513, 3, bytes - 1 - 511 - 513 - 3 - 600, 600];
      let at = 5;
      const pieces = lengths.map((length) => {
        const piece = { address: space.address + at, bytes: length, start: at };
        at += length + 17;
        return piece;
      });
      const wanted = pattern(bytes, 4);
      let done = 0;
      for (const piece of pieces) {
        space.u8.set(wanted.subarray(done, done + piece.bytes), piece.start);
        done += piece.bytes;
      }
      const target = fillList(list, pieces);
      const listBefore = Buffer.from(list.u8);
      expect((await one(queue, { op: Op.WRITE, blocks, lba: 20, ...target })).code).toBe(0);
      same(await read(queue, 20, blocks), wanted);
      space.u8.fill(0xee);
      expect((await one(queue, { op: Op.READ, blocks, lba: 20, ...target })).code).toBe(0);
      same(Buffer.concat(pieces.map((p) => space.u8.subarray(p.start, p.start + p.bytes))), wanted);
      expect(space.u8.filter((byte) => byte === 0xee).length).toBeGreaterThanOrEqual(17 * 5);
      expect(Buffer.from(list.u8).equals(listBefore)).toBe(true);
      space.free();
      list.free();
    });

    it('takes lists of more entries than the device does', async () => {
      const queue = contract.queue();
      const { maxSegments } = contract.device.nativeInfo;
      const count = Math.min(1500, Math.max(4, maxSegments + 5));
      const blocks = Math.ceil((count * 100) / contract.blockSize);
      const bytes = blocks * contract.blockSize;
      const space = contract.buffer(bytes);
      const list = contract.buffer(count * 16);
      const wanted = Buffer.from(fillPattern(space.u8, 8));
      // Pieces in memory order, listed from both ends in turn would be the same to the device.
      const pieces = Array.from({ length: count }, (_, i) => ({
        address: space.address + i * 100,
        bytes: i === count - 1 ? bytes - i * 100 : 100,
      }));
      const target = fillList(list, pieces);
      expect((await one(queue, { op: Op.WRITE, blocks, lba: 50, ...target })).code).toBe(0);
      space.u8.fill(0);
      expect((await one(queue, { op: Op.READ, blocks, lba: 50, ...target })).code).toBe(0);
      same(space.u8, wanted);
      space.free();
      list.free();
    });

    it('gives of overlapping writes one or the other, block by block', async () => {
      const queue = contract.queue(8);
      const blocks = 16;
      const bytes = blocks * contract.blockSize;
      const buffers = Array.from({ length: 6 }, (_, i) => {
        const buffer = contract.buffer(bytes);
        buffer.u8.fill(i + 1);
        return buffer;
      });
      const writes = buffers.map(({ address }) => ({ op: Op.WRITE, blocks, lba: 64, address }));
      const done = await run(queue, ...writes);
      expect(done.every((completion) => completion.code === 0)).toBe(true);
      const got = await read(queue, 64, blocks);
      for (let i = 0; data && i < blocks; i++) {
        const block = got.subarray(i * contract.blockSize, (i + 1) * contract.blockSize);
        expect(block[0]).toBeGreaterThan(0);
        expect(block.every((byte) => byte === block[0])).toBe(true);
      }
      for (const buffer of buffers) buffer.free();
    });

    it('zeroes what is to be zeroed and nothing else', async () => {
      const queue = contract.queue();
      const { operations } = contract.device.info;
      const wanted = await write(queue, 30, 20, 3);
      const end = 2 * contract.blockSize;
      for (const op of [Op.WRITE_ZEROES, Op.DISCARD]) {
        if ((operations & (1 << op)) === 0) continue;
        await write(queue, 30, 20, 3);
        expect((await one(queue, { op, blocks: 16, lba: 32 })).code).toBe(Status.OK);
        const got = await read(queue, 30, 20);
        same(got.subarray(0, end), wanted.subarray(0, end));
        same(got.subarray(-end), wanted.subarray(-end));
        if (!data || (op === Op.DISCARD && !contract.expectations.discardZeroes)) continue;
        expect(got.subarray(end, -end).every((byte) => byte === 0)).toBe(true);
      }
    });

    it('zeroes and discards more than one transfer', async () => {
      const queue = contract.queue();
      const blocks = Math.min(contract.maxBlocks * 2 + 1, contract.device.info.blocks - 10);
      for (const op of [Op.WRITE_ZEROES, Op.DISCARD]) {
        if ((contract.device.info.operations & (1 << op)) === 0) continue;
        await write(queue, 3 + blocks - 1, 2, 7);
        expect((await one(queue, { op, blocks, lba: 3 })).code).toBe(Status.OK);
        if (!data || (op === Op.DISCARD && !contract.expectations.discardZeroes)) continue;
        const last = await read(queue, 3 + blocks - 1, 2);
        const zeros = last.subarray(0, contract.blockSize);
        expect(zeros.every((byte) => byte === 0)).toBe(true);
        same(
          last.subarray(contract.blockSize),
          pattern(2 * contract.blockSize, 7).subarray(-contract.blockSize),
        );
      }
    });

    it('compares, and names the first byte that differs', async () => {
      const queue = contract.queue();
      if (!data) return;
      for (const blocks of [1, 4, contract.maxBlocks + 3]) {
        const bytes = blocks * contract.blockSize;
        const wanted = await write(queue, 100, blocks, 21);
        const buffer = contract.buffer(bytes);
        const request = { op: Op.COMPARE, blocks, lba: 100, address: buffer.address };
        buffer.u8.set(wanted);
        expect((await one(queue, request)).code).toBe(Status.OK);
        for (const at of [0, 13, bytes - 1]) {
          buffer.u8.set(wanted);
          buffer.u8[at] = wanted[at]! ^ 0x40;
          const done = await one(queue, request);
          expect(done).toMatchObject({ code: Status.MISCOMPARE, resultLo: at, resultHi: 0 });
        }
        buffer.free();
      }
    });

    it('copies blocks within the device', async () => {
      const queue = contract.queue();
      for (const blocks of [1, 5, contract.maxBlocks + 1]) {
        const from = 11;
        const to = from + blocks + 6;
        const wanted = await write(queue, from, blocks, 60 + blocks);
        const done = await one(queue, { op: Op.COPY, blocks, lba: to, address: from });
        expect(done.code).toBe(Status.OK);
        same(await read(queue, to, blocks), wanted);
      }
    });

    it('lends buffers that hold the blocks, and keep them', async () => {
      const queue = contract.queue(4);
      const wanted = await write(queue, 40, 2, 17);
      const loan = await one(queue, { op: Op.READ_LOAN, tag: 1, blocks: 2, lba: 40 });
      expect(loan.code).toBe(Status.OK);
      const held = await contract.device.readLoan(40, 2);
      same(held.u8, wanted);
      expect(held.u8.length).toBe(2 * contract.blockSize);
      await write(queue, 40, 2, 18);
      if (contract.device.info.loanStable) same(held.u8, wanted);
      held.release();
      expect(() => held.release()).toThrowError(expect.objectContaining({ code: 'BAD_LOAN' }));
      expect(queue.release(loan.resultLo, loan.resultHi)).toBe(true);
      expect(queue.release(loan.resultLo, loan.resultHi)).toBe(false);
    });

    it('refuses stale loans, and its loans never run out when they are given back', async () => {
      const queue = contract.queue(4);
      let stale: [number, number] | null = null;
      for (let round = 0; round < 300; round++) {
        const loan = await one(queue, { op: Op.READ_LOAN, tag: round, blocks: 1, lba: round % 8 });
        expect(loan.code).toBe(Status.OK);
        if (stale !== null) expect(queue.release(...stale)).toBe(false);
        expect(queue.release(loan.resultLo, loan.resultHi)).toBe(true);
        stale = [loan.resultLo, loan.resultHi];
      }
      expect(queue.release(0, 0)).toBe(false);
      expect(queue.release(0xffffffff, 0xffffffff)).toBe(false);
    });

    it('gives a GIVEn buffer home when the operation has completed', async () => {
      const queue = contract.queue();
      const seen: DmaBuffer[] = [];
      for (let lba = 200; lba < 240; lba++) {
        const buffer = contract.buffer(contract.blockSize);
        fillPattern(buffer.u8, lba);
        const { address } = buffer;
        put(queue, { op: Op.WRITE, flags: Flag.GIVE, blocks: 1, lba, address, tag: lba });
        seen.push(buffer);
        queue.submit();
        await collect(queue, 1);
        expect(buffer.freed).toBe(true);
      }
      for (let lba = 200; lba < 240; lba++) {
        same(await read(queue, lba, 1), pattern(contract.blockSize, lba));
      }
      // Also when the device refuses the operation: its owner would never see it again.
      const refused = contract.buffer(contract.blockSize);
      const { blocks: end } = contract.device.info;
      const bad = { op: Op.WRITE, flags: Flag.GIVE, blocks: 1, lba: end };
      expect((await one(queue, { ...bad, address: refused.address })).code).toBe(Status.BAD_RANGE);
      expect(refused.freed).toBe(true);
    });

    it('serves people by promises', async () => {
      const { device } = contract;
      const buffer = contract.buffer(4 * contract.blockSize);
      const wanted = Buffer.from(fillPattern(buffer.u8, 90));
      await device.write(70, buffer);
      await device.write(80, buffer, { fua: true });
      await device.flush();
      buffer.u8.fill(0);
      await device.read(70, buffer);
      same(buffer.u8, wanted);
      if (data) await device.compare(80, buffer);
      await device.copy(90, 70, 4);
      buffer.u8.fill(0);
      await device.read(90, buffer);
      same(buffer.u8, wanted);
      await device.writeZeroes(90, 2);
      await device.read(90, buffer);
      same(buffer.u8.subarray(2 * contract.blockSize), wanted.subarray(2 * contract.blockSize));
      if (data) expect(buffer.u8[0]).toBe(0);
      buffer.free();
    });

    it('keeps what was flushed before a power cut', async () => {
      if (contract.opened.cut === undefined) return;
      const queue = contract.queue();
      const old = await write(queue, 300, 8, 1);
      expect((await one(queue, { op: Op.FLUSH })).code).toBe(Status.OK);
      const kept = await write(queue, 302, 2, 2);
      expect((await one(queue, { op: Op.FLUSH })).code).toBe(Status.OK);
      const through = contract.buffer(contract.blockSize);
      fillPattern(through.u8, 3);
      const fua = { op: Op.WRITE, flags: Flag.FUA, blocks: 1, lba: 306, address: through.address };
      await write(queue, 300, 2, 4);
      expect((await one(queue, fua)).code).toBe(Status.OK);
      await write(queue, 307, 1, 5);
      await contract.opened.cut();
      const got = await read(queue, 302, 5);
      same(got.subarray(0, 2 * contract.blockSize), kept);
      same(got.subarray(4 * contract.blockSize), through.u8);
      const lost = await read(queue, 307, 1);
      same(lost, old.subarray(7 * contract.blockSize));
      through.free();
    });

    modelContract(contract);
  });
}
