// Strangers: domains that others know already and this one does not yet. A hub introduces pairs,
// one after the other, so a buffer may be passed on to, or come from, a domain whose introduction
// is still on its way. For a while it counts as about to come; then as one there is no link with.

import type { Ledger } from './ledger.js';
import type { Link } from './link.js';
import type { Loan } from './loan.js';

/** How long an introduction may take. */
const INTRODUCTION_MS = 5000;

interface StrangersHome {
  readonly links: ReadonlyMap<number, Link>;
  isGone(slot: number, generation: number): boolean;
}

export class Strangers {
  private readonly home: StrangersHome;
  private readonly ledger: Ledger;
  /** Consumers that have holds and no link. */
  private readonly consumers = new Map<number, { generation: number; untilMs: number }>();
  /** Loans given back whose owners have no link. */
  private orphans: { readonly loan: Loan; readonly untilMs: number }[] = [];

  constructor(home: StrangersHome, ledger: Ledger) {
    this.home = home;
    this.ledger = ledger;
  }

  get isEmpty(): boolean {
    return this.consumers.size === 0 && this.orphans.length === 0;
  }

  /** A hold was given to a consumer that is not here. */
  expect(slot: number, generation: number): void {
    this.consumers.set(slot, { generation, untilMs: performance.now() + INTRODUCTION_MS });
  }

  /** A loan is to be given back to an owner that is not here. */
  giveBack(loan: Loan): void {
    this.orphans.push({ loan, untilMs: performance.now() + INTRODUCTION_MS });
  }

  look(): void {
    if (this.isEmpty) return;
    const now = performance.now();
    for (const [slot, { generation, untilMs }] of this.consumers) {
      const isHere = this.home.links.get(slot)?.peer.generation === generation;
      if (!isHere && now < untilMs && !this.home.isGone(slot, generation)) continue;
      this.consumers.delete(slot);
      // It has no link with us, and so reads nothing of ours.
      if (!isHere) this.ledger.dropConsumer(slot);
    }
    const { orphans } = this;
    this.orphans = [];
    for (const { loan, untilMs } of orphans) {
      const owner = this.home.links.get(loan.owner);
      if (owner?.peer.generation === loan.ownerGeneration) {
        if (owner.error === null) owner.loans.release(loan.lo, loan.hi, loan.via);
      } else if (now < untilMs) this.orphans.push({ loan, untilMs });
    }
  }
}
