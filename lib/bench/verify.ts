// The verifier of one worker: fills what is written, remembers what was acknowledged, and checks
// what is read. Checksums go through one native call per batch.
//
// Invariants: a unit has at most one operation in flight (`busy`), so that its contents are always
// known; sequences[unit] is the last acknowledged write's number, 0 when there is none or a write
// failed; checks run before a slot is used again.

import { native } from '../native.js';
import { headerFits, inspectUnit } from './inspect.js';
import { Header, Pattern } from './pattern.js';
import type { SlotView } from './slots.js';
import type { VerifyFailure } from './types.js';

/** Failures kept with their details; all are counted. */
const FAILURES_KEPT = 16;
/** Checksums per native call at most, so that its lists stay small. */
const LIST_LENGTH = 4096;
const TWO32 = 2 ** 32;

export interface VerifierOptions {
  seed: number;
  blockSize: number;
  unitBlocks: number;
  /** The worker's region. */
  units: number;
  firstBlock: number;
  dedupePercentage: number;
  depth: number;
  /** A job that writes knows each unit's sequence; one that only reads takes any. */
  writes: boolean;
}

export class Verifier {
  readonly pattern: Pattern;
  /** Last acknowledged write of each unit; empty for a job that only reads. */
  readonly sequences: Uint32Array;
  readonly failures: VerifyFailure[] = [];
  failureCount = 0;
  checkedBlocks = 0;
  private readonly busy: Uint8Array;
  private readonly slotUnit: Float64Array;
  /** Per slot: sequence being written, or expected when reading. */
  private readonly slotSequence: Uint32Array;
  private readonly staged: Uint32Array;
  private stagedCount = 0;
  private readonly list: Uint32Array;
  private readonly crcs: Uint32Array;

  constructor(private readonly options: VerifierOptions) {
    const { units, unitBlocks, depth, writes } = options;
    this.pattern = new Pattern(options.seed, options.blockSize / 4, options.dedupePercentage);
    this.sequences = new Uint32Array(writes ? units : 0);
    this.busy = new Uint8Array(writes ? units : 0);
    this.slotUnit = new Float64Array(depth);
    this.slotSequence = new Uint32Array(depth);
    this.staged = new Uint32Array(depth);
    const length = Math.max(unitBlocks, Math.min(LIST_LENGTH, depth * unitBlocks));
    this.list = new Uint32Array(length * 4);
    this.crcs = new Uint32Array(length);
  }

  /** True when the unit's last operation has not completed: the plan has to wait for it. */
  isBusy(unit: number): boolean {
    return this.options.writes && this.busy[unit] !== 0;
  }

  /** An operation is about to be issued from `slot`. */
  begin(slot: number, unit: number, write: number, view: SlotView): void {
    this.slotUnit[slot] = unit;
    if (this.options.writes) this.busy[unit] = 1;
    const sequence = this.options.writes ? this.sequences[unit]! : 0;
    this.slotSequence[slot] = sequence;
    if (write === 0) return;
    this.slotSequence[slot] = sequence === 0xffffffff ? 1 : sequence + 1;
    this.fill(slot, unit, view);
    this.staged[this.stagedCount++] = slot;
  }

  /** Computes the checksums of all units filled since the last call. Before the submit. */
  seal(views: readonly SlotView[]): void {
    if (this.stagedCount === 0) return;
    const size = this.pattern.blockWords;
    const unitBlocks = this.options.unitBlocks;
    let from = 0;
    while (from < this.stagedCount) {
      const until = this.checksums(views, from);
      let crc = 0;
      for (let i = from; i < until; i++) {
        const words = views[this.staged[i]!]!.words;
        for (let block = 0; block < unitBlocks; block++) {
          words[block * size + Header.crc] = this.crcs[crc++]!;
        }
      }
      from = until;
    }
    this.stagedCount = 0;
  }

