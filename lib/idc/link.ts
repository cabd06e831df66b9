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
import { integer, text, u32 } from './fields.js';
import { isReadable, makeHalf, openChannel, readPlace, slotOf, type HalfPlace } from './half.js';
import { Half } from './layout.js';
import { LoanRing } from './loan-ring.js';
import type { RecordChannel } from './record-channel.js';
import type { LinkWire } from './link-wire.js';
import { closeAll, misbehaved, type Transport } from './transport.js';
import { NO_WAKE, type Wake } from './wake.js';

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

/** A channel that the other side asks for. One of accept and refuse is called, once. */
export interface Incoming {
  readonly peer: PeerInfo;
  readonly port: string;
  readonly size: number;
  /** The asker's words, at most 4096 characters; hostile. */
  readonly meta: string;
  accept(meta?: string): LinkChannel;
  refuse(code: string, message: string, hint?: string): void;
}

/** A channel, and what the other side said of it. */
export interface LinkChannel {
  readonly records: RecordChannel;
  readonly meta: string;
  /** Where it lies, for another thread of this process (with a wake of its own descriptor). */
  readonly own: HalfPlace;
  readonly theirs: HalfPlace;
  readonly wakeFd: number;
}

/** What a link asks of its domain. */
export interface LinkHome {
  readonly memory: Memory;
  readonly slot: number;
  onReady(link: Link): void;
  onIncoming(link: Link, incoming: Incoming): void;
  /** The other domain asks how many loans of its memory, had by the word of `via`, are here. */
  onAudit(link: Link, via: number, holds: readonly number[]): void;
  /** Once. `left`: it will read nothing of this domain's memory any more. */
  onOver(link: Link, error: PenstockError): void;
  /** The process is dead, or has left: its holds are nobody's. Once, after onOver. */
  onDead(link: Link): void;
}

const VERSION = 1;
const SEGMENTS_MAX = 512;
const CHANNELS_MAX = 1024;
const META_MAX = 4096;
const LOAN_RECORDS = 1024;

interface Opening {
  readonly place: HalfPlace;
  readonly buffer: DmaBuffer;
  readonly wake: Wake;
  readonly timer: NodeJS.Timeout;
  resolve: (channel: LinkChannel) => void;
  readonly reject: (error: PenstockError) => void;
}

/** A half that the other side may still read: freed once it ends too. */
interface Lingering {
  readonly buffer: DmaBuffer;
  readonly peerHalf: Uint32Array;
}

export class Link {
  readonly peer: PeerInfo;
  readonly loans: LoanRing;
  /** Why it is over, or null. */
  error: PenstockError | null = null;
  /** The process ended or left in order. */
  dead = false;
  private readonly home: LinkHome;
  private readonly transport: Transport;
  private readonly wire: LinkWire;
  private readonly forgetDeath: () => void;
  private ready = false;
  private readonly segments = new Map<number, Segment>();
  private readonly channels = new Set<RecordChannel>();
  private readonly openings = new Map<number, Opening>();
  private readonly lingering = new Set<Lingering>();
  private readonly loanHalf: { place: HalfPlace; buffer: DmaBuffer };
  private openingId = 0;

