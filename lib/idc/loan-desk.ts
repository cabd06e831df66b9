// LoanDesk: the loans of one domain, both ways. What it lends stands in the ledger; what it has
// from others are Loan objects, known here so that an owner who asks gets an answer.
//
// Invariants
// 1. A hold is in the ledger before the message that gives the buffer away is sent.
// 2. A transfer is on the owner's ring before the message that passes the buffer on is sent, so an
//    owner who sees a release that it cannot place finds the transfer on a ring by looking once.
// 3. When a domain dies, what it had published is taken first, its holds after that. What it had
//    passed on may not have arrived: each domain that should have it is asked (audit), after it has
//    taken all that the dead one sent.
// 4. A release or transfer that is in no book changes nothing. One that only its sender can have
//    made up ends that link.

import { PenstockError } from '../errors.js';
import type { DmaBuffer, Memory, Segment } from '../memory/index.js';
import { IdcOp, LoanRec, Rec } from './layout.js';
import { Ledger } from './ledger.js';
import type { Link } from './link.js';
import { Loan, type LoanHome } from './loan.js';
import { isReadable, slotOf } from './half.js';
import { misbehaved } from './transport.js';

/** Records taken from one ring in one pass: a peer that floods must not keep its owner. */
const PASS_MAX = 1024;

interface Stray {
  readonly link: Link;
  readonly op: number;
  readonly lo: number;
  readonly hi: number;
  readonly via: number;
  readonly to: number;
  readonly generation: number;
}

interface AuditAsked {
  readonly link: Link;
  readonly via: number;
  readonly holds: readonly number[];
}

/** What the desk asks of its domain. */
export interface DeskHome {
  readonly slot: number;
  readonly memory: Memory;
  readonly links: ReadonlyMap<number, Link>;
  ownSegmentAt(address: number): Segment | undefined;
  /** Takes all messages that have come from a domain. */
  takeAll(slot: number): void;
  /** Something is out, or waits: `service` is to be called again before long. */
  wantService(): void;
}

export class LoanDesk implements LoanHome {
  readonly ledger: Ledger;
  /** Releases and transfers that stood in no book. */
  strays = 0;
  private readonly home: DeskHome;
  private readonly held = new Map<number, Set<Loan>>();
  /** Links that are over, while loans of their memory are out. */
  private readonly former = new Map<number, Link>();
  private waitingAudits: AuditAsked[] = [];

  constructor(home: DeskHome) {
    this.home = home;
    this.ledger = new Ledger((lo, hi) => home.memory.freeAddress((hi & 0xfff) * 2 ** 32 + lo));
    this.ledger.now = performance.now();
  }

  /** Loans that this domain has of an owner's memory. */
  heldOf(owner: number): number {
    return this.held.get(owner)?.size ?? 0;
  }

  /** Loans that this domain has. */
  get heldTotal(): number {
    let sum = 0;
    for (const loans of this.held.values()) sum += loans.size;
    return sum;
  }

  /** Throws SEGMENT_PRIVATE for a buffer that no other domain can map. */
  assertShared(buffer: DmaBuffer): void {
    if (buffer.freed || this.home.ownSegmentAt(buffer.address) !== undefined) return;
    throw new PenstockError('SEGMENT_PRIVATE', 'a buffer of private memory cannot be sent', {
      hint: "allocate it with the domain's own memory: domain.alloc(bytes)",
    });
  }

  /** Enters a hold of `to` on an own buffer; the handle is surrendered. Returns its upper word. */
  lend(buffer: DmaBuffer, to: number): number {
    const hi = buffer.surrender();
    this.ledger.add(buffer.address >>> 0, hi, buffer.bytes, to, this.home.slot);
    this.home.wantService();
    return hi;
  }

  /** The loan that a message of `from` tells of, or null when the owner's memory is gone. */
  receive(from: Link, lo: number, hi: number, bytes: number): Loan | null {
    const address = (hi & 0xfff) * 2 ** 32 + lo;
    const owner = slotOf(address);
    const { slot } = this.home;
    if (owner === slot) return this.receiveOwn(from, lo, hi, bytes);
    const link = this.home.links.get(owner) ?? this.former.get(owner);
    if (
      link === undefined ||
      (link !== from && link.error !== null && !isReadable(address, bytes))
    ) {
      return null;
    }
    const readable = link.error === null ? link.settle(address, bytes) : isReadable(address, bytes);
    if (!readable) throw misbehaved('sent a buffer that lies in no shared memory');
    const via = from.peer.slot;
    const loan = new Loan(this, lo, hi, bytes, owner, via);
    this.keep(loan);
    return loan;
  }

