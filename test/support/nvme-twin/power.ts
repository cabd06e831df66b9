// The controller's life: enable, ready, shutdown, resets (NVMe Base 2.0, sections 3.5 to 3.7). It
// looks at registers that the driver's side changed, in whichever thread, and answers in CSTS.

import {
  Aqa,
  CapHi,
  CapLo,
  Cc,
  CmbmscLo,
  Csts,
  Reg,
  ResetWord,
} from '../../../lib/drivers/nvme/registers.js';
import type { Controller } from './controller.js';
import { Dma } from './dma.js';
import { Control, type Shared } from './shared.js';
import { TWO_32 } from './wire.js';

const CMB_UNIT = 4096;

export class Power {
  isReady = false;
  isFatal = false;
  private readonly controller: Controller;
  private readonly shared: Shared;
  private readonly registers: Uint32Array;
  private lastCc = 0;
  private lastCmb = 0;
  private stepsToReady = -1;
  private stepsToIdle = -1;
  private stepsToShutDown = -1;

  constructor(controller: Controller, shared: Shared) {
    this.controller = controller;
    this.shared = shared;
    this.registers = shared.registers;
    this.writeCapabilities();
  }

  /** Whether commands are taken. */
  get isWorking(): boolean {
    return this.isReady && !this.isFatal && this.controller.memory.open;
  }

  /** Takes what changed in registers and control words; called at each step and trapped write. */
  look(): void {
    const { control } = this.shared;
    if (control[Control.removed] !== 0) return;
    if (control[Control.resetsDone] !== control[Control.resetsWanted]) this.functionReset();
    if (this.register(Reg.NSSR) !== 0) this.subsystemReset();
    if (this.register(Reg.CMBMSC) !== this.lastCmb) this.moveBuffer();
    const cc = this.register(Reg.CC);
    if (cc !== this.lastCc) this.configure(cc);
    this.updateAccess();
  }

  /** One step of time. */
  tick(): void {
    if (this.stepsToReady >= 0 && this.stepsToReady-- === 0) this.becomeReady();
    if (this.stepsToIdle >= 0 && this.stepsToIdle-- === 0) this.setStatus(Csts.RDY, 0);
    if (this.stepsToShutDown >= 0 && this.stepsToShutDown-- === 0) this.endShutdown();
  }

  /** A failure that only a reset ends. */
  fail(): void {
    this.isFatal = true;
    this.setStatus(0, Csts.CFS);
  }

  /** As after a loss of power. */
  powerOn(): void {
    this.functionReset();
    this.updateAccess();
  }

  private register(offset: number): number {
    return this.registers[offset >>> 2]!;
  }

  private setStatus(clear: number, set: number): void {
    const at = Reg.CSTS >>> 2;
    this.registers[at] = (this.registers[at]! & ~clear) | set;
  }

  private updateAccess(): void {
    const isMaster = this.shared.control[Control.busMaster] !== 0;
    this.controller.memory.open = isMaster && (this.lastCc & Cc.EN) !== 0 && !this.isFatal;
  }

  private configure(cc: number): void {
    const wasEnabled = (this.lastCc & Cc.EN) !== 0;
    const wasShut = this.lastCc & Cc.SHN_MASK;
    this.lastCc = cc;
    if (!wasEnabled && (cc & Cc.EN) !== 0) this.enable(cc);
    if (wasEnabled && (cc & Cc.EN) === 0) this.disable();
    if ((cc & Cc.SHN_MASK) !== 0 && wasShut === 0) this.beginShutdown();
  }

  private enable(cc: number): void {
    this.stepsToIdle = -1;
    this.setStatus(Csts.SHST_MASK, 0);
    this.updateAccess();
    const { faults } = this.controller;
    if (faults.neverReady) return;
    if (!this.checkConfiguration(cc)) {
      this.fail();
      this.updateAccess();
      return;
    }
    if (faults.readySteps === 0) this.becomeReady();
    else this.stepsToReady = faults.readySteps;
  }

  /** Page size and admin queues as the standard wants them. */
  private checkConfiguration(cc: number): boolean {
    const { controller } = this;
    const pageShift = (cc & Cc.MPS_MASK) >>> Cc.MPS_SHIFT;
    const css = cc & Cc.CSS_MASK;
    const hasSets = (this.register(Reg.CAP + 4) & CapHi.CSS_IO) !== 0;
    let problem = '';
    if (pageShift > controller.options.pageShiftMax) problem = `CC.MPS ${pageShift}`;
    if (css !== Cc.CSS_NVM && !(css === Cc.CSS_ALL && hasSets)) problem = `CC.CSS ${css >>> 4}`;
    if ((cc & Cc.AMS_MASK) !== 0) problem = 'CC.AMS';
    controller.transfer.pageBytes = 4096 << pageShift;
    if (problem === '') problem = this.openAdminQueues();
    if (problem === '') return true;
    controller.violations.add(`enabled with a wrong ${problem}`);
    return false;
  }

