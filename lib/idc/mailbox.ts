// Mailboxes: short messages between two domains that share nothing but their regions. For control;
// records and data go by channels.
//
// A region has 16 slots; a domain's mailbox with domain p is slot p modulo 16 of its own region,
// and in p's region the slot of its own number modulo 16. A slot has control words and a ring of
// bytes that its owner writes and the peer reads; the owner's words also say how far it has read
// the peer's.
//
// Invariants
// 1. Only the owner of a region writes it. Its words here are: whom the slot is for, the peer's
//    generation it is attached to, the tail of its own ring, the head of the peer's ring.
// 2. Attached is a pair of lives. Indices count from START in both rings, and mean something only
//    while both sides name each other's generation. A pair of lives attaches once.
// 3. A message is a length and that many bytes, padded to words. The tail moves by whole messages.
// 4. What the peer wrote is copied first and the copy checked; words that it could not have written
//    in good faith make the mailbox dead. Faith ends where its generation does: what is read
//    then may be of another life, and is no sign of anything.

import { PenstockError } from '../errors.js';
import { layout, publish } from '../wire/index.js';
import {
  MAILBOX_SLOTS,
  MAILBOXES_OFFSET,
  type OwnRegion,
  type PeerRegion,
  RINGS_OFFSET,
} from './region.js';

/** Control words of a slot. */
export const enum Control {
  peer = 0,
  peerGeneration = 1,
  tail = 2,
  // Another cache line: the reading side's.
  head = 16,
  words = 32,
}

const field = (name: string, word: number, meaning: string) => {
  return { name, offset: word * 4, bytes: 4, meaning };
};

export const MAILBOX_CONTROL = layout('mailbox control', 128, 'lib/idc/mailbox.ts, version 1', [
  field('peer', 0, 'domain that the slot is for'),
  field('peerGeneration', 1, 'generation of it that the owner is attached to; 0: none'),
  field('tail', 2, 'bytes that the owner has put into its ring'),
  field('head', 16, "bytes that the owner has taken from the peer's ring"),
]);

const RING_BYTES = 16384;
/** Indices begin a ring before they wrap, so that every mailbox shows that they may. */
const START = 2 ** 32 - RING_BYTES;
export const MESSAGE_BYTES_MAX = 8192;

/** Words of a frame's length and its message. */
function frameBytes(messageBytes: number): number {
  return 4 + ((messageBytes + 3) & ~3);
}

/**
 * One side of a mailbox. `send` works from the start; what is sent is read once the peer has opened
 * its own.
 */
export class Mailbox {
  readonly own: OwnRegion;
  readonly peer: PeerRegion;
  /** First words of this side's and the peer's control, first bytes of their rings. */
  private readonly control: number;
  private readonly peerControl: number;
  private readonly ring: number;
  private readonly peerRing: number;
  private tail = START;
  private head = START;
  private attached = false;
  private open = true;
  private failure: PenstockError | null = null;
  private readonly decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

  /** Errors: TOO_MANY_PEERS (another domain has the slot). */
  constructor(own: OwnRegion, peer: PeerRegion) {
    const slot = peer.domain % MAILBOX_SLOTS;
    const { domain, generation } = peer;
    if (domain === own.domain) throw new RangeError('a domain has no mailbox with itself');
    if (own.closed) throw new TypeError('the region is closed');
    const last = own.correspondents.get(slot);
    if (last !== undefined && last.domain !== domain) {
      throw new PenstockError('TOO_MANY_PEERS', `domain ${last.domain} has the mailbox's slot`, {
        hint: `domains that write to each other differ modulo ${MAILBOX_SLOTS}`,
      });
    }
    if (last?.generation === generation) {
      throw new TypeError(`this life of domain ${domain} has, or had, a mailbox`);
    }
    own.correspondents.set(slot, { domain, generation });
    this.own = own;
    this.peer = peer;
    this.control = MAILBOXES_OFFSET / 4 + slot * Control.words;
    this.ring = RINGS_OFFSET + slot * RING_BYTES;
    const peerSlot = own.domain % MAILBOX_SLOTS;
    this.peerControl = MAILBOXES_OFFSET / 4 + peerSlot * Control.words;
    this.peerRing = RINGS_OFFSET + peerSlot * RING_BYTES;
    const words = own.memory.u32;
    publish(words, this.control + Control.peerGeneration, 0);
    words[this.control + Control.peer] = domain;
    words[this.control + Control.tail] = START;
    words[this.control + Control.head] = START;
    publish(words, this.control + Control.peerGeneration, generation);
  }

  /** Whether the peer has opened its side. */
  get connected(): boolean {
    this.assertUsable();
    return this.look() === 'attached';
  }

