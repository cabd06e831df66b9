// Regions: what a domain's shared memory begins with where nothing but memory joins it to others,
// as between virtual machines: who it is, whether it lives, mailboxes for words with each peer, and
// the heap, which is the caller's.
//
// Invariants
// 1. Only its owner writes a region; others map it for reading. Each word has one writer.
// 2. A life of an owner has a generation, a random number that is not 0. Starting makes it 0 before
//    anything else is written and publishes the new one when all is: whoever reads the same
//    generation before and after a copy has copied one life's words.
// 3. What a peer's header says is copied, and the copy checked, before any of it is used. Who the
//    peer is comes from the address that its memory was mapped at, never from what stands in it.

import { randomInt } from 'node:crypto';
import { PenstockError } from '../errors.js';
import { layout, publish } from '../wire/index.js';

/** Words of the header. */
export const enum Header {
  magic = 0,
  version = 1,
  features = 2,
  domain = 3,
  bytes = 4,
  mailboxes = 5,
  rings = 6,
  heap = 7,
  heapBytes = 8,
  /** 64 bytes. */
  name = 16,
  // A cache line of its own: what changes while the owner lives.
  generation = 32,
  heartbeat = 33,
  closed = 34,
  words = 48,
}

const field = (name: string, word: number, bytes: number, meaning: string) => {
  return { name, offset: word * 4, bytes, meaning };
};

export const REGION_HEADER = layout('region header', 192, 'lib/idc/region.ts, version 1', [
  field('magic', 0, 4, 'PSRG'),
  field('version', 1, 4, '1'),
  field('features', 2, 4, 'bits that the owner offers'),
  field('domain', 3, 4, 'number of the owner, whose slot the region lies in'),
  field('bytes', 4, 4, 'size of the region'),
  field('mailboxes', 5, 4, 'offset of the control words of 16 mailboxes'),
  field('rings', 6, 4, 'offset of their rings'),
  field('heap', 7, 4, 'offset of what the owner does with as it likes'),
  field('heapBytes', 8, 4, 'from there to the end'),
  field('name', 16, 64, 'UTF-8, NUL-padded'),
  field('generation', 32, 4, 'of this life; 0: nobody, or nobody yet'),
  field('heartbeat', 33, 4, 'one more every 100 ms'),
  field('closed', 34, 4, 'the generation that ended in good order'),
]);

const MAGIC = 0x47525350; // PSRG
const VERSION = 1;
const SLOT_BYTES = 2 ** 36;
export const MAILBOX_SLOTS = 16;
export const MAILBOXES_OFFSET = 4096;
export const RINGS_OFFSET = 8192;
/** A granule from the start: what is made in the heap can be aligned as segments are. */
const HEAP_OFFSET = 2 ** 21;
const BYTES_MAX = 2 ** 31;
const NAME_BYTES = 64;
/** Names are printed: nothing in them speaks to a terminal. */
const NAME = /^[^\p{Cc}\p{Cs}]+$/u;

export const HEARTBEAT_MS = 100;
/** So long without a heartbeat, and its owner is gone. */
export const SILENCE_MS = 3000;
/** Time between two looks counts up to this: who was stopped itself has not listened. */
const LOOK_MS_MAX = 500;

/** Memory of a region as it is mapped here; a Segment is one. */
export interface RegionMemory {
  readonly address: number;
  readonly bytes: number;
  readonly u8: Uint8Array;
  readonly u32: Uint32Array;
  readonly writable?: boolean;
}

export interface Heap {
  readonly address: number;
  readonly bytes: number;
}

function checkMemory({ address, bytes, u8 }: RegionMemory): number {
  const domain = address / SLOT_BYTES;
  if (!Number.isInteger(domain) || domain < 1 || domain > 255) {
    throw new RangeError(`a region begins where its domain's slot does, not at ${address}`);
  }
  if (bytes % HEAP_OFFSET !== 0 || bytes <= HEAP_OFFSET || bytes > BYTES_MAX) {
    throw new RangeError(`a region has a multiple of 2 MiB from 4 MiB to 2 GiB, not ${bytes}`);
  }
  if (u8.byteLength !== bytes)
    throw new RangeError(`${u8.byteLength} of ${bytes} bytes are mapped`);
  return domain;
}

