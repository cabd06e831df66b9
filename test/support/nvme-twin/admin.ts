// Admin commands (NVMe Base 2.0, section 5), with the errors that each may end with.

import { AdminOp, Cdw0, CreateCq, CreateSq, Sqe } from '../../../lib/drivers/nvme/commands.js';
import type { Controller } from './controller.js';
import { identifyPage } from './identify.js';
import { Dma } from './dma.js';
import { Code, wide } from './wire.js';

const CSI_SHIFT = 24;
const SQE_BYTES = 64;
const CQE_BYTES = 16;
const NOT_ADMIN = Cdw0.FUSE_FIRST | Cdw0.FUSE_SECOND | Cdw0.PSDT_SGL | Cdw0.PSDT_SGL_MPTR;

export class AdminCommands {
  private readonly controller: Controller;

  constructor(controller: Controller) {
    this.controller = controller;
  }

  /** Does the command; its status, or HELD. */
  execute(sqe: Uint32Array): number {
    const opcode = sqe[Sqe.cdw0]! & 0xff;
    // PCIe controllers take PRPs only for admin commands (Base 2.0, 4.1.2).
    if ((sqe[Sqe.cdw0]! & NOT_ADMIN) !== 0) return invalidField();
    switch (opcode) {
      case AdminOp.IDENTIFY:
        return this.identify(sqe);
      case AdminOp.CREATE_IO_CQ:
        return this.createCq(sqe);
      case AdminOp.CREATE_IO_SQ:
        return this.createSq(sqe);
      case AdminOp.DELETE_IO_CQ:
        return this.controller.queues.deleteCq(sqe[Sqe.cdw10]! & 0xffff);
      case AdminOp.DELETE_IO_SQ:
        return this.controller.deleteSq(sqe[Sqe.cdw10]! & 0xffff);
      case AdminOp.GET_LOG_PAGE:
        return this.getLogPage(sqe);
      case AdminOp.SET_FEATURES:
        return this.controller.features.set(sqe);
      case AdminOp.GET_FEATURES:
        return this.controller.features.get(sqe);
      case AdminOp.ABORT:
        return this.abort(sqe);
      case AdminOp.ASYNC_EVENT_REQUEST:
        return this.controller.holdEventRequest(sqe);
      case AdminOp.KEEP_ALIVE:
        return Code.SUCCESS;
      case AdminOp.DOORBELL_BUFFER_CONFIG:
        return this.doorbellBuffers(sqe);
      default:
        return Code.INVALID_OPCODE | Code.DNR;
    }
  }

  private identify(sqe: Uint32Array): number {
    const { controller } = this;
    const cns = sqe[Sqe.cdw10]! & 0xff;
    const nsid = sqe[Sqe.nsid]!;
    const page = identifyPage(controller, cns, nsid, sqe[Sqe.cdw11]! >>> CSI_SHIFT);
    if (page === undefined) return Code.INVALID_NAMESPACE | Code.DNR;
    if (page === null) return invalidField();
    controller.faults.identify?.(cns, nsid, page);
    return controller.sendPage(sqe, page);
  }

  private getLogPage(sqe: Uint32Array): number {
    const { controller } = this;
    const lid = sqe[Sqe.cdw10]! & 0xff;
    const retains = (sqe[Sqe.cdw10]! & (1 << 15)) !== 0;
    const words = (sqe[Sqe.cdw11]! & 0xffff) * 65536 + (sqe[Sqe.cdw10]! >>> 16) + 1;
    const offset = wide(sqe, Sqe.cdw12);
    const whole = controller.logs.page(lid);
    if (whole === null) return Code.LOG_PAGE | Code.DNR;
    if (offset > whole.length || offset % 4 !== 0) return invalidField();
    controller.faults.log?.(lid, whole);
    // Beyond its end a page reads zeros.
    const part = new Uint8Array(words * 4);
    part.set(whole.subarray(offset, offset + words * 4));
    const status = controller.sendPage(sqe, part);
    if (status === Code.SUCCESS && !retains) controller.logs.acknowledge(lid);
    return status;
  }

