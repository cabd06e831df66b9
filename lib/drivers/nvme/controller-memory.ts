// The controller memory buffer (NVM Express over PCIe; Base 2.0, section 8.5): submission rings in
// the device's own memory, which spares it a read of the host's.

import type { Bar, PciFunction } from '../../pci/index.js';
import { Sqe } from './commands.js';
import { Cmbloc, CmbmscLo, Cmbsz, Reg } from './registers.js';

/**
 * Where the controller sees its buffer: above every Address (below 2^44), so that no memory of ours
 * is hidden behind it.
 */
const CONTROLLER_BASE = 2 ** 45;

export class ControllerMemoryBuffer {
  /** The BAR that it is in, and the byte at which it starts there. */
  readonly bar: number;
  readonly offset: number;
  private readonly rings: Uint32Array[];
  private readonly ringBytes: number;

  private constructor(bar: number, offset: number, rings: Uint32Array[], ringBytes: number) {
    this.bar = bar;
    this.offset = offset;
    this.rings = rings;
    this.ringBytes = ringBytes;
  }

  /**
   * Room for `pairs` submission rings; null where the controller has no buffer that can hold them.
   */
  static open(
    pci: PciFunction,
    registers: Bar,
    pairs: number,
    entries: number,
  ): ControllerMemoryBuffer | null {
    registers.write32(Reg.CMBMSC, CmbmscLo.CRE);
    const size = registers.read32(Reg.CMBSZ);
    const location = registers.read32(Reg.CMBLOC);
    if (size === 0 || size === 0xffffffff || (size & Cmbsz.SQS) === 0) return null;
    const unit = 4096 * 16 ** ((size & Cmbsz.SZU_MASK) >>> Cmbsz.SZU_SHIFT);
    const bytes = (size >>> Cmbsz.SZ_SHIFT) * unit;
    const offset = (location >>> Cmbloc.OFST_SHIFT) * unit;
    const ringBytes = entries * Sqe.words * 4;
    const bar = pci.bar(location & Cmbloc.BIR_MASK);
    if (pairs * ringBytes > bytes || offset + pairs * ringBytes > bar.bytes) return null;
    const rings: Uint32Array[] = [];
    for (let pair = 0; pair < pairs; pair++) {
      const words = bar.words(offset + pair * ringBytes, ringBytes);
      if (words === null) return null;
      rings.push(words);
    }
    return new ControllerMemoryBuffer(bar.index, offset, rings, ringBytes);
  }

  /** Before the controller is enabled: where it finds the buffer in addresses of commands. */
  place(registers: Bar): void {
    registers.write32(Reg.CMBMSC + 4, CONTROLLER_BASE / 2 ** 32);
    registers.write32(Reg.CMBMSC, CmbmscLo.CRE | CmbmscLo.CMSE);
  }

  /** A pair's ring as the controller addresses it. */
  address(pair: number): number {
    return CONTROLLER_BASE + pair * this.ringBytes;
  }

  ring(pair: number): Uint32Array {
    return this.rings[pair]!;
  }
}
