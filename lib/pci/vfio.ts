// A PCI function through VFIO (Documentation/driver-api/vfio.rst): opened, used and closed by the
// environment that is its home. See function.ts for the interface, vfio-attached.ts for the others.
//
// Invariants
// 1. What is opened is closed in reverse order, also when opening fails half-way. Closing goes: bus
//    master off, liveness word, register mappings, device, group and container, DMA domain. So
//    whoever sees the word gone knows that the device does no DMA any more.
// 2. While a reset is under way the kernel lets nobody touch registers: an access would block. One
//    that takes too long makes the function be gone, and its mappings be given up.
// 3. `gone` is plain loads. What finds out is a register that reads 0 or all ones through `read32`:
//    config space then tells, through sysfs, since VFIO makes up the ids in its own.

import { PenstockError } from '../errors.js';
import { Liveness } from '../memory/index.js';
import { native } from '../native.js';
import { MappedBar, mappableAreas, vectorControlIn, type BarWindow } from './bar.js';
import { blockingCall, BlockingKind, within } from './blocking.js';
import {
  Command,
  ConfigOffset,
  type MsixTable,
  PciConfig,
  readIdentity,
  readMsixTable,
} from './config-space.js';
import { DomainSpace } from './dma-space.js';
import { functionFolder } from './facts.js';
import type { Bar, PciFunction, PciIdentity } from './function.js';
import { fileRoot, type Root } from './root.js';
import type { VfioShare } from './vfio-attached.js';
import { type IommuBackend, VfioContainer } from './vfio-container.js';
import { readyFunction, setupError } from './vfio-errors.js';
import { RemovalWatch, Vectors } from './vfio-interrupts.js';

const BARS = 6;
const REGION_CONFIG = 7;
const RESET_LIMIT_MS = 5000;
const CLOSE_LIMIT_MS = 5000;
const VENDOR_GONE = 0xffff;

/**
 * Opens a function that is bound to vfio-pci. Errors: NO_SUCH_DEVICE, NO_IOMMU, VFIO_MISSING,
 * NOT_BOUND, PERMISSION_DENIED, GROUP_BUSY, GROUP_NOT_VIABLE, VFIO_FAILED.
 */
export async function openVfio(address: string, root: Root = fileRoot()): Promise<PciFunction> {
  const facts = readyFunction(root, address);
  const iommu = VfioContainer.open(root, facts);
  let device: number | undefined;
  try {
    device = iommu.openDevice();
    return new VfioFunction(facts.address, iommu, device);
  } catch (error) {
    await within(closeAll(iommu, device), CLOSE_LIMIT_MS);
    throw setupError(facts, error);
  }
}

async function closeAll(iommu: IommuBackend, device: number | undefined): Promise<void> {
  if (device !== undefined) await blockingCall(BlockingKind.close, device);
  await iommu.close();
}

class VfioFunction implements PciFunction {
  readonly address: string;
  readonly transport = 'vfio';
  readonly memoryKind = 'private';
  readonly identity: PciIdentity;
  readonly config: PciConfig;
  readonly dma: DomainSpace;
  onRemovalRequested: (() => void) | null = null;
  readonly unmaskInterrupt?: () => void;
  private readonly device: number;
  private readonly iommu: IommuBackend;
  private readonly bars = new Map<number, MappedBar>();
  private readonly interrupts: Vectors;
  private readonly table: MsixTable | null;
  private readonly removal: RemovalWatch;
  private readonly liveness: Liveness;
  /** The function's own config space in sysfs; -1 where it cannot be read. */
  private readonly presence: number;
  private departed = false;
  private resetting: Promise<number> | null = null;
  private closing: Promise<void> | null = null;

  constructor(address: string, iommu: IommuBackend, device: number) {
    this.address = address;
    this.iommu = iommu;
    this.device = device;
    const [, regions = 0, irqs = 0] = native.vfioDeviceInfo(device);
    this.config = openConfig(device);
    this.identity = readIdentity(this.config);
    this.table = readMsixTable(this.config);
    this.presence = openPresence(address);
    const undo: (() => void)[] = [() => closeQuietly(this.presence)];
    try {
      for (let index = 0; index < Math.min(BARS, regions); index++) {
        const bar = this.mapBar(index, undo);
        if (bar !== null) this.bars.set(index, bar);
      }
      this.interrupts = new Vectors(device, irqs);
      if (this.interrupts.levelTriggered) this.unmaskInterrupt = () => this.interrupts.unmask();
      this.dma = new DomainSpace(iommu, iommu.ranges);
      undo.push(() => this.dma.close());
      this.liveness = new Liveness();
      undo.push(() => this.liveness.close());
      this.removal = new RemovalWatch(device, irqs, () => this.onRemovalRequested?.());
    } catch (error) {
      for (const step of undo.reverse()) step();
      throw error;
    }
  }

  get vectors(): number {
    return this.interrupts.count;
  }

  get gone(): boolean {
    if (this.departed || this.config.failed) return true;
    for (const bar of this.bars.values()) if (bar.lost) this.departed = true;
    return this.departed;
  }

  bar(index: number): Bar {
    const bar = this.bars.get(index);
    if (bar !== undefined) return bar;
    const known = [...this.bars.keys()].join(', ');
    throw new PenstockError('NO_SUCH_BAR', `${this.address} has no BAR ${index}`, {
      hint: known === '' ? 'it has none' : `it has ${known}`,
    });
  }

