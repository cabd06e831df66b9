// What a hostile domain does to its own memory, and says on its sockets.

import { HALF_MAGIC, Half } from '../../lib/idc/layout.js';
import type { Segment } from '../../lib/memory/index.js';
import type { Random } from './harness.js';

/** A domain's insides, as far as they are spoiled. */
export interface Target {
  readonly slot: number;
  readonly shared: { readonly segments: readonly Segment[] };
  readonly links: ReadonlyMap<number, { readonly transport: Sender }>;
  readonly session: { readonly transport: Sender | null };
}

interface Sender {
  send(message: object, fds?: readonly number[]): void;
}

interface HalfAt {
  readonly words: Uint32Array;
  readonly at: number;
  readonly size: number;
}

/** Records of loan rings, which no other channel has as many of here. */
const LOAN_SIZE = 1024;
const HALF_ALIGN_WORDS = 128;
const RESCAN_GOES = 50;

const TYPES = ['segment', 'hello', 'open', 'accept', 'refuse', 'audit', 'bye', 'join', 'rejoin'];
const HUB_TYPES = ['released', 'list', 'join', 'rejoin', 'leave', 'welcome', 'nonsense'];
const KEYS = ['address', 'bytes', 'pageBytes', 'id', 'port', 'meta', 'size', 'serial', 'via'];
const MORE_KEYS = ['holds', 'code', 'message', 'slot', 'generation', 'name', 'version', 'known'];

export class Scribbler {
  private readonly random: Random;
  private readonly mode: string;
  private readonly target: Target;
  private halves: HalfAt[] = [];
  private goes = 0;

  constructor(random: Random, mode: string, target: Target) {
    this.random = random;
    this.mode = mode;
    this.target = target;
  }

  /** So many writes of the mode's kind; how many there were. */
  go(count: number): number {
    if (this.target.shared.segments.length === 0) return 1; // it has no link yet
    if (this.goes++ % RESCAN_GOES === 0 || this.halves.length === 0) this.scan();
    for (let done = 0; done < count;) done += this.one();
    return count;
  }

  /** Halves are found by what they begin with, before that is spoiled. */
  private scan(): void {
    const found: HalfAt[] = [];
    for (const { u32 } of this.target.shared.segments) {
      for (let at = 0; at < u32.length; at += HALF_ALIGN_WORDS) {
        if (u32[at + Half.magic] !== HALF_MAGIC) continue;
        const size = u32[at + Half.size]!;
        if (size >= 2 && size <= 32768) found.push({ words: u32, at, size });
      }
    }
    if (found.length > 0) this.halves = found;
  }

  private one(): number {
    const { random } = this;
    const modes = ['rings', 'headers', 'loans', 'messages', 'control', 'anywhere'];
    const mode = this.mode === 'everything' ? random.pick(modes) : this.mode;
    if (mode === 'control') return this.control();
    if (mode === 'anywhere' || this.halves.length === 0) {
      const { u32 } = random.pick(this.target.shared.segments);
      u32[random.below(u32.length)] = this.value();
      return 1;
    }
    const half = random.pick(this.halves);
    if (mode === 'headers') {
      half.words[half.at + random.below(Half.words)] = this.value();
      return 1;
    }
    const isLoan = half.size === LOAN_SIZE;
    if (mode === 'loans' && isLoan) return this.record(half, () => this.loanRecord());
    if (mode === 'messages' && !isLoan) return this.record(half, () => this.message());
    half.words[half.at + Half.words + random.below(half.size * 8)] = this.value();
    return 1;
  }

  /** A record of its kind at a random place, with a random lap. */
  private record({ words, at, size }: HalfAt, make: () => number[]): number {
    const { random } = this;
    const start = at + Half.words + random.below(size) * 8;
    const record = make();
    for (let i = 1; i < 8; i++) words[start + i] = record[i]!;
    words[start] = (record[0]! | (random.chance(0.5) ? 0x8000_0000 : 0)) >>> 0;
    return 8;
  }

  private loanRecord(): number[] {
    const { random } = this;
    const [lo, hi] = this.address();
    const slots = [0, 1, 2, 3, 4, 255, 256, random.u32()];
    return [
      random.between(33, 38),
      random.pick(slots),
      random.pick(slots),
      random.below(20),
      0,
      0,
    ].concat([lo, hi]);
  }

  private message(): number[] {
    const { random } = this;
    const [lo, hi] = this.address();
    const bytes = random.pick([0, 1, 512, 4096, 2 ** 21, 2 ** 31, 0xffff_ffff, random.u32()]);
    const tag = random.pick([0, 1, 2, 0x7fff_ffff, 0xffff_ffff, random.u32()]);
    return [random.between(31, 34), tag, bytes, random.u32(), random.u32(), 0, lo, hi];
  }

  /** Loan words: of anybody's memory, or nobody's. */
  private address(): [number, number] {
    const { random } = this;
    const slot = random.pick([0, 1, 2, 3, 4, 255, this.target.slot]);
    const offset = random.pick([0, 512, 2 ** 21, 2 ** 22 - 512, random.below(2 ** 24)]);
    const hi = (slot * 16) | (random.below(16) === 0 ? random.below(16) : 0);
    return [offset >>> 0, ((hi & 0xfff) | (random.below(8) << 12)) >>> 0];
  }

  private value(): number {
    const { random } = this;
    switch (random.below(6)) {
      case 0:
        return 0;
      case 1:
        return 0xffff_ffff;
      case 2:
        return random.pick([1, 2, 31, 32, 33, 34, 35, 36, 37, 64, 1024]);
      case 3:
        return (0x8000_0000 | random.below(64)) >>> 0;
      case 4:
        return random.below(2 ** 20);
      default:
        return random.u32();
    }
  }

  /** A message on a link's socket, or the hub's. */
  private control(): number {
    const { random, target } = this;
    const toHub = random.chance(0.15);
    const links = [...target.links.values()];
    const to =
      toHub || links.length === 0 ? target.session.transport : random.pick(links).transport;
    const message: Record<string, unknown> = { type: random.pick(toHub ? HUB_TYPES : TYPES) };
    for (const key of [...KEYS, ...MORE_KEYS]) {
      if (random.chance(0.5)) message[key] = this.jsonValue(key);
    }
    const fds = random.chance(0.3) ? [random.below(3)] : [];
    to?.send(message, fds);
    return 8;
  }

  private jsonValue(key: string): unknown {
    const { random, target } = this;
    if (key === 'address' && random.chance(0.7)) {
      return target.slot * 2 ** 36 + random.below(64) * 64 * random.pick([1, 32768]);
    }
    if (key === 'size' && random.chance(0.7)) return 2 ** random.below(17);
    if (key === 'port')
      return random.pick(['load', 'raw', 'echo', 'penstock.report', '', 'x'.repeat(99)]);
    switch (random.below(8)) {
      case 0:
        return random.u32();
      case 1:
        return -1;
      case 2:
        return 2 ** 53;
      case 3:
        return 'text';
      case 4:
        return Array.from({ length: random.below(20) }, () => random.u32());
      case 5:
        return null;
      case 6:
        return { a: 1 };
      default:
        return random.below(16);
    }
  }
}
