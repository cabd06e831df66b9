// Which registers a host may write, and when (NVMe Base 2.0, section 3.1.3).

import { Cc, Csts, Reg } from '../../../lib/drivers/nvme/registers.js';
import type { Violations } from './memory.js';

/** Registers that take effect only while the controller is disabled. */
const WHILE_DISABLED: ReadonlySet<number> = new Set([
  Reg.AQA,
  Reg.ASQ,
  Reg.ASQ + 4,
  Reg.ACQ,
  Reg.ACQ + 4,
]);

const WRITABLE: ReadonlySet<number> = new Set([
  ...WHILE_DISABLED,
  Reg.INTMS,
  Reg.INTMC,
  Reg.CC,
  Reg.CSTS,
  Reg.NSSR,
  Reg.CMBMSC,
  Reg.CMBMSC + 4,
  Reg.NSSD,
]);

/** Fields of CC that may not change while it is enabled. */
const CC_FIXED = Cc.CSS_MASK | Cc.MPS_MASK | Cc.AMS_MASK;

/** Whether the value is to be stored; what the standard forbids is a violation as well. */
export function allowWrite(
  registers: Uint32Array,
  offset: number,
  value: number,
  violations: Violations,
): boolean {
  const cc = registers[Reg.CC >>> 2]!;
  const csts = registers[Reg.CSTS >>> 2]!;
  if (!WRITABLE.has(offset)) {
    violations.add(`register 0x${offset.toString(16)} is written, but read-only or reserved`);
    return false;
  }
  if (WHILE_DISABLED.has(offset) && (cc & Cc.EN) !== 0) {
    violations.add(`register 0x${offset.toString(16)} is written while CC.EN is 1`);
  }
  if (offset === Reg.CSTS) {
    // NSSRO alone is cleared by writing 1.
    registers[Reg.CSTS >>> 2] = csts & ~(value & Csts.NSSRO);
    return false;
  }
  if (offset === Reg.CC) checkConfiguration(cc, csts, value, violations);
  return true;
}

function checkConfiguration(
  before: number,
  csts: number,
  value: number,
  violations: Violations,
): void {
  const isReady = (csts & Csts.RDY) !== 0;
  const wasEnabled = (before & Cc.EN) !== 0;
  const isEnabled = (value & Cc.EN) !== 0;
  if (!wasEnabled && isEnabled && isReady) {
    violations.add('CC.EN goes to 1 before CSTS.RDY came to 0');
  }
  if (wasEnabled && isEnabled && ((before ^ value) & CC_FIXED) !== 0) {
    violations.add('CC.CSS, MPS or AMS changes while CC.EN is 1');
  }
  if ((value & 0xfe00000e) !== 0) violations.add('reserved bits of CC are written');
}
