// Leases: shared memory that the domain's thread makes for other threads of the process. Only it
// can tell other domains of a segment, so a thread that wants memory they can read asks it, and
// blocks until the answer is there: by a BroadcastChannel of the process, answered in words that
// both see.
//
// Invariants
// 1. A leased segment stays told of for as long as the domain lives. When its holder has ended, and
//    nothing of it can be in flight any more, the next one gets it, for whichever device.
// 2. Whether something can be in flight is said by the device that the holder had it for: the
//    segments are the domain's, and others know nothing of that device.
// 3. A request is answered or given up, by whoever changes its state first: what nobody took has no
//    holder.

import { BroadcastChannel, threadId } from 'node:worker_threads';
import { PenstockError } from '../errors.js';
import { addressSpace, GRANULE_BYTES, isAlive, Memory, type Segment } from '../memory/index.js';

interface Request {
  readonly bytes: number;
  /** The holder's liveness word. */
  readonly index: number;
  readonly serial: number;
  /** Its state, and an address in the two words after it. */
  readonly answer: SharedArrayBuffer;
}

/** Who has a segment: a liveness word, and what says whether anything of it is in flight. */
interface Holder {
  readonly index: number;
  readonly serial: number;
  readonly isIdle: IsIdle;
}

/** Whether nothing of a holder that has ended is in flight. */
type IsIdle = (index: number, serial: number) => boolean;

interface Lease {
  readonly segment: Segment;
  holder: Holder | null;
}

const enum Answer {
  state = 0,
  lo = 1,
  hi = 2,
  words = 3,
}

const enum State {
  asked = 0,
  given = 1,
  refused = 2,
  /** Who asked waits no more. */
  givenUp = 3,
}

const PATIENCE_MS = 5000;

/** Gives out leases: in the domain's thread. */
export class Lessor {
  /** Where threads of this process ask. */
  readonly name: string;
  private readonly channel: BroadcastChannel;
  private readonly leases: Lease[];
  private readonly make: (bytes: number) => Segment;
  private readonly isIdle: IsIdle;

  /**
   * `leases` are the domain's; `make` a segment that others are told of; `isIdle` speaks for those
   * who ask here, also when the lessor is closed.
   */
  constructor(leases: Lease[], make: (bytes: number) => Segment, isIdle: IsIdle) {
    this.leases = leases;
    this.make = make;
    this.isIdle = isIdle;
    this.name = `penstock-idc-${process.pid}-${threadId}-${performance.now()}`;
    this.channel = new BroadcastChannel(this.name);
    this.channel.onmessage = (event) => this.answer((event as { data: Request }).data);
    this.channel.unref();
  }

  close(): void {
    this.channel.close();
  }

  private answer({ bytes, index, serial, answer }: Request): void {
    const words = new Int32Array(answer);
    if (Atomics.load(words, Answer.state) !== State.asked) return;
    try {
      const lease = this.find(bytes);
      lease.holder = { index, serial, isIdle: this.isIdle };
      const { address } = lease.segment;
      words[Answer.lo] = (address % 2 ** 32) | 0;
      words[Answer.hi] = Math.floor(address / 2 ** 32);
      if (!settle(words, State.given)) lease.holder = null;
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      settle(words, State.refused);
    } finally {
      Atomics.notify(words, Answer.state);
    }
  }

  /** A lease that nobody has. */
  private find(bytes: number): Lease {
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, GRANULE_BYTES)));
    const free = this.leases.find(
      ({ segment, holder }) => segment.bytes === size && isOver(holder),
    );
    if (free !== undefined) return free;
    const lease: Lease = { segment: this.make(size), holder: null };
    this.leases.push(lease);
    return lease;
  }
}

function isOver(holder: Holder | null): boolean {
  if (holder === null) return true;
  const { index, serial, isIdle } = holder;
  return !isAlive(index, serial) && isIdle(index, serial);
}

/** Ends a request in a state; false: it was ended before. */
function settle(words: Int32Array, state: State): boolean {
  return Atomics.compareExchange(words, Answer.state, State.asked, state) === State.asked;
}

export type { Lease };

/** Memory of a thread that is not the domain's, on leases. */
export function leasedMemory(name: string, index: number, serial: number): Memory {
  return new Memory({
    kind: 'shared',
    lasting: true,
    carve: (bytes) => ({ segment: takeLease(name, bytes, index, serial), offset: 0 }),
  });
}

function takeLease(name: string, bytes: number, index: number, serial: number): Segment {
  const answer = new SharedArrayBuffer(Answer.words * 4);
  const words = new Int32Array(answer);
  const channel = new BroadcastChannel(name);
  channel.postMessage({ bytes, index, serial, answer } satisfies Request);
  Atomics.wait(words, Answer.state, State.asked, PATIENCE_MS);
  channel.close();
  settle(words, State.givenUp);
  if (Atomics.load(words, Answer.state) === State.given) {
    const address = words[Answer.hi]! * 2 ** 32 + (words[Answer.lo]! >>> 0);
    const segment = addressSpace().find(address);
    if (segment !== undefined) return segment;
  }
  throw new PenstockError('OUT_OF_MEMORY', 'no memory that other domains can read was to be had', {
    hint: 'the thread that opened the device gives it: its event loop must run; or memory is short',
  });
}