  enableInterrupts(count: number): readonly number[] {
    return this.interrupts.enable(count);
  }

  disableInterrupts(): void {
    this.interrupts.disable();
  }

  vectorControl(vector: number): { readonly words: Uint32Array; readonly index: number } | null {
    const bar = this.table === null ? undefined : this.bars.get(this.table.bar);
    return vectorControlIn(bar, this.table, vector);
  }

  enable(): void {
    this.setCommand(Command.memory | Command.busMaster, 0);
  }

  quiesce(): void {
    this.setCommand(0, Command.busMaster);
    // What the device had sent comes before the answer to a read: it is in memory after this.
    this.config.read16(ConfigOffset.command);
  }

  async reset(): Promise<void> {
    if (this.closing !== null) throw new TypeError(`${this.address} is closed`);
    this.resetting ??= blockingCall(BlockingKind.reset, this.device);
    const call = this.resetting;
    const result = await within(call, RESET_LIMIT_MS);
    if (result === null) {
      this.departed = true;
      this.giveUpBars();
      throw new PenstockError('TIMED_OUT', `the reset of ${this.address} does not end`, {
        hint: 'the function is gone as far as this process goes: close it; see the kernel log',
      });
    }
    if (this.resetting === call) this.resetting = null;
    if (result !== 0) {
      throw new PenstockError('RESET_FAILED', `${this.address} was not reset (errno ${result})`, {
        hint: 'a function without function level reset can be reset only behind a port of its own',
      });
    }
  }

  share(): VfioShare {
    return {
      transport: this.transport,
      address: this.address,
      identity: this.identity,
      vectors: this.vectors,
      eventfds: this.interrupts.eventfds,
      table: this.table,
      bars: [...this.bars.values()].map((bar) => bar.share),
      domain: this.dma.domain,
      ranges: this.dma.ranges,
      mapFd: this.iommu.mapFd,
      liveness: { index: this.liveness.index, serial: this.liveness.serial },
    };
  }

  close(): Promise<void> {
    this.closing ??= this.release();
    return this.closing;
  }

  private async release(): Promise<void> {
    this.removal.close();
    if (this.resetting === null) {
      this.quiesce();
      this.disableInterrupts();
    }
    this.liveness.close();
    this.giveUpBars();
    closeQuietly(this.presence);
    const released = this.releaseDevice();
    // A device that went away may keep its close for a minute: that ends in the background.
    await within(released, CLOSE_LIMIT_MS);
  }

  private async releaseDevice(): Promise<void> {
    if (this.resetting !== null) await this.resetting;
    await closeAll(this.iommu, this.device);
    this.dma.close();
    for (const fd of this.interrupts.eventfds) native.fileClose(fd);
  }

  private setCommand(set: number, clear: number): void {
    const command = this.config.read16(ConfigOffset.command);
    this.config.write16(ConfigOffset.command, (command | set) & ~clear);
  }

  private giveUpBars(): void {
    for (const bar of this.bars.values()) {
      for (const window of bar.share.windows) ignoring(() => native.regionClose(window.region));
    }
  }

  /** Maps what can be mapped of a BAR; null where there is none. */
  private mapBar(index: number, undo: (() => void)[]): MappedBar | null {
    const info = native.vfioRegionInfo(this.device, index);
    if (info.bytes === 0) return null;
    const table = this.table?.bar === index ? this.table : null;
    const windows: BarWindow[] = [];
    for (const [offset, bytes] of mappableAreas(info, table)) {
      const region = native.regionMap(this.device, info.offset + offset, bytes, true);
      undo.push(() => native.regionClose(region));
      windows.push({ offset, bytes, region });
    }
    const trapped = accessAt(this.device, info.offset);
    return new MappedBar({ index, bytes: info.bytes, windows }, trapped, () => this.suspect());
  }

  /** A register read as those of a function that is gone do: is it? */
  private suspect(): void {
    if (this.departed || this.presence < 0 || this.resetting !== null || this.closing !== null) {
      return;
    }
    const vendor = new Uint16Array([VENDOR_GONE]);
    try {
      native.filePread(this.presence, ConfigOffset.vendor, vendor);
    } catch {
      // the node's function is not there any more
    }
    if (vendor[0] === VENDOR_GONE) this.departed = true;
  }
}

/** Access to a part of the device's file, by offsets from `start`. */
function accessAt(device: number, start: number) {
  return {
    read: (offset: number, view: Uint8Array) => native.filePread(device, start + offset, view),
    write: (offset: number, view: Uint8Array) => {
      native.filePwrite(device, start + offset, view);
    },
  };
}

function openConfig(device: number): PciConfig {
  const { offset, bytes } = native.vfioRegionInfo(device, REGION_CONFIG);
  return new PciConfig(accessAt(device, offset), bytes);
}

function openPresence(address: string): number {
  try {
    return native.fileOpen(`${functionFolder(address)}/config`, 0, 0);
  } catch {
    return -1; // no sysfs here: what is lost shows by its mappings only
  }
}

function closeQuietly(fd: number): void {
  if (fd >= 0) native.fileClose(fd);
}

/** For what another part of the end may have done before. */
function ignoring(step: () => void): void {
  try {
    step();
  } catch {
    // it is done already
  }
}
