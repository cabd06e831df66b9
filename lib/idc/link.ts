// Link: what one domain has of another. A socket for control messages, the other's memory, the
// channels between the two, and the ring on which loans are given back.
//
// The hub makes the socket and gives an end to each side; from then on it is not needed. What a
// domain's memory grows by is told on its links before anybody can learn an address in it, so an
// address that is not mapped here yet stands in a message that is here already (`settle`).
//
// A link is over when the other process died (its pidfd tells), left in order (bye), or misbehaved.
// Its channels break then, after what was sent has been copied to private memory.

import { PenstockError } from '../errors.js';
import { addressSpace, type DmaBuffer, type Memory, type Segment } from '../memory/index.js';
import { native } from '../native.js';
import { integer } from './fields.js';
import { makeHalf, openChannel, readPlace, slotOf, type HalfPlace } from './half.js';
import { LinkChannels, type Incoming, type LinkChannel } from './link-channels.js';
import type { LinkWire } from './link-wire.js';
import { LoanRing } from './loan-ring.js';
import type { RecordChannel } from './record-channel.js';
import { closeAll, misbehaved, type Transport } from './transport.js';
import { NO_WAKE } from './wake.js';

export type { Incoming, LinkChannel } from './link-channels.js';

/** Who is at the other end, as the hub vouches for it. */
export interface PeerInfo {
  readonly slot: number;
  /** Never used twice by a hub. */
  readonly generation: number;
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
}

/** What a link asks of its domain. */
export interface LinkHome {
  readonly memory: Memory;
  readonly slot: number;
  /** Something lingers: `sweep` is to be called before long. */
  wantService(): void;
  onReady(link: Link): void;
  onIncoming(link: Link, incoming: Incoming): void;
  /** The other domain asks how many loans of its memory, had by the word of `via`, are here. */
  onAudit(link: Link, via: number, holds: readonly number[]): void;
  /** Once. `left`: it will read nothing of this domain's memory any more. */
  onOver(link: Link, error: PenstockError): void;
  /** The process is dead, or has left: its holds are nobody's. Once, after onOver. */
  onDead(link: Link): void;
}

/** Who uses other domains' memory otherwise than by loans, or wants to know of their ends. */
export interface LinkWatcher {
  /** Whether a domain's memory is still used: it stays mapped, also when the domain is dead. */
  usesMemoryOf?(slot: number): boolean;
  /** A link is over; before its memory goes. */
  onOver?(link: Link): void;
  /** The process at the other end is dead, or has left. */
  onDead?(link: Link): void;
}

const VERSION = 1;
const SEGMENTS_MAX = 512;
const CONNECT_MS = 5000;
/** Messages taken to find one that is here: a peer that floods must not keep us. */
const SETTLE_MAX = 1 << 12;
const LOAN_RECORDS = 1024;

export class Link {
  readonly peer: PeerInfo;
  readonly loans: LoanRing;
  /** Why it is over, or null. */
  error: PenstockError | null = null;
  /** The process ended or left in order. */
  dead = false;
  readonly wire: LinkWire;
  private readonly home: LinkHome;
  private readonly transport: Transport;
  private readonly forgetDeath: () => void;
  private ready = false;
  private readonly segments = new Map<number, Segment>();
  private lastSegment: Segment | undefined;
  private readonly channels: LinkChannels;
  private readonly loanHalf: { place: HalfPlace; buffer: DmaBuffer };
  /** Messages, and the end, that came while an address was looked for: they wait for their turn. */
  private settling = false;
  private deferred: { message: Record<string, unknown>; fds: number[] }[] = [];
  private deferredEnd: { error: PenstockError | null } | null = null;

  constructor(home: LinkHome, peer: PeerInfo, wire: LinkWire) {
    this.home = home;
    this.peer = peer;
    this.wire = wire;
    this.loanHalf = makeHalf(home.memory, LOAN_RECORDS);
    this.loans = new LoanRing();
    this.channels = new LinkChannels(this);
    if (wire.memory !== null) this.segments.set(wire.memory.address, wire.memory);
    addressSpace().nameDomain(peer.slot, peer.name);
    this.forgetDeath = wire.onDeath(() => this.died());
    this.transport = wire.open({
      onMessage: (message, fds) => this.handle(message, fds),
      onEnd: (error) => {
        if (this.settling) this.deferredEnd = { error };
        else this.end(error ?? this.goneError());
      },
    });
  }

  get memory(): Memory {
    return this.home.memory;
  }

  wantService(): void {
    this.home.wantService();
  }

  /** Sends a control message. */
  send(message: object, fds: readonly number[]): void {
    this.transport.send(message, fds);
  }

