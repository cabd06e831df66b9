// What the environments of a process share about one vfio-user connection: who may speak now, and
// whether it still stands. The words travel in `share()`, as memory that all of them see.
//
// Invariants
// 1. Request and reply are one piece: whoever has the lock has the connection until the reply came.
// 2. The lock's word names its holder by liveness word and serial. An environment that ended while
//    it held the lock is found out by the next that wants it, which takes it over. The reply that
//    the dead one had asked for may still come (`orphans`): one such may be passed over.
// 3. `state` leaves 0 once. Nobody speaks on the connection after that.

import { statusWords, StatusWord, type Liveness } from '../memory/index.js';

/** Words of an Int32Array over shared memory. */
export const enum Shared {
  lock = 0,
  state = 1,
  messageId = 2,
  /** 1 while a request is out. */
  pending = 3,
  /** Replies that may come though nobody waits for them any more. */
  orphans = 4,
  /** Goes up when the home takes its eventfds back. */
  interrupts = 5,
  words = 16,
}

export const enum State {
  open = 0,
  /** The server closed the connection, or died. */
  ended = 1,
  /** The server did not answer within the bound. */
  silent = 2,
  /** The server said what the protocol does not have. */
  confused = 3,
  /** The home closed the function. */
  closed = 4,
}

/** A dead holder is looked for this often. */
const SLICE_MS = 20;
const INDEX_BITS = 12;

export function sharedWords(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(Shared.words * 4));
}

export class ConnectionLock {
  private readonly words: Int32Array;
  private readonly token: number;

  constructor(words: Int32Array, liveness: Liveness) {
    this.words = words;
    this.token = tokenOf(liveness.index, liveness.serial);
  }

  /** False when others held it until `deadline` (performance.now). */
  acquire(deadline: number): boolean {
    for (;;) {
      const holder = Atomics.compareExchange(this.words, Shared.lock, 0, this.token);
      if (holder === 0) return true;
      if (this.takeOver(holder)) return true;
      const left = deadline - performance.now();
      if (left <= 0) return false;
      Atomics.wait(this.words, Shared.lock, holder, Math.min(left, SLICE_MS));
    }
  }

  release(): void {
    Atomics.store(this.words, Shared.lock, 0);
    Atomics.notify(this.words, Shared.lock, 1);
  }

  private takeOver(holder: number): boolean {
    const index = holder & (2 ** INDEX_BITS - 1);
    const serial = statusWords()[StatusWord.liveness + index] ?? 0;
    if (tokenOf(index, serial) === holder) return false;
    if (Atomics.compareExchange(this.words, Shared.lock, holder, this.token) !== holder) {
      return false;
    }
    if (Atomics.exchange(this.words, Shared.pending, 0) !== 0) {
      Atomics.add(this.words, Shared.orphans, 1);
    }
    return true;
  }
}

/** Never 0: liveness words are counted from 1. */
function tokenOf(index: number, serial: number): number {
  return (serial << INDEX_BITS) | index;
}
