// Engine: runs what is under way in a pool, one step after the other, whenever somebody calls
// `run`: a queue that is submitted to or polled, or the pump while nobody polls.
//
// The order of a round: what the device has answered; counts; plans, in the order of the sets; what
// has its data with the device is entered; the entry is written; sets whose entry is with the
// device complete; a checkpoint begins when one is due, or goes on.
//
// Invariants
// 1. Everything here is synchronous, and nothing is allocated: what cannot go on is looked at again
//    in the next round.
// 2. After a failure of metadata (`failed`) nothing is changed any more: writes complete with it,
//    and reads go on.

import { Op, Status } from '../hpdi/index.js';
import type { VolumeRecord } from './maps/catalogue.js';
import { Phase } from './durable/checkpoint.js';
import { Checkpoints } from './durable/checkpoints.js';
import { Cleaner } from './clean/cleaner.js';
import { Entering } from './maps/entering.js';
import { Io } from './durable/io.js';
import type { Llrrm, LlrrmEvents } from './llrrm/llrrm.js';
import { Miss, PageFailure } from './durable/pages.js';
import { SetPipeline } from './write/set-pipeline.js';
import { SETS } from './write/sets.js';
import type { Traffic } from './stats/traffic.js';
import { Reclaimer } from './maps/reclaimer.js';
import type { VolumeQueue } from './volume/volume-queue.js';
import type { Reach } from './reach.js';
import { breathe } from './waiting.js';
import type { EngineParts } from './engine-parts.js';

/** Part of the cache that may be dirty: writes wait beyond it. */
export const DIRTY_MOST = 0.6;
/** References that may wait for their pages before no more sets are entered. */
const UNSETTLED_MOST = 4096;
/** Buckets of the index that a round sweeps when its sampling rate has doubled. */
const SWEEP_BUCKETS = 4096;
/** Of what a read or flush is known by: the slot; the rest is the queue's number. */
export const SLOT_BITS = 15;
const TWO_32 = 4294967296;
const SLOT_MASK = 2 ** SLOT_BITS - 1;

export class Engine implements LlrrmEvents {
  readonly parts: EngineParts;
  readonly entering: Entering;
  readonly traffic: Traffic;
  readonly cleaner: Cleaner;
  private readonly reclaimer: Reclaimer;
  readonly checkpoints: Checkpoints;
  /** Sets that are being written. */
  readonly writing: SetPipeline;
  /** Queues by number; a queue has at most 2^15 slots. */
  readonly numbered: (VolumeQueue | null)[] = [];
  /** Why nothing can be changed any more; null: it can. */
  failed: string | null = null;
  /** A checkpoint was asked for. */
  wanted = false;
  /** Copies of volumes that the next checkpoint takes: until then nothing is entered. */
  readonly copies: { from: VolumeRecord; to: VolumeRecord; taken: boolean }[] = [];
  /** Low-latency memory, once it is `attached`. */
  llrrm: Llrrm | null = null;
  /** The pool is about to be closed: what goes on in the background stops. */
  closing = false;
  /** It takes no requests any more: they get DEVICE_GONE. */
  over = false;
  /** Nothing of it may be used: its memory and queues are given back. */
  closed = false;
  /** Who reads the last checkpoint: the next one begins as late as it can. */
  holds = 0;
  /** The checkpoint that was asked for and has not begun. */
  next: Promise<boolean> | null = null;
  rounds = 0;
  private running = false;
  private pumping = false;

  constructor(parts: EngineParts) {
    this.parts = parts;
    this.traffic = parts.traffic;
    this.entering = new Entering(parts);
    this.cleaner = new Cleaner(this);
    this.reclaimer = new Reclaimer(this);
    this.checkpoints = new Checkpoints(this);
    this.writing = new SetPipeline(this);
  }

  /** Memory that all devices of the pool reach. */
  get reach(): Reach {
    return this.llrrm?.reach ?? this.parts.io.reach;
  }

  attach(llrrm: Llrrm): void {
    this.llrrm = llrrm;
    this.parts.space.watcher = llrrm;
    this.parts.thn.llrrm = llrrm;
    this.parts.planner.llrrm = llrrm;
  }

  /** Sets, reads, or parts of a checkpoint are under way. */
  get busy(): boolean {
    const { io, sets, space, checkpoint } = this.parts;
    if (this.closed) return false;
    if (io.inFlight > 0 || sets.freeSets < SETS) return true;
    if (this.failed === null && space.unsettled > 0) return true;
    for (const queue of this.numbered) if (queue?.busy === true) return true;
    if (this.reclaims || this.cleaner.active || this.llrrm?.idle === false) return true;
    return (
      this.failed === null && (this.wanted || this.next !== null || checkpoint.phase !== Phase.idle)
    );
  }

  /** Whatever can be done now is done. */
  run(): void {
    if (this.running || this.closed) return;
    this.running = true;
    this.rounds++;
    const { numbered, writing } = this;
    const { io, space, journal, planner, index, checks } = this.parts;
    // First: what they ask for goes the whole way in this round.
    for (let i = 0; i < numbered.length; i++) numbered[i]?.layer?.step();
    this.hear();
    checks?.step();
    this.llrrm?.step();
    space.settle();
    if (space.broken !== null) this.fail(space.broken);
    writing.mend();
    // What is hashed goes to the device, or is compared with it, while a cache still has it.
    let more = writing.hash();
    while (writing.plan() && more) {
      io.submit();
      this.hear();
      more = writing.hash();
    }
    planner.insert();
    if (index.sweeping) index.sweep(SWEEP_BUCKETS);
    writing.enter();
    for (let i = 0; i < numbered.length; i++) numbered[i]?.step();
    if (this.reclaims) this.reclaimer.step();
    if (this.cleaner.active) this.cleaner.step();
    if (journal.dirty) journal.commit();
    writing.end();
    this.checkpoints.step();
    io.submit();
    this.llrrm?.io.submit();
    this.running = false;
  }

