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
import { Cleaner, NO_SPACE } from './clean/cleaner.js';
import { Entering } from './maps/entering.js';
import { Io } from './durable/io.js';
import type { Llrrm, LlrrmEvents } from './llrrm/llrrm.js';
import { Miss, PageFailure } from './durable/pages.js';
import { Plan } from './write/planner.js';
import { Fifo, SETS } from './write/sets.js';
import { Stage } from './stats/stage-clock.js';
import type { Traffic } from './stats/traffic.js';
import { Reclaimer } from './maps/reclaimer.js';
import type { VolumeQueue } from './volume/volume-queue.js';
import { breathe } from './waiting.js';
import type { EngineParts } from './engine-parts.js';

/** Part of the cache that may be dirty: writes wait beyond it. */
const DIRTY_MOST = 0.6;
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
  private readonly toCopy = new Fifo(SETS);
  private readonly toHash = new Fifo(SETS);
  private readonly toPlan = new Fifo(SETS);
  private readonly toMend = new Fifo(SETS);
  private readonly toEnter = new Fifo(SETS);
  private readonly toEnd = new Fifo(SETS);
  private running = false;
  private pumping = false;

  constructor(parts: EngineParts) {
    this.parts = parts;
    this.traffic = parts.traffic;
    this.entering = new Entering(parts);
    this.cleaner = new Cleaner(this);
    this.reclaimer = new Reclaimer(this);
    this.checkpoints = new Checkpoints(this);
  }

  attach(llrrm: Llrrm): void {
    this.llrrm = llrrm;
    this.parts.space.watcher = llrrm;
    this.parts.thn.llrrm = llrrm;
    this.parts.planner.llrrm = llrrm;
  }

  /** Sets, reads, or parts of a checkpoint are under way. */
  get busy(): boolean {
    const { io, sets, checkpoint } = this.parts;
    if (io.inFlight > 0 || sets.freeSets < SETS) return true;
    for (const queue of this.numbered) if (queue?.busy === true) return true;
    if (this.reclaims || this.cleaner.active || this.llrrm?.idle === false) return true;
    return this.failed === null && (this.wanted || checkpoint.phase !== Phase.idle);
  }

  /** A set was filled: it is to be written. */
  add(set: number): void {
    if (this.parts.intake === null) this.toHash.push(set);
    else this.toCopy.push(set);
  }

  /** Whatever can be done now is done. */
  run(): void {
    if (this.running || this.closed) return;
    this.running = true;
    this.rounds++;
    const { numbered } = this;
    const { io, space, journal, checkpoint, planner, index, intake, checks } = this.parts;
    // First: what they ask for goes the whole way in this round.
    for (let i = 0; i < numbered.length; i++) numbered[i]?.layer?.step();
    intake?.take(this.toCopy, this.toHash);
    if (this.toHash.length > 0) this.hash();
    this.takeAnswers();
    if (journal.broken + checkpoint.broken !== 0) this.fail('the device did not take metadata');
    if (checkpoint.fence.fenced) this.fail('another owner has opened it since');
    checks?.step();
    this.llrrm?.step();
    space.settle();
    if (space.broken !== null) this.fail(space.broken);
    this.mend();
    this.plan();
    planner.insert();
    if (index.sweeping) index.sweep(SWEEP_BUCKETS);
    if (this.toEnter.length > 0) this.enter();
    for (let i = 0; i < numbered.length; i++) numbered[i]?.step();
    if (this.reclaims) this.reclaimer.step();
    if (this.cleaner.active) this.cleaner.step();
    if (journal.dirty) journal.commit();
    this.end();
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

  /** Resolves when nothing is under way any more. */
  async settle(): Promise<void> {
    while (this.busy) await this.round();
  }

  /** Makes the state durable as a checkpoint: one for all who ask before it begins. False: not. */
  checkpoint(): Promise<boolean> {
    return (this.next ??= this.checkpointOnce());
  }

  private async checkpointOnce(): Promise<boolean> {
    const { checkpoint } = this.parts;
    await Promise.resolve(); // it begins after it is known as the next one
    while (checkpoint.phase !== Phase.idle && this.failed === null) await this.round();
    const done = checkpoint.done;
    this.wanted = true;
    while ((checkpoint.done === done || checkpoint.phase !== Phase.idle) && this.failed === null)
      await this.round();
    return this.failed === null;
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

  private hash(): void {
    const { hasher, clock } = this.parts;
    const was = clock.turn(Stage.hash);
    hasher.hash(this.toHash, this.toPlan);
    clock.turn(was);
  }

  private takeAnswers(): void {
    const { io, pages, space, journal, checkpoint, planner, checks } = this.parts;
    while (io.take()) {
      const { owner, status } = io;
      switch (io.kind) {
        case Io.read:
          this.ended(owner, status);
          break;
        case Io.write:
          this.setAnswered(owner, status);
          break;
        case Io.compare:
          this.setAnswered(planner.compared(owner, status, io.loanLo, io.loanHi), Status.OK);
          break;
        case Io.promote:
          this.llrrm?.copier.loaded(owner, status);
          break;
        case Io.page:
          pages.loaded(owner, status);
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
    else this.setAnswered(planner.comparedWith(run, loanLo, loanHi), Status.OK);
  }

  /** The tier has not what it was asked for: the data device has. */
  elsewhere(owner: number, pbn: number, count: number, to: number): void {
    const { io, checks } = this.parts;
    if (checks === null) io.ask(Op.READ, pbn, count, to, Io.read, owner);
    else checks.read(pbn | 0, (pbn / TWO_32) | 0, count, to | 0, (to / TWO_32) | 0, owner);
  }

  private setAnswered(set: number, status: number): void {
    const { sets } = this.parts;
    if (status !== Status.OK && sets.statuses[set] === 0) sets.statuses[set] = status;
    sets.atDevice[set] = sets.atDevice[set]! - 1;
    if (sets.atDevice[set] === 0) this.toMend.push(set);
  }

  /** Sets that have nothing at the device: those that were compared may have new blocks. */
  private mend(): void {
    const { sets, planner, space } = this.parts;
    for (let left = this.toMend.length; left > 0; left--) {
      const set = this.toMend.head;
      if (sets.statuses[set] === 0 && this.failed === null) {
        let plan = planner.again(set);
        const isNone = plan === Plan.noSpace;
        if (isNone && (space.discards.inFlight > 0 || this.cleaner.relieve())) plan = Plan.wait;
        if (plan === Plan.wait && sets.atDevice[set] === 0) return;
        if (plan === Plan.noSpace) sets.statuses[set] = Status.NO_SPACE;
      }
      this.toMend.shift();
      if (sets.atDevice[set] !== 0) continue;
      if (sets.statuses[set] === 0 && this.failed === null) this.toEnter.push(set);
      else this.setFailed(set);
    }
  }

  private plan(): void {
    const { sets, planner, checkpoint, pages } = this.parts;
    while (this.toPlan.length > 0) {
      const set = this.toPlan.head;
      if (this.failed !== null || sets.statuses[set] !== 0) {
        this.toPlan.shift();
        this.begin(set);
        this.setFailed(set);
        continue;
      }
      if (pages.dirtyCount + pages.stagedCount > pages.frames * DIRTY_MOST) {
        this.wanted = true;
        return;
      }
      // From the first look at stored blocks on, none of them may become another.
      this.begin(set);
      const plan = planner.plan(set);
      if (plan === Plan.wait) return;
      if (plan === Plan.checkpoint || (plan === Plan.noSpace && this.isFreeing)) {
        // The checkpoint frees what nobody looks at.
        planner.forget(set);
        this.leave(set);
        if (checkpoint.phase === Phase.idle && plan === Plan.checkpoint) this.wanted = true;
        return;
      }
      this.toPlan.shift();
      if (plan === Plan.noSpace) {
        sets.statuses[set] = Status.NO_SPACE;
        this.setFailed(set);
      } else if (sets.atDevice[set] === 0) {
        this.toEnter.push(set);
      }
    }
  }

  /** What finds no space now may find some in a moment. */
  private get isFreeing(): boolean {
    const { checkpoint, space } = this.parts;
    if (this.cleaner.held) {
      this.cleaner.urge(NO_SPACE);
      return true;
    }
    return checkpoint.phase !== Phase.idle || space.discards.inFlight > 0;
  }

  private begin(set: number): void {
    const { sets, checkpoint, space } = this.parts;
    if (sets.parities[set] !== 0) return;
    const parity = space.generation & 1;
    sets.parities[set] = parity + 1;
    checkpoint.readers[parity] = checkpoint.readers[parity]! + 1;
  }

  private leave(set: number): void {
    const { sets, checkpoint } = this.parts;
    const parity = sets.parities[set]! - 1;
    sets.parities[set] = 0;
    checkpoint.readers[parity] = checkpoint.readers[parity]! - 1;
  }

  private enter(): void {
    const { clock } = this.parts;
    const was = clock.turn(Stage.enter);
    this.enterSets();
    clock.turn(was);
  }

  private enterSets(): void {
    const { sets, allocator } = this.parts;
    while (this.toEnter.length > 0) {
      if (this.failed === null && !this.mayEnter) return;
      const set = this.toEnter.head;
      allocator.full = false; // what it says is of this set, then
      let result = this.failed === null ? this.entering.enter(set) : Miss.bad;
      if (result === Miss.wait && (this.checkpoints.isFull() || this.checkpoints.holdsUp(set))) {
        sets.statuses[set] = Status.NO_SPACE;
        result = Miss.bad;
      }
      if (result === Miss.wait) return;
      this.toEnter.shift();
      if (result === 0) {
        this.toEnd.push(set);
        continue;
      }
      if (this.failed === null && sets.statuses[set] === 0) sets.statuses[set] = this.pageStatus();
      this.setFailed(set);
    }
  }

  /** Volumes are being deleted. */
  private get reclaims(): boolean {
    return this.failed === null && !this.closing && this.parts.catalogue.deleting.length > 0;
  }

  /** A checkpoint begins when all counts are settled: nothing new comes before. */
  get mayEnter(): boolean {
    const { space, pages, checkpoint } = this.parts;
    if (this.copies.length > 0 && checkpoint.phase === Phase.idle) return false;
    // The last steps of a checkpoint wait for sets that are under way.
    const isReleasing = checkpoint.phase === Phase.releasing;
    const dirty = pages.dirtyCount + pages.stagedCount;
    if (!isReleasing && dirty > pages.frames * DIRTY_MOST) return false;
    return space.unsettled <= (this.wanted ? 0 : UNSETTLED_MOST);
  }

  /** Status of an operation that needed a page which cannot be had. */
  pageStatus(): number {
    const { pages } = this.parts;
    return pages.failure === PageFailure.device ? pages.failureStatus : Status.MEDIA_ERROR;
  }

  /** Sets whose entry is with the device are complete. */
  private end(): void {
    const { sets, journal } = this.parts;
    while (this.toEnd.length > 0) {
      const set = this.toEnd.head;
      if (sets.seqs[set]! > journal.completed) {
        if (this.failed === null) return;
        sets.statuses[set] = Status.DEVICE_ERROR;
      }
      this.toEnd.shift();
      this.leave(set);
      this.give(set);
    }
  }

  /** It never ends well: without a reason of its own it fails with the pool. */
  private setFailed(set: number): void {
    const { sets, planner } = this.parts;
    if (sets.statuses[set] === 0) sets.statuses[set] = Status.DEVICE_ERROR;
    planner.undo(set);
    this.leave(set);
    this.give(set);
  }

  private give(set: number): void {
    const { sets, intake } = this.parts;
    sets.queues[set]!.setEnded(set);
    intake?.give(set);
    sets.give(set);
  }
}
