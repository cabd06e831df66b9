// The contract suite's second part: requests that are wrong complete with the error that says
// so, and do nothing.

import { afterEach, describe, expect, it } from 'vitest';
import { PenstockError } from '../../lib/errors.js';
import { Flag, Op, OPERATIONS, Status, STATUS } from '../../lib/hpdi/index.js';
import { closeOpened, type Contract } from './contract.js';
import { fillList, one, type Request } from './requests.js';

const BLOCK_OPS = [Op.READ, Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES, Op.COMPARE, Op.READ_LOAN];

export function requestContract(contract: Contract): void {
  describe.each([
    ['split', true],
    ['native', false],
  ])('wrong requests on a %s queue', (_name, split) => {
    afterEach(() => contract.tidy());

    /** The operations of BLOCK_OPS that this queue does. */
    function operations(): number[] {
      const info = split ? contract.device.info : contract.device.nativeInfo;
      return BLOCK_OPS.filter((op) => (info.operations & (1 << op)) !== 0);
    }

    async function expectCode(request: Request, code: number): Promise<void> {
      const queue = contract.queue(4, split);
      const done = await one(queue, { tag: 12345, ...request });
      expect({ ...request, code: done.code, tag: done.tag }).toEqual({
        ...request,
        code,
        tag: 12345,
      });
      await contract.tidy();
    }

    it('has blocks=0 for a bad request', async () => {
      const buffer = contract.buffer(contract.blockSize);
      for (const op of operations()) {
        await expectCode({ op, blocks: 0, lba: 0, address: buffer.address }, Status.BAD_REQUEST);
      }
      buffer.free();
    });

    it('keeps to its blocks, also where numbers overflow', async () => {
      const { blocks: end } = contract.device.info;
      const buffer = contract.buffer(2 * contract.blockSize);
      const { address } = buffer;
      for (const op of operations()) {
        for (const request of [
          { blocks: 1, lba: end },
          { blocks: 2, lba: end - 1 },
          { blocks: 0xffff_ffff, lba: 1 },
          { blocks: 1, lba: 2 ** 53 - 1 },
          { blocks: 2, lbaWords: [0xffff_ffff, 0xffff_ffff] as [number, number] },
          { blocks: 1, lbaWords: [0, 0x8000_0000] as [number, number] },
          { blocks: 1, lbaWords: [0, 0x0020_0000] as [number, number] },
        ]) {
          await expectCode({ op, address, ...request }, Status.BAD_RANGE);
        }
      }
      buffer.free();
    });

    it('touches live memory only', async () => {
      const blocks = 2;
      const segment = contract.segment();
      const addresses = [
        0,
        2 ** 43 + 4096,
        2 ** 44,
        2 ** 44 + segment.address,
        2 ** 63,
        segment.address + segment.bytes - contract.blockSize,
        contract.freedAddress(),
      ];
      const ops = operations().filter((op) => op <= Op.WRITE && op !== Op.READ_LOAN);
      for (const op of ops) {
        for (const address of addresses) {
          await expectCode({ op, blocks, lba: 0, address }, Status.BAD_ADDRESS);
        }
      }
    });

    it('does not do operations that it does not know', async () => {
      const info = split ? contract.device.info : contract.device.nativeInfo;
      const known = Object.values(OPERATIONS).filter((op) => (info.operations & (1 << op)) !== 0);
      const buffer = contract.buffer(contract.blockSize);
      for (const op of [0, ...Object.values(OPERATIONS), 31, 32, 33, 64, 255]) {
        if (known.includes(op as (typeof known)[number])) continue;
        await expectCode({ op, blocks: 1, address: buffer.address }, Status.UNSUPPORTED);
      }
      buffer.free();
    });

    it('refuses flags that it does not know', async () => {
      const buffer = contract.buffer(contract.blockSize);
      for (const flags of [1 << 15, 1 << 12]) {
        const request = { op: Op.READ, flags, blocks: 1, address: buffer.address };
        await expectCode(request, Status.BAD_REQUEST);
      }
      buffer.free();
    });
  });

  describe('wrong lists', () => {
    afterEach(() => contract.tidy());

    it('are refused before anything is done', async () => {
      const queue = contract.queue();
      const { blockSize } = contract;
      const buffer = contract.buffer(2 * blockSize);
      const list = contract.buffer(512);
      const good = { address: buffer.address, bytes: blockSize };
      const cases: [{ address: number; bytes: number }[], number][] = [
        [[good], Status.BAD_REQUEST],
        [[good, good, good], Status.BAD_REQUEST],
        [[good, { ...good, bytes: 0 }, good], Status.BAD_REQUEST],
        [[good, { ...good, address: 0 }], Status.BAD_ADDRESS],
        [[good, { ...good, address: contract.freedAddress() }], Status.BAD_ADDRESS],
      ];
      for (const [pieces, code] of cases) {
        buffer.u8.fill(0xee);
        const target = fillList(list, pieces);
        const done = await one(queue, { op: Op.READ, blocks: 2, lba: 0, ...target });
        expect(done.code).toBe(code);
        expect(buffer.u8.every((byte) => byte === 0xee)).toBe(true);
      }
      const read = { op: Op.READ, flags: Flag.SG, blocks: 2 };
      const none = await one(queue, { ...read, segments: 0, address: list.address });
      expect(none.code).toBe(Status.BAD_REQUEST);
      for (const address of [0, 2 ** 43]) {
        const done = await one(queue, { ...read, segments: 2, address });
        expect(done.code).toBe(Status.BAD_ADDRESS);
      }
      buffer.free();
      list.free();
    });
  });

  describe('limits of a native queue', () => {
    afterEach(() => contract.tidy());

    it('are told, not exceeded', async () => {
      const queue = contract.queue(4, false);
      const { maxTransferBlocks, addressAlign, blocks } = contract.device.nativeInfo;
      const tooMany = maxTransferBlocks + 1;
      if (tooMany <= blocks && tooMany * contract.blockSize <= 2 ** 25) {
        const large = contract.buffer(tooMany * contract.blockSize);
        const request = { op: Op.READ, blocks: tooMany, lba: 0, address: large.address };
        expect((await one(queue, request)).code).toBe(Status.TOO_LARGE);
        large.free();
      }
      if (addressAlign > 1) {
        const buffer = contract.buffer(2 * contract.blockSize);
        const request = { op: Op.READ, blocks: 1, lba: 0, address: buffer.address + 1 };
        expect((await one(queue, request)).code).toBe(Status.MISALIGNED);
        buffer.free();
      }
      const within = contract.buffer(contract.blockSize);
      const fine = await one(queue, { op: Op.READ, blocks: 1, lba: 0, address: within.address });
      expect(fine.code).toBe(Status.OK);
      within.free();
    });
  });

  describe('errors for people', () => {
    it('explain every status, with a hint', () => {
      for (const [name, code] of Object.entries(STATUS)) {
        const explanation = contract.device.explain(code);
        expect(explanation.code).toBe(name);
        expect(explanation.message.length).toBeGreaterThan(10);
        if (code !== Status.OK) expect(explanation.hint.length).toBeGreaterThan(10);
      }
    });

    it('are PenstockErrors with the status name for a code', async () => {
      const { device } = contract;
      const buffer = contract.buffer(contract.blockSize);
      const failure: unknown = await device
        .read(device.info.blocks, buffer)
        .catch((e: unknown) => e);
      expect(failure).toBeInstanceOf(PenstockError);
      expect(failure).toMatchObject({ code: 'BAD_RANGE' });
      expect((failure as PenstockError).hint).not.toBe('');
      await expect(device.read(-1, buffer)).rejects.toBeInstanceOf(RangeError);
      await expect(device.read(0.5, buffer)).rejects.toBeInstanceOf(RangeError);
      await expect(device.discard(0, -1)).rejects.toBeInstanceOf(RangeError);
      buffer.free();
      await expect(device.read(0, buffer)).rejects.toMatchObject({ code: 'USE_AFTER_FREE' });
      const odd = contract.buffer(contract.blockSize - 1);
      await expect(device.write(0, odd)).rejects.toMatchObject({ code: 'BAD_REQUEST' });
      odd.free();
    });

    it('keep a read-only device as it is', async () => {
      const { openReadOnly } = contract.expectations;
      if (openReadOnly === undefined) return;
      const opened = await openReadOnly();
      try {
        const { device } = opened;
        expect(device.info.readOnly).toBe(true);
        const buffer = device.memory.alloc(device.info.blockSize);
        await device.read(0, buffer);
        await expect(device.write(0, buffer)).rejects.toMatchObject({ code: 'READ_ONLY' });
        for (const attempt of [() => device.discard(0, 1), () => device.writeZeroes(0, 1)]) {
          await expect(attempt()).rejects.toMatchObject({
            code: expect.stringMatching(/^(READ_ONLY|UNSUPPORTED)$/) as string,
          });
        }
        // Also in more pieces than the queue is deep.
        const { blockSize } = device.info;
        const pieces = 48;
        const queue = device.queue({ depth: 1 });
        const space = device.memory.alloc(pieces * blockSize);
        const list = device.memory.alloc(pieces * 16);
        const parts = Array.from({ length: pieces }, (_, i) => ({
          address: space.address + (pieces - 1 - i) * blockSize,
          bytes: blockSize,
        }));
        const write = { op: Op.WRITE, blocks: pieces, lba: 0, ...fillList(list, parts) };
        expect((await one(queue, write)).code).toBe(Status.READ_ONLY);
        expect((await one(queue, { ...write, op: Op.READ })).code).toBe(Status.OK);
        await queue.close();
        for (const each of [buffer, space, list]) each.free();
      } finally {
        await closeOpened(opened);
      }
    });
  });
}
