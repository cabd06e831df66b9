// The slots of a worker: one per operation in flight, with the buffers it reads into and writes
// from.
//
// A job that only reads or only writes has one buffer a slot; a mixed one has two, so that what a
// read brings never becomes what a write sends. All addresses stand in typed arrays for the hot
// loop.

/** The part of a DmaBuffer that the engine uses. */
export interface SlotBuffer {
  readonly address: number;
  readonly u32: Uint32Array;
  free(): void;
}

export interface SlotMemory {
  alloc(bytes: number): SlotBuffer;
}

/** A buffer's address and words, looked up once: a DmaBuffer's view checks its life at each use. */
export interface SlotView {
  readonly address: number;
  readonly words: Uint32Array;
}

const TWO32 = 2 ** 32;

export class Slots {
  readonly readViews: readonly SlotView[];
  readonly writeViews: readonly SlotView[];
  /** Address words of slot s: [s] for reads, [depth + s] for writes. */
  readonly addressLo: Uint32Array;
  readonly addressHi: Uint32Array;
  private readonly buffers: SlotBuffer[] = [];

  constructor(
    memory: SlotMemory,
    readonly depth: number,
    bytes: number,
    mixed: boolean,
  ) {
    try {
      const count = mixed ? 2 * depth : depth;
      while (this.buffers.length < count) this.buffers.push(memory.alloc(bytes));
    } catch (error) {
      this.free();
      throw error;
    }
    const views = this.buffers.map((buffer) => ({ address: buffer.address, words: buffer.u32 }));
    this.readViews = views.slice(0, depth);
    this.writeViews = mixed ? views.slice(depth) : this.readViews;
    this.addressLo = new Uint32Array(2 * depth);
    this.addressHi = new Uint32Array(2 * depth);
    for (let i = 0; i < 2 * depth; i++) {
      const view = (i < depth ? this.readViews[i] : this.writeViews[i - depth])!;
      const high = Math.floor(view.address / TWO32);
      this.addressHi[i] = high;
      this.addressLo[i] = view.address - high * TWO32;
    }
  }

  free(): void {
    for (const buffer of this.buffers.splice(0)) buffer.free();
  }
}