  private createCq(sqe: Uint32Array): number {
    const { controller } = this;
    const { options } = controller;
    const id = sqe[Sqe.cdw10]! & 0xffff;
    const size = (sqe[Sqe.cdw10]! >>> 16) + 1;
    const address = wide(sqe, Sqe.prp1Lo);
    const vector = sqe[Sqe.cdw11]! >>> CreateCq.VECTOR_SHIFT;
    if (!controller.queues.mayCreate(id, 'cq')) return Code.QUEUE_ID | Code.DNR;
    if (size < 2 || size > options.entriesMax) return Code.QUEUE_SIZE | Code.DNR;
    if ((sqe[Sqe.cdw11]! & CreateCq.PC) === 0) return invalidField();
    if (address % controller.transfer.pageBytes !== 0) return Code.PRP_OFFSET | Code.DNR;
    const interrupts = (sqe[Sqe.cdw11]! & CreateCq.IEN) !== 0;
    if (interrupts && vector >= Math.max(1, options.vectors)) {
      return Code.INTERRUPT_VECTOR | Code.DNR;
    }
    const ring = controller.memory.ring(address, size * CQE_BYTES, Dma.writes, `CQ ${id}`);
    if (ring === null) return invalidField();
    controller.queues.addCq({ id, ring, address, vector, interrupts });
    return Code.SUCCESS;
  }

  private createSq(sqe: Uint32Array): number {
    const { controller } = this;
    const id = sqe[Sqe.cdw10]! & 0xffff;
    const size = (sqe[Sqe.cdw10]! >>> 16) + 1;
    const address = wide(sqe, Sqe.prp1Lo);
    const cqid = sqe[Sqe.cdw11]! >>> CreateSq.CQID_SHIFT;
    if (!controller.queues.mayCreate(id, 'sq')) return Code.QUEUE_ID | Code.DNR;
    if (size < 2 || size > controller.options.entriesMax) return Code.QUEUE_SIZE | Code.DNR;
    if (cqid === 0 || cqid > controller.options.queuesMax) return Code.QUEUE_ID | Code.DNR;
    const cq = controller.queues.cqs.get(cqid);
    if (cq === undefined) return Code.CQ_INVALID | Code.DNR;
    if ((sqe[Sqe.cdw11]! & CreateSq.PC) === 0) return invalidField();
    if (address % controller.transfer.pageBytes !== 0) return Code.PRP_OFFSET | Code.DNR;
    const ring = controller.memory.ring(address, size * SQE_BYTES, Dma.reads, `SQ ${id}`);
    if (ring === null) return invalidField();
    controller.queues.addSq({ id, ring, address }, cq);
    return Code.SUCCESS;
  }

  /** Bit 0 of the result is 0 when the command was aborted. */
  private abort(sqe: Uint32Array): number {
    const { controller } = this;
    const sqid = sqe[Sqe.cdw10]! & 0xffff;
    const cid = sqe[Sqe.cdw10]! >>> 16;
    const aborted = !controller.faults.abortFails && controller.abort(sqid, cid);
    controller.result = aborted ? 0 : 1;
    return Code.SUCCESS;
  }

  private doorbellBuffers(sqe: Uint32Array): number {
    const { controller } = this;
    if (controller.options.shadowDoorbells === 'none') return Code.INVALID_OPCODE | Code.DNR;
    const shadow = wide(sqe, Sqe.prp1Lo);
    const events = wide(sqe, Sqe.prp2Lo);
    const { pageBytes } = controller.transfer;
    if (shadow === 0 || shadow % pageBytes !== 0 || events % pageBytes !== 0 || events === 0) {
      return invalidField();
    }
    return controller.queues.useShadow(shadow, events, pageBytes) ? Code.SUCCESS : invalidField();
  }
}

function invalidField(): number {
  return Code.INVALID_FIELD | Code.DNR;
}
