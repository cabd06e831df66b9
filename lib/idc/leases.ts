// Leases: shared memory that the domain's thread makes for other threads of the process. Only it
// can tell other domains of a segment, so a thread that wants memory they can read asks it, and
// blocks until the answer is there: by a BroadcastChannel of the process, answered in words that
// both see.
//
// Invariant: a leased segment stays told of for as long as the domain lives. When its holder has
// ended, and nothing of it can be in flight any more, the next one gets it.

import { BroadcastChannel, threadId } from 'node:worker_threads';
import { PenstockError } from '../errors.js';
import { addressSpace, GRANULE_BYTES, isAlive, Memory, type Segment } from '../memory/index.js';

interface Request {
  readonly bytes: number;
  /** The holder's liveness word. */
  readonly index: number;
  readonly serial: number;
  /** Answer: 0 none yet, 1 an address in the two words after it, 2 no memory. */
  readonly answer: SharedArrayBuffer;
}

interface Lease {
  readonly segment: Segment;
  index: number;
  serial: number;
}

const enum Answer {
  state = 0,
  lo = 1,
  hi = 2,
  words = 3,
}

const PATIENCE_MS = 5000;

/** Gives out leases: in the domain's thread. */
export class Lessor {
  /** Where threads of this process ask. */
  readonly name: string;
  private readonly channel: BroadcastChannel;
  private readonly leases: Lease[];
  private readonly make: (bytes: number) => Segment;
  private readonly isIdle: (index: number, serial: number) => boolean;

  /**
   * `leases` are the domain's; `make` a segment that others are told of; `isIdle` says of a holder
   * that has ended whether nothing of it is in flight.
   */
  constructor(
    leases: Lease[],
    make: (bytes: number) => Segment,
    isIdle: (index: number, serial: number) => boolean,
  ) {
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
    try {
      const { address } = this.lease(bytes, index, serial);
      words[Answer.lo] = (address % 2 ** 32) | 0;
      words[Answer.hi] = Math.floor(address / 2 ** 32);
      Atomics.store(words, Answer.state, 1);
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error;
      Atomics.store(words, Answer.state, 2);
    } finally {
      Atomics.notify(words, Answer.state);
    }
  }

  private lease(bytes: number, index: number, serial: number): Segment {
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, GRANULE_BYTES)));
    const free = this.leases.find(
      (lease) =>
        lease.segment.bytes === size &&
        !isAlive(lease.index, lease.serial) &&
        this.isIdle(lease.index, lease.serial),
    );
    if (free !== undefined) {
      free.index = index;
      free.serial = serial;
      return free.segment;
    }
    const segment = this.make(size);
    this.leases.push({ segment, index, serial });
    return segment;
  }
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
  Atomics.wait(words, Answer.state, 0, PATIENCE_MS);
  channel.close();
  if (Atomics.load(words, Answer.state) === 1) {
    const address = words[Answer.hi]! * 2 ** 32 + (words[Answer.lo]! >>> 0);
    const segment = addressSpace().find(address);
    if (segment !== undefined) return segment;
  }
  throw new PenstockError('OUT_OF_MEMORY', 'no memory that other domains can read was to be had', {
    hint: 'the thread that opened the device gives it: its event loop must run; or memory is short',
  });
}
