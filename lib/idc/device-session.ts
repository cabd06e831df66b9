// DeviceSession: one queue of one client, as the server sees it: a channel on which requests come
// and completions go.
//
// Invariants
// 1. Everything that came is hostile: records are private copies (rq), an address is used only when
//    all of it lies in memory that was admitted from another domain, never in the server's own.
// 2. No request is taken without room for its completion: a client that does not read its
//    completions stops itself and nobody else.
// 3. When a session is over, its buffers go once nothing of it is in flight at the device, and the
//    client has ended its side: until then it may read them.
// 4. A record that no honest client writes ends the session.

import { Access, Flag, Op, Req, RequestCheck, Status } from '../hpdi/index.js';
import type { DeviceClient } from './device-client.js';
import { Kind, type DeviceOps } from './device-ops.js';
import { Back, Done, Half, IdcOp, Rec } from './layout.js';
import type { RecordChannel } from './record-channel.js';
import { misbehaved } from './transport.js';

/** What the device does, as far as clients may ask for it. */
export interface ServedLimits {
  readonly blockSize: number;
  readonly maxBlocks: number;
  /** Bit (1 << Op) per operation. */
  readonly operations: number;
  readonly readOnly: boolean;
  /** The server's own domain. */
  readonly slot: number;
}

/** What a record was, beside a status: not taken yet, or no request at all. */
const DEFERRED = -1;
const NO_REQUEST = -2;
const CHANGING = (1 << Op.WRITE) | (1 << Op.DISCARD) | (1 << Op.WRITE_ZEROES);
const WITHOUT_FLAGS = ~(0xff | Flag.FUA);
/**
 * Bytes after which a session's turn is over: the device may move them while it takes them, and
 * nobody hears of what is done before all of a round was taken.
 */
const QUANTUM_BYTES = 256 * 1024;
/** Rounds without a request after which a look at the channel's end is due. */
const LOOK_ROUNDS = 63;

export class DeviceSession {
  readonly id: number;
  readonly client: DeviceClient;
  readonly channel: RecordChannel;
  /** Operations at the device. */
  inFlight = 0;
  /** Rounds in which it had nothing to do. */
  idle = 0;
  /** Completions were written and not sent yet. */
  dirty = false;
  /** Over: nothing more is taken. */
  over = false;
  /** Watch of its descriptor. */
  watch = 0;
  private readonly ops: DeviceOps;
  private readonly limits: ServedLimits;
  private readonly check: RequestCheck;
  private readonly rq: Uint32Array;
  private readonly peer: Uint32Array;
  /** Records of the last poll: the next one, and how many there are. */
  private at = 0;
  private count = 0;
  /** By index of a completion, the buffer that the client has until it says `done`; or -1. */
  private readonly reads: Int32Array;
  private readsOut = 0;
  /** Completions that the client has done with. */
  private done = 0;
  private bytesTaken = 0;
  private trusted = true;

  constructor(
    id: number,
    client: DeviceClient,
    channel: RecordChannel,
    ops: DeviceOps,
    limits: ServedLimits,
  ) {
    this.id = id;
    this.client = client;
    this.channel = channel;
    this.ops = ops;
    this.limits = limits;
    this.check = new RequestCheck({
      blocks: 0,
      blockSize: limits.blockSize,
      maxTransferBlocks: limits.maxBlocks,
    });
    this.rq = channel.rq;
    this.peer = channel.peerHeader;
    this.reads = new Int32Array(channel.size);
  }

  // hot:begin

  /** Takes up to `quantum` requests; returns how many records it did something with. */
  serve(quantum: number): number {
    const { channel, ops } = this;
    let most = quantum < ops.freeCount ? quantum : ops.freeCount;
    const share = this.client.share - this.client.inFlight;
    if (share < most) most = share;
    let room = this.room();
    if (this.readsOut > 0 || room < most) {
      this.reclaim();
      room = this.room();
    }
    if (room < most) most = room;
    if (most <= 0 || this.over) return 0;
    if (this.at === this.count) {
      this.at = 0;
      this.count = channel.poll(most);
      if (this.count === 0) {
        if ((++this.idle & LOOK_ROUNDS) === 0) this.look();
        return 0;
      }
    }
    this.idle = 0;
    return this.take(most);
  }

