// The queues of a device in another domain, as a table that every thread of this process sees.
//
// The thread that opened the device, its home, opens a channel for each queue in advance, since
// that takes messages which only it can exchange. Whoever wants a queue, in whichever thread,
// claims a row by compare-and-swap, and gives it back with the channel as it is then: the next
// owner goes on where it stopped.
//
// Invariants
// 1. `claim`, `ended`, `acked` and `held` are written by a row's owner alone (claim: by
//    compare-and-swap), the other words by the home alone, with `epoch` last.
// 2. A claim names its owner by itself: there is no moment at which a row has an owner of whom
//    nobody can tell whether it lives.
// 3. The memory of a server that is gone stays mapped while a claimed row has not acknowledged
//    the epoch that told of it, or still holds loans from before (`held`).

import { statusWords, StatusWord } from '../memory/index.js';
import type { ChannelPlaces } from './half.js';

/** Word indices of a row: one cache line. */
export const enum Row {
  /** 0 free, BROKEN, or the owner's liveness word: its index and low bits of its serial. */
  claim = 0,
  /** The epoch whose channel the owner found at its end; negative: its server misbehaved. */
  ended = 1,
  /** The epoch that the owner has seen. */
  acked = 2,
  /** Loans of servers that are gone. */
  held = 3,
  /** Goes up whenever the words below have changed. */
  epoch = 4,
  state = 5,
  /** The server's domain. */
  slot = 6,
  size = 7,
  ownLo = 8,
  ownHi = 9,
  ownSerial = 10,
  peerLo = 11,
  peerHi = 12,
  peerSerial = 13,
  /** Descriptors of the home's: the channel's wake, and an event for sleepers without a channel. */
  wakeFd = 14,
  eventFd = 15,
  words = 16,
}

/** A zeroed table says that the device was closed. */
export const enum RowState {
  closed = 0,
  ready = 1,
  /** The server is gone, another is waited for: what is in flight is issued again then. */
  waiting = 2,
  /** The server is dead: nothing of it touches memory any more. */
  gone = 3,
  /** The server is cut off and may live: what is in flight may still be read by its device. */
  cut = 4,
  /** This row's channel is being replaced; nobody can claim it. */
  broken = 5,
}

/** Where a row's channel lies. */
export interface RowChannel {
  readonly places: ChannelPlaces;
  readonly slot: number;
  readonly wakeFd: number;
}

/** A claim that nobody has: the channel has ended, and the home is to open another. */
export const BROKEN = -1;

/** A claim: so many bits of the index, and above them bits of the serial, up to bit 30. */
const INDEX_BITS = 12;
const INDEX_MASK = 2 ** INDEX_BITS - 1;
const SERIAL_MASK = 2 ** (31 - INDEX_BITS) - 1;

/** Words behind the rows: the device's capacity. */
const TAIL_WORDS = 2;

export class QueueTable {
  readonly words: Int32Array;
  readonly rows: number;

  constructor(buffer: SharedArrayBuffer) {
    this.words = new Int32Array(buffer);
    this.rows = (this.words.length - TAIL_WORDS) / Row.words;
  }

  static create(rows: number): QueueTable {
    return new QueueTable(new SharedArrayBuffer((rows * Row.words + TAIL_WORDS) * 4));
  }

  /** Capacity in blocks, as the home knows it. */
  get blocks(): number {
    const at = this.rows * Row.words;
    return Atomics.load(this.words, at + 1) * 2 ** 32 + (Atomics.load(this.words, at) >>> 0);
  }

  set blocks(blocks: number) {
    const at = this.rows * Row.words;
    Atomics.store(this.words, at, (blocks % 2 ** 32) | 0);
    Atomics.store(this.words, at + 1, Math.floor(blocks / 2 ** 32));
  }

  get buffer(): SharedArrayBuffer {
    return this.words.buffer as SharedArrayBuffer;
  }

