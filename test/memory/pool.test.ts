import { afterEach, describe, expect, it } from 'vitest';
import { BufferPool, Memory, returnHome, type PoolOptions } from '../../lib/memory/index.js';
import { childResult, nextMessage, startWorker, workerResult } from '../fault/child.js';

const pools: { close(): void }[] = [];

afterEach(() => {
  while (pools.length > 0) pools.pop()!.close();
});

function makePool(options: Partial<PoolOptions> = {}): BufferPool {
  const pool = new BufferPool({ bufferBytes: 4096, count: 16, pageBytes: 4096, ...options });
  pools.push(pool);
  return pool;
}

function error(code: string): Error {
  return expect.objectContaining({ code, hint: expect.stringMatching(/./) }) as Error;
}

describe('a pool', () => {
  it('gives each buffer once, aligned, until none is left', () => {
    const pool = makePool();
    const taken = Array.from({ length: 16 }, () => pool.take());
    expect(new Set(taken).size).toBe(16);
    expect(taken.every((address) => address % 4096 === 0 && address > 0)).toBe(true);
    expect(pool.take()).toBe(0);
    expect(pool.taken).toBe(16);
    pool.put(taken[7]!);
    expect(pool.take()).toBe(taken[7]);
    for (const address of taken) pool.put(address);
    expect(pool.taken).toBe(0);
  });

  it('has buffers that do not overlap each other or its own records', () => {
    const pool = makePool({ bufferBytes: 512, count: 100 });
    const taken = Array.from({ length: 100 }, () => pool.take());
    taken.forEach((address, i) => pool.view(address).fill(i));
    taken.forEach((address, i) => {
      expect(pool.view(address).every((byte) => byte === i)).toBe(true);
    });
    for (const address of taken) pool.put(address);
    expect(pool.taken).toBe(0);
  });

  it('makes the view of a buffer once', () => {
    const pool = makePool();
    const address = pool.take();
    expect(pool.view(address)).toBe(pool.view(address));
    expect(pool.view(address).byteLength).toBe(4096);
  });

  it('refuses what it did not give', () => {
    const pool = makePool();
    const address = pool.take();
    const wrong = [0, 1, address + 1, address + 512, address - 4096 * 16, address + 4096 * 16, NaN];
    for (const one of wrong) expect(() => pool.put(one)).toThrow(error('BAD_ADDRESS'));
    pool.put(address);
    expect(() => pool.put(address)).toThrow(error('DOUBLE_FREE'));
    expect(() => pool.put(address + 4096)).toThrow(error('DOUBLE_FREE'));
    expect(pool.taken).toBe(0);
  });

  it('refuses shapes it cannot have', () => {
    expect(() => makePool({ bufferBytes: 256 })).toThrow(RangeError);
    expect(() => makePool({ bufferBytes: 5000 })).toThrow(RangeError);
    expect(() => makePool({ count: 0 })).toThrow(RangeError);
    expect(() => makePool({ count: 1.5 })).toThrow(RangeError);
  });

  it('finds a write after a free when it poisons', () => {
    const pool = makePool({ poison: true, count: 1 });
    const address = pool.take();
    const view = pool.view(address);
    view.fill(0);
    pool.put(address);
    expect(view.every((byte) => byte === 0xa5)).toBe(true);
    pool.put(pool.take());
    view[1234] = 1;
    expect(() => pool.take()).toThrow(/byte 1234 .* written after its free/);
  });

  it('finds a write after a free that came from another environment', async () => {
    const pool = makePool({ poison: true, count: 1 });
    const address = pool.take();
    await workerResult(`lib.returnHome(workerData); parentPort.postMessage(0);`, address);
    expect(pool.taken).toBe(0);
    pool.view(address)[9] = 0;
    expect(() => pool.take()).toThrow(error('USE_AFTER_FREE'));
  });

  it('takes and puts without garbage', async () => {
    const grown = await childResult<number>(
      `
      const pool = new lib.BufferPool({ bufferBytes: 4096, count: 64, pageBytes: 4096 });
      const round = (times) => {
        for (let i = 0; i < times; i++) {
          const a = pool.take();
          const b = pool.take();
          pool.put(a);
          pool.put(b);
        }
      };
      for (let i = 0; i < 500; i++) round(1000); // until it is compiled
      // V8 now and then has work of its own: what each run leaves is the pool's.
      let least = Infinity;
      for (let run = 0; run < 3; run++) {
        gc();
        const before = process.memoryUsage().heapUsed;
        for (let i = 0; i < 500; i++) round(1000);
        least = Math.min(least, process.memoryUsage().heapUsed - before);
      }
      console.log(least);
    `,
      { nodeOptions: ['--expose-gc'] },
    );
    expect(grown).toBeLessThan(64 * 1024);
  });
});