  giveBack(loan: Loan): void {
    this.forget(loan);
    if (loan.owner === this.home.slot) {
      this.ledger.release(loan.lo, loan.hi, loan.owner, loan.via);
      return;
    }
    const link = this.home.links.get(loan.owner);
    if (link !== undefined && link.error === null) {
      link.loans.release(loan.lo, loan.hi, loan.via);
      if (link.loans.waiting > 0) this.home.wantService();
      return;
    }
    this.unmapFormer(loan.owner);
  }

  /** Hands a loan's hold over to `to`. False: try again later. The message is to be sent next. */
  pass(loan: Loan, to: Link): boolean {
    const { slot } = this.home;
    if (loan.owner === slot) {
      if (!this.ledger.transfer(loan.lo, loan.hi, slot, loan.via, to.peer.slot)) {
        throw new Error('a loan of own memory is not in the ledger');
      }
    } else if (to.peer.slot === loan.owner && to.error === null) {
      // Back to its owner, who holds it by our word then.
      if (!to.loans.transfer(loan.lo, loan.hi, loan.via, loan.owner, to.peer.generation)) {
        return false;
      }
    } else {
      const owner = this.home.links.get(loan.owner);
      // A dead owner keeps no book.
      if (owner !== undefined && owner.error === null) {
        const { peer } = to;
        if (!owner.loans.transfer(loan.lo, loan.hi, loan.via, peer.slot, peer.generation)) {
          return false;
        }
      }
    }
    this.forget(loan);
    loan.close();
    if (this.home.links.get(loan.owner)?.error !== null) this.unmapFormer(loan.owner);
    return true;
  }

  segmentAt(address: number): Segment | undefined {
    const owner = slotOf(address);
    if (owner === this.home.slot) return this.home.ownSegmentAt(address);
    return (this.home.links.get(owner) ?? this.former.get(owner))?.segmentAt(address);
  }

  /** Whether something is out, or waits to be told. */
  get busy(): boolean {
    if (this.ledger.holds > 0 || this.waitingAudits.length > 0) return true;
    for (const { loans } of this.home.links.values()) if (loans.waiting > 0) return true;
    return false;
  }

  /** Takes what came on all loan rings; true when something did. */
  service(): boolean {
    const { ledger } = this;
    ledger.now = performance.now();
    const strays: Stray[] = [];
    let any = false;
    for (const link of this.home.links.values()) {
      link.loans.flush();
      if (this.take(link, strays)) any = true;
    }
    if (strays.length > 0) this.settleStrays(strays);
    this.answerAudits();
    return any;
  }

  /** An owner asks what is held here by the word of `via`, a domain that it says is dead. */
  askedAudit(link: Link, via: number, holds: readonly number[]): void {
    this.waitingAudits.push({ link, via, holds });
    this.answerAudits();
  }

  /**
   * A domain is gone: it reads no memory any more, and what it published before is to be taken.
   * Its holds end, and who should have got buffers by its word is asked.
   */
  gone(link: Link): void {
    const { slot } = link.peer;
    link.loans.detach();
    const strays: Stray[] = [];
    for (const other of this.home.links.values()) this.take(other, strays);
    this.take(link, strays);
    this.settleStrays(strays);
    this.ledger.dropConsumer(slot);
    const asked = new Map<number, number[]>();
    for (const { lo, hi, consumer } of this.ledger.heldVia(slot)) {
      const list = asked.get(consumer) ?? [];
      list.push(lo, hi);
      asked.set(consumer, list);
    }
    for (const [consumer, holds] of asked) {
      if (consumer === this.home.slot) this.auditSelf(slot, holds);
      else this.home.links.get(consumer)?.audit(slot, holds);
    }
    this.answerAudits();
  }

  /** A link is over: its memory stays mapped while loans of it are out. */
  keepFormer(link: Link): void {
    this.former.set(link.peer.slot, link);
    this.unmapFormer(link.peer.slot);
  }

  /** Owners whose memory is still mapped here though their link is over. */
  hasFormer(slot: number): boolean {
    return this.former.has(slot);
  }

  /** How many loans of a kind are here. */
  private countHeld(owner: number, lo: number, hi: number, via: number): number {
    let count = 0;
    for (const loan of this.held.get(owner) ?? []) {
      if (loan.lo === lo && loan.hi === hi && loan.via === via) count++;
    }
    return count;
  }

