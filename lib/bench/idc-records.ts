// The two ends of the loops that `bench idc` times, on one channel of records.
//
// The asking end (Asker) sends a record and spins for its answer, or sends as fast as there is
// room. The answering end (Answerer) spins, answers what asks for an answer and reads what it is to
// read. Both run in slices that return, so that V8 compiles them as ordinary functions, and end a
// slice on time when the other side is not there: a death is noticed between slices.
//
// Invariants: nothing is allocated in a slice; one clock reading per round trip or batch, which
// counts (some 25 ns); an answer that comes in the next slice counts with its full time.

import { Rec, type Domain, type RecordChannel } from '../idc/index.js';
import { PenstockError } from '../errors.js';
import type { Histogram } from './histogram.js';
import type { Clock } from './loop.js';

const TWO32 = 2 ** 32;
/** A window of the stream that stood still for this long is left out: a side did not run. */
const STALL_SECONDS = 100e-6;
const WINDOW_SECONDS = 1e-3;
const WINDOWS_MAX = 1 << 16;
/** Polls between two looks at the clock while nothing comes (a poll is some ns). */
const POLLS_PER_LOOK = 1 << 12;

/** What a record asks for. */
export const enum Ask {
  /** Answer; look at nothing. */
  ECHO = 1,
  /** Check that the bytes at the address can be read, then answer; look at none. */
  TAKE = 2,
  /** Add up all words at the address; the answer carries the sum. */
  READ = 3,
  /** No answer. */
  COUNT = 4,
  /** The spinning is over. Answered. */
  STOP = 5,
}

const enum Word {
  op = 0,
  number = 1,
  bytes = 2,
  sum = 3,
  addressLo = 6,
  addressHi = 7,
}

/** Where an Asker keeps what one slice leaves for the next. */
const enum State {
  /** Ticks when the record that is out was about to be sent. */
  last = 0,
  /** 1: an answer is waited for. */
  isOut = 1,
  number = 2,
  /** Wrong answers. */
  wrong = 3,
  /** Windows counted, and left out. */
  calm = 4,
  disturbed = 5,
  words = 6,
}

/** Buffers whose addresses are sent, in turn. */
export interface Payload {
  readonly bytes: number;
  /** Words of all buffers one after another; the first word of each is rewritten per record. */
  readonly words: readonly Uint32Array[];
  readonly octets: readonly Uint8Array[];
  readonly lo: Uint32Array;
  readonly hi: Uint32Array;
  /** Sum of each buffer's words but the first. */
  readonly sums: Int32Array;
}

export class Asker {
  /** Records a second of each calm window. */
  readonly windows = new Float64Array(WINDOWS_MAX);
  private readonly channel: RecordChannel;
  private readonly clock: Clock;
  private readonly nsPerTick: number;
  private readonly state = new Float64Array(State.words);

  constructor(channel: RecordChannel, clock: Clock) {
    this.channel = channel;
    this.clock = clock;
    this.nsPerTick = 1e9 / clock.hertz;
  }

  get wrong(): number {
    return this.state[State.wrong]!;
  }

  /** Windows counted into `windows`. */
  get calm(): number {
    return this.state[State.calm]!;
  }

  /** Part of the windows that were left out because a side did not run. */
  get disturbed(): number {
    const disturbed = this.state[State.disturbed]!;
    return disturbed === 0 ? 0 : disturbed / (disturbed + this.calm);
  }

  /** Forgets the windows. */
  clearWindows(): void {
    this.state[State.calm] = 0;
    this.state[State.disturbed] = 0;
  }

  // hot:begin