  /** Control messages that the socket did not take yet: among them may be segments. */
  get hasUnsent(): boolean {
    return this.wire.memory === null && this.transport.unsent > 0;
  }

  /** Tells the other side of this one: once, after all own segments were announced. */
  greet(): void {
    this.transport.send({ type: 'hello', version: VERSION, ...this.loanHalf.place });
  }

  /** Lets the other side map one of this domain's segments. */
  announce(segment: Segment): void {
    if (this.wire.memory !== null) return; // the other side has it all
    const fd = segment.descriptor();
    const { address, bytes, pageBytes } = segment;
    this.transport.send({ type: 'segment', address, bytes, pageBytes }, [fd]);
    native.fileClose(fd);
  }

  get isReady(): boolean {
    return this.ready && this.error === null;
  }

  /** Bytes of the other's memory that are mapped here. */
  get mappedBytes(): number {
    let sum = 0;
    for (const segment of this.segments.values()) sum += segment.bytes;
    return sum;
  }

  /**
   * Asks the other side for a channel on a port. Errors: what the other side refuses with,
   * TIMED_OUT, PEER_GONE.
   */
  connect(port: string, size: number, meta = '', timeoutMs = CONNECT_MS): Promise<LinkChannel> {
    return this.channels.connect(port, { size, meta, timeoutMs }, (channel) => channel);
  }

  /** The same; what `wrap` makes of it is made before anything else can happen on the link. */
  connectAs<T>(
    port: string,
    options: { size: number; meta: string; timeoutMs: number },
    wrap: (channel: LinkChannel) => T,
  ): Promise<T> {
    return this.channels.connect(port, options, wrap);
  }

  /**
   * Whether [address, address + bytes) lies in one segment of the other's memory that is mapped
   * here. Segments that were told of by now are mapped; whatever else came waits for its turn.
   */
  settle(address: number, bytes: number): boolean {
    if (this.covers(address, bytes)) return true;
    if (this.error !== null || slotOf(address) !== this.peer.slot) return false;
    if (this.deferred.length < SETTLE_MAX) {
      this.settling = true;
      try {
        this.transport.receive(SETTLE_MAX);
      } finally {
        this.settling = false;
      }
    }
    if (this.deferred.length > 0 || this.deferredEnd !== null) {
      setImmediate(() => this.runDeferred());
    }
    return this.covers(address, bytes);
  }

  /** The mapped segment over an address of the other's memory. */
  segmentAt(address: number): Segment | undefined {
    const last = this.lastSegment;
    if (last !== undefined && address >= last.address && address < last.address + last.bytes) {
      return last;
    }
    for (const segment of this.segments.values()) {
      if (address < segment.address || address >= segment.address + segment.bytes) continue;
      this.lastSegment = segment;
      return segment;
    }
    return undefined;
  }

  /** Asks the other side how many loans by the word of `via` it has: pairs of loan words. */
  audit(via: number, holds: readonly number[]): void {
    for (let at = 0; at < holds.length; at += 500) {
      this.transport.send({ type: 'audit', via, holds: holds.slice(at, at + 500) });
    }
  }

  /** Open channels and their ports. */
  get openChannels(): Iterable<[RecordChannel, string]> {
    return this.channels.list;
  }

  /** Whether halves of closed channels are left. */
  get lingers(): boolean {
    return this.channels.lingers;
  }

  /** Frees the halves of closed channels that the other side has closed, too. */
  sweep(): void {
    this.channels.sweep();
  }

  /** Unmaps the other's memory: nothing of it is held here any more. */
  unmap(): void {
    if (this.wire.memory !== null) return; // the next life of that domain has the same
    for (const segment of this.segments.values()) segment.close();
    this.segments.clear();
    this.lastSegment = undefined;
  }

  /** Ends the link in order. */
  leave(): void {
    if (this.error !== null) return;
    this.transport.send({ type: 'bye' });
    this.end(this.goneError());
  }

  /** Gives up what is left of a link: this domain closes. */
  dispose(): void {
    if (this.error === null) this.end(this.goneError());
    this.unmap();
    this.forgetDeath();
  }

  /**
   * The hub has let this domain go. What it holds stays held until it says bye, or its process
   * ends: it may still be reading; but not when it has `left` in order.
   */
  kicked(left: boolean): void {
    this.runDeferred();
    if (this.error === null) this.transport.receive();
    if (left) this.departed();
    else if (this.error === null) this.end(this.goneError());
  }

  /** Ends the link: what the other side did was wrong, or it is gone. */
  end(error: PenstockError): void {
    if (this.error !== null) return;
    // What the other side sent before its end still counts.
    this.error = error;
    this.channels.end(error);
    for (const { fds } of this.deferred) closeAll(fds);
    this.deferred = [];
    this.transport.close();
    this.home.onOver(this, error);
    if (this.dead) this.buried();
  }