export interface OwnRegionOptions {
  /** From 1 to 64 bytes of UTF-8, no control characters. */
  name: string;
  features?: number;
}

/** This domain's region: a life of it begins here. */
export class OwnRegion {
  readonly memory: RegionMemory;
  readonly domain: number;
  readonly generation: number;
  readonly heap: Heap;
  /** By mailbox slot, the life of a peer that this life has, or had, a mailbox with. */
  readonly correspondents = new Map<number, { domain: number; generation: number }>();
  private beating: NodeJS.Timeout | undefined;
  private open = true;

  /**
   * Writes header and control words anew; what was in the heap stays. Errors: REGION_READ_ONLY
   * (stores go nowhere).
   */
  constructor(memory: RegionMemory, options: OwnRegionOptions) {
    this.domain = checkMemory(memory);
    const name = Buffer.from(options.name);
    if (name.length > NAME_BYTES || !NAME.test(options.name)) {
      throw new RangeError('a name has from 1 to 64 bytes of UTF-8, no control characters');
    }
    this.memory = memory;
    this.heap = { address: memory.address + HEAP_OFFSET, bytes: memory.bytes - HEAP_OFFSET };
    if (memory.writable === false) throw readOnly(memory, 'it is mapped for reading');
    const { u8, u32 } = memory;
    const before = u32[Header.generation]!;
    do this.generation = randomInt(1, 2 ** 32);
    while (this.generation === before);
    publish(u32, Header.generation, 0);
    u8.fill(0, Header.generation * 4 + 4, RINGS_OFFSET);
    u8.fill(0, 0, Header.generation * 4);
    const fields: [Header, number][] = [
      [Header.magic, MAGIC],
      [Header.version, VERSION],
      [Header.features, options.features ?? 0],
      [Header.domain, this.domain],
      [Header.bytes, memory.bytes],
      [Header.mailboxes, MAILBOXES_OFFSET],
      [Header.rings, RINGS_OFFSET],
      [Header.heap, HEAP_OFFSET],
      [Header.heapBytes, this.heap.bytes],
    ];
    for (const [word, value] of fields) u32[word] = value;
    u8.set(name, Header.name * 4);
    publish(u32, Header.generation, this.generation);
    // QEMU drops stores to memory that it was given for reading, without a word to the guest.
    if (u32[Header.generation] !== this.generation) throw readOnly(memory, 'stores do not stick');
  }

  /** One heartbeat; `keepBeating` does it. */
  beat(): void {
    const { u32 } = this.memory;
    u32[Header.heartbeat] = u32[Header.heartbeat]! + 1;
  }

  /** Beats from this thread's event loop, which must not be held up for seconds, until close. */
  keepBeating(): void {
    this.beating ??= setInterval(() => this.beat(), HEARTBEAT_MS).unref();
  }

  /** Ends this life in good order: peers see it at once, and can still read what they were sent. */
  close(): void {
    if (!this.open) return;
    this.open = false;
    clearInterval(this.beating);
    publish(this.memory.u32, Header.closed, this.generation);
  }

  get closed(): boolean {
    return !this.open;
  }
}

function readOnly(memory: RegionMemory, why: string): PenstockError {
  const at = `0x${memory.address.toString(16)}`;
  return new PenstockError('REGION_READ_ONLY', `the region at ${at} cannot be written: ${why}`, {
    hint: "give QEMU the domain's own region with readonly=off, and map it writable",
    exitCode: 3,
  });
}

/** unseen: no heartbeat was seen yet. gone: for good; the next life is another PeerRegion. */
export type PeerState = 'unseen' | 'alive' | 'gone';

