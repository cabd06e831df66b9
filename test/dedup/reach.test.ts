// A pool on a device that reaches memory of one kind only: nothing of the pool is elsewhere.

import { expect, it } from 'vitest';
import { checkPool, Pool } from '../../lib/dedup/index.js';
import { driver as ramDriver } from '../../lib/drivers/ram/index.js';
import { BlockDevice, Op, Req, type Backend } from '../../lib/hpdi/index.js';
import { addressSpace, Memory } from '../../lib/memory/index.js';
import { open } from '../../lib/open.js';
import { range, read, write } from './contents.js';

const OPEN = { cacheBytes: 2 ** 21, indexBytes: 2 ** 20 };
const TWO_32 = 2 ** 32;
/** As `list` of the address space has it. */
const DEVICE_KIND = 2;

/** A device of that kind; addresses of other memory that it was given go to `wrong`. */
async function deviceOfKind(size: string, wrong: number[], memory?: Memory): Promise<BlockDevice> {
  const ram = await ramDriver.open(size, new Map(), `ram:${size}`);
  const isReached = (address: number): boolean =>
    addressSpace()
      .list()
      .some(
        (segment) =>
          address >= segment.address &&
          address < segment.address + segment.bytes &&
          segment.kind === DEVICE_KIND,
      );
  const inner = Object.create(ram) as Backend & { memoryKind: string; memory?: Memory };
  Object.defineProperty(inner, 'memoryKind', { value: 'device' });
  if (memory !== undefined) Object.defineProperty(inner, 'memory', { value: memory });
  inner.openQueue = (options) => {
    const queue = ram.openQueue(options);
    const submit = queue.submit.bind(queue);
    queue.submit = (sq, head, tail) => {
      const mask = sq.length / Req.words - 1;
      for (let i = head; i !== tail; i = (i + 1) | 0) {
        const at = (i & mask) * Req.words;
        const op = sq[at]! & 0xff;
        if (op !== Op.READ && op !== Op.WRITE) continue;
        const address = sq[at + Req.addressHi]! * TWO_32 + sq[at + Req.addressLo]!;
        if (!isReached(address)) wrong.push(address);
      }
      return submit(sq, head, tail);
    };
    return queue;
  };
  return new BlockDevice(inner);
}

it.each(['data', 'fast', 'both'])(
  'has all it uses where its devices reach it: %s',
  async (which) => {
    const wrong: number[] = [];
    const device = which === 'fast' ? await open('ram:64MiB') : await deviceOfKind('64MiB', wrong);
    const fast = which === 'data' ? await open('ram:1MiB') : await deviceOfKind('1MiB', wrong);
    await Pool.create(device, { thn: 4, sampling: 1, dataChecksum: true, llrrm: fast });
    const pool = await Pool.open(device, { ...OPEN, llrrm: fast });
    for (const name of ['a', 'b', 'c', 'd', 'e']) {
      await pool.createVolume(name, 2 ** 24);
      const disk = pool.openVolume(name, { blockSize: 512 });
      expect(disk.backend.memoryKind).toBe('device');
      await write(disk, 0, range(100, 64));
      const part = disk.memory.alloc(512);
      part.u8.fill(7);
      await disk.write(5, part);
      part.free();
      await disk.close();
    }
    await pool.settle();
    const disk = pool.openVolume('b');
    for (let i = 0; i < 2; i++) expect(await read(disk, 8, 40)).toEqual(range(108, 40));
    expect(pool.stats().llrrm!.used).toBeGreaterThan(0);
    for (let first = 0; first < 2560; first += 10)
      await write(disk, 1000 + first, range(9000 + first, 10));
    for (let first = 0; first < 2560; first += 10) await disk.discard(1000 + first, 9);
    expect((await pool.clean()).victims).toBeGreaterThan(0);
    await disk.close();
    await pool.close();
    expect(await checkPool(device, { data: true })).toMatchObject({ clean: true });
    await device.close();
    await fast.close();
    expect(wrong).toEqual([]);
  },
);

it('refuses fast memory that reaches nothing which the data device reaches', async () => {
  const device = await deviceOfKind('64MiB', []);
  const fast = await deviceOfKind('1MiB', [], new Memory({ kind: 'device' }));
  await Pool.create(device);
  await expect(Pool.open(device, { ...OPEN, llrrm: fast })).rejects.toMatchObject({
    code: 'BAD_OPTION',
  });
  await (await Pool.open(device, OPEN)).close();
  await device.close();
  await fast.close();
});