  private died(): void {
    // Messages that were sent before the death: channels may stand in them.
    this.runDeferred();
    if (this.error === null) this.transport.receive();
    this.departed();
  }

  /** Its process is dead, or it has left: by now all that it sent has been taken. */
  private departed(): void {
    const first = !this.dead;
    this.dead = true;
    if (this.error === null) this.end(this.goneError());
    else if (first) this.buried();
  }

  /** After the link is over and its process dead or gone. */
  private buried(): void {
    this.forgetDeath();
    this.sweep();
    this.home.onDead(this);
    // Until then what the dead one gave back was still taken from its ring, by words in this half.
    this.loans.close();
    if (!this.loanHalf.buffer.freed) this.loanHalf.buffer.free();
  }

  private goneError(): PenstockError {
    return new PenstockError('PEER_GONE', `domain ${this.peer.name} is gone`, {
      hint: 'start it again; who waits for it can connect once it is back',
    });
  }

  private covers(address: number, bytes: number): boolean {
    const segment = this.segmentAt(address);
    return (
      segment !== undefined && bytes > 0 && address + bytes <= segment.address + segment.backedBytes
    );
  }

  private handle(message: Record<string, unknown>, fds: number[]): void {
    if (this.settling && message['type'] !== 'segment') {
      this.deferred.push({ message, fds });
      return;
    }
    this.runDeferred();
    if (this.error !== null) closeAll(fds);
    else this.handleNow(message, fds);
  }

  /** In the order in which they came. */
  private runDeferred(): void {
    while (this.error === null && this.deferred.length > 0) {
      const { message, fds } = this.deferred.shift()!;
      try {
        this.handleNow(message, fds);
      } catch (error) {
        if (!(error instanceof PenstockError)) throw error;
        this.end(error);
      }
    }
    const { deferredEnd } = this;
    this.deferredEnd = null;
    if (deferredEnd !== null) this.end(deferredEnd.error ?? this.goneError());
  }

  private handleNow(message: Record<string, unknown>, fds: number[]): void {
    try {
      switch (message['type']) {
        case 'segment':
          this.admit(message, fds);
          break;
        case 'hello':
          this.hello(message);
          break;
        case 'open':
          this.asked(message, fds);
          break;
        case 'accept':
          this.channels.accepted(message);
          break;
        case 'refuse':
          this.channels.refused(message);
          break;
        case 'audit':
          this.audited(message);
          break;
        case 'bye':
          this.dead = true;
          this.end(this.goneError());
          break;
        default:
          throw misbehaved('sent a message of no known type');
      }
    } finally {
      closeAll(fds);
    }
  }

  private admit(message: Record<string, unknown>, fds: readonly number[]): void {
    const { slot } = this.peer;
    const address = integer(message, 'address', 0, Number.MAX_SAFE_INTEGER);
    const bytes = integer(message, 'bytes', 1, 2 ** 31);
    const pageBytes = integer(message, 'pageBytes', 4096, 2 ** 30);
    if (
      this.wire.memory !== null ||
      fds.length !== 1 ||
      slotOf(address) !== slot ||
      this.segments.size >= SEGMENTS_MAX
    ) {
      throw misbehaved('told of a segment that is none of its own');
    }
    this.segments.set(address, addressSpace().admit(fds[0]!, { address, bytes, pageBytes }));
  }

  private hello(message: Record<string, unknown>): void {
    if (this.ready) throw misbehaved('said hello twice');
    if (message['version'] !== VERSION) {
      throw new PenstockError(
        'VERSION_MISMATCH',
        `domain ${this.peer.name} does not speak version ${VERSION} as this one does`,
        { hint: 'run the same release in all domains of a hub' },
      );
    }
    const peer = readPlace(message, this.peer.slot);
    this.loans.open(openChannel({ own: this.loanHalf.place, peer }, NO_WAKE, () => {}));
    this.ready = true;
    this.home.onReady(this);
  }

  private asked(message: Record<string, unknown>, fds: number[]): void {
    if (!this.ready) throw misbehaved('asked for a channel before it said hello');
    this.channels.asked(message, fds, (incoming) => this.home.onIncoming(this, incoming));
  }

  private audited(message: Record<string, unknown>): void {
    const via = integer(message, 'via', 1, 255);
    const holds = message['holds'];
    if (!Array.isArray(holds) || holds.length > 1000 || holds.length % 2 !== 0) {
      throw misbehaved('asked for loans in a wrong way');
    }
    this.home.onAudit(this, via, holds as number[]);
  }
}