describe('a buffer freed in another environment', () => {
  it('goes home when the home needs it', async () => {
    const pool = makePool({ count: 4 });
    const taken = Array.from({ length: 4 }, () => pool.take());
    expect(pool.take()).toBe(0);
    await workerResult(
      `for (const address of workerData) lib.returnHome(address); parentPort.postMessage(0);`,
      taken.slice(0, 3),
    );
    const again = [pool.take(), pool.take(), pool.take()];
    expect(again.sort()).toEqual(taken.slice(0, 3).sort());
    expect(pool.take()).toBe(0);
  });

  it('is freed once, wherever the second free comes from', async () => {
    const pool = makePool();
    const [first, second] = [pool.take(), pool.take()];
    pool.put(first);
    const codes = await workerResult<string[]>(
      `
      const attempt = (address) => {
        try { lib.returnHome(address); return 'freed'; } catch (error) { return error.code; }
      };
      const { first, second } = workerData;
      parentPort.postMessage([first, second, second, second + 1, 4096].map(attempt));
    `,
      { first, second },
    );
    expect(codes).toEqual(['DOUBLE_FREE', 'freed', 'DOUBLE_FREE', 'BAD_ADDRESS', 'BAD_ADDRESS']);
    expect(() => pool.put(second)).toThrow(error('DOUBLE_FREE'));
    expect(pool.taken).toBe(0);
  });

  it('is refused by segments that hold no pool', async () => {
    const { addressSpace } = await import('../../lib/memory/index.js');
    const segment = addressSpace().create(1, { pageBytes: 4096 });
    pools.push(segment);
    expect(() => returnHome(segment.address)).toThrow(error('BAD_ADDRESS'));
  });

  it('comes home once from each of four workers that free at the same time', async () => {
    const COUNT = 2048;
    const pool = makePool({ bufferBytes: 512, count: COUNT });
    const control = new Int32Array(new SharedArrayBuffer(4));
    const workers = Array.from({ length: 4 }, () =>
      startWorker(
        `
        const control = new Int32Array(workerData);
        parentPort.on('message', (addresses) => {
          // Every worker tries every buffer: exactly one must succeed with each.
          Atomics.add(control, 0, 1);
          while (Atomics.load(control, 0) % 4 !== 0) continue;
          let freed = 0;
          for (const address of addresses) {
            try { lib.returnHome(address); freed++; } catch (error) {
              if (error.code !== 'DOUBLE_FREE') throw error;
            }
          }
          parentPort.postMessage(freed);
        });
        parentPort.postMessage('ready');
      `,
        control.buffer,
      ),
    );
    await Promise.all(workers.map((worker) => nextMessage(worker)));
    for (let round = 0; round < 10; round++) {
      const taken = Array.from({ length: COUNT }, () => pool.take());
      expect(new Set(taken).size).toBe(COUNT);
      expect(taken).not.toContain(0);
      const answers = workers.map((worker) => nextMessage<number>(worker));
      for (const worker of workers) worker.postMessage(taken);
      const freed = await Promise.all(answers);
      expect(freed.reduce((sum, one) => sum + one, 0)).toBe(COUNT);
      expect(pool.taken).toBe(0);
    }
    await Promise.all(workers.map((worker) => worker.terminate()));
  });

  it('is freed once when the home frees it at the same time', async () => {
    const COUNT = 4096;
    const pool = makePool({ bufferBytes: 512, count: COUNT });
    const control = new Int32Array(new SharedArrayBuffer(4));
    const worker = startWorker(
      `
      const control = new Int32Array(workerData);
      parentPort.on('message', (addresses) => {
        Atomics.store(control, 0, 1);
        let freed = 0;
        for (const address of addresses) {
          try { lib.returnHome(address); freed++; } catch (error) {
            if (error.code !== 'DOUBLE_FREE') throw error;
          }
        }
        parentPort.postMessage(freed);
      });
      parentPort.postMessage('ready');
    `,
      control.buffer,
    );
    await nextMessage(worker);
    for (let round = 0; round < 5; round++) {
      const taken = Array.from({ length: COUNT }, () => pool.take());
      Atomics.store(control, 0, 0);
      const answer = nextMessage<number>(worker);
      worker.postMessage(taken);
      while (Atomics.load(control, 0) === 0) Atomics.wait(control, 0, 0, 1);
      let freed = 0;
      for (const address of [...taken].reverse()) {
        try {
          pool.put(address);
          freed++;
        } catch (failure) {
          expect(failure).toMatchObject({ code: 'DOUBLE_FREE' });
        }
      }
      expect((await answer) + freed).toBe(COUNT);
      expect(pool.taken).toBe(0);
    }
    await worker.terminate();
  });
});

