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
import { Loan, type LoanHome, type LoanWords } from './loan.js';
import { slotOf } from './half.js';
import { Strangers } from './loan-strangers.js';
import { misbehaved } from './transport.js';

/** Records taken from one ring in one pass: a peer that floods must not keep its owner. */
const PASS_MAX = 1024;
/** Loans given out between two looks at what came back: far fewer than a loan ring has records. */
const SERVICE_EVERY = 128;
/** Questions of one owner that wait: an honest one asks once per death. */
const AUDITS_MAX = 4096;
/** Buffers start at multiples of this many bytes. */
const ALIGN_MASK = 511;

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
  readonly generation: number;
  readonly memory: Memory;
  readonly links: ReadonlyMap<number, Link>;
  ownSegmentAt(address: number): Segment | undefined;
  /** Whether this life of a slot was here, and is over. False too when it may still come. */
  isGone(slot: number, generation: number): boolean;
  /** Takes all messages that have come from a domain. */
  takeAll(slot: number): void;
  /** Whether somebody here still uses a domain's memory, beside who has loans of it. */
  usesMemoryOf(slot: number): boolean;
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
  private readonly strangers: Strangers;
  private sinceService = 0;

  constructor(home: DeskHome) {
    this.home = home;
    this.ledger = new Ledger((lo, hi) => home.memory.freeAddress((hi & 0xfff) * 2 ** 32 + lo));
    this.ledger.now = performance.now();
    this.strangers = new Strangers(home, this.ledger);
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

  /** Takes what came back, if it was not done for long or `to` has as much as it may. */
  beforeLending(to: number, most: number): void {
    if (++this.sinceService >= SERVICE_EVERY || this.ledger.holdsOf(to) >= most) this.service();
  }

  /** Enters a hold of `to` on an own buffer; the handle is surrendered. Returns its upper word. */
  lend(buffer: DmaBuffer, to: number): number {
    const hi = buffer.surrender();
    this.ledger.add(buffer.address >>> 0, hi, buffer.bytes, to, this.home.slot);
    this.home.wantService();
    return hi;
  }

  /**
   * The loan that a message of `from` tells of, or null when its memory is gone with its owner. The
   * memory may still be about to come: `stateOf` says.
   */
  receive(from: Link, words: LoanWords): Loan | null {
    const { lo, hi, bytes } = words;
    const address = (hi & 0xfff) * 2 ** 32 + lo;
    const owner = slotOf(address);
    if ((lo & ALIGN_MASK) !== 0 || bytes < 1) {
      throw misbehaved('sent a buffer that begins where none does');
    }
    if (owner === this.home.slot) return this.receiveOwn(from, words);
    const loan = new Loan(this, words, from.peer.slot);
    const state = this.stateOf(loan);
    if (state === 'lost') return null;
    const link = this.ownerOf(loan);
    if (state === 'coming' && link === from) {
      throw misbehaved('sent a buffer that lies in no shared memory');
    }
    this.keep(loan);
    return loan;
  }

  /** Whether a loan's memory is here, may still come, or never will. */
  stateOf(loan: Loan): 'here' | 'coming' | 'lost' {
    const { owner, ownerGeneration } = loan;
    if (owner === this.home.slot) return 'here';
    const link = this.ownerOf(loan);
    if (link === undefined) return this.home.isGone(owner, ownerGeneration) ? 'lost' : 'coming';
    if (link.settle(loan.address, loan.bytes)) return 'here';
    return link.error === null ? 'coming' : 'lost';
  }

  giveBack(loan: Loan): void {
    this.forget(loan);
    const { owner, lo, hi, via } = loan;
    if (owner === this.home.slot) {
      this.ledger.release(lo, hi, owner, via);
      return;
    }
    const link = this.ownerOf(loan);
    if (link === undefined && !this.home.isGone(owner, loan.ownerGeneration)) {
      this.strangers.giveBack(loan);
      this.home.wantService();
      return;
    }
    if (link !== undefined && link.error === null) {
      link.loans.release(lo, hi, via);
      if (link.loans.waiting > 0) this.home.wantService();
      return;
    }
    this.unmapFormer(owner);
  }

  /**
   * Hands a loan's hold over to `to`. False: try again later. The message is to be sent next.
   * Throws what the link with a living owner is over by: nobody could tell it.
   */
  pass(loan: Loan, to: Link): boolean {
    const { slot } = this.home;
    const { lo, hi, via } = loan;
    const { peer } = to;
    if (loan.owner === slot) {
      if (!this.ledger.transfer(lo, hi, slot, via, peer.slot)) {
        throw new Error('a loan of own memory is not in the ledger');
      }
      this.home.wantService();
    } else {
      const owner = this.home.links.get(loan.owner);
      // A dead owner keeps no book. One who gets its own buffer back holds it by our word then.
      if (owner !== undefined && owner.peer.generation === loan.ownerGeneration) {
        if (owner.error !== null) throw owner.error;
        if (!owner.loans.transfer(lo, hi, via, peer.slot, peer.generation)) return false;
      }
    }
    this.forget(loan);
    loan.close();
    this.unmapFormer(loan.owner);
    return true;
  }

  segmentOf(loan: Loan): Segment | undefined {
    if (loan.owner === this.home.slot) return this.home.ownSegmentAt(loan.address);
    return this.ownerOf(loan)?.segmentAt(loan.address);
  }

  /** The mapped segment over an address, of this domain or another. */
  segmentAt(address: number): Segment | undefined {
    const owner = slotOf(address);
    if (owner === this.home.slot) return this.home.ownSegmentAt(address);
    return (this.home.links.get(owner) ?? this.former.get(owner))?.segmentAt(address);
  }

  /** Whether something is out, or waits to be told. */
  get busy(): boolean {
    if (this.ledger.holds > 0 || this.waitingAudits.length > 0) return true;
    if (!this.strangers.isEmpty) return true;
    for (const { loans } of this.home.links.values()) if (loans.waiting > 0) return true;
    return false;
  }

  /** Takes what came on all loan rings; true when something did. */
  service(): boolean {
    const { ledger } = this;
    this.sinceService = 0;
    ledger.now = performance.now();
    const strays: Stray[] = [];
    let any = false;
    for (const link of this.home.links.values()) {
      link.loans.flush();
      if (this.take(link, strays)) any = true;
      // Its word of how far it has read ours cannot be.
      if (link.error === null && link.loans.error !== null) link.end(link.loans.error);
    }
    if (strays.length > 0) this.settleStrays(strays);
    this.answerAudits();
    this.strangers.look();
    return any;
  }

  /** A link is ready: its domain is asked for what it has by the word of those who are gone. */
  greeted(link: Link): void {
    const { slot } = link.peer;
    const asked = new Map<number, number[]>();
    for (const { lo, hi, via } of this.ledger.heldBy(slot)) {
      if (via === this.home.slot || this.home.links.has(via)) continue;
      asked.set(via, [...(asked.get(via) ?? []), lo, hi]);
    }
    for (const [via, holds] of asked) link.audit(via, holds);
  }

  /** An owner asks what is held here by the word of `via`, a domain that it says is dead. */
  askedAudit(link: Link, via: number, holds: readonly number[]): void {
    const waits = this.waitingAudits.filter((audit) => audit.link === link).length;
    if (waits >= AUDITS_MAX) throw misbehaved('asks for loans without end');
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
  private receiveOwn(from: Link, words: LoanWords): Loan | null {
    const { slot, generation } = this.home;
    const { lo, hi, bytes } = words;
    if (words.ownerGeneration !== generation) return null; // of an earlier life of this slot
    const via = from.peer.slot;
    const held = this.countHeld(slot, lo, hi, via);
    if (this.ledger.countOf(lo, hi, slot, via) <= held) this.service();
    if (this.ledger.countOf(lo, hi, slot, via) <= held) {
      throw misbehaved('sent a buffer of ours that it does not hold');
    }
    if (bytes > this.ledger.bytesOf(lo, hi, slot, via)) {
      throw misbehaved('sent a buffer of ours with more bytes than it has');
    }
    const loan = new Loan(this, words, via);
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
    const known = to === this.home.slot || this.home.links.get(to)?.peer.generation === generation;
    if (known) return this.ledger.transfer(lo, hi, slot, via, to);
    // Nobody there who could hold it: as if it were given back.
    if (to < 1 || to > 255 || this.home.isGone(to, generation)) {
      return this.ledger.release(lo, hi, slot, via);
    }
    // Others were introduced to it before us. It may read the buffer as soon as it is here, too.
    if (!this.ledger.transfer(lo, hi, slot, via, to)) return false;
    this.strangers.expect(to, generation);
    return true;
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
      // Its own word against our book; had it the buffer by another's word, that one may have lied.
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

  /** The link, over or not, with the life of the owner that a loan is of. */
  private ownerOf(loan: Loan): Link | undefined {
    const link = this.home.links.get(loan.owner);
    if (link?.peer.generation === loan.ownerGeneration) return link;
    const former = this.former.get(loan.owner);
    return former?.peer.generation === loan.ownerGeneration ? former : undefined;
  }

  private keep(loan: Loan): void {
    let loans = this.held.get(loan.owner);
    if (loans === undefined) this.held.set(loan.owner, (loans = new Set()));
    loans.add(loan);
  }

  private forget(loan: Loan): void {
    this.held.get(loan.owner)?.delete(loan);
  }

  /** Unmaps the memory of a domain whose link is over, once nothing of it is used here. */
  unmapFormer(slot: number): void {
    const link = this.former.get(slot);
    if (link === undefined || this.heldOf(slot) > 0 || this.home.usesMemoryOf(slot)) return;
    this.former.delete(slot);
    link.unmap();
  }
}
