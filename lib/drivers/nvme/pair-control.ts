// The home's side of all pairs: stops their owners for a reset, lets them go on, tells them what
// changed, and takes back what ended owners left (pairs.ts has the rules).

import { PenstockError } from '../../errors.js';
import { isAlive } from '../../memory/index.js';
import { native } from '../../native.js';
import { PairState, PairWord, type PairTable } from './pairs.js';
import type { Task } from './steps.js';

/** Time that owners have to step back before a reset. */
const STEP_BACK_MS = 10_000;

export class PairControl {
  private readonly table: PairTable;
  /** By vector; a pair's is one more than its index. */
  private readonly eventFds: readonly number[];

  constructor(table: PairTable, eventFds: readonly number[]) {
    this.table = table;
    this.eventFds = eventFds;
  }

  /** Before the first owner: epoch 2, generation 1. */
  begin(): void {
    this.each((header) => {
      header[PairWord.epoch] = 2;
      header[PairWord.generation] = 1;
      header[PairWord.facts] = 1;
      header[PairWord.state] = PairState.ready;
    });
  }

  /** Every epoch odd, and nobody inside: the rings are nobody's. */
  *stop(): Task<void> {
    this.each((header) => {
      if ((header[PairWord.epoch]! & 1) === 0) header[PairWord.epoch]! += 1;
    });
    // An owner stores `inside`, then loads the epoch, without a fence between: this is its fence.
    native.membarrier();
    const until = performance.now() + STEP_BACK_MS;
    for (let pair = 0; pair < this.table.shape.pairs; pair++) {
      const { header } = this.table.views(pair);
      while (header[PairWord.inside] !== 0 && this.ownerLives(pair)) {
        if (performance.now() > until) {
          throw new PenstockError(
            'TIMED_OUT',
            `the owner of queue ${pair + 1} does not step back`,
            {
              hint: 'a thread stands still in the middle of a submission; end it',
            },
          );
        }
        yield;
      }
    }
  }

  /** Rings are new: epochs even again; sleepers wake to see what became of their operations. */
  restart(): void {
    this.each((header, pair) => {
      header[PairWord.generation]! += 1;
      header[PairWord.facts]! += 1;
      header[PairWord.epoch]! += 1;
      this.wake(pair);
    });
  }

  /** The device is gone or closed: everything completes with DEVICE_GONE. */
  end(): void {
    this.each((header, pair) => {
      header[PairWord.state] = PairState.gone;
      header[PairWord.epoch] = (header[PairWord.epoch]! | 1) + 1;
      this.wake(pair);
    });
  }

  /** Namespaces changed: owners look at their sizes again. */
  publishFacts(): void {
    this.each((header) => {
      header[PairWord.facts]! += 1;
      header[PairWord.epoch]! += 2;
    });
  }

  ownerLives(pair: number): boolean {
    const { claim, serial } = this.table.owner(pair);
    return claim !== 0 && isAlive(claim - 1, serial);
  }

  /** While the controller is disabled: pairs whose owners ended are free. */
  releaseOrphans(): void {
    for (let pair = 0; pair < this.table.usable; pair++) {
      if (this.table.owner(pair).claim !== 0 && !this.ownerLives(pair)) this.forget(pair);
    }
  }

  /** A pair whose owner ended and whose rings are empty is free again. */
  forget(pair: number): void {
    const { header, slots } = this.table.views(pair);
    slots.fill(0);
    header[PairWord.inside] = 0;
    header[PairWord.depth] = 0;
    this.table.giveBack(pair);
  }

  private wake(pair: number): void {
    const fd = this.eventFds[pair + 1];
    if (fd !== undefined) native.eventfdSignal(fd);
  }

  private each(visit: (header: Uint32Array, pair: number) => void): void {
    for (let pair = 0; pair < this.table.shape.pairs; pair++) {
      visit(this.table.views(pair).header, pair);
    }
  }
}
