import { afterEach, describe, expect, it } from 'vitest';
import { addressSpace, GRANULE_BYTES, type Segment } from '../../lib/memory/index.js';
import type { SegmentRecord } from '../../lib/native.js';
import { DomainSpace, type DmaTransport } from '../../lib/pci/dma-space.js';

/** A device's side in memory; what it answers is set by the test. */
class FakeTransport implements DmaTransport {
  readonly mapped = new Map<number, SegmentRecord>();
  readonly calls: string[] = [];
  deferred = false;
  failure: unknown = null;

  map(segment: SegmentRecord): boolean {
    this.calls.push(`map ${segment.id}`);
    if (this.failure !== null) throw this.failure;
    if (!this.deferred) this.mapped.set(segment.address, segment);
    return !this.deferred;
  }

  unmap(address: number): boolean {
    this.calls.push(`unmap ${this.mapped.get(address)?.id}`);
    if (!this.deferred) this.mapped.delete(address);
    return !this.deferred;
  }
}

const ALL = [{ start: 0, last: 2 ** 48 - 1 }];
const cleanups: (() => void)[] = [];

afterEach(() => {
  while (cleanups.length > 0) cleanups.pop()!();
});

function make(granules = 1): Segment {
  const segment = addressSpace().create(granules * GRANULE_BYTES, { pageBytes: 4096 });
  cleanups.push(() => segment.close());
  return segment;
}

function openSpace(ranges = ALL): { space: DomainSpace; transport: FakeTransport } {
  const transport = new FakeTransport();
  const space = new DomainSpace(transport, ranges);
  cleanups.push(() => space.close());
  return { space, transport };
}

function errno(code: string): Error {
  return Object.assign(new Error(code), { code, errno: 1, syscall: 'map' });
}

function at(space: DomainSpace, segment: Segment): number | undefined {
  return space.map[segment.address / GRANULE_BYTES];
}

describe('reach', () => {
  it('maps a segment whole, once, whichever of its addresses is asked for', () => {
    const { space, transport } = openSpace();
    const segment = make(3);
    expect(at(space, segment)).toBe(0);
    expect(space.reach(segment.address + 2 * GRANULE_BYTES + 5)).toBe(true);
    const first = segment.address / GRANULE_BYTES;
    expect([...space.map.subarray(first - 1, first + 4)]).toEqual([0, 3, 3, 3, 0]);
    expect(space.reach(segment.address)).toBe(true);
    expect(transport.calls).toEqual([`map ${segment.id}`]);
    expect(transport.mapped.get(segment.address)).toMatchObject({ bytes: segment.bytes });
  });

  it('says later while a transport is at it, and tries anew when that failed', () => {
    const { space, transport } = openSpace();
    transport.deferred = true;
    const segment = make();
    const record = { id: segment.id, address: segment.address } as SegmentRecord;
    expect(space.reach(segment.address)).toBe(false);
    expect(space.reach(segment.address)).toBe(false);
    space.settle(record, false);
    expect(space.reach(segment.address)).toBe(false);
    expect(transport.calls).toHaveLength(2);
    space.settle(record, true);
    expect(space.reach(segment.address)).toBe(true);
    expect(at(space, segment)).toBe(3);
  });

  it('refuses an address without a segment', () => {
    const { space } = openSpace();
    const segment = make();
    segment.close();
    for (const address of [0, segment.address, 2 ** 44 - 1]) {
      expect(() => space.reach(address)).toThrow(
        expect.objectContaining({ code: 'BAD_ADDRESS' }) as Error,
      );
    }
  });

  it('refuses what no range holds whole', () => {
    const segment = make(2);
    const middle = segment.address + GRANULE_BYTES;
    const { space, transport } = openSpace([
      { start: 0, last: middle - 1 },
      { start: middle, last: 2 ** 48 },
    ]);
    expect(() => space.reach(segment.address)).toThrow(
      expect.objectContaining({
        code: 'IOVA_OUT_OF_RANGE',
        hint: expect.stringContaining(`0x0-0x${(middle - 1).toString(16)}`),
      }) as Error,
    );
    expect(transport.calls).toEqual([]);
  });

  it.each([
    ['ENOMEM', 'OUT_OF_LOCKED_MEMORY', /ulimit -l/],
    ['ENOSPC', 'DMA_MAP_FAILED', /dma_entry_limit/],
    ['EINVAL', 'DMA_MAP_FAILED', /kernel log/],
    ['EBADF', 'BAD_ADDRESS', /memory that is open/],
  ])('explains %s as %s, and leaves nothing held', (code, expected, hint) => {
    const { space, transport } = openSpace();
    const segment = make();
    transport.failure = errno(code);
    expect(() => space.reach(segment.address)).toThrow(
      expect.objectContaining({
        code: expected,
        hint: expect.stringMatching(hint),
        cause: transport.failure,
      }) as Error,
    );
    transport.failure = null;
    expect(space.reach(segment.address)).toBe(true);
  });
});

describe('a segment that closes', () => {
  it('is unmapped by reap, and nothing else is', () => {
    const { space, transport } = openSpace();
    const [kept, closed] = [make(), make()];
    space.reach(kept.address);
    space.reach(closed.address);
    expect(space.stale).toBe(false);
    closed.close();
    expect(at(space, closed)).toBe(0);
    expect(space.stale).toBe(true);
    expect(transport.mapped.size).toBe(2);
    space.collect();
    space.reap();
    expect(space.stale).toBe(false);
    expect([...transport.mapped.keys()]).toEqual([kept.address]);
    expect(at(space, kept)).toBe(3);
  });

  it('is asked for once where unmapping takes its time', () => {
    const { space, transport } = openSpace();
    const segment = make();
    space.reach(segment.address);
    segment.close();
    transport.deferred = true;
    for (let i = 0; i < 2; i++) {
      space.collect();
      space.reap();
    }
    expect(transport.calls.filter((call) => call.startsWith('unmap'))).toHaveLength(1);
    expect(space.stale).toBe(true);
    space.unmapped(segment.address);
    expect(space.stale).toBe(false);
  });

  it('stays mapped when it closed after what is reaped was collected', () => {
    const { space, transport } = openSpace();
    const [first, second] = [make(), make()];
    space.reach(first.address);
    space.reach(second.address);
    first.close();
    space.collect();
    second.close();
    space.reap();
    space.reap();
    expect([...transport.mapped.keys()]).toEqual([second.address]);
    expect(space.stale).toBe(true);
  });

  it('is collected at home only', () => {
    const { space, transport } = openSpace();
    const elsewhere = new DomainSpace(transport, ALL, space.domain);
    const segment = make();
    expect(elsewhere.reach(segment.address)).toBe(true);
    expect(at(space, segment)).toBe(3);
    expect(() => elsewhere.collect()).toThrow(TypeError);
  });
});

it('a space whose home closed it reaches nothing', () => {
  const transport = new FakeTransport();
  const space = new DomainSpace(transport, ALL);
  const elsewhere = new DomainSpace(transport, ALL, space.domain);
  const segment = make();
  space.reach(segment.address);
  space.close();
  expect(at(elsewhere, segment)).toBe(0);
  expect(() => elsewhere.reach(segment.address)).toThrow(
    expect.objectContaining({ code: 'DEVICE_GONE' }) as Error,
  );
  space.settle({ id: segment.id, address: segment.address } as SegmentRecord, true);
  space.unmapped(segment.address);
});
