// Controllers that this environment has open, by address: namespaces of one drive share it.

import { PenstockError } from '../../errors.js';
import { memoryOfKind } from '../../memory/index.js';
import type { PciFunction } from '../../pci/index.js';
import { NvmeController } from './controller.js';
import type { NvmeSettings } from './settings.js';

interface Open {
  readonly controller: Promise<NvmeController>;
  readonly settings: string;
  users: number;
}

class Controllers {
  private readonly open = new Map<string, Open>();

  /** The controller at an address; opened when nobody has it open. Each acquire has its release. */
  async acquire(
    address: string,
    settings: NvmeSettings,
    connect: () => Promise<PciFunction>,
  ): Promise<NvmeController> {
    const text = JSON.stringify(settings);
    let entry = this.open.get(address);
    if (entry === undefined) {
      const controller = connect().then((pci) =>
        NvmeController.open(pci, settings, memoryOfKind(pci.memoryKind)),
      );
      entry = { controller, settings: text, users: 0 };
      this.open.set(address, entry);
    } else if (entry.settings !== text) {
      throw new PenstockError('DEVICE_BUSY', `${address} is open with other keys`, {
        hint: 'namespaces of one controller are opened with the same keys',
      });
    }
    entry.users++;
    try {
      return await entry.controller;
    } catch (error) {
      if (this.open.get(address) === entry) this.open.delete(address);
      throw error;
    }
  }

  /** Closes the controller when nobody uses it any more. */
  async release(controller: NvmeController): Promise<void> {
    const { address } = controller.pci;
    const entry = this.open.get(address);
    if (entry === undefined || (await entry.controller) !== controller) return;
    if (--entry.users > 0) return;
    this.open.delete(address);
    await controller.close();
  }
}

export const controllers = new Controllers();
