// Ranges of the data device that are being discarded.
//
// Invariant: while a discard is under way its range is given to nobody (`has`); a write that finds
// no other room waits for it.

import { Op } from '../../hpdi/index.js';
import { Io, type PoolIo } from '../durable/io.js';

/** Discards at a time. */
export const DISCARDS_MOST = 4;

/** Ranges that are being discarded. */
export class Discards {
  inFlight = 0;
  /** Status of the first one that failed. */
  broken = 0;
  /** By owner: first page, or -1, and pages. */
  private readonly firsts = new Float64Array(DISCARDS_MOST).fill(-1);
  private readonly pages = new Float64Array(DISCARDS_MOST);

  has(pbn: number): boolean {
    for (let i = 0; i < DISCARDS_MOST; i++) {
      const first = this.firsts[i]!;
      if (first >= 0 && pbn >= first && pbn < first + this.pages[i]!) return true;
    }
    return false;
  }

  begin(io: PoolIo, pbn: number, pages: number): void {
    const owner = this.firsts.indexOf(-1);
    this.firsts[owner] = pbn;
    this.pages[owner] = pages;
    this.inFlight++;
    io.ask(Op.DISCARD, pbn, pages, 0, Io.discard, owner);
  }

  answered(owner: number, status: number): void {
    this.firsts[owner] = -1;
    this.inFlight--;
    if (this.broken === 0) this.broken = status;
  }
}
