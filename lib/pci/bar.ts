// BARs as typed arrays: which parts of a BAR are mapped, and access to the parts that are not.
//
// Invariants
// 1. Register access never throws for what happened to the device: a part that is gone or that
//    there is none of reads all ones, and stores to it go nowhere.
// 2. A mapped part is one Uint32Array per call of `words`, on one ArrayBuffer per environment. When
//    its device vanishes its pages read 0xff (native/region.cc) and its lost word is not 0.
// 3. A read through `read32` that gives 0 or all ones, as a function that went away does, makes its
//    owner look (`suspect`). Reads through `words` are the driver's own affair.

import { StatusWord, statusWords } from '../memory/index.js';
import { native, type VfioRegionRecord } from '../native.js';
import type { MsixTable } from './config-space.js';
import type { Bar } from './function.js';

const PAGE_BYTES = 4096;
const FLAG_MAPPABLE = 4;
const ALL_ONES = 0xffffffff;

/** A mapped part of a BAR: [offset, offset + bytes), by the region's id. */
export interface BarWindow {
  readonly offset: number;
  readonly bytes: number;
  readonly region: number;
}

/** What another environment needs to use a BAR. */
export interface BarShare {
  readonly index: number;
  readonly bytes: number;
  readonly windows: readonly BarWindow[];
}

/** Access to what is not mapped, by calls of 4 bytes; offsets in the BAR. */
export interface TrappedAccess {
  read(offset: number, view: Uint8Array): number;
  write(offset: number, view: Uint8Array): void;
}

/**
 * The parts [offset, bytes] of a BAR that can be mapped: what the kernel says, in whole pages,
 * without the pages of the MSI-X table unless it says that they can be too.
 */
export function mappableAreas(
  info: VfioRegionRecord,
  table: { offset: number; bytes: number } | null,
): (readonly [number, number])[] {
  if ((info.flags & FLAG_MAPPABLE) === 0) return [];
  const areas: (readonly [number, number])[] = [];
  const add = (start: number, end: number): void => {
    const first = Math.ceil(start / PAGE_BYTES) * PAGE_BYTES;
    const last = Math.floor(Math.min(end, info.bytes) / PAGE_BYTES) * PAGE_BYTES;
    if (last > first) areas.push([first, last - first]);
  };
  if (info.sparse === 1) {
    for (let i = 0; i + 1 < info.areas.length; i += 2) {
      add(info.areas[i]!, info.areas[i]! + info.areas[i + 1]!);
    }
  } else if (table === null || info.msixMappable === 1) {
    add(0, info.bytes);
  } else {
    add(0, Math.floor(table.offset / PAGE_BYTES) * PAGE_BYTES);
    add(Math.ceil((table.offset + table.bytes) / PAGE_BYTES) * PAGE_BYTES, info.bytes);
  }
  return areas;
}

interface View {
  readonly start: number;
  readonly end: number;
  readonly words: Uint32Array;
  readonly lostWord: number;
}

export class MappedBar implements Bar {
  readonly index: number;
  readonly bytes: number;
  readonly share: BarShare;
  private readonly views: readonly View[];
  private readonly trapped: TrappedAccess | null;
  private readonly suspect: () => void;
  private readonly scratch = new Uint32Array(1);

  /** `trapped` is null where there is no access but by mapping: in attached environments. */
  constructor(share: BarShare, trapped: TrappedAccess | null, suspect: () => void) {
    this.index = share.index;
    this.bytes = share.bytes;
    this.share = share;
    this.trapped = trapped;
    this.suspect = suspect;
    this.views = share.windows.map((window) => ({
      start: window.offset,
      end: window.offset + window.bytes,
      words: new Uint32Array(native.regionBuffer(window.region)),
      lostWord: StatusWord.lost + (window.region % 4096),
    }));
  }

  get lost(): boolean {
    const status = statusWords();
    for (const view of this.views) if (status[view.lostWord] !== 0) return true;
    return false;
  }

  read32(offset: number): number {
    checkAligned(offset, 4);
    const view = this.viewOver(offset, 4);
    const value =
      view === undefined ? this.readTrapped(offset) : view.words[indexIn(view, offset)]!;
    if (value === 0 || value === ALL_ONES) this.suspect();
    return value;
  }

  write32(offset: number, value: number): void {
    checkAligned(offset, 4);
    const view = this.viewOver(offset, 4);
    if (view === undefined) this.writeTrapped(offset, value);
    else view.words[indexIn(view, offset)] = value;
  }

  words(offset: number, bytes: number): Uint32Array | null {
    checkAligned(offset, bytes);
    const view = this.viewOver(offset, bytes);
    if (view === undefined) return null;
    return new Uint32Array(view.words.buffer, offset - view.start, bytes / 4);
  }

  private viewOver(offset: number, bytes: number): View | undefined {
    return this.views.find((view) => view.start <= offset && offset + bytes <= view.end);
  }

  private readTrapped(offset: number): number {
    this.scratch[0] = ALL_ONES;
    if (offset + 4 > this.bytes) return ALL_ONES;
    const access = this.trappedAccess();
    try {
      if (access.read(offset, new Uint8Array(this.scratch.buffer)) !== 4) return ALL_ONES;
    } catch {
      return ALL_ONES;
    }
    return this.scratch[0];
  }

  private writeTrapped(offset: number, value: number): void {
    if (offset + 4 > this.bytes) return;
    const access = this.trappedAccess();
    this.scratch[0] = value;
    try {
      access.write(offset, new Uint8Array(this.scratch.buffer));
    } catch {
      this.suspect();
    }
  }

  private trappedAccess(): TrappedAccess {
    if (this.trapped !== null) return this.trapped;
    const where = `this part of BAR ${this.index}`;
    throw new TypeError(`${where} is not mapped: only the environment that opened it has access`);
  }
}

/** The mask word of a vector in a mapped MSI-X table; null where the table is trapped. */
export function vectorControlIn(
  bar: Bar | undefined,
  table: MsixTable | null,
  vector: number,
): { readonly words: Uint32Array; readonly index: number } | null {
  if (table === null || bar === undefined || vector < 0 || vector >= table.vectors) return null;
  const words = bar.words(table.offset, table.bytes);
  return words === null ? null : { words, index: vector * 4 + 3 };
}

function indexIn(view: View, offset: number): number {
  return (offset - view.start) >>> 2;
}

function checkAligned(offset: number, bytes: number): void {
  if (offset >= 0 && Number.isInteger(offset / 4) && bytes > 0 && bytes % 4 === 0) return;
  throw new RangeError(`registers are words: ${bytes} bytes at ${offset} are none`);
}
