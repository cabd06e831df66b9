// What a queue does when things go wrong: operations that failed and may be tried again, that were
// cut off by a reset, that the home has called timed out, that an injected error holds back.
//
// Invariants
// 1. An operation completes once: its slot is free, in the device, or in one place here.
// 2. What a status forbids to try again (DNR), what is not idempotent (RAW, ZONE_APPEND), and what
//    timed out is not tried again; anything else `retries` times.

import { Op, Status } from '../../hpdi/index.js';
import type { InjectedFault } from './inject.js';
import { NamespaceWord, PairState, PairWord, Slot, type PairViews } from './pairs.js';
import { hpdiStatus, Sc, Sf } from './status.js';

/** Indices of a queue's counters. */
export const enum Count {
  polls = 0,
  idlePolls = 1,
  submissions = 2,
  completions = 3,
  retries = 4,
  timeouts = 5,
  resets = 6,
  words = 8,
}

/** What another try cannot change, though DNR may be 0: SC | SCT << 8. */
const FINAL: ReadonlySet<number> = new Set([
  Sc.INVALID_OPCODE,
  Sc.INVALID_FIELD,
  Sc.ABORT_REQ,
  Sc.ABORT_QUEUE,
  Sc.INVALID_NS,
  Sc.LBA_RANGE,
  Sc.CAP_EXCEEDED,
  Sc.COMPARE_FAILED,
]);

/** Time in which the home hears that a namespace went. */
const NEWS_MS = 250;

const enum Place {
  /** Free, or in the device. */
  device = 0,
  waiting = 1,
  /** Waits for a time to come. */
  timed = 2,
}

export interface RecoveryOptions {
  readonly views: PairViews;
  readonly namespaces: Uint32Array;
  readonly row: number;
  readonly retries: number;
  readonly slotCount: number;
  readonly counts: Float64Array;
}

export class QueueRecovery {
  /** Slots that wait to be issued, those for whom a time must come included. */
  waiting = 0;
  timed = 0;
  /** The namespace's blocks, as last looked up. */
  blocks = 0;
  removed = false;
  private readonly header: Uint32Array;
  private readonly slots: Uint32Array;
  private readonly blame: Uint32Array;
  private readonly options: RecoveryOptions;
  private readonly places: Uint8Array;
  /** Slots in order of arrival; a ring. */
  private readonly line: Uint16Array;
  private lineHead = 0;
  private lineCount = 0;
  private readonly due: Float64Array;
  private readonly injected: Uint16Array;
  /** Serial of the operation that a slot was held back for (awaitsNews). */
  private readonly held: Uint32Array;
  private generation: number;
  private facts = 0;
  private over = false;

  constructor(options: RecoveryOptions) {
    this.options = options;
    const { views, slotCount } = options;
    this.header = views.header;
    this.slots = views.slots;
    this.blame = views.blame;
    this.places = new Uint8Array(slotCount);
    this.line = new Uint16Array(slotCount);
    this.due = new Float64Array(slotCount);
    this.injected = new Uint16Array(slotCount);
    this.held = new Uint32Array(slotCount);
    this.generation = this.header[PairWord.generation]!;
    this.readFacts();
  }

  /** The device is gone or closed. */
  get isGone(): boolean {
    return this.over || this.header[PairWord.state] === PairState.gone;
  }

  /** The home ended without closing the device: its segment shows zeros. */
  homeEnded(): boolean {
    if (this.header[PairWord.state] === PairState.ended) this.over = true;
    return this.over;
  }

  end(): void {
    this.over = true;
  }

  /** Whether the controller was reset since the last call. */
  wasReset(): boolean {
    const generation = this.header[PairWord.generation]!;
    if (generation === this.generation) return false;
    this.generation = generation;
    this.options.counts[Count.resets]! += 1;
    return true;
  }

  readFacts(): void {
    const { namespaces, row } = this.options;
    const facts = this.header[PairWord.facts]!;
    if (facts === this.facts && this.blocks !== 0) return;
    this.facts = facts;
    const at = row * NamespaceWord.words;
    this.removed = namespaces[at + NamespaceWord.removed] !== 0;
    const blocks =
      namespaces[at + NamespaceWord.blocksHi]! * 2 ** 32 + namespaces[at + NamespaceWord.blocksLo]!;
    this.blocks = this.removed ? 0 : blocks;
  }

  /** A completion whose identifier is not in flight: the home resets such a controller. */
  stray(): void {
    this.header[PairWord.stray]! += 1;
  }

