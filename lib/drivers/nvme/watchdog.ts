// The watchdog of a controller's home: it looks, a few times within the time a command may take, at
// what queues in any thread have in flight, and says what is to be done.
//
// Invariant: it only reads slots. A slot counts as the same operation while its serial is the same.

import { isAlive } from '../../memory/index.js';
import { PairWord, Slot, type PairTable, type PairViews } from './pairs.js';

/** Looks within a command's time. */
const LOOKS = 4;

/** One command that took too long. */
export interface Expired {
  readonly pair: number;
  readonly cid: number;
  readonly serial: number;
  /** Looks since its time was over: 0 at first. */
  readonly overdue: number;
}

interface Watched {
  readonly views: PairViews;
  readonly serials: Uint32Array;
  readonly ages: Uint16Array;
  generation: number;
  more: number;
  stray: number;
}

export interface Findings {
  readonly expired: Expired[];
  /** Pairs whose owner ended without closing its queue. */
  readonly orphans: number[];
  /** A completion asked to read the error log. */
  more: boolean;
  /** A completion had no operation. */
  stray: boolean;
}

/** An operation in flight. */
export interface InFlight {
  readonly slots: Uint32Array;
  readonly s: number;
  readonly serial: number;
}

/** Whether every operation of a snapshot has completed. */
export function hasPassed(snapshot: readonly InFlight[]): boolean {
  return snapshot.every(
    ({ slots, s, serial }) => slots[s] === 0 || slots[s + Slot.serial] !== serial,
  );
}

export class Watchdog {
  /** Time between two looks. */
  readonly lookMs: number;
  private readonly table: PairTable;
  private readonly watched: Watched[];

  constructor(table: PairTable, timeoutMs: number) {
    this.table = table;
    this.lookMs = Math.max(5, Math.min(1000, timeoutMs / LOOKS));
    this.looksMax = Math.ceil(timeoutMs / this.lookMs);
    const { entries, pairs } = table.shape;
    this.watched = Array.from({ length: pairs }, (_, pair) => ({
      views: table.views(pair),
      serials: new Uint32Array(entries),
      ages: new Uint16Array(entries),
      generation: 0,
      more: 0,
      stray: 0,
    }));
  }

  private readonly looksMax: number;

  look(): Findings {
    const findings: Findings = { expired: [], orphans: [], more: false, stray: false };
    for (let pair = 0; pair < this.table.usable; pair++) {
      const { claim, serial } = this.table.owner(pair);
      if (claim === 0) continue;
      if (!isAlive(claim - 1, serial)) {
        findings.orphans.push(pair);
        continue;
      }
      this.lookAt(pair, findings);
    }
    return findings;
  }

  /** Every operation that is in flight now: what `passed` looks for. */
  snapshot(): InFlight[] {
    const found: InFlight[] = [];
    for (const { views } of this.watched) {
      const { slots } = views;
      for (let cid = 0; cid < this.depthOf(views); cid++) {
        const s = cid * Slot.words;
        if (slots[s] !== 0) found.push({ slots, s, serial: slots[s + Slot.serial]! });
      }
    }
    return found;
  }

  private depthOf({ header }: PairViews): number {
    return Math.min(header[PairWord.depth]!, this.table.shape.entries);
  }

  private lookAt(pair: number, findings: Findings): void {
    const watched = this.watched[pair]!;
    const { header, slots } = watched.views;
    const { serials, ages } = watched;
    if (watched.generation !== header[PairWord.generation]) {
      // Commands that a reset cut off are issued again, and have all of their time again: those of
      // others would be blamed for what the stuck one and the reset took.
      watched.generation = header[PairWord.generation]!;
      ages.fill(0);
    }
    for (let cid = 0; cid < this.depthOf(watched.views); cid++) {
      const s = cid * Slot.words;
      const serial = slots[s + Slot.serial]!;
      if (slots[s] === 0 || serials[cid] !== serial) {
        serials[cid] = serial;
        ages[cid] = 0;
        continue;
      }
      const age = (ages[cid]! + 1) & 0x7fff;
      ages[cid] = age;
      const overdue = age - this.looksMax;
      if (overdue >= 0) findings.expired.push({ pair, cid, serial, overdue });
    }
    if (header[PairWord.more] !== watched.more) findings.more = true;
    if (header[PairWord.stray] !== watched.stray) findings.stray = true;
    watched.more = header[PairWord.more]!;
    watched.stray = header[PairWord.stray]!;
  }
}
