// The admin queue of a controller: its home's alone (NVM Express Base 2.0, section 3.3).
//
// Invariants
// 1. A command's memory stays the caller's until the command has completed or the controller was
//    disabled: a command that timed out keeps its slot until then.
// 2. Asynchronous event requests stand outside of deadlines: they wait for as long as it takes.

import { PenstockError } from '../../errors.js';
import type { Bar } from '../../pci/index.js';
import { AdminOp, Cqe, Sqe } from './commands.js';
import { ADMIN_ENTRIES, type PairTable } from './pairs.js';
import { Reg } from './registers.js';
import { decodeStatus, statusText } from './status.js';
import type { Task } from './steps.js';

const PHASE = 1 << 16;
/** Slots; one entry of the ring stays empty. */
const SLOTS = ADMIN_ENTRIES - 1;

export interface AdminResult {
  /** Status field: SC | SCT << 8 | DNR << 14 …; 0 is success. */
  readonly status: number;
  readonly dw0: number;
  readonly dw1: number;
}

const enum State {
  free = 0,
  inFlight = 1,
  done = 2,
  /** Nobody waits any more; the slot is free when the device answers. */
  abandoned = 3,
  event = 4,
  /** The controller was reset under it. */
  cutOff = 5,
}

export class AdminQueue {
  /** Takes the completion of an asynchronous event request: its dword 0, or its status. */
  onEvent: (dw0: number, status: number) => void = () => undefined;
  /** Completions that no command had. */
  strays = 0;
  private readonly sq: Uint32Array;
  private readonly cq: Uint32Array;
  private readonly bar: Bar;
  private readonly headOffset: number;
  private readonly states = new Uint8Array(SLOTS);
  private readonly results = new Uint32Array(SLOTS * 3);
  private tail = 0;
  private head = 0;
  private phase = PHASE;
  private closed = false;

  constructor(table: PairTable, bar: Bar, strideBytes: number) {
    const { adminSq, adminCq } = table.offsets;
    this.sq = table.words(adminSq, ADMIN_ENTRIES * Sqe.words);
    this.cq = table.words(adminCq, ADMIN_ENTRIES * Cqe.words);
    this.bar = bar;
    this.headOffset = Reg.DOORBELLS + strideBytes;
  }

  /** The controller is disabled: empties the rings and cuts off what was in flight. */
  reset(): void {
    this.sq.fill(0);
    this.cq.fill(0);
    this.tail = 0;
    this.head = 0;
    this.phase = PHASE;
    for (let slot = 0; slot < SLOTS; slot++) {
      if (this.states[slot] === State.inFlight) this.states[slot] = State.cutOff;
      else if (this.states[slot] !== State.done) this.states[slot] = State.free;
    }
  }

  /** The controller is gone or closed: no command runs any more. */
  close(): void {
    this.closed = true;
    this.reset();
  }

  /**
   * Runs a command (16 words; cid is filled in). Throws TIMED_OUT, with the command still in the
   * device, and ABORTED when the controller was reset under it.
   */
  *execute(words: Uint32Array, timeoutMs: number): Task<AdminResult> {
    let slot = this.begin(words, State.inFlight);
    if (this.closed) throw cutOff(words[0]! & 0xff);
    const until = performance.now() + timeoutMs;
    while (slot < 0 && performance.now() < until) {
      yield;
      if (this.closed) throw cutOff(words[0]! & 0xff);
      this.poll();
      slot = this.begin(words, State.inFlight);
    }
    while (slot >= 0 && this.states[slot] === State.inFlight && performance.now() < until) {
      yield;
      this.poll();
    }
    const name = opcodeText(words[0]! & 0xff);
    if (slot >= 0 && this.states[slot] === State.done) return this.take(slot);
    if (slot >= 0 && this.states[slot] === State.cutOff) {
      this.states[slot] = State.free;
      throw cutOff(words[0]! & 0xff);
    }
    if (slot >= 0) this.states[slot] = State.abandoned;
    throw new PenstockError('TIMED_OUT', `${name}: no completion within ${timeoutMs} ms`, {
      hint: 'the controller hangs and is reset; see the kernel log and the drive’s health',
    });
  }

  /** Runs a command that must succeed; NVME_STATUS with the decoded status otherwise. */
  *demand(words: Uint32Array, timeoutMs: number): Task<AdminResult> {
    const result = yield* this.execute(words, timeoutMs);
    if (result.status !== 0) throw adminError(words[0]! & 0xff, result.status);
    return result;
  }

  /** Asks for one asynchronous event; false when the queue is full. */
  requestEvent(): boolean {
    const words = new Uint32Array(Sqe.words);
    words[0] = AdminOp.ASYNC_EVENT_REQUEST;
    return this.begin(words, State.event) >= 0;
  }

  /** Takes what has completed. Never blocks. */
  poll(): void {
    const { cq } = this;
    let taken = 0;
    while (taken < ADMIN_ENTRIES) {
      const at = this.head * Cqe.words;
      const word = cq[at + Cqe.status]!;
      if ((word & PHASE) !== this.phase) break;
      this.head = (this.head + 1) % ADMIN_ENTRIES;
      if (this.head === 0) this.phase ^= PHASE;
      taken++;
      this.complete(word & 0xffff, word >>> 17, cq[at]!, cq[at + 1]!);
    }
    if (taken > 0) this.bar.write32(this.headOffset, this.head);
  }

  private begin(words: Uint32Array, state: State): number {
    if (this.closed) return -1;
    const slot = this.states.indexOf(State.free);
    if (slot < 0) return -1;
    const at = this.tail * Sqe.words;
    this.sq.set(words, at);
    this.sq[at] = (words[0]! & 0xffff) | (slot << 16);
    this.states[slot] = state;
    this.tail = (this.tail + 1) % ADMIN_ENTRIES;
    this.bar.write32(Reg.DOORBELLS, this.tail);
    return slot;
  }

  private complete(slot: number, status: number, dw0: number, dw1: number): void {
    const state = slot < SLOTS ? this.states[slot] : State.free;
    if (state === State.inFlight) {
      this.states[slot] = State.done;
      this.results[slot * 3] = status;
      this.results[slot * 3 + 1] = dw0;
      this.results[slot * 3 + 2] = dw1;
      return;
    }
    if (state === State.event) {
      this.states[slot] = State.free;
      this.onEvent(dw0, status);
    } else if (state === State.abandoned) {
      this.states[slot] = State.free;
    } else {
      this.strays++;
    }
  }

  private take(slot: number): AdminResult {
    this.states[slot] = State.free;
    const at = slot * 3;
    return {
      status: this.results[at]!,
      dw0: this.results[at + 1]!,
      dw1: this.results[at + 2]!,
    };
  }
}

/** The error of an admin command that failed. */
export function adminError(opcode: number, status: number): PenstockError {
  const { hint } = decodeStatus(status);
  return new PenstockError('NVME_STATUS', `${opcodeText(opcode)}: ${statusText(status)}`, {
    hint: hint === '' ? 'the status is the controller’s own; see its documentation' : hint,
  });
}

function cutOff(opcode: number): PenstockError {
  return new PenstockError('ABORTED', `${opcodeText(opcode)}: the controller was reset or closed`, {
    hint: 'try again; `penstock nvme error-log` may say why it was reset',
  });
}

function opcodeText(opcode: number): string {
  return `admin command 0x${opcode.toString(16).padStart(2, '0')}`;
}
