// DMA domains: what one device can reach, held against closing and reuse from any thread.

import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  ended,
  expectErrno,
  expectInvalid,
  makeSegment,
  native,
  nextMessage,
  startWorker,
} from './support.js';

const GRANULE = 2 ** 21;
const MAP_BYTES = 2 ** 23;
let domain: number;
let map: Uint8Array;
let staleCount: Uint32Array;

beforeEach(() => {
  domain = native.dmaOpen();
  const area = native.dmaMap(domain);
  map = new Uint8Array(area, 0, MAP_BYTES);
  staleCount = new Uint32Array(area, MAP_BYTES, 1);
});

afterEach(() => {
  try {
    native.dmaClose(domain);
  } catch {
    // the test closed it
  }
});

function bytesOf(segment: { address: number; bytes: number }): number[] {
  const first = segment.address / GRANULE;
  return [...map.subarray(first, first + segment.bytes / GRANULE)];
}

/** Whether a new segment could be placed at the address. */
function reused(address: number, bytes: number): boolean {
  const id = native.segmentCreate(bytes, 4096, 0);
  const at = native.segmentInfo(id).address;
  native.segmentClose(id);
  return at === address;
}

/** A segment that no ArrayBuffer ever lay over: only holds keep its range. */
function bareSegment(bytes = GRANULE): { id: number; address: number; bytes: number } {
  const id = native.segmentCreate(bytes, 4096, 0);
  return { id, address: native.segmentInfo(id).address, bytes };
}

describe('hold and mark', () => {
  test('the first holds, the next are told so; marking sets the bytes', () => {
    const segment = makeSegment(3 * GRANULE);
    expect(native.dmaHold(domain, segment.id)).toBe(1);
    expect(native.dmaHold(domain, segment.id)).toBe(0);
    expect(bytesOf(segment)).toEqual([0, 0, 0]);
    expect(native.dmaMark(domain, segment.id, 3)).toBe(true);
    expect(bytesOf(segment)).toEqual([3, 3, 3]);
    expect(map[segment.address / GRANULE - 1]).toBe(0);
    expect(native.dmaHold(domain, segment.id)).toBe(0);
    expect(native.dmaStale(domain)).toEqual([]);
    native.dmaDrop(domain, segment.address);
    expect(bytesOf(segment)).toEqual([0, 0, 0]);
    expect(native.dmaHold(domain, segment.id)).toBe(1);
    native.segmentClose(segment.id);
  });

  test('access is no more than asked for', () => {
    const segment = makeSegment();
    native.dmaHold(domain, segment.id);
    native.dmaMark(domain, segment.id, 1);
    expect(bytesOf(segment)).toEqual([1]);
    native.segmentClose(segment.id);
  });

  test('what is not held is not marked or dropped', () => {
    const segment = makeSegment();
    expectErrno(() => native.dmaMark(domain, segment.id, 3), 'EINVAL');
    expectErrno(() => native.dmaDrop(domain, segment.address), 'EINVAL');
    native.segmentClose(segment.id);
    expectErrno(() => native.dmaHold(domain, segment.id), 'EBADF');
  });

  test('two domains know nothing of each other', () => {
    const other = native.dmaOpen();
    const segment = makeSegment();
    native.dmaHold(domain, segment.id);
    native.dmaMark(domain, segment.id, 3);
    expect(native.dmaHold(other, segment.id)).toBe(1);
    native.dmaClose(other);
    expect(bytesOf(segment)).toEqual([3]);
    native.segmentClose(segment.id);
  });
});

