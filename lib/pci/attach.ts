// Functions by their transport; each is loaded when it is first asked for.

import type { PciFunction } from './function.js';

/**
 * Opens a function that is bound to vfio-pci. Errors: NO_SUCH_DEVICE, NO_IOMMU, VFIO_MISSING,
 * NOT_BOUND, PERMISSION_DENIED, GROUP_BUSY, GROUP_NOT_VIABLE, VFIO_FAILED.
 */
export async function openVfio(address: string): Promise<PciFunction> {
  const transport = await import('./vfio.js');
  return transport.openVfio(address);
}

export async function openVfioUser(path: string): Promise<PciFunction> {
  throw new TypeError(path);
}

/**
 * A function that another environment of this process opened, by what its `share` gave. Registers
 * that are mapped, memory and vectors can be used here; the rest is its home's. Errors:
 * DEVICE_GONE.
 */
export async function attachFunction(shared: unknown): Promise<PciFunction> {
  const { transport } = shared as { transport?: unknown };
  if (transport !== 'vfio') throw new TypeError(`no transport is known as ${String(transport)}`);
  const { attachVfio } = await import('./vfio-attached.js');
  return attachVfio(shared);
}