  /** A buffer of our own comes back as a message: its hold must be in the book by now. */
  private receiveOwn(from: Link, lo: number, hi: number, bytes: number): Loan {
    const { slot } = this.home;
    const via = from.peer.slot;
    const held = this.countHeld(slot, lo, hi, via);
    if (this.ledger.countOf(lo, hi, slot, via) <= held) this.service();
    if (this.ledger.countOf(lo, hi, slot, via) <= held) {
      throw misbehaved('sent a buffer of ours that it does not hold');
    }
    if (bytes > this.ledger.bytesOf(lo, hi, slot, via)) {
      throw misbehaved('sent a buffer of ours with more bytes than it has');
    }
    const loan = new Loan(this, lo, hi, bytes, slot, via);
    this.keep(loan);
    return loan;
  }

  private take(link: Link, strays: Stray[]): boolean {
    const count = link.loans.poll(PASS_MAX);
    if (count === 0) return false;
    const { records } = link.loans;
    for (let i = 0; i < count; i++) {
      const at = i << Rec.shift;
      const stray: Stray = {
        link,
        op: records[at]!,
        via: records[at + LoanRec.via]!,
        to: records[at + LoanRec.to]!,
        generation: records[at + LoanRec.toGeneration]!,
        lo: records[at + LoanRec.addressLo]!,
        hi: records[at + LoanRec.addressHi]!,
      };
      if (!this.apply(stray)) strays.push(stray);
    }
    return true;
  }

  /** False: it names a hold that is not in the book (yet). */
  private apply({ link, op, lo, hi, via, to, generation }: Stray): boolean {
    const { slot } = link.peer;
    if (via > 255) return false;
    if (op === IdcOp.RELEASE) return this.ledger.release(lo, hi, slot, via);
    if (op === IdcOp.AUDITED) {
      this.ledger.limit({ lo, hi, consumer: slot, via, count: 0 }, to);
      return true;
    }
    if (op !== IdcOp.TRANSFER) {
      link.end(misbehaved('wrote a record of no known kind on its loan ring'));
      return true;
    }
    if (to === this.home.slot) return this.ledger.transfer(lo, hi, slot, via, to);
    const next = this.home.links.get(to);
    // Nobody there who could hold it: as if it were given back.
    if (next === undefined || next.error !== null || next.peer.generation !== generation) {
      return this.ledger.release(lo, hi, slot, via);
    }
    return this.ledger.transfer(lo, hi, slot, via, to);
  }

  /** Whatever they wait for is on a ring by now: one look at all of them is enough. */
  private settleStrays(first: readonly Stray[]): void {
    let strays = [...first];
    for (const link of this.home.links.values()) this.take(link, strays);
    for (;;) {
      const left = strays.filter((stray) => !this.apply(stray));
      if (left.length === strays.length) break;
      strays = left;
    }
    for (const { link, via } of strays) {
      this.strays++;
      // Its own word against our book; where it had the buffer by another's, that one may have lied.
      if (via === this.home.slot && link.error === null) {
        link.end(misbehaved('gave a buffer back that it does not hold'));
      }
    }
  }

  /** Answers what can be answered by now. */
  answerAudits(): void {
    if (this.waitingAudits.length === 0) return;
    const waiting: AuditAsked[] = [];
    for (const audit of this.waitingAudits) {
      const { link, via, holds } = audit;
      if (link.error !== null) continue;
      // It may be the owner who is wrong: only when the domain is gone here too, all has come.
      if (this.home.links.has(via)) {
        waiting.push(audit);
        continue;
      }
      for (let at = 0; at < holds.length; at += 2) {
        const [lo, hi] = [holds[at]! >>> 0, holds[at + 1]! >>> 0];
        const count = this.countHeld(link.peer.slot, lo, hi, via);
        link.loans.audited(lo, hi, via, count);
      }
    }
    this.waitingAudits = waiting;
  }

  private auditSelf(via: number, holds: readonly number[]): void {
    const { slot } = this.home;
    this.home.takeAll(via);
    for (let at = 0; at < holds.length; at += 2) {
      const [lo, hi] = [holds[at]!, holds[at + 1]!];
      const count = this.countHeld(slot, lo, hi, via);
      this.ledger.limit({ lo, hi, consumer: slot, via, count: 0 }, count);
    }
  }

  private keep(loan: Loan): void {
    let loans = this.held.get(loan.owner);
    if (loans === undefined) this.held.set(loan.owner, (loans = new Set()));
    loans.add(loan);
  }

  private forget(loan: Loan): void {
    this.held.get(loan.owner)?.delete(loan);
  }

  private unmapFormer(slot: number): void {
    const link = this.former.get(slot);
    if (link === undefined || this.heldOf(slot) > 0) return;
    this.former.delete(slot);
    link.unmap();
  }
}
