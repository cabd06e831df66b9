// The twin's config space: an NVMe function's header, MSI-X and PCI Express capabilities (PCI Local
// Bus 3.0, section 6; PCIe base, section 7).

import type { ConfigSpace, PciCapability } from '../../../lib/pci/index.js';
import { CONFIG_BYTES, type Shared } from './shared.js';

const MSIX_AT = 0x40;
const PCIE_AT = 0x60;
const AER_AT = 0x100;
const CAPABILITIES_MAX = 48;

export function fillConfig(config: Uint8Array, vectors: number, cmbBytes: number): void {
  const view = new DataView(config.buffer, config.byteOffset, config.length);
  const put16 = (at: number, value: number): void => view.setUint16(at, value, true);
  const put32 = (at: number, value: number): void => view.setUint32(at, value, true);
  put16(0x00, 0x1b36);
  put16(0x02, 0x0010);
  put16(0x06, 0x0010); // status: has a list of capabilities
  put32(0x08, 0x01080202); // non-volatile memory, NVM Express I/O controller; revision 2
  put32(0x10, 0x00000004); // BAR 0: 64-bit memory
  if (cmbBytes > 0) put32(0x18, 0x0000000c); // BAR 2: 64-bit, prefetchable
  put16(0x2c, 0x1af4);
  put16(0x2e, 0x1100);
  config[0x34] = vectors > 0 ? MSIX_AT : PCIE_AT;
  put16(MSIX_AT, 0x11 | (PCIE_AT << 8));
  put16(MSIX_AT + 2, Math.max(1, vectors) - 1);
  put32(MSIX_AT + 4, 4); // table in BAR 4
  put32(MSIX_AT + 8, 0x2000 | 4);
  put16(PCIE_AT, 0x10);
  put16(PCIE_AT + 2, 0x0002);
  put32(PCIE_AT + 4, 0x10008000); // function level reset, role-based errors
  put32(AER_AT, 0x00010001);
}

/** Reads what stands there; writes go to the command register and capabilities only. */
export class TwinConfig implements ConfigSpace {
  private readonly shared: Shared;
  private readonly view: DataView;
  private readonly removedValue: () => number;

  constructor(shared: Shared, removedValue: () => number) {
    this.shared = shared;
    this.view = new DataView(shared.parts.config);
    this.removedValue = removedValue;
  }

  read8(offset: number): number {
    return this.shared.isRemoved ? this.removedValue() & 0xff : this.view.getUint8(offset);
  }

  read16(offset: number): number {
    if (this.shared.isRemoved) return this.removedValue() & 0xffff;
    return this.view.getUint16(offset, true);
  }

  read32(offset: number): number {
    return this.shared.isRemoved ? this.removedValue() : this.view.getUint32(offset, true);
  }

  write8(offset: number, value: number): void {
    if (isWritable(offset)) this.view.setUint8(offset, value);
  }

  write16(offset: number, value: number): void {
    if (isWritable(offset)) this.view.setUint16(offset, value, true);
  }

  write32(offset: number, value: number): void {
    if (isWritable(offset)) this.view.setUint32(offset, value, true);
  }

  /** As a transport finds them; a hostile list may be a ring, or lead anywhere. */
  capabilities(): readonly PciCapability[] {
    const found: PciCapability[] = [];
    if (this.shared.isRemoved) return found;
    let offset = this.read8(0x34) & 0xfc;
    while (offset >= 0x40 && found.length < CAPABILITIES_MAX) {
      found.push({ id: this.read8(offset), offset, extended: false });
      offset = this.read8(offset + 1) & 0xfc;
    }
    offset = 0x100;
    while (offset >= 0x100 && offset <= CONFIG_BYTES - 4 && found.length < 2 * CAPABILITIES_MAX) {
      const header = this.read32(offset);
      if (header === 0 || header === 0xffffffff) break;
      found.push({ id: header & 0xffff, offset, extended: true });
      offset = (header >>> 20) & 0xffc;
    }
    return found;
  }
}

function isWritable(offset: number): boolean {
  return offset === 0x04 || offset === 0x05 || (offset >= 0x40 && offset < CONFIG_BYTES);
}
