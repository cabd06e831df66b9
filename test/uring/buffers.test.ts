// Fixed buffers follow the memory: what is registered for an address is what stands there now.

import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { addressSpace, type Segment } from '../../lib/memory/index.js';
import { BufferTable, Ring } from '../../lib/uring/index.js';
import { childResult } from '../fault/child.js';

let folder: string;
const closers: (() => void)[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'penstock-buffers-'));
  chmodSync(folder, 0o755);
});

afterEach(() => {
  while (closers.length > 0) closers.pop()!();
  rmSync(folder, { recursive: true });
});

function table(): BufferTable {
  const ring = Ring.open({ entries: 4 });
  closers.push(() => ring.close());
  return new BufferTable(ring);
}

function segment(bytes = 1, kind: 'private' | 'shared' = 'private'): Segment {
  const made = addressSpace().create(bytes, { pageBytes: 4096, kind });
  closers.push(() => made.close());
  return made;
}

function slotOf(buffers: BufferTable, address: number, bytes: number): number {
  return buffers.slotOf(address >>> 0, Math.floor(address / 2 ** 32), bytes);
}

describe('a buffer table', () => {
  it('gives each segment one slot, on first use', () => {
    const buffers = table();
    expect(buffers.active).toBe(true);
    const [first, second] = [segment(), segment(3 * 2 ** 21)];
    const slot = slotOf(buffers, first.address, 4096);
    expect(slot).toBeGreaterThanOrEqual(0);
    expect(slotOf(buffers, first.address + 2 ** 21 - 512, 512)).toBe(slot);
    const other = slotOf(buffers, second.address + 2 ** 21, 512);
    expect(other).not.toBe(slot);
    expect(slotOf(buffers, second.address, second.bytes)).toBe(other);
  });

  it('gives none to what lies in two segments, in none, or cannot be written', () => {
    const buffers = table();
    const [first, second] = [segment(), segment()];
    const [low, high] = first.address < second.address ? [first, second] : [second, first];
    if (high.address === low.address + low.bytes) {
      expect(slotOf(buffers, low.address, 4096)).toBeGreaterThanOrEqual(0);
      expect(slotOf(buffers, high.address, 4096)).toBeGreaterThanOrEqual(0);
      expect(slotOf(buffers, low.address + low.bytes - 512, 1024)).toBe(-1);
    }
    expect(slotOf(buffers, 0, 512)).toBe(-1);
    expect(slotOf(buffers, 2 ** 43, 512)).toBe(-1);
    expect(slotOf(buffers, 2 ** 36 + 2 ** 35, 512)).toBe(-1);
  });

  it('forgets a closed segment before the next look, and has its slot for another', () => {
    const buffers = table();
    for (let i = 0; i < 600; i++) {
      const one = addressSpace().create(1, { pageBytes: 4096 });
      expect(slotOf(buffers, one.address, 512)).toBeGreaterThanOrEqual(0);
      const { address } = one;
      one.close();
      expect(slotOf(buffers, address, 512)).toBe(-1);
    }
  });

  it('keeps the slots of what stays when something else goes', () => {
    const buffers = table();
    const stays = [segment(), segment(), segment()];
    const slots = stays.map((one) => slotOf(buffers, one.address, 512));
    const goes = segment();
    slotOf(buffers, goes.address, 512);
    goes.close();
    expect(stays.map((one) => slotOf(buffers, one.address, 512))).toEqual(slots);
  });

  it('lets a fixed read land in the new memory of an address that was used again', async () => {
    const path = join(folder, 'data');
    writeFileSync(path, Buffer.alloc(65536, 0x42));
    const result = await childResult<{ reused: boolean; landed: boolean; elsewhere: boolean }>(
      `
      const device = await lib.open('file:${path}');
      const queue = device.queue({ depth: 4, split: false });
      const read = (address) => {
        const r = (queue.tail & queue.mask) * 8;
        queue.reserve(1);
        queue.sq.set([1, 0, 16, 0, 0, 0, address >>> 0, Math.floor(address / 2 ** 32)], r);
        queue.submit();
        let done = 0;
        while (done === 0) done = queue.park(1000);
        return queue.cq[1];
      };
      const space = lib.addressSpace();
      let segment = space.create(1, { pageBytes: 4096 });
      const { address } = segment;
      if (read(address) !== 0 || segment.u8[0] !== 0x42) throw new Error('first read');
      segment.close();
      if ((read(address) & 0xff) !== 1) throw new Error('closed memory was read into');
      segment = null;
      for (let i = 0; i < 5; i++) { gc(); await new Promise((r) => setTimeout(r, 5)); }
      const made = Array.from({ length: 4 }, () => space.create(1, { pageBytes: 4096 }));
      const again = made.find((one) => one.address === address);
      const status = again === undefined ? -1 : read(address);
      console.log(JSON.stringify({
        reused: again !== undefined,
        landed: status === 0 && again.u8.subarray(0, 8192).every((byte) => byte === 0x42),
        elsewhere: made.some((one) => one !== again && one.u8[0] !== 0),
      }));
      await device.close();
    `,
      { nodeOptions: ['--expose-gc'] },
    );
    expect(result).toEqual({ reused: true, landed: true, elsewhere: false });
  });

  it('does without where the limit of locked memory is too small', async () => {
    const path = join(folder, 'data');
    writeFileSync(path, Buffer.alloc(65536, 0x42));
    chmodSync(path, 0o666);
    const result = await childResult<Record<string, unknown>>(`
      const { execFileSync } = await import('node:child_process');
      await lib.open('file:${path}').then((one) => one.close()); // loads what is read as root
      execFileSync('prlimit', ['--pid', String(process.pid), '--memlock=65536:65536']);
      if (process.getuid() === 0) {
        process.setgid(65534);
        process.setuid(65534);
      }
      const ring = lib.Ring.open({ entries: 4 });
      const table = new lib.BufferTable(ring);
      const segment = lib.addressSpace().create(1, { pageBytes: 4096 });
      const slot = table.slotOf(segment.address >>> 0, Math.floor(segment.address / 2 ** 32), 512);
      const device = await lib.open('file:${path}');
      const buffer = device.memory.alloc(4096);
      await device.read(0, buffer);
      const byte = buffer.u8[4095];
      buffer.u8.fill(7);
      await device.write(8, buffer);
      await device.read(8, buffer);
      await device.close();
      console.log(JSON.stringify({ slot, active: table.active, byte }));
    `);
    expect(result).toEqual({ slot: -1, active: false, byte: 0x42 });
  });
});