  /** A command failed with a status field: what its operation completes with, or -1: again. */
  failed(slot: number, field: number, injected = false): number {
    if ((field & Sf.MORE) !== 0) this.header[PairWord.more]! += 1;
    if (this.isBlamed(slot)) return Status.TIMED_OUT | (field << 8);
    if (mayRetry(field) && this.again(slot)) return -1;
    // A namespace that went takes its commands with it.
    if (this.removed) return Status.DEVICE_GONE | (field << 8);
    if (!injected && this.awaitsNews(slot, field)) return -1;
    return hpdiStatus(field) | (field << 8);
  }

  /** The controller was reset under a command: what its operation completes with, or -1: again. */
  cutOff(slot: number): number {
    if (this.isBlamed(slot)) return Status.TIMED_OUT;
    return this.again(slot) ? -1 : Status.ABORTED;
  }

  inDevice(slot: number): boolean {
    return this.slots[slot * Slot.words] !== 0 && this.places[slot] === Place.device;
  }

  /** Keeps a slot until the rings are there again. */
  hold(slot: number): void {
    this.places[slot] = Place.waiting;
    this.line[(this.lineHead + this.lineCount) % this.line.length] = slot;
    this.lineCount++;
    this.waiting++;
  }

  /** An injected fault holds a slot back; without a time it never reaches the device. */
  injectAt(slot: number, fault: InjectedFault): void {
    this.injected[slot] = fault.status;
    if (fault.drop) return; // as if the device had it
    if (fault.delayMs === 0) {
      this.hold(slot);
      return;
    }
    this.holdUntil(slot, fault.delayMs);
  }

  /** The injected status field of a slot that `next` gave, taken; 0: none, the device decides. */
  injectedStatus(slot: number): number {
    const status = this.injected[slot]!;
    this.injected[slot] = 0;
    return status;
  }

  /** A slot whose command may be issued now; -1 when none. */
  next(): number {
    if (this.timed > 0) {
      const slot = this.nextDue();
      if (slot >= 0) return slot;
    }
    if (this.lineCount === 0) return -1;
    const slot = this.line[this.lineHead]!;
    this.lineHead = (this.lineHead + 1) % this.line.length;
    this.lineCount--;
    this.waiting--;
    this.places[slot] = Place.device;
    return slot;
  }

  /** Every slot has been completed. */
  forgetAll(): void {
    this.places.fill(Place.device);
    this.injected.fill(0);
    this.lineCount = 0;
    this.waiting = 0;
    this.timed = 0;
  }

  /**
   * Commands to a namespace that is not active any more fail with INVALID_FIELD (Base 2.0, section
   * 3.2.1), also before the home has heard of it. What is issued here has no such field: it is held
   * back once, for as long as the news takes, and issued again.
   */
  private awaitsNews(slot: number, field: number): boolean {
    const s = slot * Slot.words;
    const serial = this.slots[s + Slot.serial]!;
    if ((field & Sf.CODE_MASK) !== Sc.INVALID_FIELD || (this.slots[s]! & 0xff) === Op.RAW)
      return false;
    if (this.held[slot] === serial) return false;
    this.held[slot] = serial;
    this.holdUntil(slot, NEWS_MS);
    return true;
  }

  private holdUntil(slot: number, delayMs: number): void {
    this.places[slot] = Place.timed;
    this.due[slot] = performance.now() + delayMs;
    this.timed++;
    this.waiting++;
  }

  private nextDue(): number {
    const now = performance.now();
    for (let slot = 0; slot < this.places.length; slot++) {
      if (this.places[slot] !== Place.timed || this.due[slot]! > now) continue;
      this.places[slot] = Place.device;
      this.timed--;
      this.waiting--;
      return slot;
    }
    return -1;
  }

  private isBlamed(slot: number): boolean {
    if (this.blame[slot] !== this.slots[slot * Slot.words + Slot.serial]) return false;
    this.options.counts[Count.timeouts]! += 1;
    return true;
  }

  /** Puts a slot in line for another try, unless it had its tries or must not be repeated. */
  private again(slot: number): boolean {
    const s = slot * Slot.words;
    const op = this.slots[s]! & 0xff;
    if (op === Op.RAW || op === Op.ZONE_APPEND) return false;
    if (this.slots[s + Slot.tries]! >= this.options.retries) return false;
    this.slots[s + Slot.tries]! += 1;
    this.options.counts[Count.retries]! += 1;
    this.hold(slot);
    return true;
  }
}

/** Whether the controller leaves it open that another try may succeed. */
function mayRetry(field: number): boolean {
  return (field & Sf.DNR) === 0 && !FINAL.has(field & Sf.CODE_MASK);
}