  /** Hands an operation's completion to the client. */
  complete(tag: number, status: number, lo: number, hi: number, buffer: number): void {
    const { channel } = this;
    const index = channel.tail;
    if (channel.reserve(1) === 0) return; // the client is gone, or said what cannot be
    const { sq } = channel;
    const at = (index & channel.mask) << Rec.shift;
    sq[at] = IdcOp.COMPLETION;
    sq[at + Done.tag] = tag;
    sq[at + Done.status] = status;
    sq[at + Done.resultLo] = lo;
    sq[at + Done.resultHi] = hi;
    sq[at + Done.buffer] = buffer;
    this.reads[index & channel.mask] = -1;
    if (!this.dirty) this.client.dirtied(this);
  }

  /** A READ's buffer goes with the completion that was written last. */
  lendUntilDone(buffer: number): void {
    const { channel } = this;
    this.reads[(channel.tail - 1) & channel.mask] = buffer;
    this.readsOut++;
  }

  /** Requests that may be taken, so that their completions have room. */
  private room(): number {
    return this.channel.size - ((this.channel.tail - this.done) | 0) - this.inFlight;
  }

  /** Takes back the buffers that the client has done with. */
  private reclaim(): void {
    const { channel, reads } = this;
    const said = this.peer[Half.done]! | 0;
    if (((said - this.done) | 0) < 0 || ((channel.tail - said) | 0) < 0) {
      this.misbehaved();
      return;
    }
    if (this.readsOut === 0) {
      this.done = said;
      return;
    }
    const { buffers } = this.client;
    const { mask } = channel;
    for (let index = this.done; index !== said; index = (index + 1) | 0) {
      const buffer = reads[index & mask]!;
      if (buffer < 0) continue;
      buffers.free(buffer);
      this.readsOut--;
    }
    this.done = said;
  }

  private take(most: number): number {
    const { rq } = this;
    const first = this.at;
    let left = most;
    this.bytesTaken = 0;
    while (left > 0 && this.at < this.count && this.bytesTaken < QUANTUM_BYTES) {
      const at = this.at << Rec.shift;
      const status = this.accept(rq, at);
      if (status === DEFERRED) {
        this.client.deferred();
        break;
      }
      this.at++;
      if (status === NO_REQUEST) continue;
      left--;
      if (status !== Status.OK) this.refuse(rq[at + Req.tag]!, status);
    }
    const taken = this.at - first;
    this.client.took(most - left, this.bytesTaken);
    return taken;
  }

