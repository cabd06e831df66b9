// Interrupts of a vfio-user function: eventfds that the server signals (SET_IRQS).
//
// Invariant: the server has an eventfd only between `enable` and `disable`; the environment owns
// them. What is left half-way is given back.

import { PenstockError } from '../errors.js';
import { native } from '../native.js';
import type { PciConfig } from './config-space.js';
import type { VfioUserClient } from './vfio-user-client.js';
import { Shared } from './vfio-user-lock.js';
import { Command, IrqFlag, IrqIndex, IrqSet } from './vfio-user-protocol.js';

const CAPABILITY_MSI = 0x05;
const CAPABILITY_MSIX = 0x11;
const MSI_ENABLE = 1 << 0;
const MSIX_ENABLE = 1 << 15;
const MSIX_FUNCTION_MASK = 1 << 14;

export class ServerInterrupts {
  readonly vectors: number;
  private readonly kind: number;
  private readonly client: VfioUserClient;
  private readonly config: PciConfig;
  private readonly fdsMax: number;
  private fds: number[] = [];

  /** `fdsMax`: of one message. */
  constructor(
    client: VfioUserClient,
    config: PciConfig,
    found: { kind: number; vectors: number } | null,
    fdsMax: number,
  ) {
    this.client = client;
    this.config = config;
    this.vectors = found?.vectors ?? 0;
    this.kind = found?.kind ?? 0;
    this.fdsMax = fdsMax;
  }

  get eventfds(): readonly number[] {
    return this.fds;
  }

  /** Errors: INTERRUPTS_FAILED, and those of a request. */
  enable(count: number): readonly number[] {
    if (!Number.isInteger(count) || count < 1 || count > this.vectors) {
      throw new RangeError(`from 1 to ${this.vectors} vectors can be enabled, not ${count}`);
    }
    if (this.fds.length > 0) throw new TypeError('interrupts are enabled: disable them first');
    try {
      for (let i = 0; i < count; i++) this.fds.push(native.eventfdCreate());
      for (let start = 0; start < count; start += this.fdsMax) {
        const part = this.fds.slice(start, start + this.fdsMax);
        const got = this.set(IrqFlag.eventfd, start, part.length, part);
        if (got < 0) throw refused(this.client.address, count, -got);
      }
      this.switchCapability(true);
    } catch (error) {
      this.disable();
      throw error;
    }
    return this.fds;
  }

  disable(): void {
    if (this.fds.length === 0) return;
    Atomics.add(this.client.words, Shared.interrupts, 1);
    try {
      if (!this.client.gone) {
        this.switchCapability(false);
        this.set(IrqFlag.none, 0, 0, []);
      }
    } catch (error) {
      if (!(error instanceof PenstockError)) throw error; // else the server has none any more
    } finally {
      this.closeFds();
    }
  }

  /** The server has gone, or is told by the end of the connection. */
  closeFds(): void {
    for (const fd of this.fds) native.fileClose(fd);
    this.fds = [];
  }

  private set(data: IrqFlag, start: number, count: number, fds: readonly number[]): number {
    const { body } = this.client;
    body[IrqSet.argsz] = IrqSet.words * 4;
    body[IrqSet.flags] = data | IrqFlag.trigger;
    body[IrqSet.index] = this.kind;
    body[IrqSet.start] = start;
    body[IrqSet.count] = count;
    return this.client.request(Command.setIrqs, IrqSet.words * 4, fds);
  }

  /** In front of real hardware the kernel does this; a server goes by what config space says. */
  private switchCapability(on: boolean): void {
    const msix = this.kind === IrqIndex.msix;
    if (!msix && this.kind !== IrqIndex.msi) return;
    const id = msix ? CAPABILITY_MSIX : CAPABILITY_MSI;
    const found = this.config.capabilities().find((one) => one.id === id && !one.extended);
    if (found === undefined) return;
    const control = this.config.read16(found.offset + 2);
    const cleared = control & ~(msix ? MSIX_ENABLE | MSIX_FUNCTION_MASK : MSI_ENABLE);
    const enable = msix ? MSIX_ENABLE : MSI_ENABLE;
    this.config.write16(found.offset + 2, on ? cleared | enable : cleared);
  }
}

function refused(address: string, count: number, errno: number): PenstockError {
  const message = `${address} did not take eventfds for ${count} vectors: errno ${errno}`;
  return new PenstockError('INTERRUPTS_FAILED', message, {
    hint: 'take fewer vectors, or none and poll; the log of the server says more',
  });
}
