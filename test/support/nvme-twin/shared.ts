// What the two sides of a twin share, so that they may stand in two threads: the driver's side (a
// PciFunction) and the controller. BAR 0, config space, BAR 2, and control words.

/** Indices of the control words. */
export const enum Control {
  /** Memory space and bus master bits, as the driver's side set them. */
  memorySpace = 0,
  busMaster = 1,
  /** Vectors that are enabled; their eventfds stand from `eventFds` on. */
  vectors = 2,
  /** Resets that were asked for, and that were done. */
  resetsWanted = 3,
  resetsDone = 4,
  /** 1: the function was removed; its registers read `removedValue`. */
  removed = 5,
  removedValue = 6,
  /** Doorbells written by trapped accesses, for tests of shadow doorbells. */
  doorbellWrites = 7,
  eventFds = 16,
  words = 16 + 2048,
}

/** Words of an MSI-X table entry: address, data, vector control (PCI 3.0, 6.8.2.5). */
export const VECTOR_WORDS = 4;

export const DOORBELLS_OFFSET = 0x1000;
export const CONFIG_BYTES = 4096;

export interface SharedParts {
  readonly registers: SharedArrayBuffer;
  readonly config: SharedArrayBuffer;
  readonly control: SharedArrayBuffer;
  /** MSI-X table, 16 bytes a vector, then a pending word each. */
  readonly vectors: SharedArrayBuffer;
  readonly cmb: SharedArrayBuffer;
  readonly mapped: 'none' | 'doorbells' | 'all';
  readonly address: string;
  readonly vectorsMax: number;
}

/** Views of the shared parts. */
export class Shared {
  readonly parts: SharedParts;
  readonly registers: Uint32Array;
  readonly config: Uint8Array;
  readonly control: Uint32Array;
  readonly vectors: Uint32Array;
  readonly cmb: Uint8Array;

  constructor(parts: SharedParts) {
    this.parts = parts;
    this.registers = new Uint32Array(parts.registers);
    this.config = new Uint8Array(parts.config);
    this.control = new Uint32Array(parts.control);
    this.vectors = new Uint32Array(parts.vectors);
    this.cmb = new Uint8Array(parts.cmb);
  }

  get isRemoved(): boolean {
    return this.control[Control.removed] !== 0;
  }
}

export function makeShared(options: {
  registerBytes: number;
  cmbBytes: number;
  vectors: number;
  mapped: 'none' | 'doorbells' | 'all';
  address: string;
}): Shared {
  const table = Math.max(1, options.vectors) * VECTOR_WORDS * 4;
  return new Shared({
    registers: new SharedArrayBuffer(options.registerBytes),
    config: new SharedArrayBuffer(CONFIG_BYTES),
    control: new SharedArrayBuffer(Control.words * 4),
    vectors: new SharedArrayBuffer(table + Math.max(1, options.vectors) * 4),
    cmb: new SharedArrayBuffer(options.cmbBytes),
    mapped: options.mapped,
    address: options.address,
    vectorsMax: options.vectors,
  });
}