  /** Begins the request at word `at`; gives its status where it cannot be, or what it was. */
  private accept(rq: Uint32Array, at: number): number {
    const { limits, ops } = this;
    const word = rq[at]!;
    const op = word & 0xff;
    const bit = op < 32 ? 1 << op : 0;
    if ((limits.operations & bit) === 0) return this.unknown(rq, at, op, bit);
    if ((word & WITHOUT_FLAGS) !== 0) return Status.BAD_REQUEST;
    let lo = 0;
    let hi = 0;
    let asked = word;
    let domain = 0;
    let buffer = -1;
    let kind: Kind = Kind.none;
    let bytes = 0;
    if (op !== Op.FLUSH) {
      const blocks = rq[at + Req.blocks]!;
      if (blocks === 0) return Status.BAD_REQUEST;
      if (blocks > limits.maxBlocks) return Status.TOO_LARGE;
      bytes = blocks * limits.blockSize;
      if (op === Op.WRITE) {
        lo = rq[at + Req.addressLo]!;
        hi = rq[at + Req.addressHi]!;
        domain = hi >>> 4;
        if (!this.admitted(lo, hi, bytes)) return Status.BAD_ADDRESS;
      } else if (op === Op.READ || op === Op.READ_LOAN) {
        kind = op === Op.READ ? Kind.read : Kind.loan;
        asked = (word & Flag.FUA) | Op.READ;
        const { buffers } = this.client;
        buffer = buffers.take(bytes, this.id);
        if (buffer < 0) return this.withoutBuffer(op);
        lo = buffers.lo[buffer]!;
        hi = buffers.hi[buffer]! & 0xfff;
      }
    }
    const slot = ops.begin(rq, at, asked, lo, hi);
    ops.sessions[slot] = this.id;
    ops.kinds[slot] = kind;
    ops.buffers[slot] = buffer;
    ops.bytes[slot] = bytes;
    if (domain !== 0) {
      ops.domains[slot] = domain;
      ops.memoryInUse[domain] = ops.memoryInUse[domain]! + 1;
    }
    this.inFlight++;
    this.client.inFlight++;
    if (kind !== Kind.none || op === Op.WRITE) this.bytesTaken += bytes;
    return Status.OK;
  }

  /** Whether [address, address + bytes) is memory of another domain that may be read here. */
  private admitted(lo: number, hi: number, bytes: number): boolean {
    // One domain's: its slot holds all of it. Segments end with their slot, but ranges need not.
    if (hi >>> 12 !== 0 || hi >>> 4 === this.limits.slot) return false;
    if ((hi & 15) * 4294967296 + lo + bytes > 68719476736) return false;
    if (this.check.memory(lo, hi, bytes, Access.read) === Status.OK) return true;
    return this.client.settle(lo, hi, bytes);
  }

  // hot:end

  /** Requests that came wait here. */
  get pending(): boolean {
    return this.at < this.count;
  }

  /** Lets go of what is left of a session that is over and has nothing in flight. */
  end(): void {
    const { channel, client } = this;
    // A client that is there may still copy what it was sent, and look at its loans: it ends the
    // channel when it does so no more. One that cannot be trusted has no right to that.
    if (this.trusted && mayRead(channel, client)) client.readers.add(channel);
    else client.buffers.freeOf(this.id);
    this.readsOut = 0;
    channel.close();
  }

  /** Ends the session: the client wrote what no honest one writes. */
  misbehaved(): void {
    this.trusted = false;
    if (this.channel.error === null) {
      this.channel.fail(misbehaved('wrote to a device what is no request'));
    }
    this.client.ended(this);
  }

  private unknown(rq: Uint32Array, at: number, op: number, bit: number): number {
    if (op === IdcOp.LOAN_BACK) {
      const lo = rq[at + Back.addressLo]!;
      const hi = rq[at + Back.addressHi]!;
      if (!this.client.buffers.release(rq[at + Back.buffer]!, lo, hi, this.id)) this.misbehaved();
      return NO_REQUEST;
    }
    if (op >= 32) {
      this.misbehaved();
      return NO_REQUEST;
    }
    return this.limits.readOnly && (CHANGING & bit) !== 0 ? Status.READ_ONLY : Status.UNSUPPORTED;
  }

  /** A READ waits where the client will be done with another; nobody knows that of a loan. */
  private withoutBuffer(op: number): number {
    const waits = op === Op.READ && (this.readsOut > 0 || this.client.inFlight > 0);
    return waits ? DEFERRED : Status.NO_MEMORY;
  }

  private refuse(tag: number, status: number): void {
    this.client.refused();
    this.complete(tag, status, 0, 0, 0);
  }

  /** A look at whether the channel is at its end. */
  look(): void {
    if (this.channel.over) this.client.ended(this);
  }
}

/** Whether whoever was at the other end of a channel that is over may still look at its buffers. */
export function mayRead(channel: RecordChannel, { link }: Pick<DeviceClient, 'link'>): boolean {
  return !link.dead && !channel.peerClosed;
}
