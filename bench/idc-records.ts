// The hot path of a record channel in one process, for what it allocates: both ends over this
// process's memory, and a wake that counts, since waking is the only native call there is.

import { Rec, type RecordChannel } from '../lib/idc/index.js';
import { makeHalf, openChannel } from '../lib/idc/half.js';
import type { Wake } from '../lib/idc/wake.js';
import { Memory } from '../lib/memory/index.js';

const SIZE = 4096;

export interface RecordLoop {
  /** Sends `records` in batches, takes each at the other end and checks it. */
  run(records: number): void;
  readonly wrong: number;
  /** Calls out of JavaScript so far. */
  readonly wakes: number;
  close(): void;
}

export function openRecordLoop(batch: number): RecordLoop {
  const memory = new Memory();
  const [a, b] = [makeHalf(memory, SIZE), makeHalf(memory, SIZE)];
  const wake = new CountingWake();
  const open = (own: typeof a, peer: typeof a): RecordChannel =>
    openChannel({ own: own.place, peer: peer.place }, wake, () => {});
  const loop = new Loop(open(a, b), open(b, a), batch);
  return {
    run: (records) => loop.run(records),
    get wrong() {
      return loop.wrong[0]!;
    },
    get wakes() {
      return wake.count;
    },
    close: () => {
      loop.close();
      memory.close();
    },
  };
}

class CountingWake implements Wake {
  readonly fd = -1;
  count = 0;

  wake(): void {
    this.count++;
  }

  drain(): boolean {
    return true;
  }

  close(): void {
    // Nothing was opened.
  }
}

class Loop {
  readonly wrong = new Uint32Array(1);
  private readonly from: RecordChannel;
  private readonly to: RecordChannel;
  private readonly batch: number;

  constructor(from: RecordChannel, to: RecordChannel, batch: number) {
    this.from = from;
    this.to = to;
    this.batch = batch;
  }

  run(records: number): void {
    const { from, to, batch, wrong } = this;
    const { sq, mask } = from;
    const { rq } = to;
    let sent = 0;
    let taken = 0;
    while (taken < records) {
      const at = from.tail;
      const granted = from.reserve(batch);
      for (let i = 0; i < granted; i++) {
        const r = ((at + i) & mask) << Rec.shift;
        sq[r] = 1;
        sq[r + 1] = sent + i;
        sq[r + 6] = 0;
        sq[r + 7] = 16;
      }
      from.submit();
      sent += granted;
      const count = to.poll(batch);
      for (let i = 0; i < count; i++) {
        if (rq[(i << Rec.shift) + 1]! !== taken + i) wrong[0] = wrong[0]! + 1;
      }
      taken += count;
    }
  }

  close(): void {
    this.from.close();
    this.to.close();
  }
}
