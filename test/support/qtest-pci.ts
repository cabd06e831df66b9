// Functions on bus 0 of a Qtest machine, as drivers see them (PciFunction). Their base address
// registers get their places here, as firmware would give them. There are no interrupts: nobody is
// there to take them.

import { PenstockError } from '../../lib/errors.js';
import { native } from '../../lib/native.js';
import { Command, ConfigOffset, PciConfig, readIdentity } from '../../lib/pci/config-space.js';
import { DomainSpace } from '../../lib/pci/dma-space.js';
import type { Bar, PciFunction, PciIdentity } from '../../lib/pci/index.js';
import type { Qtest } from './qtest.js';

/** Configuration by ports (PCI Local Bus 3.0, section 3.2.2.3.2), for the host bridge only. */
const CONFIG_ADDRESS = 0xcf8;
const CONFIG_DATA = 0xcfc;
const CONFIG_ENABLE = 0x80000000;
/** Where the host bridge of q35 is told that all of config space lies in memory. */
const PCIEXBAR = 0x60;
const ECAM_BASE = 0xb0000000;
const ECAM_ENABLE = 1;
const CONFIG_BYTES = 4096;
/** Above it, up to the interrupt controllers, there is only what is placed there. */
const MEMORY_BASE = 0xc0000000;
const PORTS_BASE = 0xc000;

const BAR0 = 0x10;
const BAR_COUNT = 6;
const BAR_IS_PORT = 0x1;
const BAR_IS_64_BIT = 0x4;
const COMMAND_PORTS = 0x1;
/** PCI Express capability: its Device Control register begins a reset of the function. */
const CAPABILITY_EXPRESS = 0x10;
const DEVICE_CONTROL = 0x8;
const DEVICE_CONTROL_RESET = 0x8000;
const RESET_MS = 100;
const WIDTHS = { 1: ['readb', 'writeb'], 2: ['readw', 'writew'], 4: ['readl', 'writel'] } as const;

export interface PlacedBar {
  /** Of its first register: 0 to 5. */
  readonly index: number;
  readonly address: number;
  readonly bytes: number;
  readonly isPort: boolean;
  readonly isWide: boolean;
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

  /** A function with its registers in place; `enable` has it answer and do DMA. */
  place(slot: number, fn = 0): QtestFunction {
    const config = configOf(this.machine, slot, fn);
    if (config.read16(ConfigOffset.vendor) === 0xffff) {
      throw new Error(`there is no function ${slot}.${fn}`);
    }
    const bars: PlacedBar[] = [];
    for (let index = 0; index < BAR_COUNT; index++) {
      const bar = this.placeBar(config, index);
      if (bar === undefined) continue;
      bars.push(bar);
      if (bar.isWide) index++;
    }
    return new QtestFunction(this.machine, `00:${hex(slot, 2)}.${fn}`, config, bars);
  }