  /**
   * Puts a message of up to 8 KiB into the ring; false when it does not fit now. Text, or its UTF-8
   * bytes. Errors: PEER_GONE, PEER_MISBEHAVED.
   */
  send(message: Uint8Array | string): boolean {
    this.assertUsable();
    const data = typeof message === 'string' ? Buffer.from(message) : message;
    if (data.length > MESSAGE_BYTES_MAX) {
      throw new RangeError(`a message has up to ${MESSAGE_BYTES_MAX} bytes, not ${data.length}`);
    }
    const seen = this.look();
    if (seen === 'detached') throw this.gone();
    // Before the peer has attached, the word is of no meaning: nothing has been taken.
    const head = seen === 'absent' ? START : this.peerWord(Control.head);
    const used = (this.tail - head) >>> 0;
    if (used > RING_BYTES || head % 4 !== 0) throw this.misbehaved('takes what was not sent');
    const frame = frameBytes(data.length);
    if (frame > RING_BYTES - used) return false;
    const { u8, u32 } = this.own.memory;
    u32[(this.ring + (this.tail % RING_BYTES)) / 4] = data.length;
    const at = (this.tail + 4) % RING_BYTES;
    const first = Math.min(data.length, RING_BYTES - at);
    u8.set(data.subarray(0, first), this.ring + at);
    u8.set(data.subarray(first), this.ring);
    this.tail = (this.tail + frame) >>> 0;
    publish(u32, this.control + Control.tail, this.tail);
    return true;
  }

  /**
   * The next message as text; null when there is none now. What a peer sent before it closed is
   * given before it is PEER_GONE. Errors: PEER_GONE, PEER_MISBEHAVED.
   */
  receive(): string | null {
    const data = this.receiveBytes();
    if (data === null) return null;
    try {
      return this.decoder.decode(data);
    } catch {
      throw this.misbehaved('sends what is not UTF-8');
    }
  }

  /** As `receive`: a copy of the bytes, which need not be text. */
  receiveBytes(): Uint8Array | null {
    this.assertUsable();
    const seen = this.look();
    if (seen === 'absent') return null;
    const { u8, u32 } = this.peer.memory;
    const tail = this.peerWord(Control.tail);
    const used = (tail - this.head) >>> 0;
    if (used > RING_BYTES || used % 4 !== 0) throw this.misbehaved('has a tail that cannot be');
    if (used === 0) {
      if (seen === 'detached' || this.peer.hasEnded) throw this.gone();
      return null;
    }
    const length = u32[(this.peerRing + (this.head % RING_BYTES)) / 4]!;
    if (length > MESSAGE_BYTES_MAX || frameBytes(length) > used) {
      throw this.misbehaved(`sends a message of ${length} bytes in ${used}`);
    }
    const data = new Uint8Array(length);
    const at = (this.head + 4) % RING_BYTES;
    const first = Math.min(length, RING_BYTES - at);
    data.set(u8.subarray(this.peerRing + at, this.peerRing + at + first));
    data.set(u8.subarray(this.peerRing, this.peerRing + length - first), first);
    if (!this.isThere()) throw this.gone();
    this.head = (this.head + frameBytes(length)) >>> 0;
    publish(this.own.memory.u32, this.control + Control.head, this.head);
    return data;
  }

  /** Ends this side: the peer reads what was sent, and is then told PEER_GONE. */
  close(): void {
    if (!this.open) return;
    this.open = false;
    this.detach();
  }

  private peerWord(word: Control): number {
    return this.peer.memory.u32[this.peerControl + word]!;
  }

  /** How the peer's slot stands to this life; `gone` is thrown. */
  private look(): 'absent' | 'attached' | 'detached' {
    if (this.attached) {
      if (!this.isThere()) throw this.gone();
      const isOurs = this.peerWord(Control.peerGeneration) === this.own.generation;
      return isOurs && !this.peer.hasEnded ? 'attached' : 'detached';
    }
    const isOurs =
      this.peerWord(Control.peerGeneration) === this.own.generation &&
      this.peerWord(Control.peer) === this.own.domain;
    if (this.peer.isOver) throw this.gone();
    if (isOurs) this.attached = true;
    else if (this.peer.hasEnded) throw this.gone();
    return isOurs ? 'attached' : 'absent';
  }

  /** Whether the peer's slot is still that of this pair of lives, open or closed. */
  private isThere(): boolean {
    const attachedTo = this.peerWord(Control.peerGeneration);
    const isOurs = attachedTo === this.own.generation || attachedTo === 0;
    return isOurs && this.peerWord(Control.peer) === this.own.domain && !this.peer.isOver;
  }

  private assertUsable(): void {
    if (!this.open || this.own.closed) throw new TypeError('the mailbox is closed');
    if (this.failure !== null) throw this.failure;
  }

  /** Not kept: what was sent before can still be read. */
  private gone(): PenstockError {
    return new PenstockError('PEER_GONE', `domain ${this.peer.domain} has ended`, {
      hint: 'when it is there again its region shows another generation: open a mailbox with that',
    });
  }

  private misbehaved(how: string): PenstockError {
    if (!this.isThere()) return this.gone();
    this.failure = new PenstockError('PEER_MISBEHAVED', `domain ${this.peer.domain} ${how}`, {
      hint: 'the peer is broken or hostile; its mailbox stays closed',
    });
    this.detach();
    return this.failure;
  }

  /** Unless the slot is a later life's already. */
  private detach(): void {
    const last = this.own.correspondents.get(this.peer.domain % MAILBOX_SLOTS);
    if (last?.generation !== this.peer.generation) return;
    publish(this.own.memory.u32, this.control + Control.peerGeneration, 0);
  }
}
