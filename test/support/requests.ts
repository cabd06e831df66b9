// Requests for tests, written field by field: clarity before speed.

import { Cpl, Flag, Req, Sg } from '../../lib/hpdi/records.js';
import type { Queue } from '../../lib/hpdi/queue.js';
import type { DmaBuffer } from '../../lib/memory/index.js';

const TWO_32 = 2 ** 32;

export interface Request {
  op: number;
  flags?: number;
  segments?: number;
  tag?: number;
  blocks?: number;
  lba?: number;
  /** Words of the LBA as they are, for numbers that a double does not hold. */
  lbaWords?: [number, number];
  address?: number;
}

export interface Completion {
  tag: number;
  status: number;
  /** Status without the driver's detail. */
  code: number;
  resultLo: number;
  resultHi: number;
}

/** Puts one request on the queue without submitting it; false is back-pressure. */
export function put(queue: Queue, request: Request): boolean {
  const at = queue.tail;
  if (queue.reserve(1) === 0) return false;
  const r = (at & queue.mask) * Req.words;
  const lba = request.lba ?? 0;
  const address = request.address ?? 0;
  const { sq } = queue;
  sq[r + Req.op] = request.op | (request.flags ?? 0) | ((request.segments ?? 0) << 16);
  sq[r + Req.tag] = request.tag ?? 0;
  sq[r + Req.blocks] = request.blocks ?? 0;
  sq[r + Req.aux] = 0;
  sq[r + Req.lbaLo] = request.lbaWords?.[0] ?? lba >>> 0;
  sq[r + Req.lbaHi] = request.lbaWords?.[1] ?? Math.floor(lba / TWO_32);
  sq[r + Req.addressLo] = address >>> 0;
  sq[r + Req.addressHi] = Math.floor(address / TWO_32);
  return true;
}

export function completionAt(queue: Queue, index: number): Completion {
  const c = index * Cpl.words;
  const { cq } = queue;
  return {
    tag: cq[c + Cpl.tag]!,
    status: cq[c + Cpl.status]!,
    code: cq[c + Cpl.status]! & 0xff,
    resultLo: cq[c + Cpl.resultLo]!,
    resultHi: cq[c + Cpl.resultHi]!,
  };
}

/** Waits for `count` completions, in the order they came. */
export async function collect(queue: Queue, count: number): Promise<Completion[]> {
  const all: Completion[] = [];
  while (all.length < count) {
    const done = await queue.wait(10_000);
    if (done === 0) throw new Error(`only ${all.length} of ${count} operations completed`);
    for (let i = 0; i < done; i++) all.push(completionAt(queue, i));
  }
  return all;
}

/** Submits requests and waits for all of them. */
export async function run(queue: Queue, ...requests: Request[]): Promise<Completion[]> {
  for (const request of requests) {
    if (!put(queue, request)) throw new Error('more requests than the queue is deep');
  }
  while (queue.head !== queue.tail) {
    const before = queue.head;
    queue.submit();
    if (queue.head === before) throw new Error('the driver takes nothing');
  }
  return collect(queue, requests.length);
}

/** Submits one request and waits for it. */
export async function one(queue: Queue, request: Request): Promise<Completion> {
  return (await run(queue, request))[0]!;
}

/** Writes an SG list to `list`; the request's `segments` is the number of pieces. */
export function fillList(
  list: DmaBuffer,
  pieces: readonly { address: number; bytes: number }[],
): { address: number; segments: number; flags: number } {
  pieces.forEach((piece, i) => {
    const w = i * Sg.words;
    list.u32[w + Sg.addressLo] = piece.address >>> 0;
    list.u32[w + Sg.addressHi] = Math.floor(piece.address / TWO_32);
    list.u32[w + Sg.bytes] = piece.bytes;
    list.u32[w + 3] = 0;
  });
  return { address: list.address, segments: pieces.length, flags: Flag.SG };
}

/** Bytes that depend on the seed and the position, so that misplaced data shows. */
export function fillPattern(bytes: Uint8Array, seed: number): Uint8Array {
  let state = Math.imul(seed + 1, 0x9e3779b1) >>> 0;
  for (let i = 0; i < bytes.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

export function pattern(length: number, seed: number): Uint8Array {
  return fillPattern(new Uint8Array(length), seed);
}
