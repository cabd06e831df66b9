// Operations that have their final status: held back until they are due, or ready to be handed
// out.
//
// Invariants: a slot with a due time counts in `dueCount` from setDue until it is ready; a ready
// slot has none. The rings are as large as the queue is deep, so nothing overflows.

import { Cpl, Status } from '../../hpdi/index.js';
import type { Random } from './random.js';

/** No fault decides the status: what the wrapped driver says stands. */
export const NO_VERDICT = 0xffff_ffff;

export class Completions {
  readonly status: Uint32Array;
  readonly resultLo: Uint32Array;
  readonly resultHi: Uint32Array;
  /** Microseconds at which a slot may be handed out; 0: at once. */
  readonly dueUs: Float64Array;
  /** Status instead of the wrapped driver's OK. */
  readonly verdict: Uint32Array;
  /** Slots with a due time, and the earliest of those times. */
  dueCount = 0;
  nextDueUs = Infinity;
  heldCount = 0;
  /** Completions handed out before their turn. */
  reordered = 0;
  private readonly mask: number;
  private readonly ready: Uint32Array;
  private head = 0;
  private tail = 0;
  private readonly held: Uint32Array;
  private readonly draws: Random;
  private readonly reorder: number;

  /** `depth` is a power of two; `reorder` a chance of 2^32. */
  constructor(depth: number, draws: Random, reorder: number) {
    this.mask = depth - 1;
    this.status = new Uint32Array(depth);
    this.resultLo = new Uint32Array(depth);
    this.resultHi = new Uint32Array(depth);
    this.dueUs = new Float64Array(depth);
    this.verdict = new Uint32Array(depth);
    this.ready = new Uint32Array(depth);
    this.held = new Uint32Array(depth);
    this.draws = draws;
    this.reorder = reorder;
  }

  get readyCount(): number {
    return (this.tail - this.head) | 0;
  }

  begin(slot: number): void {
    this.dueUs[slot] = 0;
    this.verdict[slot] = NO_VERDICT;
    this.resultLo[slot] = 0;
    this.resultHi[slot] = 0;
  }

  setDue(slot: number, dueUs: number): void {
    this.dueUs[slot] = dueUs;
    this.dueCount++;
    if (dueUs < this.nextDueUs) this.nextDueUs = dueUs;
  }

  /** Gives a slot its final status; it is handed out when it is due. */
  finish(slot: number, reached: number): void {
    const verdict = this.verdict[slot]!;
    const status = reached === Status.OK && verdict !== NO_VERDICT ? verdict : reached;
    this.status[slot] = status;
    if (status !== Status.OK && (status & 0xff) !== Status.MISCOMPARE) {
      this.resultLo[slot] = 0;
      this.resultHi[slot] = 0;
    }
    if (this.dueUs[slot]! > 0) this.held[this.heldCount++] = slot;
    else this.makeReady(slot);
  }

  /** Readies what is due at `nowUs`. */
  release(nowUs: number): void {
    let kept = 0;
    for (let i = 0; i < this.heldCount; i++) {
      const slot = this.held[i]!;
      if (this.dueUs[slot]! > nowUs) {
        this.held[kept++] = slot;
        continue;
      }
      this.dueUs[slot] = 0;
      this.dueCount--;
      this.makeReady(slot);
    }
    this.heldCount = kept;
    this.nextDueUs = Infinity;
    for (let slot = 0; this.dueCount > 0 && slot < this.dueUs.length; slot++) {
      const due = this.dueUs[slot]!;
      if (due > 0 && due < this.nextDueUs) this.nextDueUs = due;
    }
  }

  /** All that has a status and was not handed out gets another. */
  overrule(status: number): void {
    for (let i = 0; i < this.heldCount; i++) this.setStatus(this.held[i]!, status);
    for (let i = this.head; i !== this.tail; i = (i + 1) | 0) {
      this.setStatus(this.ready[i & this.mask]!, status);
    }
  }

  /** Writes the next completion to `cq` at word `c` and returns its slot. There must be one. */
  handOut(cq: Uint32Array, c: number, tags: Uint32Array): number {
    const left = (this.tail - this.head) | 0;
    const first = this.head & this.mask;
    if (left > 1 && this.draws.chance(this.reorder)) {
      const other = (this.head + 1 + this.draws.below(left - 1)) & this.mask;
      const swapped = this.ready[other]!;
      this.ready[other] = this.ready[first]!;
      this.ready[first] = swapped;
      this.reordered++;
    }
    const slot = this.ready[first]!;
    this.head = (this.head + 1) | 0;
    cq[c + Cpl.tag] = tags[slot]!;
    cq[c + Cpl.status] = this.status[slot]!;
    cq[c + Cpl.resultLo] = this.resultLo[slot]!;
    cq[c + Cpl.resultHi] = this.resultHi[slot]!;
    return slot;
  }

  private makeReady(slot: number): void {
    this.ready[this.tail & this.mask] = slot;
    this.tail = (this.tail + 1) | 0;
  }

  private setStatus(slot: number, status: number): void {
    this.status[slot] = status;
    this.resultLo[slot] = 0;
    this.resultHi[slot] = 0;
  }
}
