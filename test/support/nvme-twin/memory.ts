// The memory that the twin reaches, and what it insists on before it touches any of it.
//
// Invariants
// 1. Nothing is read or written outside of live memory that `map` opens to the device; what a
//    driver asks for beyond that is a violation, kept for the test, and the command fails.
// 2. Data goes where a live operation's buffer is, once a test has registered one (`allow`); never
//    to a ring. Lists, identify and log pages, which belong to the driver, never lie in a buffer of
//    a live operation nor in a ring.
// 3. While `open` is false (disabled, bus master off, removed) no address resolves.

import { Dma, makeDma, type TwinDma } from './dma.js';
import { Regions } from './regions.js';

/** What freed buffers are filled with. */
export const FREED_BYTE = 0xd5;

const VIOLATIONS_MAX = 1000;

/** Misbehaviour of a driver, in the order it was seen. */
export class Violations {
  readonly list: string[] = [];
  /** Those among them that would have touched memory the device has no business in. */
  readonly memory: string[] = [];

  add(text: string): void {
    if (this.list.length < VIOLATIONS_MAX) this.list.push(text);
  }

  addMemory(text: string): void {
    this.add(text);
    if (this.memory.length < VIOLATIONS_MAX) this.memory.push(text);
  }
}

/** A window of the address space that is no segment: the controller memory buffer. */
export interface Window {
  address: number;
  readonly u8: Uint8Array;
}

export class TwinMemory {
  readonly dma: TwinDma;
  /** Buffers of live operations. */
  readonly allowed = new Regions();
  readonly rings = new Regions();
  readonly freed = new Regions();
  /** Whether data must lie in `allowed`; on from the first `allow`. */
  strict = false;
  /** False: the device may not touch memory. */
  open = false;
  /** The controller memory buffer while it is enabled. */
  window: Window | null = null;
  private readonly violations: Violations;

  constructor(violations: Violations, dma: 'live' | 'reached') {
    this.violations = violations;
    this.dma = makeDma(dma);
  }

  /** Registers the buffer of an operation that is in flight from now on. */
  allow(address: number, bytes: number, access: Dma, name = 'buffer'): void {
    this.strict = true;
    if (this.freed.touching(address, bytes) !== undefined) {
      this.violations.add(`${name} ${range(address, bytes)} is submitted after its free`);
    }
    this.allowed.add(address, bytes, access, name);
  }

  disallow(address: number, bytes: number, access: Dma): void {
    if (this.allowed.remove(address, bytes, access)) return;
    throw new RangeError(`${range(address, bytes)} is not allowed, so it cannot be disallowed`);
  }

  /** Data of an I/O command as a view, or null when it may not be touched. */
  data(address: number, bytes: number, access: Dma): Uint8Array | null {
    const view = this.view(address, bytes, access, 'data');
    if (view === null || this.inWindow(address, bytes)) return view;
    const ring = this.rings.touching(address, bytes);
    if (ring !== undefined) return this.refuse(`data ${range(address, bytes)} in ${ring.name}`);
    if (!this.strict || this.allowed.covers(address, bytes, access)) return view;
    const verb = access === Dma.reads ? 'read' : 'written';
    return this.refuse(`data ${range(address, bytes)} ${verb} outside of live operations`);
  }

  /** What belongs to the driver itself: lists, identify and log pages, shadow doorbells. */
  own(address: number, bytes: number, access: Dma, what: string): Uint8Array | null {
    const view = this.view(address, bytes, access, what);
    if (view === null || this.inWindow(address, bytes)) return view;
    const other = this.rings.touching(address, bytes) ?? this.allowed.touching(address, bytes);
    if (other === undefined) return view;
    return this.refuse(`${what} ${range(address, bytes)} in ${other.name}`);
  }

  /** A ring, which is the device's until `release`; words for its entries. */
  ring(address: number, bytes: number, access: Dma, name: string): Uint32Array | null {
    const view = this.own(address, bytes, access, name);
    if (view === null) return null;
    this.rings.add(address, bytes, access, name);
    return new Uint32Array(view.buffer, view.byteOffset, bytes / 4);
  }

  releaseRing(address: number, bytes: number, access: Dma): void {
    this.rings.remove(address, bytes, access);
  }

  /** Says that a buffer was freed: it gets a pattern, which must stay until `reuse`. */
  free(address: number, bytes: number): void {
    const live = this.allowed.touching(address, bytes);
    if (live !== undefined) {
      this.violations.add(`${live.name} ${range(address, bytes)} is freed while in flight`);
    }
    this.bytesAt(address, bytes)!.fill(FREED_BYTE);
    this.freed.add(address, bytes, 0, 'freed buffer');
  }

  reuse(address: number, bytes: number): void {
    this.checkFreed();
    this.freed.remove(address, bytes, 0);
  }

  /** Looks whether anyone, device or driver, wrote to freed buffers. */
  checkFreed(): void {
    for (const region of this.freed.all()) {
      const view = this.bytesAt(region.address, region.bytes);
      const at = view?.findIndex((byte) => byte !== FREED_BYTE) ?? -1;
      if (at < 0) continue;
      this.violations.addMemory(
        `byte ${at} of freed ${range(region.address, region.bytes)} written`,
      );
      view!.fill(FREED_BYTE);
    }
  }

  private view(address: number, bytes: number, access: Dma, what: string): Uint8Array | null {
    if (!this.open) return null;
    if (this.inWindow(address, bytes)) {
      const start = address - this.window!.address;
      return this.window!.u8.subarray(start, start + bytes);
    }
    if (address === 0 || !this.dma.reaches(address, bytes, access)) {
      return this.refuse(`${what} ${range(address, bytes)} is not memory the device may reach`);
    }
    const freed = this.freed.size > 0 ? this.freed.touching(address, bytes) : undefined;
    if (freed !== undefined) return this.refuse(`${what} ${range(address, bytes)} after its free`);
    const view = this.bytesAt(address, bytes);
    return view ?? this.refuse(`${what} ${range(address, bytes)} goes over a segment's end`);
  }

  private bytesAt(address: number, bytes: number): Uint8Array | null {
    const segment = this.dma.segmentAt(address);
    const start = segment === undefined ? 0 : address - segment.address;
    if (segment === undefined || start + bytes > segment.bytes) return null;
    return segment.u8.subarray(start, start + bytes);
  }

  private inWindow(address: number, bytes: number): boolean {
    const { window } = this;
    if (window === null || address < window.address) return false;
    return address + bytes <= window.address + window.u8.length;
  }

  private refuse(text: string): null {
    this.violations.addMemory(text);
    return null;
  }
}

export function range(address: number, bytes: number): string {
  return `[0x${address.toString(16)}, +${bytes})`;
}
