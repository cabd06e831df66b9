// A function's interrupts through VFIO: vectors as eventfds, and the two that the kernel itself has
// to say something by (linux/vfio.h, VFIO_PCI_*_IRQ_INDEX).
//
// Invariant: the kernel signals an eventfd until its vector is disabled, so that descriptors are
// closed after that.

import { PenstockError } from '../errors.js';
import { native } from '../native.js';

const enum IrqIndex {
  intx = 0,
  msi = 1,
  msix = 2,
  /** An uncorrectable error (AER). */
  error = 3,
  /** The kernel wants the device back; repeated every few seconds. */
  request = 4,
}

const FLAG_EVENTFD = 1;

/** How many vectors of the kind the kernel lets us have; 0 without it. */
function countOf(device: number, index: IrqIndex, indices: number): number {
  if (index >= indices) return 0;
  const [flags = 0, count = 0] = native.vfioIrqInfo(device, index);
  return (flags & FLAG_EVENTFD) === 0 ? 0 : count;
}

export class Vectors {
  /** Of MSI-X, else MSI, else 1 for INTx; 0 where there are none. */
  readonly count: number;
  /** Of the vectors that are enabled. */
  eventfds: readonly number[] = [];
  private readonly device: number;
  private readonly index: IrqIndex;

  constructor(device: number, indices: number) {
    this.device = device;
    const kinds = [IrqIndex.msix, IrqIndex.msi, IrqIndex.intx];
    const counts = kinds.map((kind) => countOf(device, kind, indices));
    const best = Math.max(
      0,
      counts.findIndex((count) => count > 0),
    );
    this.index = kinds[best]!;
    this.count = counts[best]!;
  }

  get levelTriggered(): boolean {
    return this.count > 0 && this.index === IrqIndex.intx;
  }

  /** Errors: INTERRUPTS_FAILED. */
  enable(count: number): readonly number[] {
    if (!Number.isInteger(count) || count < 1 || count > this.count) {
      throw new RangeError(`the function has ${this.count} vectors, not ${count}`);
    }
    this.disable();
    const eventfds: number[] = [];
    try {
      for (let i = 0; i < count; i++) eventfds.push(native.eventfdCreate());
      native.vfioSetIrqs(this.device, this.index, 0, eventfds);
    } catch (cause) {
      for (const fd of eventfds) native.fileClose(fd);
      throw new PenstockError('INTERRUPTS_FAILED', `${count} vectors could not be enabled`, {
        hint: 'ask for fewer, or raise `ulimit -n`; the cause names the call',
        cause,
      });
    }
    this.eventfds = eventfds;
    return eventfds;
  }

  disable(): void {
    if (this.eventfds.length === 0) return;
    const eventfds = this.eventfds;
    this.eventfds = [];
    try {
      native.vfioSetIrqs(this.device, this.index, 0, []);
    } catch {
      // A device that went away has none to disable.
    }
    for (const fd of eventfds) native.fileClose(fd);
  }

  /** INTx stays masked after each interrupt, so that the line cannot storm, until this. */
  unmask(): void {
    if (this.eventfds.length > 0) native.vfioUnmaskIrq(this.device, this.index);
  }
}

/** Tells when the kernel wants the device back, or saw it fail. Does not keep the process alive. */
export class RemovalWatch {
  private readonly opened: { eventfd: number; watch: number }[] = [];

  constructor(device: number, indices: number, onRequest: () => void) {
    try {
      for (const index of [IrqIndex.request, IrqIndex.error]) {
        if (countOf(device, index, indices) > 0) this.listen(device, index, onRequest);
      }
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** The device's close ends what the kernel signals by. */
  close(): void {
    for (const { eventfd, watch } of this.opened.splice(0)) {
      native.watchClose(watch);
      native.fileClose(eventfd);
    }
  }

  private listen(device: number, index: IrqIndex, onRequest: () => void): void {
    const eventfd = native.eventfdCreate();
    const watch = native.watchOpen(eventfd, () => {
      if (native.eventfdDrain(eventfd) > 0) onRequest();
    });
    this.opened.push({ eventfd, watch });
    native.watchSet(watch, true, false);
    native.vfioSetIrqs(device, index, 0, [eventfd]);
  }
}
