// Comparisons of a ram device, which are its own: in place, also where it has no memory yet.

import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { Op, Status, type BlockDevice, type Queue } from '../../lib/hpdi/index.js';
import { addressSpace, type DmaBuffer } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { collect, fillPattern, one, put } from '../support/requests.js';

const BLOCK = 512;
const CHUNK = 2 ** 21;
/** A piece of data that ends in the second of three chunks; the third has no memory. */
const DATA = CHUNK + 8 * BLOCK;

describe.each(['ram:16MiB', 'ram:1TiB?sparse=1'])('comparisons of %s', (uri) => {
  let device: BlockDevice;
  let queue: Queue;
  let buffer: DmaBuffer;
  const compare = (blocks: number, lba: number, offset = 0) => ({
    ...{ op: Op.COMPARE, blocks, lba, address: buffer.address + offset },
  });

  beforeAll(async () => {
    device = await open(uri);
    queue = device.queue({ depth: 2048, split: false });
    buffer = device.memory.alloc(3 * CHUNK);
    fillPattern(buffer.u8.subarray(0, DATA), 3);
    const data = device.memory.alloc(DATA);
    data.u8.set(buffer.u8.subarray(0, DATA));
    await device.write(0, data);
    data.free();
  });
  afterAll(async () => {
    buffer.free();
    await queue.close();
    await device.close();
  });

  it('are done by the device, on a queue that adds nothing', () => {
    expect(device.nativeInfo.operations & (1 << Op.COMPARE)).not.toBe(0);
  });

  it('find no difference, nor to zeros where nothing was written', async () => {
    const done = await one(queue, compare((3 * CHUNK) / BLOCK, 0));
    expect(done).toMatchObject({ code: Status.OK, resultLo: 0, resultHi: 0 });
  });

  it.each([0, 1, CHUNK - 1, CHUNK, DATA - 1, DATA, 2 * CHUNK - 1, 2 * CHUNK, 3 * CHUNK - 1])(
    'name the first byte that differs: %i',
    async (at) => {
      // The last byte differs, too.
      const places = new Set([at, 3 * CHUNK - 1]);
      const flip = (): void => places.forEach((place) => (buffer.u8[place]! ^= 4));
      flip();
      const done = await one(queue, compare((3 * CHUNK) / BLOCK, 0));
      flip();
      expect(done).toMatchObject({ code: Status.MISCOMPARE, resultLo: at, resultHi: 0 });
    },
  );

  it('are each for itself in a batch, whatever becomes of the others, however many', async () => {
    const COUNT = 2000;
    for (let i = 0; i < COUNT; i++) {
      const request = compare(1, i % 32, (i % 32) * BLOCK);
      if (i % 7 === 3) request.lba++;
      if (i % 11 === 5) request.address = 0;
      expect(put(queue, { ...request, tag: i })).toBe(true);
    }
    queue.submit();
    const done = await collect(queue, COUNT);
    const codes = new Array<number>(COUNT).fill(-1);
    for (const { tag, code } of done) codes[tag] = code;
    for (const [i, code] of codes.entries()) {
      if (i % 11 === 5) expect(code).toBe(Status.BAD_ADDRESS);
      else expect(code).toBe(i % 7 === 3 ? Status.MISCOMPARE : Status.OK);
    }
  });

  it('want what lies on the device, and memory', async () => {
    const { blocks } = device.info;
    expect((await one(queue, compare(2, blocks - 1))).code).toBe(Status.BAD_RANGE);
    expect((await one(queue, compare(0, 0))).code).toBe(Status.BAD_REQUEST);
    const gone = addressSpace().create(CHUNK);
    const { address } = gone;
    gone.close();
    expect((await one(queue, { ...compare(1, 0), address })).code).toBe(Status.BAD_ADDRESS);
  });
});
