// What a user may ask of a controller beside I/O: admin commands, identify and log pages, events,
// reset, registers, injected errors.

import { PenstockError } from '../../errors.js';
import type { Backend, BlockDevice } from '../../hpdi/index.js';
import type { DmaBuffer } from '../../memory/index.js';
import type { PciIdentity } from '../../pci/index.js';
import { getLogPage, identify } from './admin-commands.js';
import type { LogPageRequest } from './admin.js';
import { adminError } from './admin-queue.js';
import { NvmeBackend } from './backend.js';
import type { ControllerState } from './bring-up.js';
import { Cns, Sqe } from './commands.js';
import type { ControllerCounters, NvmeController } from './controller.js';
import type { NvmeEvent } from './events.js';
import type { InjectOptions } from './inject.js';
import { Reg } from './registers.js';
import type { Task } from './steps.js';

/** Largest log page or data of an admin command here: two pages, so that no list is needed. */
const DATA_BYTES_MAX = 8192;
const PAGE = 4096;

export interface AdminCommand {
  readonly opcode: number;
  readonly nsid?: number;
  /** cdw10 to cdw15. */
  readonly cdw?: readonly number[];
  /** Data of the command, either way; at most 8192 bytes, aligned to 4. */
  readonly data?: DmaBuffer;
  readonly timeoutMs?: number;
}

/** A controller beside its I/O. All promises reject with a PenstockError. */
export class NvmeControl {
  private readonly controller: NvmeController;

  constructor(controller: NvmeController) {
    this.controller = controller;
  }

  get identity(): PciIdentity {
    return this.controller.pci.identity;
  }

  get state(): ControllerState {
    return this.controller.state;
  }

  get counters(): Readonly<ControllerCounters> {
    return { ...this.controller.counters };
  }

  /** Any admin command. NVME_STATUS when the controller refuses it, TIMED_OUT, ABORTED. */
  async admin(command: AdminCommand): Promise<{ dw0: number; dw1: number }> {
    const words = new Uint32Array(Sqe.words);
    words[0] = command.opcode & 0xff;
    words[Sqe.nsid] = command.nsid ?? 0;
    words.set((command.cdw ?? []).slice(0, 6), Sqe.cdw10);
    const { data } = command;
    if (data !== undefined) await this.point(words, data);
    const { status, dw0, dw1 } = await this.controller.run(words, command.timeoutMs);
    if (status !== 0) throw adminError(command.opcode, status);
    return { dw0, dw1 };
  }

  /** 4096 bytes. */
  identifyController(): Promise<Uint8Array> {
    return this.page(PAGE, (address) => identify(Cns.CONTROLLER, 0, address));
  }

  /** 4096 bytes. */
  identifyNamespace(nsid: number): Promise<Uint8Array> {
    return this.page(PAGE, (address) => identify(Cns.NAMESPACE, nsid, address));
  }

  /** Identify by any CNS: 4096 bytes. */
  identify(cns: number, nsid = 0): Promise<Uint8Array> {
    return this.page(PAGE, (address) => identify(cns, nsid, address));
  }

  /** Numbers of the namespaces that are there, those that cannot be used included. */
  async activeNamespaces(): Promise<number[]> {
    return this.controller.namespaces.list().map(({ nsid }) => nsid);
  }

  getLogPage(request: LogPageRequest): Promise<Uint8Array> {
    const { lid, nsid, bytes, offset = 0, retain = false } = request;
    if (bytes < 4 || bytes > DATA_BYTES_MAX || bytes % 4 !== 0) {
      throw new RangeError(`a part of a log page has 4 to ${DATA_BYTES_MAX} bytes, not ${bytes}`);
    }
    return this.page(bytes, (address) => getLogPage(lid, nsid, address, bytes, offset, retain));
  }

  /** The registers from byte 0 to the doorbells, by 32-bit reads. */
  registers(): Uint8Array {
    const words = new Uint32Array(Reg.DOORBELLS / 4);
    const defined = [...range(0, 0x6c), ...range(Reg.PMRCAP, Reg.PMRMSCU + 4)];
    for (const offset of defined) words[offset / 4] = this.controller.bar.read32(offset);
    return new Uint8Array(words.buffer);
  }

  /** Disables and enables the controller; operations in flight are issued again. */
  reset(): Promise<void> {
    return this.controller.reset();
  }

  /** Calls `listener` at each asynchronous event; the function that it gives ends that. */
  onEvent(listener: (event: NvmeEvent) => void): () => void {
    return this.controller.onEvent(listener);
  }

  /** Has commands fail, wait or get lost before the device: queues of this thread only. */
  inject(options: InjectOptions): void {
    this.controller.injector.add(options);
  }

  clearInjected(): void {
    this.controller.injector.clear();
  }

  /** Runs a command with a buffer of its own; gives its bytes. */
  private async page(bytes: number, make: (address: number) => Uint32Array): Promise<Uint8Array> {
    const { controller } = this;
    return controller.steps.run(
      controller.withPage(bytes, function* (address, view): Task<Uint8Array> {
        const words = make(address);
        if (bytes > PAGE) {
          words[Sqe.prp2Lo] = (address + PAGE) % 2 ** 32;
          words[Sqe.prp2Hi] = Math.floor((address + PAGE) / 2 ** 32);
        }
        const { status } = yield* controller.guarded(words, controller.settings.adminTimeoutMs);
        if (status !== 0) throw adminError(words[0]! & 0xff, status);
        return view.slice();
      }),
    );
  }

  private async point(words: Uint32Array, data: DmaBuffer): Promise<void> {
    const { address, bytes } = data;
    if (data.freed || bytes > DATA_BYTES_MAX || address % 4 !== 0) {
      throw new PenstockError('BAD_ADDRESS', `${bytes} bytes cannot be an admin command's data`, {
        hint: `a live buffer of at most ${DATA_BYTES_MAX} bytes, aligned to 4`,
      });
    }
    const { dma } = this.controller.pci;
    while (!dma.reach(address)) await new Promise((resolve) => setImmediate(resolve));
    const next = Math.floor(address / PAGE + 1) * PAGE;
    words[Sqe.prp1Lo] = address % 2 ** 32;
    words[Sqe.prp1Hi] = Math.floor(address / 2 ** 32);
    if (address + bytes <= next) return;
    if (address + bytes > next + PAGE) {
      throw new PenstockError('BAD_ADDRESS', 'the buffer touches more than two pages', {
        hint: 'align it to 4096',
      });
    }
    words[Sqe.prp2Lo] = next % 2 ** 32;
    words[Sqe.prp2Hi] = Math.floor(next / 2 ** 32);
  }
}

function* range(from: number, to: number): Iterable<number> {
  for (let offset = from; offset < to; offset += 4) yield offset;
}

/** The controller of an nvme: device that this thread opened, also beneath wrappers. */
export function nvmeControl(device: BlockDevice): NvmeControl | undefined {
  let at: Backend | undefined = device.backend;
  while (at !== undefined && !(at instanceof NvmeBackend)) {
    at = (at as { readonly inner?: Backend }).inner;
  }
  return at === undefined ? undefined : new NvmeControl(at.controller);
}