  get(row: number, word: Row): number {
    return Atomics.load(this.words, row * Row.words + word);
  }

  set(row: number, word: Row, value: number): void {
    Atomics.store(this.words, row * Row.words + word, value);
  }

  /**
   * Claims a free row for the owner of a liveness word; -1 when there is none. `waits`: also while
   * the server is cut off, since another one is waited for after it.
   */
  claim(livenessIndex: number, livenessSerial: number, waits = false): number {
    for (let row = 0; row < this.rows; row++) {
      const state = this.get(row, Row.state);
      const isOpen = state === RowState.ready || state === RowState.waiting;
      if (!isOpen && !(waits && state === RowState.cut)) continue;
      const at = row * Row.words + Row.claim;
      const claim = claimOf(livenessIndex, livenessSerial);
      if (Atomics.compareExchange(this.words, at, 0, claim) !== 0) continue;
      return row;
    }
    return -1;
  }

  /** Gives a row back; a broken one only to the home, which repairs it. */
  giveBack(row: number, broken: boolean): void {
    this.set(row, Row.held, 0);
    this.set(row, Row.claim, broken ? BROKEN : 0);
  }

  /** Whether whoever has, or had, a liveness word has a row. */
  isClaimedBy(livenessIndex: number, livenessSerial: number): boolean {
    const claim = claimOf(livenessIndex, livenessSerial);
    for (let row = 0; row < this.rows; row++) {
      if (this.get(row, Row.claim) === claim) return true;
    }
    return false;
  }

  /** Whether a row has an owner that lives. */
  isOwned(row: number): boolean {
    const claim = this.get(row, Row.claim);
    if (claim === 0 || claim === BROKEN) return false;
    const serial = statusWords()[StatusWord.liveness + (claim & INDEX_MASK)]!;
    return serial !== 0 && (serial & SERIAL_MASK) === claim >>> INDEX_BITS;
  }

  /** No server is there, nor waited for. */
  get isGone(): boolean {
    const state: RowState = this.get(0, Row.state);
    return state === RowState.gone || state === RowState.cut || state === RowState.closed;
  }

  /** What the home tells of a row: a channel, or that there is none. */
  publish(row: number, state: RowState, channel: RowChannel | null): void {
    if (channel !== null) {
      const { places, slot, wakeFd } = channel;
      const { own, peer } = places;
      this.set(row, Row.slot, slot);
      this.set(row, Row.size, own.size);
      this.set(row, Row.ownLo, (own.address % 2 ** 32) | 0);
      this.set(row, Row.ownHi, Math.floor(own.address / 2 ** 32));
      this.set(row, Row.ownSerial, own.serial | 0);
      this.set(row, Row.peerLo, (peer.address % 2 ** 32) | 0);
      this.set(row, Row.peerHi, Math.floor(peer.address / 2 ** 32));
      this.set(row, Row.peerSerial, peer.serial | 0);
      this.set(row, Row.wakeFd, wakeFd);
    }
    this.set(row, Row.state, state);
    this.set(row, Row.epoch, this.get(row, Row.epoch) + 1);
  }

  /** Where a row's channel lies. */
  channel(row: number): RowChannel {
    const word = (at: Row): number => this.get(row, at);
    const address = (lo: Row, hi: Row): number => word(hi) * 2 ** 32 + (word(lo) >>> 0);
    const size = word(Row.size);
    return {
      places: {
        own: { address: address(Row.ownLo, Row.ownHi), size, serial: word(Row.ownSerial) >>> 0 },
        peer: {
          address: address(Row.peerLo, Row.peerHi),
          size,
          serial: word(Row.peerSerial) >>> 0,
        },
      },
      slot: word(Row.slot),
      wakeFd: word(Row.wakeFd),
    };
  }
}

function claimOf(livenessIndex: number, livenessSerial: number): number {
  return ((livenessSerial & SERIAL_MASK) << INDEX_BITS) | livenessIndex;
}
