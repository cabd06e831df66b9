// LlrrmTable: which blocks of the pool the low-latency device has a copy of, and in which slot.
//
// A slot is a page of that device. States: free → filling (its copy is on its way) → valid →
// leaving (its block was freed, or it makes room; who reads it finishes) → free.
//
// Invariants
// 1. A block is in one slot at most, and can be found in states filling and valid alone.
// 2. A slot is given out again only when nobody reads or fills it (`users`).

/** Blocks of a run that the tier is asked for; longer ones are what the data device is good at. */
export const LLRRM_RUN = 32;

/** What a slot is. */
export const enum SlotState {
  free = 0,
  filling = 1,
  valid = 2,
  leaving = 3,
}

/** Reads of a slot, at most, that keep it from leaving when another block wants its place. */
const HEAT_MOST = 3;
/** Slots that are looked at for one that is cold. */
const LOOKS = 64;
const HASH_LOAD = 1.5;
const TWO_32 = 4294967296;

export class LlrrmTable {
  readonly slots: number;
  /** By slot: its block, and the CRC-32C of its copy. */
  readonly pbnLo: Uint32Array;
  readonly pbnHi: Uint8Array;
  readonly crcs: Uint32Array;
  readonly states: Uint8Array;
  /** Requests to the device that use the slot. */
  readonly users: Uint16Array;
  /** Slots that are valid; dropped so far to make room, and because their block was freed. */
  valid = 0;
  evicted = 0;
  freed = 0;
  private readonly heat: Uint8Array;
  private readonly hash: Int32Array;
  private readonly mask: number;
  private readonly free: Int32Array;
  private freeCount: number;
  private hand = 0;

  constructor(slots: number) {
    this.slots = slots;
    this.pbnLo = new Uint32Array(slots);
    this.pbnHi = new Uint8Array(slots);
    this.crcs = new Uint32Array(slots);
    this.states = new Uint8Array(slots);
    this.users = new Uint16Array(slots);
    this.heat = new Uint8Array(slots);
    let size = 64;
    while (size < slots * HASH_LOAD) size *= 2;
    this.hash = new Int32Array(size).fill(-1);
    this.mask = size - 1;
    // The first is given out first: series of blocks lie in series of slots.
    this.free = Int32Array.from({ length: slots }, (_, i) => slots - 1 - i);
    this.freeCount = slots;
  }

  // hot:begin

  /** The slot of a block, filling or valid; -1: none. Words of the pbn, the low one with a sign. */
  slotOf(lo: number, hi: number): number {
    const { hash, mask, pbnLo, pbnHi } = this;
    for (let at = this.place(lo, hi); ; at = (at + 1) & mask) {
      const slot = hash[at]!;
      if (slot < 0 || ((pbnLo[slot]! | 0) === lo && pbnHi[slot] === hi)) return slot;
    }
  }

  /** It was read: others go before it. */
  warm(slot: number): void {
    const heat = this.heat[slot]!;
    if (heat < HEAT_MOST) this.heat[slot] = heat + 1;
  }

  private place(lo: number, hi: number): number {
    const mixed = Math.imul(lo ^ Math.imul(hi, 0x85ebca6b), 0x9e3779b1);
    return (mixed ^ (mixed >>> 15)) & this.mask;
  }

  // hot:end

  get room(): number {
    return this.freeCount;
  }

  /** A slot for a block that has none, filling; -1: all are warmer, or in use. */
  claim(pbn: number, heat: number): number {
    if (this.freeCount === 0) this.evict();
    if (this.freeCount === 0) return -1;
    const slot = this.free[--this.freeCount]!;
    this.enter(slot, pbn, heat);
    this.states[slot] = SlotState.filling;
    return slot;
  }

  /** Its copy is there, with this checksum. */
  filled(slot: number, crc: number): void {
    this.crcs[slot] = crc;
    this.states[slot] = SlotState.valid;
    this.valid++;
  }

  /** What a slot had before the pool was closed. After the last one: `restored`. */
  restore(slot: number, pbn: number, crc: number): void {
    if (this.states[slot] !== SlotState.free || this.slotOf(pbn | 0, (pbn / TWO_32) | 0) >= 0)
      return;
    this.enter(slot, pbn, 1);
    this.filled(slot, crc);
  }

  restored(): void {
    this.freeCount = 0;
    for (let slot = this.slots - 1; slot >= 0; slot--) {
      if (this.states[slot] === SlotState.free) this.free[this.freeCount++] = slot;
    }
  }

  /** The block of a slot. */
  pbnOf(slot: number): number {
    return this.pbnHi[slot]! * TWO_32 + this.pbnLo[slot]!;
  }

  /** Its block is not found here any more. */
  drop(slot: number): void {
    if (this.states[slot] === SlotState.valid) this.valid--;
    this.states[slot] = SlotState.leaving;
    this.unhash(slot);
    this.letGo(slot);
  }

  /** Frees a slot that is to leave, once nobody uses it. */
  letGo(slot: number): void {
    if (this.states[slot] !== SlotState.leaving || this.users[slot] !== 0) return;
    this.states[slot] = SlotState.free;
    this.free[this.freeCount++] = slot;
  }

  private enter(slot: number, pbn: number, heat: number): void {
    this.pbnLo[slot] = pbn >>> 0;
    this.pbnHi[slot] = pbn / TWO_32;
    this.heat[slot] = heat;
    const { hash, mask } = this;
    let at = this.place(pbn | 0, (pbn / TWO_32) | 0);
    while (hash[at]! >= 0) at = (at + 1) & mask;
    hash[at] = slot;
  }

  /** Drops the first cold slot from where the last search ended; those it passes get colder. */
  private evict(): void {
    const { states, users, heat } = this;
    for (let looked = 0; looked < LOOKS; looked++) {
      const slot = this.hand;
      this.hand = slot + 1 === this.slots ? 0 : slot + 1;
      if (states[slot] !== SlotState.valid || users[slot] !== 0) continue;
      if (heat[slot] !== 0) {
        heat[slot] = heat[slot]! - 1;
        continue;
      }
      this.evicted++;
      this.drop(slot);
      return;
    }
  }

  /** Takes a slot out of the hash; what came after it by collision moves up. */
  private unhash(slot: number): void {
    const { hash, mask, pbnLo, pbnHi } = this;
    let at = this.place(pbnLo[slot]! | 0, pbnHi[slot]!);
    while (hash[at] !== slot) at = (at + 1) & mask;
    for (let next = (at + 1) & mask; hash[next]! >= 0; next = (next + 1) & mask) {
      const other = hash[next]!;
      const home = this.place(pbnLo[other]! | 0, pbnHi[other]!);
      if (((next - home) & mask) < ((next - at) & mask)) continue;
      hash[at] = other;
      at = next;
    }
    hash[at] = -1;
  }
}