/** A life of another domain, as its region shows it. */
export class PeerRegion {
  readonly memory: RegionMemory;
  readonly domain: number;
  readonly generation: number;
  readonly features: number;
  readonly name: string;
  readonly heap: Heap;
  private current: PeerState = 'unseen';
  private heartbeat: number;
  private lookedAt: number | undefined;
  private silentMs = 0;

  private constructor(memory: RegionMemory, header: Uint32Array, name: string) {
    this.memory = memory;
    this.domain = header[Header.domain]!;
    this.generation = header[Header.generation]!;
    this.features = header[Header.features]!;
    this.heartbeat = header[Header.heartbeat]!;
    this.name = name;
    this.heap = {
      address: memory.address + header[Header.heap]!,
      bytes: header[Header.heapBytes]!,
    };
  }

  /**
   * The life that a region shows; null when there is none, or one is just beginning. Errors:
   * REGION_VERSION, PEER_MISBEHAVED (a header that no owner of this slot writes).
   */
  static read(memory: RegionMemory): PeerRegion | null {
    const domain = checkMemory(memory);
    const { u32 } = memory;
    const generation = u32[Header.generation]!;
    if (generation === 0) return null;
    const header = u32.slice(0, Header.words);
    if (u32[Header.generation] !== generation || header[Header.generation] !== generation) {
      return null;
    }
    if (header[Header.closed] === generation) return null;
    if (header[Header.magic] === MAGIC && header[Header.version] !== VERSION) {
      throw new PenstockError('REGION_VERSION', `domain ${domain} has another version of regions`, {
        hint: `it says ${header[Header.version]}, here is ${VERSION}: use one version of penstock`,
      });
    }
    const name = nameOf(header);
    if (name === null || !isSound(header, domain, memory.bytes)) {
      throw new PenstockError('PEER_MISBEHAVED', `domain ${domain} has no header of a region`, {
        hint: 'the peer is broken or hostile, or another domain than its address says',
      });
    }
    return new PeerRegion(memory, header, name);
  }

  /**
   * Whether it lives, by a clock in milliseconds. To be asked at least every 500 ms: what passes
   * beyond that between two looks is not held against it.
   */
  state(nowMs: number): PeerState {
    const { u32 } = this.memory;
    const passed = this.lookedAt === undefined ? 0 : nowMs - this.lookedAt;
    this.lookedAt = nowMs;
    if (this.current === 'gone') return 'gone';
    if (this.hasEnded) return (this.current = 'gone');
    const heartbeat = u32[Header.heartbeat]!;
    if (heartbeat !== this.heartbeat) {
      this.heartbeat = heartbeat;
      this.silentMs = 0;
      return (this.current = 'alive');
    }
    this.silentMs += Math.max(0, Math.min(passed, LOOK_MS_MAX));
    if (this.silentMs >= SILENCE_MS) this.current = 'gone';
    return this.current;
  }

  /** It closed, or another life began. Silence does not count here. */
  get hasEnded(): boolean {
    return this.isOver || this.memory.u32[Header.closed] === this.generation;
  }

  /** Another life began, or begins: what the region holds is no longer this one's. */
  get isOver(): boolean {
    return this.memory.u32[Header.generation] !== this.generation;
  }
}

function isSound(header: Uint32Array, domain: number, bytes: number): boolean {
  const heap = header[Header.heap]!;
  return (
    header[Header.magic] === MAGIC &&
    header[Header.domain] === domain &&
    header[Header.bytes] === bytes &&
    header[Header.mailboxes] === MAILBOXES_OFFSET &&
    header[Header.rings] === RINGS_OFFSET &&
    heap % HEAP_OFFSET === 0 &&
    heap >= HEAP_OFFSET &&
    heap + header[Header.heapBytes]! <= bytes
  );
}

/** Null for what is no name. */
function nameOf(header: Uint32Array): string | null {
  const bytes = new Uint8Array(header.buffer, Header.name * 4, NAME_BYTES);
  const end = bytes.indexOf(0);
  try {
    const text = bytes.subarray(0, end < 0 ? NAME_BYTES : end);
    const name = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(text);
    return NAME.test(name) ? name : null;
  } catch {
    return null;
  }
}
