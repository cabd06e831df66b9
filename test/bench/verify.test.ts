import { describe, expect, it } from 'vitest';
import { OPERATIONS } from '../../lib/hpdi/records.js';
import type { JobOptions, VerifyFailure } from '../../lib/bench/types.js';
import { FakeBench } from '../support/bench-session.js';
import type { FakeDriver } from '../support/fake-driver.js';

const BLOCK_WORDS = 128;
const UNIT_WORDS = 1024;
const UNITS = 128;
const write: Partial<JobOptions> = { rw: 'write', verify: true };
const check: Partial<JobOptions> = { rw: 'read', verify: true };

/** Writes all, damages the device, and gives what the read-back of the same job found. */
function damaged(
  damage: (driver: FakeDriver) => void,
  job: Partial<JobOptions> = write,
): VerifyFailure[] {
  const { output } = new FakeBench().run(job, { onMeasured: damage });
  expect(output.failureCount).toBe(output.failures.length);
  return [...output.failures];
}

/** Writes all, damages the device, and gives what a later read job finds. */
function damagedForReader(damage: (driver: FakeDriver) => void, blockSize = 512): VerifyFailure[] {
  const bench = new FakeBench({ blockSize, blocks: (UNITS * 4096) / blockSize });
  bench.run(write);
  damage(bench.driver);
  return [...bench.run(check).output.failures];
}

describe('verify on a sound device', () => {
  it.each<Partial<JobOptions>>([
    { rw: 'write' },
    { rw: 'randwrite' },
    { rw: 'randwrite', ioSize: 700 * 4096 },
    { rw: 'randwrite', randomDistribution: 'zipf:1.2', ioSize: 700 * 4096 },
    { rw: 'randrw', ioSize: 700 * 4096, iodepth: 32 },
    { rw: 'rw', ioSize: 700 * 4096, dedupePercentage: 60 },
    { rw: 'write', bs: 512 },
    { rw: 'write', bs: 65536, iodepth: 64, ioSize: 2 ** 22 },
    { rw: 'randwrite', size: 3 * 4096, iodepth: 16, ioSize: 300 * 4096 },
  ])('finds nothing: %j', (job) => {
    const { output } = new FakeBench({ batch: 3 }).run({ ...job, verify: true });
    expect(output.failures).toEqual([]);
    expect(output.failureCount).toBe(0);
    expect(output.checkedBlocks).toBeGreaterThan(0);
  });

  it('reads back each unit that was written, once', () => {
    const { output, driver } = new FakeBench().run({ ...write, rw: 'randwrite', size: 40 * 4096 });
    const reads = driver.seen.filter(({ op }) => op === OPERATIONS.READ);
    expect(reads.map(({ lba }) => lba)).toEqual(Array.from({ length: 40 }, (_, i) => i * 8));
    expect(output.checkedBlocks).toBe(40);
    expect(output.readIos).toBe(0);
  });

  it('never has two operations of one unit in flight', () => {
    const bench = new FakeBench({ batch: 1 });
    const job = { size: 6 * 4096, ioSize: 400 * 4096, iodepth: 16, verify: true };
    const { output } = bench.run({ ...job, rw: 'randrw', randomDistribution: 'zipf:0.9' });
    expect(output.failureCount).toBe(0);
    expect(bench.driver.overlaps).toBe(0);
  });

  it('a read job finds what an earlier run with its seed wrote, in units of any size', () => {
    const bench = new FakeBench();
    bench.run({ ...write, rw: 'randwrite' });
    for (const bs of [512, 4096, 16384]) {
      const { output } = bench.run({ ...check, bs });
      expect(output.failures).toEqual([]);
      expect(output.checkedBlocks).toBe((UNITS * 4096) / bs);
    }
  });

  it('workers write and check disjoint regions', () => {
    const bench = new FakeBench();
    for (let worker = 0; worker < 3; worker++) {
      bench.run({ ...write, numjobs: 3 }, { worker });
    }
    const lbas = bench.driver.seen
      .filter(({ op }) => op === OPERATIONS.WRITE)
      .map(({ lba }) => lba);
    expect(new Set(lbas).size).toBe(UNITS);
    expect(lbas.length).toBe(UNITS);
    expect(bench.run(check).output.failureCount).toBe(0);
  });
});