describe('closing a segment', () => {
  test('clears its bytes, makes it stale, and keeps its range until it is dropped', () => {
    const segment = bareSegment();
    native.dmaHold(domain, segment.id);
    native.dmaMark(domain, segment.id, 3);
    native.segmentClose(segment.id);
    expect(bytesOf(segment)).toEqual([0]);
    expect(staleCount[0]).toBe(1);
    expect(native.dmaStale(domain)).toEqual([segment.address, segment.bytes]);
    expect(reused(segment.address, segment.bytes)).toBe(false);
    native.dmaDrop(domain, segment.address);
    expect(staleCount[0]).toBe(0);
    expect(reused(segment.address, segment.bytes)).toBe(true);
  });

  test('while it is being mapped makes it stale only when that is over', () => {
    const segment = bareSegment();
    native.dmaHold(domain, segment.id);
    native.segmentClose(segment.id);
    expect(staleCount[0]).toBe(0);
    expect(native.dmaStale(domain)).toEqual([]);
    expect(native.dmaMark(domain, segment.id, 3)).toBe(false);
    expect(bytesOf(segment)).toEqual([0]);
    expect(native.dmaStale(domain)).toEqual([segment.address, segment.bytes]);
  });

  test('is over when the domain closes', () => {
    const segment = bareSegment();
    native.dmaHold(domain, segment.id);
    native.dmaMark(domain, segment.id, 3);
    const other = makeSegment();
    native.dmaHold(domain, other.id);
    native.dmaMark(domain, other.id, 3);
    native.segmentClose(segment.id);
    native.dmaClose(domain);
    expect(bytesOf(other)).toEqual([0]);
    expect(staleCount[0]).toBe(0);
    expect(reused(segment.address, segment.bytes)).toBe(true);
    for (const call of [native.dmaStale, native.dmaMap, native.dmaClose]) {
      expectErrno(() => call(domain), 'ENXIO');
    }
    expectErrno(() => native.dmaHold(domain, other.id), 'ENXIO');
    expectErrno(() => native.dmaMark(domain, other.id, 3), 'ENXIO');
    expectErrno(() => native.dmaDrop(domain, other.address), 'ENXIO');
    native.segmentClose(other.id);
  });
});

describe('environments', () => {
  test('a worker uses a domain of the main thread, and may not close it', async () => {
    const segment = makeSegment();
    const worker = startWorker(
      `
      const { domain, segment } = workerData;
      const held = native.dmaHold(domain, segment);
      const marked = native.dmaMark(domain, segment, 3);
      let code = '';
      try { native.dmaClose(domain); } catch (error) { code = error.code; }
      const seen = new Uint8Array(native.dmaMap(domain)).reduce((sum, byte) => sum + byte, 0);
      parentPort.postMessage({ held, marked, code, seen });
    `,
      { domain, segment: segment.id },
    );
    const answer = await nextMessage(worker);
    expect(answer).toEqual({ held: 1, marked: true, code: 'EPERM', seen: 3 });
    await ended(worker);
    expect(bytesOf(segment)).toEqual([3]);
    native.segmentClose(segment.id);
  });

  test('what a worker was mapping when it ended is held by whoever asks next', async () => {
    const segment = makeSegment();
    const worker = startWorker('native.dmaHold(workerData.domain, workerData.segment);', {
      domain,
      segment: segment.id,
    });
    await ended(worker);
    expect(native.dmaHold(domain, segment.id)).toBe(1);
    expect(native.dmaMark(domain, segment.id, 3)).toBe(true);
    native.segmentClose(segment.id);
  });

  test('the end of a worker closes its domains', async () => {
    const segment = makeSegment();
    const worker = startWorker(
      `
      const domain = native.dmaOpen();
      native.dmaHold(domain, workerData);
      native.dmaMark(domain, workerData, 3);
      parentPort.on('message', () => process.exit());
      parentPort.postMessage(domain);
    `,
      segment.id,
    );
    const theirs = await nextMessage<number>(worker);
    const view = new Uint8Array(native.dmaMap(theirs), 0, MAP_BYTES);
    expect(view[segment.address / GRANULE]).toBe(3);
    worker.postMessage('end');
    await ended(worker);
    expect(view[segment.address / GRANULE]).toBe(0);
    expectErrno(() => native.dmaMap(theirs), 'ENXIO');
    native.segmentClose(segment.id);
  });
});

test('arguments are checked', () => {
  const segment = makeSegment();
  for (const bad of [-1, 0.5, 2 ** 32, NaN, 'x', null]) {
    const value = bad as number;
    for (const call of [native.dmaMap, native.dmaStale, native.dmaClose]) {
      expectInvalid(() => call(value));
    }
    expectInvalid(() => native.dmaHold(domain, value));
    expectInvalid(() => native.dmaHold(value, segment.id));
    expectInvalid(() => native.dmaMark(domain, value, 3));
    expectInvalid(() => native.dmaDrop(value, 0));
  }
  for (const access of [0, 2, 4, -1]) {
    expectInvalid(() => native.dmaMark(domain, segment.id, access));
  }
  expectInvalid(() => native.dmaDrop(domain, -1));
  expectInvalid(() => native.dmaDrop(domain, 2 ** 44));
  expectErrno(() => native.dmaHold(domain, 0), 'EBADF');
  expectErrno(() => native.dmaMap(0), 'ENXIO');
  native.segmentClose(segment.id);
});

test('there is an end to how many can be open', () => {
  const domains: number[] = [];
  const open = (): void => {
    for (;;) domains.push(native.dmaOpen());
  };
  expectErrno(open, 'EMFILE');
  for (const one of domains) native.dmaClose(one);
  expect(domains.length).toBeGreaterThan(100);
});
