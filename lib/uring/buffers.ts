// BufferTable: registers the segments that a ring's operations use as fixed buffers, on first use.
//
// Invariants
// 1. A granule's entry is valid only while the segment table's epoch is the one it was made in;
//    when a segment came or went, entries of closed segments are cleared before the next lookup.
//    So a fixed buffer never stands for pages that an address no longer has.
// 2. Registration pins memory: only own writable segments of up to `BYTES_MAX` are registered,
//    and where the kernel refuses (memlock) the table says so and operations go without.

import { addressSpace, GRANULE_BYTES, StatusWord, statusWords } from '../memory/index.js';
import type { Ring } from './ring.js';

const SLOTS = 256;
const BYTES_MAX = 64 * 2 ** 20;
const GRANULES = 2 ** 36 / GRANULE_BYTES;
/** Entry values: 0 not looked at yet, 1 … SLOTS slot + 1, NONE not to be registered. */
const NONE = 0xffff;

/** A constant of the module: V8 then knows where its words are. */
const status = statusWords();

export class BufferTable {
  /** By granule of the process's slot. */
  private readonly entries = new Uint16Array(GRANULES);
  private readonly segments = new Uint32Array(SLOTS);
  private readonly ring: Ring;
  private readonly firstGranule: number;
  private epoch: number;
  private usable: boolean;

  constructor(ring: Ring) {
    this.ring = ring;
    this.firstGranule = (addressSpace().domain * 2 ** 36) / GRANULE_BYTES;
    this.epoch = status[StatusWord.epoch]!;
    this.usable = ring.createBufferTable(SLOTS);
  }

  /** Whether fixed buffers are in use at all. */
  get active(): boolean {
    return this.usable;
  }

  // hot:begin

  /** Slot of the fixed buffer that holds [address, address + bytes), or -1. Words of an Address. */
  slotOf(addressLo: number, addressHi: number, bytes: number): number {
    if (this.epoch !== status[StatusWord.epoch]!) this.refresh();
    const granule = ((addressHi << 11) | (addressLo >>> 21)) - this.firstGranule;
    if (granule < 0 || granule >= GRANULES) return -1;
    let entry = this.entries[granule]!;
    if (entry === 0) entry = this.register(granule);
    if (entry === NONE) return -1;
    // A buffer that crosses into the next granule must stay in the same segment.
    const last = granule + ((((addressLo & 0x1fffff) + bytes - 1) / GRANULE_BYTES) | 0);
    return last === granule || this.entries[last]! === entry ? entry - 1 : -1;
  }

  // hot:end

  private register(granule: number): number {
    const space = addressSpace();
    const segment = space.find((granule + this.firstGranule) * GRANULE_BYTES);
    const slot = this.segments.indexOf(0);
    let value = NONE;
    if (
      this.usable &&
      segment !== undefined &&
      slot >= 0 &&
      segment.writable &&
      segment.bytes <= BYTES_MAX &&
      (segment.kind === 'private' || segment.kind === 'shared' || segment.kind === 'device')
    ) {
      if (this.ring.setBuffer(slot, segment.address, segment.bytes)) {
        this.segments[slot] = segment.id;
        value = slot + 1;
      } else {
        this.usable = false; // most likely the memlock limit; it will not get better
      }
    }
    if (segment === undefined) return NONE;
    const first = segment.address / GRANULE_BYTES - this.firstGranule;
    this.entries.fill(value, first, first + segment.bytes / GRANULE_BYTES);
    return value;
  }

  private refresh(): void {
    this.epoch = status[StatusWord.epoch]!;
    const live = new Set(
      addressSpace()
        .list()
        .map((record) => record.id),
    );
    for (let slot = 0; slot < SLOTS; slot++) {
      const id = this.segments[slot]!;
      if (id === 0 || live.has(id)) continue;
      this.segments[slot] = 0;
      this.ring.setBuffer(slot, 0, 0);
    }
    this.entries.fill(0);
    for (const record of addressSpace().list()) {
      const slot = this.segments.indexOf(record.id);
      if (slot < 0) continue;
      const first = record.address / GRANULE_BYTES - this.firstGranule;
      this.entries.fill(slot + 1, first, first + record.bytes / GRANULE_BYTES);
    }
  }
}