describe('verify tells damage apart', () => {
  it('corrupt: one flipped bit, with its block, offset and place', () => {
    const flip = (driver: FakeDriver): void => {
      driver.store[17 * UNIT_WORDS + 3 * BLOCK_WORDS + 50]! ^= 1 << 13;
    };
    const expected = {
      kind: 'corrupt',
      block: 17,
      offset: 17 * 4096 + 3 * 512,
      detail: 'checksum wrong: first difference in byte 201 of LBA 139, bit 5',
    };
    expect(damaged(flip)).toEqual([expected]);
    expect(damagedForReader(flip)).toEqual([expected]);
  });

  it('corrupt: a flipped bit in any word of the header', () => {
    for (let word = 0; word < 8; word++) {
      const failures = damagedForReader((driver) => {
        driver.store[5 * UNIT_WORDS + BLOCK_WORDS + word]! ^= 1 << 30;
      });
      expect(failures.map(({ kind, block, offset }) => [kind, block, offset])).toEqual([
        ['corrupt', 5, 5 * 4096 + 512],
      ]);
    }
  });

  it('misplaced: two units in each other’s place', () => {
    const failures = damaged(({ store }) => {
      const first = store.slice(9 * UNIT_WORDS, 10 * UNIT_WORDS);
      store.copyWithin(9 * UNIT_WORDS, 30 * UNIT_WORDS, 31 * UNIT_WORDS);
      store.set(first, 30 * UNIT_WORDS);
    });
    expect(failures.map(({ kind, block, detail }) => [kind, block, detail])).toEqual([
      ['misplaced', 9, 'whole, but it is block 30 (LBA 240)'],
      ['misplaced', 30, 'whole, but it is block 9 (LBA 72)'],
    ]);
  });

  /** Runs two passes, keeping the device's bytes of after the first. */
  function twoPasses(damage: (store: Uint32Array, old: Uint32Array) => void): VerifyFailure[] {
    let old: Uint32Array | null = null;
    let completed = 0;
    const bench: FakeBench = new FakeBench({
      batch: 1,
      fail: () => {
        if (++completed === UNITS + 1) old = bench.driver.store.slice();
        return 0;
      },
    });
    const { output } = bench.run(
      { ...write, iodepth: 1, ioSize: 2 * UNITS * 4096 },
      { onMeasured: ({ store }) => damage(store, old!) },
    );
    return [...output.failures];
  }

  it('stale: a unit of an older write than the acknowledged one', () => {
    const failures = twoPasses((store, old) => {
      store.set(old.subarray(40 * UNIT_WORDS, 41 * UNIT_WORDS), 40 * UNIT_WORDS);
    });
    expect(failures).toEqual([
      {
        kind: 'stale',
        block: 40,
        offset: 40 * 4096,
        detail: 'whole, but of write 1; write 2 was acknowledged',
      },
    ]);
  });

  it('torn: half of a unit of an older write', () => {
    const failures = twoPasses((store, old) => {
      const half = UNIT_WORDS / 2;
      store.set(old.subarray(40 * UNIT_WORDS + half, 41 * UNIT_WORDS), 40 * UNIT_WORDS + half);
    });
    expect(failures).toEqual([
      {
        kind: 'torn',
        block: 40,
        offset: 40 * 4096 + 2048,
        detail: expect.stringContaining(
          '4 of its 8 LBAs are of the last write; LBA 324: ',
        ) as string,
      },
    ]);
  });

  it('torn, seen by a reader that does not know the last write', () => {
    const old = new FakeBench();
    old.run({ ...write, size: 4096 });
    const bench = new FakeBench();
    bench.run({ ...write, size: 4096, ioSize: 2 * 4096 });
    bench.driver.store.set(old.driver.store.subarray(0, UNIT_WORDS / 4));
    const { failures } = bench.run({ ...check, size: 4096 }).output;
    expect(failures.map(({ kind, block, offset }) => [kind, block, offset])).toEqual([
      ['torn', 0, 1024],
    ]);
  });

  it('torn within a device block: sectors of two writes', () => {
    const options = { blockSize: 4096, blocks: UNITS };
    const old = new FakeBench(options);
    old.run({ ...write, size: 4096 });
    for (const [from, to] of [
      [512, 1024],
      [0, 256],
    ] as const) {
      const bench = new FakeBench(options);
      bench.run({ ...write, size: 4096, ioSize: 2 * 4096 });
      bench.driver.store.set(old.driver.store.subarray(from, to), from);
      const { failures } = bench.run({ ...check, size: 4096 }).output;
      expect(failures.map(({ kind, block, offset }) => [kind, block, offset])).toEqual([
        ['torn', 0, 0],
      ]);
    }
  });

  it('unwritten: zeroes, or something else altogether', () => {
    const zero = damaged(({ store }) => store.fill(0, 7 * UNIT_WORDS, 8 * UNIT_WORDS));
    const other = damaged(({ store }) => store.fill(0x61616161, 7 * UNIT_WORDS, 8 * UNIT_WORDS));
    expect(zero.map(({ kind, block }) => [kind, block])).toEqual([['unwritten', 7]]);
    expect(other.map(({ kind, block }) => [kind, block])).toEqual([['unwritten', 7]]);
    expect(zero[0]!.detail).not.toBe(other[0]!.detail);
  });

  it('stale: blocks of a job with another seed', () => {
    const bench = new FakeBench();
    bench.run({ ...write, seed: 2 });
    const { output } = bench.run({ ...check, seed: 3 });
    expect(output.failureCount).toBe(UNITS);
    expect(output.failures.length).toBe(16);
    expect(new Set(output.failures.map(({ kind }) => kind))).toEqual(new Set(['stale']));
  });

  it('a lost write in a mixed job is found by its own reads or the read-back', () => {
    const failures = damaged(({ store }) => store.fill(0, 0, 2 * UNIT_WORDS), {
      ...write,
      rw: 'randrw',
      ioSize: 2000 * 4096,
    });
    const found = failures.map(({ kind, block }) => `${kind} ${block}`).sort();
    expect(found).toEqual(['unwritten 0', 'unwritten 1']);
  });
});
