// Get and Set Features (NVMe Base 2.0, section 5.27): values of a controller, forgotten at reset.

import { Feature, FeatureSelect, SetFeature, Sqe } from '../../../lib/drivers/nvme/commands.js';
import type { Controller } from './controller.js';
import { Dma } from './dma.js';
import { Code } from './wire.js';

const TIMESTAMP_BYTES = 8;
const HOST_ID_BYTES = 16;

/** Features that are one word. */
const DEFAULTS: Readonly<Record<number, number>> = {
  [Feature.ARBITRATION]: 0,
  [Feature.POWER_MANAGEMENT]: 0,
  [Feature.TEMPERATURE_THRESHOLD]: 343,
  [Feature.ERROR_RECOVERY]: 0,
  [Feature.VOLATILE_WRITE_CACHE]: 1,
  [Feature.INTERRUPT_COALESCING]: 0,
  [Feature.INTERRUPT_VECTOR_CONFIG]: 0,
  [Feature.WRITE_ATOMICITY]: 0,
  [Feature.ASYNC_EVENT_CONFIG]: 0,
  [Feature.KEEP_ALIVE_TIMER]: 0,
};

export class Features {
  private readonly controller: Controller;
  private readonly values = new Map<number, number>();
  private readonly blobs = new Map<number, Uint8Array>();

  constructor(controller: Controller) {
    this.controller = controller;
  }

  reset(): void {
    this.values.clear();
    this.blobs.clear();
  }

  get asyncEvents(): number {
    return this.value(Feature.ASYNC_EVENT_CONFIG);
  }

  /** Whether the volatile write cache is on. */
  get isCaching(): boolean {
    return this.value(Feature.VOLATILE_WRITE_CACHE) !== 0;
  }

  set(sqe: Uint32Array): number {
    const fid = sqe[Sqe.cdw10]! & 0xff;
    const value = sqe[Sqe.cdw11]!;
    if ((sqe[Sqe.cdw10]! & SetFeature.SAVE) !== 0) return Code.FEATURE_NOT_SAVEABLE | Code.DNR;
    if (fid === Feature.NUMBER_OF_QUEUES) return this.setQueues(value);
    const blobBytes = blobBytesOf(fid);
    if (blobBytes > 0) return this.setBlob(sqe, fid, blobBytes);
    if (DEFAULTS[fid] === undefined || !this.has(fid)) return Code.INVALID_FIELD | Code.DNR;
    this.values.set(fid, value);
    if (fid === Feature.VOLATILE_WRITE_CACHE && value === 0) this.controller.settleAll();
    return Code.SUCCESS;
  }

  get(sqe: Uint32Array): number {
    const fid = sqe[Sqe.cdw10]! & 0xff;
    const select = sqe[Sqe.cdw10]! & 0x700;
    if (select !== FeatureSelect.CURRENT) return Code.INVALID_FIELD | Code.DNR;
    if (fid === Feature.NUMBER_OF_QUEUES) {
      this.controller.result = this.controller.queues.granted;
      return Code.SUCCESS;
    }
    const blobBytes = blobBytesOf(fid);
    if (blobBytes > 0) {
      const blob = this.blobs.get(fid) ?? new Uint8Array(blobBytes);
      return this.controller.sendPage(sqe, blob);
    }
    if (DEFAULTS[fid] === undefined || !this.has(fid)) return Code.INVALID_FIELD | Code.DNR;
    this.controller.result = this.value(fid);
    return Code.SUCCESS;
  }

  private value(fid: number): number {
    return this.values.get(fid) ?? DEFAULTS[fid]!;
  }

  private has(fid: number): boolean {
    const { options } = this.controller;
    return fid !== Feature.VOLATILE_WRITE_CACHE || options.volatileCache;
  }

  private setQueues(value: number): number {
    const { controller } = this;
    const submission = value & 0xffff;
    const completion = value >>> 16;
    if (submission === 0xffff || completion === 0xffff) return Code.INVALID_FIELD | Code.DNR;
    if (controller.queues.hasIoQueues) return Code.COMMAND_SEQUENCE | Code.DNR;
    const most = controller.options.queuesMax - 1;
    const granted = Math.min(submission, most) | (Math.min(completion, most) << 16);
    controller.queues.granted = controller.faults.queuesGranted ?? granted;
    controller.result = controller.queues.granted;
    return Code.SUCCESS;
  }

  private setBlob(sqe: Uint32Array, fid: number, bytes: number): number {
    const { transfer } = this.controller;
    const status = transfer.gather(sqe, bytes, Dma.reads, true);
    if (status !== Code.SUCCESS) return status;
    const blob = new Uint8Array(bytes);
    transfer.collect(blob);
    this.blobs.set(fid, blob);
    return Code.SUCCESS;
  }
}

function blobBytesOf(fid: number): number {
  if (fid === Feature.TIMESTAMP) return TIMESTAMP_BYTES;
  return fid === Feature.HOST_IDENTIFIER ? HOST_ID_BYTES : 0;
}
