// RequestSlots: what a volume's queue knows of the requests that it has taken, in typed arrays; of
// those without a slot, only how many there are.
//
// Invariant: free ≤ top, so that there is a slot for whoever is taken.

export class RequestSlots {
  readonly depth: number;
  readonly tags: Uint32Array;
  /** Parts that are not complete: reads of a device, sets. One more while it is taken. */
  readonly parts: Int32Array;
  readonly statuses: Uint32Array;
  /** Parity of the checkpoint in whose time it began, + 1; 0: nobody waits for it. */
  readonly parities: Uint8Array;
  /** 1: with FUA, and not flushed yet. */
  readonly flushes: Uint8Array;
  readonly lbns: Float64Array;
  readonly addresses: Float64Array;
  readonly counts: Float64Array;
  /** Blocks of a read, or an unmap, that are dealt with. */
  readonly progress: Float64Array;
  readonly seqs: Float64Array;
  /** Requests that may still be taken: those without a slot count, too. */
  free = 0;
  private readonly list: Int32Array;
  private top: number;

  constructor(depth: number) {
    this.depth = depth;
    this.tags = new Uint32Array(depth);
    this.parts = new Int32Array(depth);
    this.statuses = new Uint32Array(depth);
    this.parities = new Uint8Array(depth);
    this.flushes = new Uint8Array(depth);
    this.lbns = new Float64Array(depth);
    this.addresses = new Float64Array(depth);
    this.counts = new Float64Array(depth);
    this.progress = new Float64Array(depth);
    this.seqs = new Float64Array(depth);
    this.list = Int32Array.from({ length: depth }, (_, i) => depth - 1 - i);
    this.free = depth;
    this.top = depth;
  }

  // hot:begin

  /** The slot that the next request with one has; there is one while `free` is above 0. */
  get next(): number {
    return this.list[this.top - 1]!;
  }

  /** A request is taken, in slot `next`. */
  take(): void {
    this.free--;
    this.top--;
  }

  /** A request that was taken without a slot is to have `next`. */
  name(): void {
    this.top--;
  }

  /** A request in a slot is complete. */
  give(slot: number): void {
    this.list[this.top++] = slot;
    this.free++;
  }

  /** What went wrong first counts. */
  fail(slot: number, status: number): void {
    if (this.statuses[slot] === 0) this.statuses[slot] = status;
  }

  // hot:end
}