  constructor(home: LinkHome, peer: PeerInfo, wire: LinkWire) {
    this.home = home;
    this.peer = peer;
    this.wire = wire;
    this.loanHalf = makeHalf(home.memory, LOAN_RECORDS);
    this.loans = new LoanRing();
    if (wire.memory !== null) this.segments.set(wire.memory.address, wire.memory);
    addressSpace().nameDomain(peer.slot, peer.name);
    this.forgetDeath = wire.onDeath(() => this.died());
    this.transport = wire.open({
      onMessage: (message, fds) => this.handle(message, fds),
      onEnd: (error) => this.end(error ?? this.goneError()),
    });
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
   * PEER_GONE, TIMED_OUT.
   */
  connect(port: string, size: number, meta: string, timeoutMs: number): Promise<LinkChannel> {
    if (meta.length > META_MAX) throw new RangeError(`meta has ${META_MAX} characters at most`);
    if (this.error !== null) return Promise.reject(this.error);
    const { place, buffer } = makeHalf(this.home.memory, size);
    const { wake, fds } = this.wire.pair();
    const id = ++this.openingId;
    this.transport.send({ type: 'open', id, port, meta, ...place }, fds);
    closeAll(fds);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        // An answer may still come: it is taken, and the channel closed at once.
        opening.resolve = ({ records }) => records.close();
        reject(
          new PenstockError('TIMED_OUT', `${this.peer.name} opened no channel in ${timeoutMs} ms`, {
            hint: 'it is stopped, or its event loop is held up',
          }),
        );
      }, timeoutMs);
      const opening: Opening = { place, buffer, wake, timer, resolve, reject };
      this.openings.set(id, opening);
    });
  }

  /** Whether [address, address + bytes) of the other's memory can be read; takes what came. */
  settle(address: number, bytes: number): boolean {
    if (slotOf(address) !== this.peer.slot) return false;
    if (isReadable(address, bytes)) return true;
    this.transport.receive();
    return isReadable(address, bytes);
  }

  /** The mapped segment over an address of the other's memory. */
  segmentAt(address: number): Segment | undefined {
    for (const segment of this.segments.values()) {
      if (address >= segment.address && address < segment.address + segment.bytes) return segment;
    }
    return undefined;
  }

  /** Asks the other side how many loans by the word of `via` it has: pairs of loan words. */
  audit(via: number, holds: readonly number[]): void {
    for (let at = 0; at < holds.length; at += 500) {
      this.transport.send({ type: 'audit', via, holds: holds.slice(at, at + 500) });
    }
  }

  /** Whether halves of closed channels are left. */
  get lingers(): boolean {
    return this.lingering.size > 0;
  }

  /** Frees the halves of closed channels that the other side has closed, too. */
  sweep(): void {
    for (const half of this.lingering) {
      if (!this.dead && half.peerHalf[Half.ended] === 0) continue;
      this.lingering.delete(half);
      if (!half.buffer.freed) half.buffer.free();
    }
  }

  /** Unmaps the other's memory: nothing of it is held here any more. */
  unmap(): void {
    if (this.wire.memory !== null) return; // the next life of that domain has the same
    for (const segment of this.segments.values()) segment.close();
    this.segments.clear();
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
   * ends: it may still be reading.
   */
  kicked(): void {
    this.transport.receive();
    if (this.error === null) this.end(this.goneError());
  }

  /** Ends the link: what the other side did was wrong, or it is gone. */
  end(error: PenstockError): void {
    if (this.error !== null) return;
    // What the other side sent before its end still counts.
    this.error = error;
    for (const channel of this.channels) {
      channel.detach();
      channel.fail(error);
    }
    for (const { wake, buffer, timer, reject } of this.openings.values()) {
      clearTimeout(timer);
      wake.close();
      if (!buffer.freed) buffer.free();
      reject(error);
    }
    this.openings.clear();
    this.transport.close();
    this.home.onOver(this, error);
    if (this.dead) this.buried();
  }

  private died(): void {
    const first = !this.dead;
    this.dead = true;
    // Messages that were sent before the death: channels may stand in them.
    if (this.error === null) this.transport.receive();
    if (this.error === null) this.end(this.goneError());
    else if (first) this.buried();
  }

  /** After the link is over and its process dead or gone. */
  private buried(): void {
    this.sweep();
    if (!this.loanHalf.buffer.freed) this.loanHalf.buffer.free();
    this.home.onDead(this);
  }

  private goneError(): PenstockError {
    return new PenstockError('PEER_GONE', `domain ${this.peer.name} is gone`, {
      hint: 'start it again; who waits for it can connect once it is back',
    });
  }

  private handle(message: Record<string, unknown>, fds: number[]): void {
    try {
      switch (message['type']) {
        case 'segment':
          this.admit(message, fds);
          break;
        case 'hello':
          this.hello(message);
          break;
        case 'open':
          this.opened(message, fds);
          break;
        case 'accept':
          this.accepted(message);
          break;
        case 'refuse':
          this.refused(message);
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
        `domain ${this.peer.name} speaks version ${String(message['version'])}, this one ${VERSION}`,
        { hint: 'run the same release in all domains of a hub' },
      );
    }
    const peer = readPlace(message, this.peer.slot);
    this.loans.open(openChannel({ own: this.loanHalf.place, peer }, NO_WAKE, () => {}));
    this.ready = true;
    this.home.onReady(this);
  }

  private opened(message: Record<string, unknown>, fds: number[]): void {
    const id = u32(message, 'id');
    const port = text(message, 'port', 64);
    const meta = text(message, 'meta', META_MAX);
    const theirs = readPlace(message, this.peer.slot);
    if (fds.length !== this.wire.wakeFds || !this.ready) {
      throw misbehaved('asked for a channel in a wrong way');
    }
    const wake = this.wire.adopt(fds);
    let answered = false;
    const refuse = (code: string, why: string, hint = ''): void => {
      if (answered) throw new Error('a channel is accepted or refused once');
      answered = true;
      wake.close();
      this.transport.send({ type: 'refuse', id, code, message: why, hint });
    };
    if (this.channels.size >= CHANNELS_MAX) {
      refuse('TOO_MANY_CHANNELS', `there are ${CHANNELS_MAX} channels already`, 'close some');
      return;
    }
    const accept = (answer = ''): LinkChannel => {
      if (answered) throw new Error('a channel is accepted or refused once');
      answered = true;
      const { place, buffer } = makeHalf(this.home.memory, theirs.size);
      try {
        const channel = this.adopt(place, buffer, theirs, wake, answer);
        this.transport.send({ type: 'accept', id, meta: answer, ...place });
        return channel;
      } catch (error) {
        wake.close();
        buffer.free();
        throw error;
      }
    };
    const { peer } = this;
    this.home.onIncoming(this, { peer, port, size: theirs.size, meta, accept, refuse });
  }

  private accepted(message: Record<string, unknown>): void {
    const opening = this.takeOpening(message);
    try {
      const theirs = readPlace(message, this.peer.slot);
      const meta = text(message, 'meta', META_MAX);
      opening.resolve(this.adopt(opening.place, opening.buffer, theirs, opening.wake, meta));
    } catch (error) {
      opening.wake.close();
      opening.buffer.free();
      opening.reject(error as PenstockError);
      throw error;
    }
  }

  private refused(message: Record<string, unknown>): void {
    const { wake, buffer, reject } = this.takeOpening(message);
    wake.close();
    buffer.free();
    const code = text(message, 'code', 64);
    const why = text(message, 'message', 1024);
    const hint = text(message, 'hint', 1024);
    reject(new PenstockError(/^[A-Z_]+$/.test(code) ? code : 'REFUSED', why, { hint }));
  }

  private audited(message: Record<string, unknown>): void {
    const via = integer(message, 'via', 1, 255);
    const holds = message['holds'];
    if (!Array.isArray(holds) || holds.length > 1000 || holds.length % 2 !== 0) {
      throw misbehaved('asked for loans in a wrong way');
    }
    this.home.onAudit(this, via, holds as number[]);
  }

  private takeOpening(message: Record<string, unknown>): Opening {
    const id = u32(message, 'id');
    const opening = this.openings.get(id);
    if (opening === undefined) throw misbehaved('answered what was not asked');
    this.openings.delete(id);
    clearTimeout(opening.timer);
    return opening;
  }

  private adopt(
    own: HalfPlace,
    buffer: DmaBuffer,
    theirs: HalfPlace,
    wake: Wake,
    meta: string,
  ): LinkChannel {
    if (!this.settle(theirs.address, 1)) throw misbehaved('told of a half in no memory of its own');
    const records = openChannel({ own, peer: theirs }, wake, () => {
      this.channels.delete(records);
      this.lingering.add({ buffer, peerHalf: records.peerHeader });
      this.sweep();
    });
    this.channels.add(records);
    return { records, meta, own, theirs, wakeFd: wake.fd };
  }
}