  /** An operation completed: a write is acknowledged, a read is staged for check(). */
  complete(slot: number, write: number, failed: boolean): void {
    const unit = this.slotUnit[slot]!;
    if (this.options.writes) this.busy[unit] = 0;
    if (write !== 0) {
      this.sequences[unit] = failed ? 0 : this.slotSequence[slot]!;
      return;
    }
    const unknown = this.options.writes && this.slotSequence[slot] === 0;
    if (!failed && !unknown) this.staged[this.stagedCount++] = slot;
  }

  /** Checks all reads completed since the last call. Before their slots are used again. */
  check(views: readonly SlotView[]): void {
    if (this.stagedCount === 0) return;
    let from = 0;
    while (from < this.stagedCount) {
      const until = this.checksums(views, from);
      const unitBlocks = this.options.unitBlocks;
      for (let i = from; i < until; i++) {
        const slot = this.staged[i]!;
        this.checkUnit(slot, views[slot]!, (i - from) * unitBlocks);
      }
      this.checkedBlocks += until - from;
      from = until;
    }
    this.stagedCount = 0;
  }

  /** Checksums of the staged units from `from` on, as many as fit; returns where it ended. */
  private checksums(views: readonly SlotView[], from: number): number {
    const unitBlocks = this.options.unitBlocks;
    const blockSize = this.options.blockSize;
    const fit = Math.floor(this.crcs.length / unitBlocks);
    const until = Math.min(this.stagedCount, from + fit);
    const list = this.list;
    let at = 0;
    for (let i = from; i < until; i++) {
      const view = views[this.staged[i]!]!;
      let address = view.address + 4;
      for (let block = 0; block < unitBlocks; block++) {
        const hi = Math.floor(address / TWO32);
        list[at] = address - hi * TWO32;
        list[at + 1] = hi;
        list[at + 2] = blockSize - 4;
        list[at + 3] = 0;
        at += 4;
        address += blockSize;
      }
    }
    native.crc32cList(list, at >> 2, this.crcs);
    return until;
  }

  private fill(slot: number, unit: number, view: SlotView): void {
    const { unitBlocks, firstBlock } = this.options;
    const size = this.pattern.blockWords;
    const sequence = this.slotSequence[slot]!;
    const lba = firstBlock + unit * unitBlocks;
    for (let block = 0; block < unitBlocks; block++) {
      const hi = Math.floor((lba + block) / TWO32);
      const lo = lba + block - hi * TWO32;
      this.pattern.fill(view.words, block * size, lo, hi, sequence, block);
    }
  }

  private checkUnit(slot: number, view: SlotView, crcAt: number): void {
    const { unitBlocks, firstBlock } = this.options;
    const pattern = this.pattern;
    const size = pattern.blockWords;
    const words = view.words;
    const sequence = this.slotSequence[slot]!;
    const lba = firstBlock + this.slotUnit[slot]! * unitBlocks;
    let good = true;
    // A whole unit has one sequence; where any is taken, an operation over several units is looked
    // at.
    for (let block = 0; block < unitBlocks && good; block++) {
      const at = block * size;
      const hi = Math.floor((lba + block) / TWO32);
      const lo = lba + block - hi * TWO32;
      good =
        words[at + Header.crc] === this.crcs[crcAt + block] &&
        headerFits(words, at, pattern.seed, lo, hi, sequence) &&
        words[at + Header.sequence] === words[Header.sequence];
    }
    if (good) return;
    const damage = inspectUnit(pattern, words, unitBlocks, { lba, sequence }, this.crcs, crcAt);
    if (damage === null) return;
    this.failureCount++;
    if (this.failures.length >= FAILURES_KEPT) return;
    const blockSize = this.options.blockSize;
    this.failures.push({
      kind: damage.kind,
      block: Math.floor(lba / unitBlocks),
      offset: (lba + damage.index) * blockSize,
      detail: damage.detail,
    });
  }
}
