// The plan of a worker: which operation comes next and where, made 256 operations ahead.
//
// The hot loop takes operations from the plan's arrays by index and calls refill() when they are
// used up: generators cost their loop, not a call per operation. Sequential mixed jobs keep one
// position for reads and one for writes, as fio does.

import { randomChooser, Sequential, Shuffled, type Chooser } from './distribution.js';
import { Random } from './random.js';
import type { Direction } from './types.js';

/** Operations made at a time; a power of two is not needed. */
export const PLAN_LENGTH = 256;
const TWO32 = 2 ** 32;

export interface WorkloadOptions {
  rw: Direction;
  rwmixread: number;
  /** First device block of the worker's region, units in it and device blocks per unit. */
  firstBlock: number;
  units: number;
  unitBlocks: number;
  distribution: string;
  seed: number;
  worker: number;
  /** Every unit once per pass instead of independent draws (verified uniform random writes). */
  shuffled: boolean;
}

/** Percent of reads of a direction. */
export function readPercent(rw: Direction, rwmixread: number): number {
  if (rw === 'read' || rw === 'randread') return 100;
  if (rw === 'write' || rw === 'randwrite') return 0;
  return rwmixread;
}

export function isRandom(rw: Direction): boolean {
  return rw.startsWith('rand');
}

export class Plan {
  /** 1 write, 0 read, per operation. */
  readonly writes = new Uint8Array(PLAN_LENGTH);
  /** Unit number within the region. */
  readonly units = new Float64Array(PLAN_LENGTH);
  readonly lbaLo = new Uint32Array(PLAN_LENGTH);
  readonly lbaHi = new Uint32Array(PLAN_LENGTH);
  /** Operations in the arrays: PLAN_LENGTH, or fewer in a plan that ends. */
  length = 0;

  constructor(
    protected readonly firstBlock: number,
    protected readonly unitBlocks: number,
  ) {}

  /** Makes the next operations; false when there are none left. */
  refill(): boolean {
    return false;
  }

  /** Device block numbers of the first `length` units. */
  protected locate(): void {
    const firstBlock = this.firstBlock;
    const unitBlocks = this.unitBlocks;
    for (let i = 0; i < this.length; i++) {
      const lba = firstBlock + this.units[i]! * unitBlocks;
      const high = Math.floor(lba / TWO32);
      this.lbaHi[i] = high;
      this.lbaLo[i] = lba - high * TWO32;
    }
  }
}

/** The endless plan of a job's run. */
export class WorkloadPlan extends Plan {
  private readonly reads: Chooser;
  private readonly writesChooser: Chooser;
  private readonly scratch = new Float64Array(PLAN_LENGTH);
  private readonly mix: Random;
  private readonly readPercent: number;

  constructor(options: WorkloadOptions) {
    super(options.firstBlock, options.unitBlocks);
    this.length = PLAN_LENGTH;
    this.readPercent = readPercent(options.rw, options.rwmixread);
    this.mix = new Random(options.seed, options.worker * 2 + 1);
    const random = new Random(options.seed, options.worker * 2);
    if (!isRandom(options.rw)) {
      this.reads = new Sequential(options.units);
      this.writesChooser = new Sequential(options.units);
    } else if (options.shuffled) {
      this.reads = this.writesChooser = new Shuffled(options.units, random);
    } else {
      this.reads = randomChooser(options.distribution, options.units, random);
      this.writesChooser = this.reads;
    }
  }

  override refill(): boolean {
    if (this.readPercent === 100) this.reads.fill(this.units, PLAN_LENGTH);
    else if (this.readPercent === 0) {
      this.writes.fill(1);
      this.writesChooser.fill(this.units, PLAN_LENGTH);
    } else this.mixed();
    this.locate();
    return true;
  }

  private mixed(): void {
    const threshold = (this.readPercent / 100) * TWO32;
    let writeCount = 0;
    for (let i = 0; i < PLAN_LENGTH; i++) {
      const write = this.mix.next() >= threshold ? 1 : 0;
      this.writes[i] = write;
      writeCount += write;
    }
    this.reads.fill(this.scratch, PLAN_LENGTH - writeCount);
    let from = 0;
    for (let i = 0; i < PLAN_LENGTH; i++) {
      if (this.writes[i] === 0) this.units[i] = this.scratch[from++]!;
    }
    this.writesChooser.fill(this.scratch, writeCount);
    from = 0;
    for (let i = 0; i < PLAN_LENGTH; i++) {
      if (this.writes[i] === 1) this.units[i] = this.scratch[from++]!;
    }
  }
}

/** Reads once, in ascending order, every unit whose word in `sequences` is not 0. */
export class ReadBackPlan extends Plan {
  private next = 0;

  constructor(
    firstBlock: number,
    unitBlocks: number,
    private readonly sequences: Uint32Array,
  ) {
    super(firstBlock, unitBlocks);
  }

  override refill(): boolean {
    let count = 0;
    const sequences = this.sequences;
    while (count < PLAN_LENGTH && this.next < sequences.length) {
      if (sequences[this.next] !== 0) this.units[count++] = this.next;
      this.next++;
    }
    this.length = count;
    this.locate();
    return count > 0;
  }
}