describe('Memory', () => {
  function makeMemory(): Memory {
    const memory = new Memory({ pageBytes: 4096 });
    pools.push(memory);
    return memory;
  }

  it('gives buffers of any size, each at its address', () => {
    const memory = makeMemory();
    const sizes = [1, 511, 512, 513, 4096, 5000, 65536, 2 ** 20 + 1, 5 * 2 ** 20];
    const buffers = sizes.map((bytes) => memory.alloc(bytes));
    buffers.forEach((buffer, i) => {
      expect(buffer.u8.length).toBe(sizes[i]);
      expect(buffer.address % Math.min(2 ** 21, 2 ** Math.ceil(Math.log2(sizes[i]!)))).toBe(0);
      buffer.u8.fill(i + 1);
    });
    buffers.forEach((buffer, i) => {
      expect(buffer.u8.every((byte) => byte === i + 1)).toBe(true);
    });
    expect(memory.taken).toBe(sizes.length);
    for (const buffer of buffers) buffer.free();
    expect(memory.taken).toBe(0);
  });

  it.each([0, -1, 1.5, NaN, 2 ** 30 + 1, Infinity])('refuses %d bytes', (bytes) => {
    expect(() => makeMemory().alloc(bytes)).toThrow(RangeError);
  });

  it('knows a handle whose buffer was freed, even when it was given out again', () => {
    const memory = makeMemory();
    const first = memory.alloc(4096);
    const stale = first.u8;
    first.free();
    expect(() => first.free()).toThrow(error('DOUBLE_FREE'));
    const second = memory.alloc(4096);
    expect(second.address).toBe(first.address);
    expect(first.freed).toBe(true);
    expect(() => first.u8).toThrow(error('USE_AFTER_FREE'));
    expect(() => first.u32).toThrow(error('USE_AFTER_FREE'));
    expect(() => first.free()).toThrow(error('DOUBLE_FREE'));
    expect(second.freed).toBe(false);
    expect(stale.byteLength).toBe(4096);
    {
      using third = memory.alloc(512);
      expect(memory.taken).toBe(2);
      expect(third.u32.length).toBe(128);
    }
    expect(memory.taken).toBe(1);
  });

  it('frees by address in any environment, and shrinks', async () => {
    const memory = makeMemory();
    const mine = memory.alloc(4096);
    const theirs = await workerResult<string>(
      `
      lib.returnHome(workerData);
      const memory = new lib.Memory({ pageBytes: 4096 });
      const buffer = memory.alloc(4096);
      parentPort.postMessage(String(buffer.freed));
    `,
      mine.address,
    );
    expect(theirs).toBe('false');
    expect(mine.freed).toBe(true);
    const other = memory.alloc(512);
    memory.freeAddress(other.address);
    expect(memory.taken).toBe(0);
    expect(() => memory.freeAddress(12345)).toThrow(error('BAD_ADDRESS'));
    const kept = memory.alloc(65536);
    const { address } = kept;
    memory.trim();
    expect(kept.freed).toBe(false);
    kept.free();
    memory.trim();
    const { addressSpace } = await import('../../lib/memory/index.js');
    expect(addressSpace().find(address)).toBeUndefined();
  });

  it('closes under buffers that are out: their views show zeros', () => {
    const memory = makeMemory();
    const buffer = memory.alloc(4096);
    const view = buffer.u8;
    view.fill(1);
    memory.close();
    expect(view.every((byte) => byte === 0)).toBe(true);
    expect(buffer.freed).toBe(true);
    expect(() => buffer.u8).toThrow(error('USE_AFTER_FREE'));
  });
});
