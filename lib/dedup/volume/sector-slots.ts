// SectorSlots: what a queue with blocks smaller than a page knows of its requests, in typed arrays.
//
// A request has up to three parts: what it has of its first page, whole pages, and what it has of
// its last page. The parts of slot s have the numbers 3 s, 3 s + 1 and 3 s + 2, in the order in
// which they lie in the request.

/** Places of parts in a request. */
export const enum Part {
  head = 0,
  whole = 1,
  tail = 2,
  count = 3,
}

export class SectorSlots {
  readonly depth: number;
  /** By slot: operation and flags. */
  readonly ops: Uint32Array;
  readonly tags: Uint32Array;
  /** By slot: parts that have not ended. */
  readonly left: Uint8Array;
  /** By part, from here on. The page, or the first of several. */
  readonly pages: Float64Array;
  /** Whole pages. */
  readonly counts: Float64Array;
  /** Of a part of a page: where it begins in it, and its bytes. */
  readonly froms: Int32Array;
  readonly bytes: Int32Array;
  readonly addresses: Float64Array;
  readonly statuses: Uint32Array;
  /** Place of the page in memory. */
  readonly places: Int32Array;
  /** The part that comes behind it in the list where it waits. */
  readonly nexts: Int32Array;
  free: number;
  private readonly list: Int32Array;

  constructor(depth: number) {
    const parts = depth * Part.count;
    this.depth = depth;
    this.ops = new Uint32Array(depth);
    this.tags = new Uint32Array(depth);
    this.left = new Uint8Array(depth);
    this.pages = new Float64Array(parts);
    this.counts = new Float64Array(parts);
    this.froms = new Int32Array(parts);
    this.bytes = new Int32Array(parts);
    this.addresses = new Float64Array(parts);
    this.statuses = new Uint32Array(parts);
    this.places = new Int32Array(parts);
    this.nexts = new Int32Array(parts);
    this.list = Int32Array.from({ length: depth }, (_, i) => depth - 1 - i);
    this.free = depth;
  }

  // hot:begin

  /** There is one. */
  take(): number {
    return this.list[--this.free]!;
  }

  give(slot: number): void {
    this.list[this.free++] = slot;
  }

  /** Operation and flags of a part's request. */
  opOf(part: number): number {
    return this.ops[(part / Part.count) | 0]!;
  }

  /** Of a request that has ended: the status of the failed part that lies first in it. */
  status(slot: number): number {
    const { statuses } = this;
    const at = slot * Part.count;
    return statuses[at]! || statuses[at + Part.whole]! || statuses[at + Part.tail]!;
  }

  // hot:end
}
