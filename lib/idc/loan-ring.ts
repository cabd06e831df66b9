// LoanRing: on which a domain gives another's buffers back, and passes them on.
//
// A ring of its own, so that the owner takes what comes on it whenever it likes, whatever its users
// do with the data channels. Releases wait in a backlog when the ring is full (its owner is stopped
// or slow); it is bounded by what this domain holds. A transfer never waits: it must be seen before
// the message that hands the buffer on, so a full ring is back-pressure for that message.

import type { PenstockError } from '../errors.js';
import { IdcOp, LoanRec, Rec } from './layout.js';
import type { RecordChannel } from './record-channel.js';

export class LoanRing {
  private channel: RecordChannel | null = null;
  /** Records in the order they came, words of each. */
  private backlog: number[] = [];

  open(channel: RecordChannel): void {
    this.channel = channel;
  }

  get isOpen(): boolean {
    return this.channel !== null;
  }

  /** Releases that the owner has not been told of yet, for one kind of hold. */
  release(lo: number, hi: number, via: number): void {
    this.push(IdcOp.RELEASE, lo, hi, via, 0, 0);
  }

  /** How many holds there are: an answer to an audit, in order with releases. */
  audited(lo: number, hi: number, via: number, count: number): void {
    this.push(IdcOp.AUDITED, lo, hi, via, count, 0);
  }

  /** The hold goes over to `to`. False: try again later. */
  transfer(lo: number, hi: number, via: number, to: number, generation: number): boolean {
    this.flush();
    if (this.backlog.length > 0) return false;
    if (!this.write(IdcOp.TRANSFER, lo, hi, via, to, generation)) return false;
    this.channel!.submit();
    return true;
  }

  /** Sends what waits, as far as there is room. */
  flush(): void {
    let done = 0;
    while (done < this.backlog.length) {
      const [op, lo, hi, via, to] = this.backlog.slice(done, done + 5) as [
        number,
        number,
        number,
        number,
        number,
      ];
      if (!this.write(op, lo, hi, via, to, 0)) break;
      done += 5;
    }
    if (done === 0) return;
    this.backlog.splice(0, done);
    this.channel!.submit();
  }

  /** Records from the other side: their number; they stand in `records`. */
  poll(max: number): number {
    return this.channel === null ? 0 : this.channel.poll(max);
  }

  get records(): Uint32Array {
    return this.channel!.rq;
  }

  /** Goes on with a copy of what the other side sent. */
  detach(): void {
    this.channel?.detach();
  }

  close(): void {
    this.channel?.close();
    this.channel = null;
    this.backlog = [];
  }

  /** Why the owner's side of it cannot be honest; null: it can. */
  get error(): PenstockError | null {
    return this.channel === null ? null : this.channel.error;
  }

  get waiting(): number {
    return this.backlog.length / 5;
  }

  private push(op: number, lo: number, hi: number, via: number, to: number, gen: number): void {
    if (this.backlog.length > 0) this.flush();
    if (this.backlog.length === 0 && this.write(op, lo, hi, via, to, gen)) {
      this.channel!.submit();
      return;
    }
    this.backlog.push(op, lo, hi, via, to);
  }

  private write(
    op: number,
    lo: number,
    hi: number,
    via: number,
    to: number,
    generation: number,
  ): boolean {
    const { channel } = this;
    if (channel === null) return false;
    const at = (channel.tail & channel.mask) << Rec.shift;
    if (channel.reserve(1) === 0) return false;
    const { sq } = channel;
    sq[at + LoanRec.op] = op;
    sq[at + LoanRec.via] = via;
    sq[at + LoanRec.to] = to;
    sq[at + LoanRec.toGeneration] = generation;
    sq[at + LoanRec.addressLo] = lo;
    sq[at + LoanRec.addressHi] = hi;
    return true;
  }
}