  /** What is wrong with the admin queues, or ''. */
  private openAdminQueues(): string {
    const { controller } = this;
    const aqa = this.register(Reg.AQA);
    const sqSize = (aqa & Aqa.ASQS_MASK) + 1;
    const cqSize = ((aqa & Aqa.ACQS_MASK) >>> Aqa.ACQS_SHIFT) + 1;
    const asq = this.register(Reg.ASQ + 4) * TWO_32 + this.register(Reg.ASQ);
    const acq = this.register(Reg.ACQ + 4) * TWO_32 + this.register(Reg.ACQ);
    if (sqSize < 2 || cqSize < 2) return 'AQA';
    const { pageBytes } = controller.transfer;
    if (asq === 0 || asq % pageBytes !== 0) return 'ASQ';
    if (acq === 0 || acq % pageBytes !== 0) return 'ACQ';
    if (!controller.memory.open) return 'order: bus master is off';
    const sq = controller.memory.ring(asq, sqSize * 64, Dma.reads, 'SQ 0');
    const cq = controller.memory.ring(acq, cqSize * 16, Dma.writes, 'CQ 0');
    if (sq === null || cq === null) return 'ASQ or ACQ';
    const interrupts = controller.options.vectors > 0;
    const queue = controller.queues.addCq({ id: 0, ring: cq, address: acq, vector: 0, interrupts });
    controller.queues.addSq({ id: 0, ring: sq, address: asq }, queue);
    return '';
  }

  private becomeReady(): void {
    this.isReady = true;
    this.setStatus(0, Csts.RDY);
  }

  /** A controller reset: queues and what is in flight are forgotten, memory is left alone. */
  private disable(): void {
    this.controller.forget();
    this.isReady = false;
    this.isFatal = false;
    this.stepsToReady = -1;
    this.stepsToShutDown = -1;
    this.setStatus(Csts.CFS | Csts.SHST_MASK, 0);
    const { faults } = this.controller;
    if (faults.neverIdle) return;
    if (faults.readySteps === 0) this.setStatus(Csts.RDY, 0);
    else this.stepsToIdle = faults.readySteps;
  }

  private beginShutdown(): void {
    const { faults } = this.controller;
    this.setStatus(Csts.SHST_MASK, Csts.SHST_OCCURRING);
    if (faults.neverShutDown) return;
    if (faults.shutdownSteps === 0) this.endShutdown();
    else this.stepsToShutDown = faults.shutdownSteps;
  }

  /** What was cached is durable, and no more commands are taken until a reset. */
  private endShutdown(): void {
    this.controller.settleAll();
    this.controller.forgetCommands();
    this.isReady = false;
    this.setStatus(Csts.SHST_MASK, Csts.SHST_COMPLETE);
  }

  private subsystemReset(): void {
    const isAsked = this.register(Reg.NSSR) === (ResetWord.NSSR as number);
    this.registers[Reg.NSSR >>> 2] = 0;
    if (!isAsked || (this.register(Reg.CAP + 4) & CapHi.NSSRS) === 0) return;
    this.registers[Reg.CC >>> 2] = 0;
    this.lastCc = 0;
    this.disable();
    this.setStatus(0, Csts.NSSRO);
  }

  private functionReset(): void {
    const { control } = this.shared;
    for (const offset of [Reg.CC, Reg.AQA, Reg.ASQ, Reg.ASQ + 4, Reg.ACQ, Reg.ACQ + 4]) {
      this.registers[offset >>> 2] = 0;
    }
    this.registers[Reg.CMBMSC >>> 2] = 0;
    this.lastCc = 0;
    this.disable();
    this.setStatus(Csts.NSSRO | Csts.RDY, 0);
    control[Control.resetsDone] = control[Control.resetsWanted]!;
  }

  /** CMBMSC: the buffer shows in BAR 2, and at the address that the driver gave for the device. */
  private moveBuffer(): void {
    const low = this.register(Reg.CMBMSC);
    const { memory, options } = this.controller;
    this.lastCmb = low;
    const isShown = options.cmbBytes > 0 && (low & CmbmscLo.CRE) !== 0;
    // SZU 0: units of 4 KiB; submission queues, completion queues, lists and data.
    this.registers[Reg.CMBLOC >>> 2] = isShown ? 2 : 0;
    this.registers[Reg.CMBSZ >>> 2] = isShown ? ((options.cmbBytes / CMB_UNIT) << 12) | 0x1f : 0;
    const address = this.register(Reg.CMBMSC + 4) * TWO_32 + ((low & 0xfffff000) >>> 0);
    const isOn = isShown && (low & CmbmscLo.CMSE) !== 0;
    memory.window = isOn ? { address, u8: this.shared.cmb } : null;
  }

  private writeCapabilities(): void {
    const { options } = this.controller;
    const { registers } = this;
    registers[Reg.CAP >>> 2] =
      (options.entriesMax - 1) | CapLo.CQR | (options.timeoutUnits << CapLo.TO_SHIFT);
    registers[(Reg.CAP + 4) >>> 2] =
      options.doorbellStride |
      CapHi.CSS_NVM |
      (options.pageShiftMax << CapHi.MPSMAX_SHIFT) |
      (options.cmbBytes > 0 ? CapHi.CMBS : 0) |
      options.capHi;
    registers[Reg.VS >>> 2] = options.version;
  }
}