  /** Goes on by itself, in the event loop, as long as anything is under way. */
  kick(): void {
    if (this.pumping) {
      this.parts.io.rouse();
      return;
    }
    if (!this.busy) return;
    this.pumping = true;
    void this.pump();
  }

  /** Resolves when nothing is under way any more, or at a time of `performance.now`. */
  async settle(untilMs = Infinity): Promise<void> {
    while (this.busy && performance.now() < untilMs) await this.round();
  }

  /** Makes the state durable as a checkpoint: one for all who ask before it begins. False: not. */
  checkpoint(): Promise<boolean> {
    return (this.next ??= this.checkpointOnce());
  }

  private async checkpointOnce(): Promise<boolean> {
    const { checkpoint, space } = this.parts;
    const number = space.generation;
    await Promise.resolve(); // it begins after it is known as the next one
    // (Under load the next one begins in the step in which the last one ends.)
    while (checkpoint.released < number && this.isUsable) await this.round();
    return checkpoint.released >= number && this.failed === null;
  }

  /** For who brings the state up itself. */
  async turn(): Promise<void> {
    const { io, space } = this.parts;
    this.takeAnswers();
    space.settle();
    io.submit();
    await breathe(this.parts.io, this.llrrm?.io);
    this.takeAnswers();
  }

  /** Asks until the answer is no Miss.wait. */
  async answer(ask: () => number): Promise<number> {
    for (;;) {
      const answer = ask();
      if (answer !== Miss.wait) return answer;
      await this.turn();
    }
  }

  private get isUsable(): boolean {
    return this.failed === null && !this.closed;
  }

  /** Nothing is changed any more. */
  fail(why: string): void {
    this.failed ??= why;
  }

  private async round(): Promise<void> {
    this.run();
    await breathe(this.parts.io, this.llrrm?.io);
  }

  private async pump(): Promise<void> {
    while (this.busy) {
      this.run();
      if (!this.busy) break;
      await breathe(this.parts.io, this.llrrm?.io);
    }
    this.pumping = false;
  }

  /** Takes answers, and what they say of the pool. */
  private hear(): void {
    const { journal, checkpoint } = this.parts;
    this.takeAnswers();
    if (journal.broken + checkpoint.broken !== 0) this.fail('the device did not take metadata');
    if (checkpoint.fence.fenced) this.fail('another owner has opened it since');
  }

  private takeAnswers(): void {
    const { io, pages, space, journal, checkpoint, planner, checks } = this.parts;
    while (io.endReads(this.numbered)) {
      io.take();
      const { owner, status } = io;
      switch (io.kind) {
        case Io.read:
          this.ended(owner, status);
          break;
        case Io.write:
          this.writing.answered(owner, status);
          break;
        case Io.compare:
          this.writing.answered(planner.compared(owner, status, io.loanLo, io.loanHi), Status.OK);
          break;
        case Io.match: {
          const set = planner.matched(owner, status);
          if (set >= 0) this.writing.answered(set, Status.OK);
          break;
        }
        case Io.promote:
          this.llrrm?.copier.loaded(owner, status);
          break;
        case Io.page:
          pages.loaded(owner, status);
          if (status === Status.DEVICE_GONE) this.fail('the device is gone');
          break;
        case Io.journal:
          journal.answered(owner, status);
          break;
        case Io.checked:
          checks!.answered(owner, status);
          break;
        case Io.discard:
          space.discards.answered(owner, status);
          break;
        case Io.clean:
          this.cleaner.copier?.answered(status);
          break;
        case Io.checkpoint:
          checkpoint.answered(owner, status);
          break;
        default:
          this.numbered[owner >>> SLOT_BITS]?.flushed(owner & SLOT_MASK, status);
      }
    }
  }

  /** Reads and flushes are known by queue and slot. */
  ended(owner: number, status: number): void {
    this.numbered[owner >>> SLOT_BITS]?.readEnded(owner & SLOT_MASK, status);
  }

  /** The tier lends the bytes of a run, or has them not. */
  compared(run: number, loanLo: number, loanHi: number): void {
    const { planner } = this.parts;
    if ((loanLo | loanHi) === 0) planner.readRun(run);
    else this.writing.answered(planner.comparedWith(run, loanLo, loanHi), Status.OK);
  }

  /** The tier has not what it was asked for: the data device has. */
  elsewhere(owner: number, pbn: number, count: number, to: number): void {
    const { io, checks } = this.parts;
    if (checks === null) io.ask(Op.READ, pbn, count, to, Io.read, owner);
    else checks.read(pbn | 0, (pbn / TWO_32) | 0, count, to | 0, (to / TWO_32) | 0, owner);
  }

  /** Volumes are being deleted. */
  private get reclaims(): boolean {
    return this.failed === null && !this.closing && this.parts.catalogue.deleting.length > 0;
  }

  /** A checkpoint begins when all counts are settled: nothing new comes before. */
  get mayEnter(): boolean {
    const { space, pages, checkpoint } = this.parts;
    if (this.copies.length > 0 && checkpoint.phase === Phase.idle) return false;
    // Each of them may make another page of counts dirty, and another summary.
    const { unsettled } = space;
    const kept = pages.kept + 2 * unsettled;
    return kept <= pages.frames * DIRTY_MOST && unsettled <= (this.wanted ? 0 : UNSETTLED_MOST);
  }

  /** Status of an operation that needed a page which cannot be had. */
  pageStatus(): number {
    const { pages } = this.parts;
    return pages.failure === PageFailure.device ? pages.failureStatus : Status.MEDIA_ERROR;
  }
}
