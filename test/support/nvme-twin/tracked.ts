// A back end whose operations the twin knows of: while one is in flight its buffer may be touched
// as its operation allows, before and after it may not.
//
//   const device = new BlockDevice(trackOperations(backend, twin.memory));
//
// It stands right above the driver, below HPDI's adapter, so that it sees what the driver is given.

import {
  Cpl,
  Flag,
  Interposed,
  Op,
  Req,
  Sg,
  type Backend,
  type DeviceInfo,
  type QueueDriver,
  type QueueOptions,
} from '../../../lib/hpdi/index.js';
import { addressSpace } from '../../../lib/memory/index.js';
import { Dma } from './dma.js';
import type { TwinMemory } from './memory.js';
import { TWO_32 } from './wire.js';

/** More than this is no buffer but a wrong number, which the driver refuses. */
const BUFFER_BYTES_MAX = 2 ** 31;

interface Piece {
  readonly address: number;
  readonly bytes: number;
  readonly access: Dma;
}

class TrackedQueue implements QueueDriver {
  private readonly ring: Interposed;
  private readonly memory: TwinMemory;
  private readonly pieces: Piece[][] = [];
  private readonly info: () => DeviceInfo;

  constructor(driver: QueueDriver, depth: number, memory: TwinMemory, info: () => DeviceInfo) {
    this.ring = new Interposed(driver, depth);
    this.memory = memory;
    this.info = info;
  }

  get counters(): QueueDriver['counters'] {
    return this.ring.driver.counters;
  }

  submit(sq: Uint32Array, head: number, tail: number): number {
    const { ring, memory } = this;
    const mask = sq.length / Req.words - 1;
    let taken = 0;
    for (let at = head; at !== tail && ring.slotsFree > 0; at = (at + 1) | 0) {
      const record = (at & mask) * Req.words;
      const slot = ring.take(sq[record + Req.tag]!);
      const pieces = piecesOf(sq, record, this.info().blockSize);
      this.pieces[slot] = pieces;
      const name = `buffer of operation ${sq[record]! & 0xff}`;
      for (const each of pieces) memory.allow(each.address, each.bytes, each.access, name);
      ring.push(sq, record, slot);
      taken++;
    }
    ring.flush();
    return taken;
  }

  poll(cq: Uint32Array, max: number): number {
    const { ring, memory } = this;
    ring.flush();
    // Also with nothing in flight: a driver does more in a poll than give completions.
    const done = ring.driver.poll(cq, max);
    ring.inFlight -= done;
    for (let c = 0; c < done * Cpl.words; c += Cpl.words) {
      const slot = cq[c + Cpl.tag]!;
      for (const each of this.pieces[slot]!) memory.disallow(each.address, each.bytes, each.access);
      this.pieces[slot] = [];
      cq[c + Cpl.tag] = ring.tags[slot]!;
      ring.give(slot);
    }
    return done;
  }

  arm(): void {
    this.ring.driver.arm();
  }

  /** While records wait in here only a poll moves them on. */
  eventFd(): number {
    return this.ring.pending > 0 ? -1 : this.ring.driver.eventFd();
  }

  park(timeoutUs: number): void {
    if (this.ring.pending === 0) this.ring.driver.park?.(timeoutUs);
  }

  release(resultLo: number, resultHi: number): boolean {
    return this.ring.driver.release(resultLo, resultHi);
  }

  drain(): Promise<void> {
    this.ring.flush();
    return this.ring.driver.drain();
  }

  /** What the caller leaves unpolled is over as well: the driver is closed. */
  async close(): Promise<void> {
    await this.ring.driver.close();
    for (const pieces of this.pieces.splice(0)) {
      for (const each of pieces) this.memory.disallow(each.address, each.bytes, each.access);
    }
  }
}

/** The same device; its queues tell `memory` of every operation. */
export function trackOperations(inner: Backend, memory: TwinMemory): Backend {
  const wrapper: Partial<Backend> = {
    openQueue(options: QueueOptions): QueueDriver {
      const driver = inner.openQueue(options);
      return new TrackedQueue(driver, options.depth, memory, () => inner.info);
    },
  };
  memory.strict = true;
  return new Proxy(inner, {
    get(target, key) {
      const value: unknown = Reflect.get(key in wrapper ? wrapper : target, key);
      return typeof value === 'function' ? value.bind(target) : value;
    },
  });
}

function piecesOf(sq: Uint32Array, record: number, blockSize: number): Piece[] {
  const word = sq[record]!;
  const op = word & 0xff;
  if (op !== Op.READ && op !== Op.WRITE && op !== Op.COMPARE && op !== Op.ZONE_APPEND) return [];
  const access = op === Op.READ ? Dma.writes : Dma.reads;
  const address = sq[record + Req.addressHi]! * TWO_32 + sq[record + Req.addressLo]!;
  const isList = (word & Flag.SG) !== 0;
  const whole = { address, bytes: sq[record + Req.blocks]! * blockSize, access };
  const pieces = isList ? entriesOf(address, word >>> 16, access) : [whole];
  return pieces.filter(({ bytes }) => bytes > 0 && bytes < BUFFER_BYTES_MAX);
}

/** An SG list's entries; none when it lies in no live memory. */
function entriesOf(address: number, count: number, access: Dma): Piece[] {
  const segment = addressSpace().find(address);
  const at = segment === undefined ? 0 : (address - segment.address) / 4;
  if (segment === undefined || at + count * Sg.words > segment.u32.length) return [];
  const words = segment.u32.subarray(at, at + count * Sg.words);
  return Array.from({ length: count }, (_, i) => ({
    address: words[i * 4 + Sg.addressHi]! * TWO_32 + words[i * 4 + Sg.addressLo]!,
    bytes: words[i * 4 + Sg.bytes]!,
    access,
  }));
}
