// PCI functions of a Qtest machine, on bus 0: config space, and base address registers that are
// given their places as firmware would.

import type { Qtest } from './qtest.js';

/** Configuration by ports (PCI Local Bus 3.0, section 3.2.2.3.2), for the host bridge only. */
const CONFIG_ADDRESS = 0xcf8;
const CONFIG_DATA = 0xcfc;
const CONFIG_ENABLE = 0x80000000;
/** Where the host bridge of q35 is told that all of config space lies in memory. */
const PCIEXBAR = 0x60;
const ECAM_BASE = 0xb0000000;
const ECAM_ENABLE = 1;
/** Above it, up to the interrupt controllers, there is only what is placed there. */
const MEMORY_BASE = 0xc0000000;
const PORTS_BASE = 0xc000;

const COMMAND = 0x04;
/** I/O space, memory space, bus master. */
const COMMAND_ALL = 0x7;
const BAR0 = 0x10;
const BAR_COUNT = 6;
const BAR_IS_PORT = 0x1;
const BAR_IS_64_BIT = 0x4;

export interface PlacedBar {
  /** Of its first register: 0 to 5. */
  index: number;
  address: number;
  bytes: number;
  isPort: boolean;
}

export class PciBus {
  private readonly machine: Qtest;
  private memoryEnd = MEMORY_BASE;
  private portsEnd = PORTS_BASE;

  constructor(machine: Qtest) {
    this.machine = machine;
    machine.outl(CONFIG_ADDRESS, CONFIG_ENABLE + PCIEXBAR);
    machine.outl(CONFIG_DATA, ECAM_BASE + ECAM_ENABLE);
  }

  /** A function with its registers in place, allowed to answer and to do DMA. */
  place(slot: number, fn = 0): QtestFunction {
    const config = new QtestConfig(this.machine, slot, fn);
    if (config.read16(0) === 0xffff) throw new Error(`there is no function ${slot}.${fn}`);
    const bars: PlacedBar[] = [];
    for (let index = 0; index < BAR_COUNT; index++) {
      const bar = this.placeBar(config, index);
      if (bar === undefined) continue;
      bars.push(bar.placed);
      if (bar.isWide) index++;
    }
    config.write16(COMMAND, COMMAND_ALL);
    return new QtestFunction(this.machine, config, bars);
  }

  /** Registers that are written all ones keep those bits that are an address. */
  private placeBar(
    config: QtestConfig,
    index: number,
  ): { placed: PlacedBar; isWide: boolean } | undefined {
    const offset = BAR0 + index * 4;
    config.write32(offset, 0xffffffff);
    const mask = config.read32(offset);
    if (mask === 0) return undefined;
    const isPort = (mask & BAR_IS_PORT) !== 0;
    const isWide = !isPort && (mask & BAR_IS_64_BIT) !== 0;
    // Nothing here is so large that its size would not show in the low register.
    const bytes = (~(mask & (isPort ? ~0x3 : ~0xf)) >>> 0) + 1;
    const address = this.take(isPort ? bytes & 0xffff : bytes, isPort);
    config.write32(offset, address);
    if (isWide) config.write32(offset + 4, 0);
    return { placed: { index, address, bytes, isPort }, isWide };
  }

  /** Registers decode the bits above their size only: each is aligned to it. */
  private take(bytes: number, isPort: boolean): number {
    const from = isPort ? this.portsEnd : this.memoryEnd;
    const address = Math.ceil(from / bytes) * bytes;
    if (isPort) this.portsEnd = address + bytes;
    else this.memoryEnd = address + bytes;
    return address;
  }
}

/** Config space, all 4 KiB of it. */
export class QtestConfig {
  private readonly machine: Qtest;
  private readonly base: number;

  constructor(machine: Qtest, slot: number, fn: number) {
    this.machine = machine;
    this.base = ECAM_BASE + (slot << 15) + (fn << 12);
  }

  read8(offset: number): number {
    return this.machine.readb(this.base + offset);
  }

  read16(offset: number): number {
    return this.machine.readw(this.base + offset);
  }

  read32(offset: number): number {
    return this.machine.readl(this.base + offset);
  }

  write8(offset: number, value: number): void {
    this.machine.writeb(this.base + offset, value);
  }

  write16(offset: number, value: number): void {
    this.machine.writew(this.base + offset, value);
  }

  write32(offset: number, value: number): void {
    this.machine.writel(this.base + offset, value);
  }
}

export class QtestFunction {
  readonly config: QtestConfig;
  readonly bars: readonly PlacedBar[];
  private readonly machine: Qtest;

  constructor(machine: Qtest, config: QtestConfig, bars: readonly PlacedBar[]) {
    this.machine = machine;
    this.config = config;
    this.bars = bars;
  }

  /** A memory register by its index; its registers are read and written by offset. */
  bar(index: number): QtestBar {
    const bar = this.bars.find((candidate) => candidate.index === index && !candidate.isPort);
    if (bar === undefined) throw new RangeError(`there is no memory behind BAR ${index}`);
    return new QtestBar(this.machine, bar);
  }
}

export class QtestBar {
  readonly address: number;
  readonly bytes: number;
  private readonly machine: Qtest;

  constructor(machine: Qtest, bar: PlacedBar) {
    this.machine = machine;
    this.address = bar.address;
    this.bytes = bar.bytes;
  }

  read32(offset: number): number {
    return this.machine.readl(this.address + offset);
  }

  write32(offset: number, value: number): void {
    this.machine.writel(this.address + offset, value);
  }

  read64(offset: number): bigint {
    return this.machine.readq(this.address + offset);
  }
}
