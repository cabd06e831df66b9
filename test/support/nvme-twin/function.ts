// The driver's side of a twin: PciFunction over the shared parts. The controller may stand in the
// same thread (its hooks are then called at each trapped access) or in another (it polls).

import { PenstockError } from '../../../lib/errors.js';
import { native } from '../../../lib/native.js';
import type { Bar, PciFunction, PciIdentity } from '../../../lib/pci/index.js';
import { TwinConfig } from './config-space.js';
import type { TwinShare } from './attach.js';
import type { TwinDma } from './dma.js';
import type { Violations } from './memory.js';
import { allowWrite } from './register-rules.js';
import { Control, DOORBELLS_OFFSET, Shared, VECTOR_WORDS } from './shared.js';

/** What the controller does at once when it stands in the same thread. */
export interface ControllerHooks {
  registerWritten(offset: number): void;
  doorbellWritten(index: number): void;
  reset(): void;
}

export class TwinFunction implements PciFunction {
  readonly transport = 'twin';
  readonly memoryKind = 'private';
  readonly config: TwinConfig;
  readonly dma: TwinDma;
  onRemovalRequested: (() => void) | null = null;
  private readonly shared: Shared;
  private readonly violations: Violations;
  private readonly hooks: ControllerHooks | null;
  private eventFds: number[] = [];
  private wasGone = false;
  private closed = false;
  /** Whether this side may configure the function: not when it was attached. */
  private readonly isHome: boolean;

  constructor(
    shared: Shared,
    dma: TwinDma,
    violations: Violations,
    hooks: ControllerHooks | null,
    isHome = true,
  ) {
    this.shared = shared;
    this.dma = dma;
    this.violations = violations;
    this.hooks = hooks;
    this.isHome = isHome;
    this.config = new TwinConfig(shared, () => this.removedValue());
  }

  get address(): string {
    return this.shared.parts.address;
  }

  get identity(): PciIdentity {
    const { config } = this;
    const classRevision = config.read32(0x08);
    return {
      vendor: config.read16(0x00),
      device: config.read16(0x02),
      subsystemVendor: config.read16(0x2c),
      subsystemDevice: config.read16(0x2e),
      classCode: classRevision >>> 8,
      revision: classRevision & 0xff,
    };
  }

  get vectors(): number {
    return this.shared.parts.vectorsMax;
  }

  get gone(): boolean {
    if (this.shared.isRemoved) this.wasGone = true;
    return this.wasGone;
  }

  bar(index: number): Bar {
    this.assertOpen();
    if (index === 0) return new RegisterBar(this.shared, this.violations, this.hooks);
    const { cmb } = this.shared;
    if (index === 2 && cmb.length > 0) return new MemoryBar(this.shared);
    throw new PenstockError('NO_SUCH_BAR', `${this.address} has no BAR ${index}`, {
      hint: 'BAR 0 has the registers, BAR 2 the controller memory buffer',
    });
  }

  enableInterrupts(count: number): readonly number[] {
    this.assertOpen();
    if (!(count >= 1 && count <= this.vectors)) {
      throw new RangeError(`the twin has ${this.vectors} vectors, not ${count}`);
    }
    if (this.eventFds.length > 0) throw new Error('interrupts are enabled already');
    const { control } = this.shared;
    for (let vector = 0; vector < count; vector++) {
      const fd = native.eventfdCreate();
      this.eventFds.push(fd);
      control[Control.eventFds + vector] = fd;
    }
    control[Control.vectors] = count;
    return this.eventFds;
  }

  disableInterrupts(): void {
    this.shared.control[Control.vectors] = 0;
    for (const fd of this.eventFds.splice(0)) native.fileClose(fd);
  }

  vectorControl(vector: number): { readonly words: Uint32Array; readonly index: number } | null {
    if (vector >= this.vectors) return null;
    return { words: this.shared.vectors, index: vector * VECTOR_WORDS + 3 };
  }

  enable(): void {
    this.assertOpen();
    this.setCommand(0x6);
  }

  quiesce(): void {
    this.setCommand(0x2);
  }

  async reset(): Promise<void> {
    this.assertOpen();
    const { control } = this.shared;
    if (this.gone) throw new PenstockError('RESET_FAILED', `${this.address} is gone`);
    const wanted = Atomics.add(control, Control.resetsWanted, 1) + 1;
    this.hooks?.reset();
    for (let turn = 0; control[Control.resetsDone]! < wanted; turn++) {
      if (turn > 100_000) throw new PenstockError('TIMED_OUT', 'the twin does not reset');
      await new Promise((resolve) => setImmediate(resolve));
    }
    this.setCommand(0);
  }