  /** A register that is written all ones keeps those bits that are an address. */
  private placeBar(config: PciConfig, index: number): PlacedBar | undefined {
    const offset = BAR0 + index * 4;
    config.write32(offset, 0xffffffff);
    const mask = config.read32(offset);
    if (mask === 0) return undefined;
    const isPort = (mask & BAR_IS_PORT) !== 0;
    const isWide = !isPort && (mask & BAR_IS_64_BIT) !== 0;
    // Nothing here is so large that its size would not show in the low register.
    const bytes = (~(mask & (isPort ? ~0x3 : ~0xf)) >>> 0) + 1;
    const size = isPort ? bytes & 0xffff : bytes;
    const bar = { index, address: this.take(size, isPort), bytes: size, isPort, isWide };
    writeBar(config, bar);
    return bar;
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

function writeBar(config: PciConfig, bar: PlacedBar): void {
  config.write32(BAR0 + bar.index * 4, bar.address);
  if (bar.isWide) config.write32(BAR0 + bar.index * 4 + 4, 0);
}

function configOf(machine: Qtest, slot: number, fn: number): PciConfig {
  const base = ECAM_BASE + (slot << 15) + (fn << 12);
  const access = {
    read(offset: number, view: Uint8Array): number {
      const value = machine[WIDTHS[view.length as 1 | 2 | 4][0]](base + offset);
      for (let i = 0; i < view.length; i++) view[i] = value >>> (8 * i);
      return view.length;
    },
    write(offset: number, view: Uint8Array): void {
      const value = view.reduceRight((sum, byte) => sum * 256 + byte, 0);
      machine[WIDTHS[view.length as 1 | 2 | 4][1]](base + offset, value);
    },
  };
  return new PciConfig(access, CONFIG_BYTES);
}

export class QtestFunction implements PciFunction {
  readonly transport = 'qtest';
  readonly memoryKind = 'device';
  readonly vectors = 0;
  readonly address: string;
  readonly config: PciConfig;
  readonly identity: PciIdentity;
  readonly dma: DomainSpace;
  readonly placed: readonly PlacedBar[];
  onRemovalRequested: (() => void) | null = null;
  private readonly bars = new Map<number, QtestBar>();
  private readonly machine: Qtest;
  private closed = false;

  constructor(machine: Qtest, address: string, config: PciConfig, placed: readonly PlacedBar[]) {
    this.machine = machine;
    this.address = address;
    this.config = config;
    this.identity = readIdentity(config);
    this.placed = placed;
    const transport = {
      map: ({ id, address, bytes }: { id: number; address: number; bytes: number }): boolean => {
        machine.attach({ address, bytes, descriptor: () => native.segmentFd(id) });
        return true;
      },
      unmap: (address: number): boolean => {
        machine.detach(address);
        return true;
      },
    };
    this.dma = new DomainSpace(transport, []);
  }

  get gone(): boolean {
    return this.config.failed || [...this.bars.values()].some((bar) => bar.failed);
  }

  bar(index: number): QtestBar {
    const placed = this.placed.find((bar) => bar.index === index && !bar.isPort);
    if (placed === undefined) {
      throw new PenstockError('NO_SUCH_BAR', `${this.address} has no memory behind BAR ${index}`, {
        hint: `it has ${this.placed.map((bar) => bar.index).join(', ')}`,
      });
    }
    const bar = this.bars.get(index) ?? new QtestBar(this.machine, placed);
    this.bars.set(index, bar);
    return bar;
  }

  enableInterrupts(): never {
    throw new TypeError('there are no interrupts');
  }

  disableInterrupts(): void {}

  vectorControl(): null {
    return null;
  }

  enable(): void {
    this.config.write16(ConfigOffset.command, COMMAND_PORTS | Command.memory | Command.busMaster);
  }

  quiesce(): void {
    this.config.write16(ConfigOffset.command, COMMAND_PORTS | Command.memory);
  }

  async reset(): Promise<void> {
    const express = this.config.capabilities().find((one) => one.id === CAPABILITY_EXPRESS);
    if (express === undefined) {
      throw new PenstockError('RESET_FAILED', `${this.address} has no reset of its own`);
    }
    const control = express.offset + DEVICE_CONTROL;
    this.config.write16(control, this.config.read16(control) | DEVICE_CONTROL_RESET);
    await new Promise((resolve) => setTimeout(resolve, RESET_MS));
    for (const bar of this.placed) writeBar(this.config, bar);
    if (this.gone) throw new PenstockError('RESET_FAILED', `${this.address} is gone`);
  }

  share(): never {
    throw new TypeError('the pipes of a machine belong to one thread');
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.quiesce();
    this.dma.close();
    await Promise.resolve();
  }
}

export class QtestBar implements Bar {
  readonly index: number;
  readonly bytes: number;
  readonly lost = false;
  /** True once QEMU did not answer. */
  failed = false;
  private readonly address: number;
  private readonly machine: Qtest;

  constructor(machine: Qtest, bar: PlacedBar) {
    this.machine = machine;
    this.index = bar.index;
    this.address = bar.address;
    this.bytes = bar.bytes;
  }

  read32(offset: number): number {
    try {
      return this.machine.readl(this.address + offset);
    } catch {
      this.failed = true;
      return 0xffffffff;
    }
  }

  write32(offset: number, value: number): void {
    try {
      this.machine.writel(this.address + offset, value);
    } catch {
      this.failed = true;
    }
  }

  words(): null {
    return null;
  }
}

function hex(value: number, digits: number): string {
  return value.toString(16).padStart(digits, '0');
}
