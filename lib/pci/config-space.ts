// Config space as a register file: reads and writes by width, the walk over capabilities, identity,
// and what a driver needs of the MSI-X capability (PCI Local Bus 3.0, chapter 6; PCI Express Base,
// chapter 7 for what lies from 0x100 on).
//
// Invariants
// 1. Nothing here throws for what a device holds: a read that fails gives all ones, as a function
//    that is gone does, and capability lists of any content end.
// 2. Registers are little-endian, whatever is in between.

import type { ConfigSpace, PciCapability, PciIdentity } from './function.js';

/** How bytes of config space get here. Both may throw a failed system call's error. */
export interface ConfigAccess {
  /** Gives how many bytes it read into `view`. */
  read(offset: number, view: Uint8Array): number;
  write(offset: number, view: Uint8Array): void;
}

/** Byte offsets in the header of type 0. */
export const enum ConfigOffset {
  vendor = 0x00,
  device = 0x02,
  command = 0x04,
  status = 0x06,
  /** Revision in the low byte, class code above. */
  revision = 0x08,
  subsystemVendor = 0x2c,
  subsystem = 0x2e,
  capabilities = 0x34,
  /** Where the header ends, and capabilities may begin. */
  headerEnd = 0x40,
  extended = 0x100,
}

/** Bits of the command register. */
export const enum Command {
  memory = 1 << 1,
  busMaster = 1 << 2,
  interruptDisable = 1 << 10,
}

const STATUS_CAPABILITIES = 1 << 4;
const CAPABILITY_MSI = 0x05;
const CAPABILITY_MSIX = 0x11;
/** No list of four-byte entries in so many bytes is longer: a longer one is a loop. */
const CAPABILITIES_MAX = (ConfigOffset.extended - ConfigOffset.headerEnd) / 4;
const EXTENDED_MAX = (4096 - ConfigOffset.extended) / 4;

export class PciConfig implements ConfigSpace {
  /** True once an access failed: nobody answers at the other end. */
  failed = false;
  private readonly access: ConfigAccess;
  private readonly bytesTotal: number;
  private readonly scratch = new Uint8Array(4);
  private found: readonly PciCapability[] | undefined;

  /** `bytesTotal`: 256, or 4096 with the extended space. */
  constructor(access: ConfigAccess, bytesTotal: number) {
    this.access = access;
    this.bytesTotal = bytesTotal;
  }

  read8(offset: number): number {
    return this.read(offset, 1);
  }

  read16(offset: number): number {
    return this.read(offset, 2);
  }

  read32(offset: number): number {
    return this.read(offset, 4);
  }

  write8(offset: number, value: number): void {
    this.write(offset, value, 1);
  }

  write16(offset: number, value: number): void {
    this.write(offset, value, 2);
  }

  write32(offset: number, value: number): void {
    this.write(offset, value, 4);
  }

  /** In the order of their lists, which are walked once. */
  capabilities(): readonly PciCapability[] {
    this.found ??= [...this.standard(), ...this.extended()];
    return this.found;
  }

  private read(offset: number, width: number): number {
    this.check(offset, width);
    const view = this.scratch.subarray(0, width).fill(0xff);
    try {
      if (this.access.read(offset, view) !== width) {
        this.failed = true;
        view.fill(0xff);
      }
    } catch {
      this.failed = true;
      view.fill(0xff);
    }
    let value = 0;
    for (let i = width - 1; i >= 0; i--) value = value * 256 + view[i]!;
    return value;
  }

  private write(offset: number, value: number, width: number): void {
    this.check(offset, width);
    const view = this.scratch.subarray(0, width);
    for (let i = 0; i < width; i++) view[i] = value >>> (8 * i);
    try {
      this.access.write(offset, view);
    } catch {
      this.failed = true;
    }
  }

  private check(offset: number, width: number): void {
    if (Number.isInteger(offset / width) && offset >= 0 && offset + width <= this.bytesTotal) {
      return;
    }
    const limit = `below ${this.bytesTotal}`;
    throw new RangeError(`config space has no ${width}-byte register at ${offset} (${limit})`);
  }

  private standard(): PciCapability[] {
    if ((this.read16(ConfigOffset.status) & STATUS_CAPABILITIES) === 0) return [];
    const list: PciCapability[] = [];
    let offset = this.read8(ConfigOffset.capabilities) & ~3;
    while (list.length < CAPABILITIES_MAX && offset >= ConfigOffset.headerEnd) {
      const header = this.read16(offset);
      if (header === 0xffff) break; // the function is gone
      if (list.some((known) => known.offset === offset)) break; // a loop
      list.push({ id: header & 0xff, offset, extended: false });
      offset = (header >>> 8) & ~3;
    }
    return list;
  }

  private extended(): PciCapability[] {
    if (this.bytesTotal <= ConfigOffset.extended) return [];
    const list: PciCapability[] = [];
    const seen = new Set<number>();
    let offset: number = ConfigOffset.extended;
    while (list.length < EXTENDED_MAX && offset >= ConfigOffset.extended && !seen.has(offset)) {
      const header = this.read32(offset);
      if (header === 0 || header === 0xffffffff) break;
      seen.add(offset);
      list.push({ id: header & 0xffff, offset, extended: true });
      offset = (header >>> 20) & ~3;
    }
    return list;
  }
}

export function readIdentity(config: ConfigSpace): PciIdentity {
  const classWord = config.read32(ConfigOffset.revision);
  return {
    vendor: config.read16(ConfigOffset.vendor),
    device: config.read16(ConfigOffset.device),
    subsystemVendor: config.read16(ConfigOffset.subsystemVendor),
    subsystemDevice: config.read16(ConfigOffset.subsystem),
    classCode: classWord >>> 8,
    revision: classWord & 0xff,
  };
}

/** Where the MSI-X table lies; a vector's entry has four words, the last of which masks it. */
export interface MsixTable {
  readonly vectors: number;
  readonly bar: number;
  /** Of the table in that BAR, in bytes. */
  readonly offset: number;
  readonly bytes: number;
}

/** PCI Local Bus 3.0, section 6.8.2; null where the function has no MSI-X. */
export function readMsixTable(config: ConfigSpace): MsixTable | null {
  const capability = config.capabilities().find((one) => one.id === CAPABILITY_MSIX);
  if (capability === undefined || capability.extended) return null;
  if (capability.offset + 8 > ConfigOffset.extended) return null; // hostile: it has no room
  const vectors = (config.read16(capability.offset + 2) & 0x7ff) + 1;
  const table = config.read32(capability.offset + 4);
  return { vectors, bar: table & 7, offset: (table & ~7) >>> 0, bytes: vectors * 16 };
}

/** Vectors of MSI (section 6.8.1), 0 without it. */
export function readMsiVectors(config: ConfigSpace): number {
  const capability = config.capabilities().find((one) => one.id === CAPABILITY_MSI);
  if (capability === undefined || capability.extended) return 0;
  return 1 << Math.min((config.read16(capability.offset + 2) >>> 1) & 7, 5);
}
