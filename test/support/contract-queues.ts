// The contract suite's third part: queues, completions, waiting and closing.

import { afterEach, describe, expect, it } from 'vitest';
import { Flag, Op, Status, type Queue } from '../../lib/hpdi/index.js';
import type { DmaBuffer } from '../../lib/memory/index.js';
import { closeOpened, type Contract } from './contract.js';
import { collect, completionAt, fillPattern, one, pattern, put, run } from './requests.js';

export function queueContract(contract: Contract): void {
  const { data } = contract.expectations;

  function reads(queue: Queue, count: number, buffer: DmaBuffer, firstTag = 0): number {
    let placed = 0;
    while (placed < count) {
      const lba = placed % 16;
      const request = { op: Op.READ, tag: firstTag + placed, blocks: 1, lba };
      if (!put(queue, { ...request, address: buffer.address })) break;
      placed++;
    }
    return placed;
  }

  describe('facts', () => {
    it('make sense', () => {
      const { info, nativeInfo } = contract.device;
      const powers = [info.blockSize, info.physicalBlockSize, info.addressAlign, info.segmentAlign];
      for (const value of powers) expect(Math.log2(value) % 1).toBe(0);
      expect(info.blockSize).toBeGreaterThanOrEqual(512);
      expect(info.physicalBlockSize).toBeGreaterThanOrEqual(info.blockSize);
      expect(Number.isSafeInteger(info.blocks)).toBe(true);
      expect(info.blocks * info.blockSize).toBeGreaterThanOrEqual(8 * 2 ** 20);
      expect(info.maxTransferBlocks).toBeGreaterThanOrEqual(1);
      expect(info.atomicBlocks).toBeGreaterThanOrEqual(1);
      for (const op of [Op.READ, Op.WRITE, Op.FLUSH, Op.READ_LOAN, Op.COMPARE, Op.COPY]) {
        expect((info.operations >>> op) & 1, `operation ${op}`).toBe(1);
      }
      // HPDI adds to what the driver does and takes nothing away.
      expect(info.operations & nativeInfo.operations).toBe(nativeInfo.operations);
      expect(Object.keys(info.description).length).toBeGreaterThan(0);
      expect(contract.device.uri).toMatch(/^[a-z][a-z0-9-]*:/);
    });

    it('can be posted to a worker', () => {
      expect(structuredClone(contract.device.info)).toEqual(contract.device.info);
    });
  });

  describe('queues', () => {
    afterEach(() => contract.tidy());

    it('give every tag back exactly once, whatever it is', async () => {
      const queue = contract.queue(64);
      const buffer = contract.buffer(contract.blockSize);
      const tags = [0, 1, 0x7fff_ffff, 0x4000_0000, 5, 5, 5, 0x7fff_fffe, 12345, 0];
      const { address } = buffer;
      const requests = tags.map((tag, i) => ({ op: Op.READ, tag, blocks: 1, lba: i, address }));
      const done = await run(queue, ...requests);
      const sorted = (list: number[]): number[] => [...list].sort((a, b) => a - b);
      expect(sorted(done.map((completion) => completion.tag))).toEqual(sorted(tags));
      expect(queue.poll(64)).toBe(0);
      expect(queue.inFlight).toBe(0);
      buffer.free();
    });

    it('grant no more than their depth, and nothing when they are full', async () => {
      const queue = contract.queue(8);
      const buffer = contract.buffer(contract.blockSize);
      expect(queue.depth).toBe(8);
      expect(reads(queue, 20, buffer)).toBe(8);
      expect(queue.reserve(1)).toBe(0);
      queue.submit();
      expect(queue.reserve(1)).toBe(0);
      await collect(queue, 8);
      expect(queue.reserve(100)).toBe(8);
      for (let i = 0; i < 8; i++) {
        const r = ((queue.head + i) & queue.mask) * 8;
        queue.sq.fill(0, r, r + 8);
        queue.sq[r] = Op.FLUSH;
      }
      queue.submit();
      await collect(queue, 8);
      buffer.free();
    });

    it('round a depth up to a power of two', async () => {
      const queue = contract.queue(5);
      expect(queue.depth).toBe(8);
      expect((await one(queue, { op: Op.FLUSH, tag: 3 })).tag).toBe(3);
    });

    it('work at every place of the ring, in batches of every size', async () => {
      const queue = contract.queue(8);
      const buffers = Array.from({ length: 8 }, () => contract.buffer(contract.blockSize));
      const fill = contract.buffer(16 * contract.blockSize);
      fillPattern(fill.u8, 5);
      const whole = { op: Op.WRITE, blocks: 16, lba: 0, address: fill.address };
      expect((await one(queue, whole)).code).toBe(Status.OK);
      for (let round = 0; round < 40; round++) {
        const count = 1 + (round % 8);
        for (let i = 0; i < count; i++) {
          const lba = (round + i) % 16;
          const { address } = buffers[i]!;
          expect(put(queue, { op: Op.READ, tag: i, blocks: 1, lba, address })).toBe(true);
        }
        queue.submit();
        const done = await collect(queue, count);
        for (const { tag, code } of done) {
          expect(code).toBe(Status.OK);
          const from = ((round + tag) % 16) * contract.blockSize;
          const wanted = fill.u8.subarray(from, from + contract.blockSize);
          if (data) expect(Buffer.from(buffers[tag]!.u8).equals(wanted)).toBe(true);
        }
      }
      for (const buffer of [...buffers, fill]) buffer.free();
    });

    it('keep apart what is on different queues', async () => {
      const first = contract.queue(4);
      const second = contract.queue(4);
      const buffer = contract.buffer(contract.blockSize);
      const { address } = buffer;
      put(first, { op: Op.READ, tag: 1, blocks: 1, address });
      put(second, { op: Op.READ, tag: 2, blocks: 1, address });
      first.submit();
      second.submit();
      expect((await collect(second, 1)).map((done) => done.tag)).toEqual([2]);
      expect((await collect(first, 1)).map((done) => done.tag)).toEqual([1]);
      buffer.free();
    });

    it('poll no more than they are asked for', async () => {
      const queue = contract.queue(16);
      const buffer = contract.buffer(contract.blockSize);
      reads(queue, 16, buffer);
      queue.submit();
      await queue.drain();
      const tags: number[] = [];
      for (let round = 0; tags.length < 16 && round < 100_000; round++) {
        const count = queue.poll(3);
        expect(count).toBeLessThanOrEqual(3);
        for (let i = 0; i < count; i++) tags.push(completionAt(queue, i).tag);
      }
      expect(tags.sort((a, b) => a - b)).toEqual(Array.from({ length: 16 }, (_, i) => i));
      buffer.free();
    });

    it('count doorbells per batch, not per operation', async () => {
      const queue = contract.queue(64);
      const buffer = contract.buffer(contract.blockSize);
      const before = queue.driver.counters.doorbells;
      reads(queue, 32, buffer);
      queue.submit();
      await collect(queue, 32);
      expect(queue.driver.counters.doorbells - before).toBeLessThanOrEqual(16);
      buffer.free();
    });
  });

  describe('completion', () => {
    afterEach(() => contract.tidy());

    it('means that the device does not touch the buffer any more', async () => {
      const queue = contract.queue(32);
      const bytes = 4 * contract.blockSize;
      const buffers = Array.from({ length: 32 }, () => contract.buffer(bytes));
      buffers.forEach((buffer, i) => {
        fillPattern(buffer.u8, i);
        const request = { op: Op.WRITE, tag: i, blocks: 4, lba: i * 4 };
        put(queue, { ...request, address: buffer.address });
      });
      queue.submit();
      let left = 32;
      while (left > 0) {
        const count = await queue.wait(10_000);
        expect(count).toBeGreaterThan(0);
        // Whoever reads the buffer after the completion finds this instead.
        for (let i = 0; i < count; i++) buffers[completionAt(queue, i).tag]!.u8.fill(0xbd);
        left -= count;
      }
      for (const [i, { address }] of buffers.entries()) {
        put(queue, { op: Op.READ, tag: i, blocks: 4, lba: i * 4, address });
      }
      queue.submit();
      for (left = 32; left > 0;) {
        const count = await queue.wait(10_000);
        for (let i = 0; i < count; i++) {
          const { tag, code } = completionAt(queue, i);
          expect(code).toBe(Status.OK);
          const { u8 } = buffers[tag]!;
          if (data) expect(Buffer.from(u8).equals(pattern(bytes, tag))).toBe(true);
          u8.fill(0xbe);
        }
        left -= count;
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
      for (const { u8 } of buffers) expect(u8.every((byte) => byte === 0xbe)).toBe(true);
      for (const buffer of buffers) buffer.free();
    });

    it('is awaited without work for the processor', async () => {
      const queue = contract.queue(4);
      expect(await queue.wait(5)).toBe(0);
      expect(queue.park(1000)).toBe(0);
      const buffer = contract.buffer(contract.blockSize);
      reads(queue, 4, buffer);
      queue.submit();
      let done = 0;
      for (let i = 0; i < 100_000 && done < 4; i++) done += queue.park(1_000_000);
      expect(done).toBe(4);
      buffer.free();
    });

    it('stays to be polled after a drain', async () => {
      const queue = contract.queue(16);
      const bytes = contract.maxBlocks * contract.blockSize + 2 * contract.blockSize;
      const buffer = contract.buffer(bytes);
      reads(queue, 8, buffer);
      const blocks = bytes / contract.blockSize;
      put(queue, { op: Op.READ, tag: 8, blocks, lba: 0, address: buffer.address });
      queue.submit();
      await queue.drain();
      const tags: number[] = [];
      for (let round = 0; tags.length < 9 && round < 100; round++) {
        const count = queue.poll(16);
        for (let i = 0; i < count; i++) tags.push(completionAt(queue, i).tag);
      }
      expect(tags.sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
      buffer.free();
    });
  });

  describe('closing', () => {
    it('leaves no buffer in the hands of the device', async () => {
      const opened = await contract.open();
      const { device } = opened;
      const queue = device.queue({ depth: 32 });
      const buffer = device.memory.alloc(device.info.blockSize);
      expect(reads(queue, 32, buffer)).toBe(32);
      queue.submit();
      await queue.close();
      buffer.u8.fill(0xcd);
      await new Promise((resolve) => setTimeout(resolve, 20));
      expect(buffer.u8.every((byte) => byte === 0xcd)).toBe(true);
      buffer.free();
      await closeOpened(opened);
    });

    it('completes what people wait for, and then says that it is closed', async () => {
      const opened = await contract.open();
      const { device } = opened;
      const buffers = Array.from({ length: 40 }, () => device.memory.alloc(device.info.blockSize));
      const writes = buffers.map((buffer, lba) => device.write(lba, buffer));
      const closed = device.close();
      const outcomes = await Promise.allSettled(writes);
      expect(outcomes.map((outcome) => outcome.status)).toEqual(new Array(40).fill('fulfilled'));
      await closed;
      await device.close();
      const gone = { code: 'DEVICE_CLOSED' };
      await expect(device.read(0, buffers[0]!)).rejects.toMatchObject(gone);
      await expect(device.flush()).rejects.toMatchObject(gone);
      expect(() => device.queue({ depth: 1 })).toThrowError(expect.objectContaining(gone));
      expect(() => device.handle()).toThrowError(expect.objectContaining(gone));
      for (const buffer of buffers) buffer.free();
      await opened.remove?.();
    });

    it('gives all memory back', async () => {
      const opened = await contract.open();
      const { device } = opened;
      const before = device.memory.taken;
      const queue = device.queue({ depth: 8 });
      const { blockSize } = device.info;
      const buffer = device.memory.alloc(4 * blockSize + 8);
      const address = buffer.address + 1;
      await run(
        queue,
        { op: Op.WRITE, blocks: 4, lba: 0, address },
        { op: Op.COMPARE, blocks: 1, lba: 8, address },
        { op: Op.COPY, blocks: 1, lba: 20, address: 0 },
        { op: Op.WRITE_ZEROES, blocks: 1, lba: 30 },
        { op: Op.READ_LOAN, blocks: 1, lba: 0 },
      );
      const given = device.memory.alloc(blockSize);
      const give = { op: Op.WRITE, flags: Flag.GIVE, blocks: 1, lba: 40, address: given.address };
      await one(queue, give);
      await queue.close();
      buffer.free();
      expect(device.memory.taken).toBe(before);
      await closeOpened(opened);
    });
  });
}