  share(): TwinShare {
    return { transport: this.transport, parts: this.shared.parts, domain: this.dma.domain };
  }

  async close(): Promise<void> {
    if (this.closed) return;
    if (this.isHome) this.quiesce();
    this.closed = true;
    this.disableInterrupts();
    await Promise.resolve();
  }

  get isClosed(): boolean {
    return this.closed;
  }

  private setCommand(bits: number): void {
    const { control, config } = this.shared;
    control[Control.memorySpace] = bits & 2;
    control[Control.busMaster] = bits & 4;
    config[0x04] = (config[0x04]! & ~6) | bits;
    this.hooks?.registerWritten(-1);
  }

  private removedValue(): number {
    return this.shared.control[Control.removedValue]!;
  }

  private assertOpen(): void {
    if (this.closed) throw new TypeError(`${this.address} is closed`);
  }
}

/** BAR 0: registers and doorbells. */
class RegisterBar implements Bar {
  readonly index = 0;
  readonly bytes: number;
  private readonly shared: Shared;
  private readonly violations: Violations;
  private readonly hooks: ControllerHooks | null;

  constructor(shared: Shared, violations: Violations, hooks: ControllerHooks | null) {
    this.shared = shared;
    this.bytes = shared.registers.byteLength;
    this.violations = violations;
    this.hooks = hooks;
  }

  get lost(): boolean {
    return this.shared.isRemoved && this.shared.parts.mapped !== 'none';
  }

  read32(offset: number): number {
    const { control, registers } = this.shared;
    if (this.shared.isRemoved) return control[Control.removedValue]!;
    if (!this.isRegister(offset) || control[Control.memorySpace] === 0) {
      this.violations.add(`register 0x${offset.toString(16)} is read, which cannot be`);
      return 0xffffffff;
    }
    if (offset >= DOORBELLS_OFFSET) this.violations.add(`a doorbell is read`);
    return registers[offset >>> 2]!;
  }

  write32(offset: number, value: number): void {
    const { control, registers } = this.shared;
    if (this.shared.isRemoved) return;
    if (!this.isRegister(offset) || control[Control.memorySpace] === 0) {
      this.violations.add(`register 0x${offset.toString(16)} is written, which cannot be`);
      return;
    }
    if (offset >= DOORBELLS_OFFSET) {
      registers[offset >>> 2] = value;
      control[Control.doorbellWrites] = control[Control.doorbellWrites]! + 1;
      this.hooks?.doorbellWritten((offset - DOORBELLS_OFFSET) >>> 2);
      return;
    }
    if (!allowWrite(registers, offset, value, this.violations)) return;
    registers[offset >>> 2] = value;
    this.hooks?.registerWritten(offset);
  }

  words(offset: number, bytes: number): Uint32Array | null {
    const { mapped } = this.shared.parts;
    if (mapped === 'none' || offset + bytes > this.bytes || offset % 4 !== 0) return null;
    if (mapped === 'doorbells' && offset < DOORBELLS_OFFSET) return null;
    return new Uint32Array(this.shared.registers.buffer, offset, bytes >>> 2);
  }

  private isRegister(offset: number): boolean {
    return Number.isInteger(offset / 4) && offset >= 0 && offset < this.bytes;
  }
}

/** BAR 2: the controller memory buffer, which is memory. */
class MemoryBar implements Bar {
  readonly index = 2;
  readonly bytes: number;
  private readonly shared: Shared;
  private readonly memory: Uint32Array;

  constructor(shared: Shared) {
    this.shared = shared;
    this.bytes = shared.cmb.length;
    this.memory = new Uint32Array(shared.cmb.buffer);
  }

  get lost(): boolean {
    return this.shared.isRemoved;
  }

  read32(offset: number): number {
    return this.memory[offset >>> 2]!;
  }

  write32(offset: number, value: number): void {
    this.memory[offset >>> 2] = value;
  }

  words(offset: number, bytes: number): Uint32Array | null {
    if (offset + bytes > this.bytes || offset % 4 !== 0) return null;
    return new Uint32Array(this.shared.cmb.buffer, offset, bytes >>> 2);
  }
}