  /**
   * One slice of round trips: `most` of them, or as many as go into `seconds`; returns how many.
   */
  ask(
    op: Ask,
    payload: Payload | null,
    histogram: Histogram,
    seconds: number,
    most: number,
  ): number {
    const { channel, state, nsPerTick } = this;
    const { words, read, hertz } = this.clock;
    read();
    let now = words[1]! * TWO32 + words[0]!;
    const until = now + seconds * hertz;
    if (state[State.isOut] === 0) state[State.last] = now;
    let done = 0;
    while (now < until && done < most) {
      if (state[State.isOut] === 0) this.put(op, payload);
      let polls = 0;
      while (channel.poll(1) === 0) {
        if (++polls < POLLS_PER_LOOK) continue;
        polls = 0;
        read();
        if (words[1]! * TWO32 + words[0]! > until) return done;
      }
      read();
      now = words[1]! * TWO32 + words[0]!;
      this.check(op, payload);
      histogram.record(Math.round((now - state[State.last]!) * nsPerTick), 1);
      state[State.last] = now;
      state[State.isOut] = 0;
      done++;
    }
    return done;
  }

  /** One slice of records without answers, `batch` at a time. */
  stream(batch: number, seconds: number): void {
    const { channel, state } = this;
    const { words, read, hertz } = this.clock;
    const { sq, mask } = channel;
    const windowTicks = WINDOW_SECONDS * hertz;
    read();
    let now = words[1]! * TWO32 + words[0]!;
    const until = now + seconds * hertz;
    let number = state[State.number]! | 0;
    let windowStart = now;
    let moved = now;
    let longest = 0;
    let sent = 0;
    while (now < until) {
      const at = channel.tail;
      const granted = channel.reserve(batch);
      for (let i = 0; i < granted; i++) {
        const r = ((at + i) & mask) << Rec.shift;
        sq[r] = Ask.COUNT;
        sq[r + 1] = number + i;
        sq[r + 2] = 4096;
        sq[r + 3] = 0;
        sq[r + 4] = 0;
        sq[r + 5] = 0;
        sq[r + 6] = i;
        sq[r + 7] = 16;
      }
      channel.submit();
      number = (number + granted) | 0;
      sent += granted;
      read();
      now = words[1]! * TWO32 + words[0]!;
      if (granted > 0) {
        if (now - moved > longest) longest = now - moved;
        moved = now;
      }
      if (now - windowStart < windowTicks) continue;
      if (now - moved > longest) longest = now - moved;
      this.closeWindow(sent, now - windowStart, longest);
      windowStart = now;
      longest = 0;
      sent = 0;
    }
    state[State.number] = number >>> 0;
  }

  private closeWindow(sent: number, ticks: number, longest: number): void {
    const { state, clock } = this;
    if (longest > STALL_SECONDS * clock.hertz) {
      state[State.disturbed] = state[State.disturbed]! + 1;
      return;
    }
    const count = state[State.calm]!;
    if (count >= WINDOWS_MAX) return;
    this.windows[count] = (sent / ticks) * clock.hertz;
    state[State.calm] = count + 1;
  }

  /** Sends one record, with the next buffer of the payload; false: there is no room. */
  private put(op: Ask, payload: Payload | null): boolean {
    const { channel, state } = this;
    const { sq, mask } = channel;
    const r = (channel.tail & mask) << Rec.shift;
    if (channel.reserve(1) === 0) return false;
    const number = (state[State.number]! + 1) >>> 0;
    state[State.number] = number;
    sq[r + Word.op] = op;
    sq[r + Word.number] = number;
    if (payload !== null) {
      const buffer = number % payload.lo.length;
      sq[r + Word.bytes] = payload.bytes;
      sq[r + Word.addressLo] = payload.lo[buffer]!;
      sq[r + Word.addressHi] = payload.hi[buffer]!;
      if (op === Ask.READ) payload.words[buffer]![0] = number;
    }
    state[State.isOut] = 1;
    channel.submit();
    return true;
  }

  /** Holds the answer in `rq` to the record that was sent. */
  private check(op: Ask, payload: Payload | null): void {
    const { state } = this;
    const { rq } = this.channel;
    const number = state[State.number]!;
    let right = rq[Word.number] === number;
    if (op === Ask.READ && payload !== null) {
      const sum = (payload.sums[number % payload.lo.length]! + number) | 0;
      right = right && (rq[Word.sum]! | 0) === sum;
    }
    if (!right) state[State.wrong] = state[State.wrong]! + 1;
  }

  // hot:end

  /** Sends a record whose answer somebody else awaits; false: there is no room. */
  order(op: Ask): boolean {
    const sent = this.put(op, null);
    this.state[State.isOut] = 0;
    return sent;
  }
}

/** The spinning answerer. */
export class Answerer {
  private readonly channel: RecordChannel;
  private readonly domain: Domain;
  private readonly link: { settle(address: number, bytes: number): boolean };
  private readonly clock: Clock;
  /** The segment that was read last: its words and their first and last address. */
  private words: Uint32Array = new Uint32Array(0);
  private readonly range = new Float64Array(2);
  private sum = 0;

  constructor(
    channel: RecordChannel,
    domain: Domain,
    link: { settle(address: number, bytes: number): boolean },
    clock: Clock,
  ) {
    this.channel = channel;
    this.domain = domain;
    this.link = link;
    this.clock = clock;
  }

  // hot:begin

  /** One slice; false when the asker has had enough. */
  spin(seconds: number): boolean {
    const { channel } = this;
    const { words, read, hertz } = this.clock;
    read();
    const until = words[1]! * TWO32 + words[0]! + seconds * hertz;
    for (;;) {
      for (let polls = 0; polls < POLLS_PER_LOOK; polls++) {
        const count = channel.poll(128);
        if (count !== 0 && !this.answer(count)) return false;
      }
      read();
      if (words[1]! * TWO32 + words[0]! > until) return true;
    }
  }

  /** Answers the first `count` records received; false after STOP. */
  answer(count: number): boolean {
    const { rq } = this.channel;
    let counted = 0;
    for (let i = 0; i < count; i++) {
      const r = i << Rec.shift;
      const op = rq[r + Word.op]!;
      if (op === Ask.COUNT) {
        counted = (counted + rq[r + Word.number]!) | 0;
        continue;
      }
      let sum = 0;
      if (op === Ask.TAKE || op === Ask.READ) {
        const bytes = rq[r + Word.bytes]!;
        const at = this.locate(rq[r + Word.addressHi]!, rq[r + Word.addressLo]!, bytes);
        if (op === Ask.READ) sum = sumOf(this.words, at, at + (bytes >>> 2));
      }
      this.reply(op, rq[r + Word.number]!, sum);
      if (op === Ask.STOP) return false;
    }
    this.sum = (this.sum + counted) | 0;
    return true;
  }

  private reply(op: number, number: number, sum: number): void {
    const { channel } = this;
    const { sq, mask } = channel;
    const r = (channel.tail & mask) << Rec.shift;
    if (channel.reserve(1) === 0) return;
    sq[r + Word.op] = op;
    sq[r + Word.number] = number;
    sq[r + Word.sum] = sum;
    channel.submit();
  }

  /** Index in `words` of bytes that the asker may have made up: they are checked. */
  private locate(hi: number, lo: number, bytes: number): number {
    const { range } = this;
    const address = (hi & 0xfff) * TWO32 + lo;
    if (address < range[0]! || address + bytes > range[1]!) this.look(address, bytes);
    return (address - range[0]!) >>> 2;
  }

  // hot:end

  private look(address: number, bytes: number): void {
    const segment = this.link.settle(address, bytes)
      ? this.domain.desk.segmentAt(address)
      : undefined;
    if (segment === undefined) {
      throw new PenstockError('PEER_MISBEHAVED', 'the asker sent an address that it has not', {
        hint: 'this is a mistake of the benchmark',
      });
    }
    this.words = segment.u32;
    this.range[0] = segment.address;
    this.range[1] = segment.address + segment.backedBytes;
  }
}

// hot:begin

/** Sum of words, as numbers of 32 bits. */
export function sumOf(words: Uint32Array, from: number, to: number): number {
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  let i = from;
  for (; i + 4 <= to; i += 4) {
    a = (a + words[i]!) | 0;
    b = (b + words[i + 1]!) | 0;
    c = (c + words[i + 2]!) | 0;
    d = (d + words[i + 3]!) | 0;
  }
  for (; i < to; i++) a = (a + words[i]!) | 0;
  return (a + b + c + d) | 0;
}

// hot:end
