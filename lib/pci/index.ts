// The room's door. What drives hardware is loaded when it is first asked for: what only looks at
// the machine (`penstock list`, `doctor`) works without the addon.

import type { Segment } from '../memory/index.js';
import type { PciFunction } from './function.js';
import type { RegionPlace } from './ivshmem-map.js';
import { hostMachine } from './machine.js';
import type { VfioUserOptions } from './vfio-user.js';

export type {
  Bar,
  ConfigSpace,
  DmaSpace,
  PciCapability,
  PciFunction,
  PciIdentity,
} from './function.js';
export { fileRoot } from './root.js';
export type { Root } from './root.js';
export { bindFunctions, unbindFunctions } from './bind.js';
export type { BindOptions, Changed } from './bind.js';
export { iommuHint, refusalsToBind, usesOf } from './bind-checks.js';
export type { Refusal } from './bind-checks.js';
export { bindState, readRecord, recordedAddresses } from './bind-records.js';
export type { BindRecord, BindState } from './bind-records.js';
export { shellLine } from './bind-steps.js';
export { blockUses } from './block-uses.js';
export { groupMembers, groupObstacles, isUserDriver, listFunctions, readFacts } from './facts.js';
export type { FunctionFacts } from './facts.js';
export { readHugepages, reserveHugepages } from './hugepages.js';
export type { HugepagePool, Reservation } from './hugepages.js';
export { deviceNode, readHolders } from './holders.js';
export type { Holders, Use } from './holders.js';
export { listIvshmem } from './ivshmem.js';
export type { IvshmemFacts } from './ivshmem.js';
export type { RegionPlace } from './ivshmem-map.js';
export { hostMachine } from './machine.js';
export type { Machine } from './machine.js';
export { interfaceUses, interfacesOf } from './network-uses.js';
export { lastFunction, longAddress, resolveFunction } from './names.js';
export type { VfioUserOptions } from './vfio-user.js';

/**
 * Opens a function that is bound to vfio-pci. Errors: NO_SUCH_DEVICE, NO_IOMMU, VFIO_MISSING,
 * NOT_BOUND, PERMISSION_DENIED, GROUP_BUSY, GROUP_NOT_VIABLE, VFIO_FAILED.
 */
export async function openVfio(address: string): Promise<PciFunction> {
  const { openVfio: open } = await import('./vfio.js');
  return open(address);
}

/**
 * Opens the function that a vfio-user server offers at `path`: its socket, or a folder with a
 * socket named `cntrl`. Memory for it is of the kind `device`. Errors: NO_SUCH_SOCKET,
 * CONNECTION_REFUSED, PERMISSION_DENIED, BUSY, VERSION_UNSUPPORTED, PROTOCOL_ERROR, TIMED_OUT,
 * DEVICE_GONE.
 */
export async function openVfioUser(
  path: string,
  options: VfioUserOptions = {},
): Promise<PciFunction> {
  const { openVfioUser: open } = await import('./vfio-user.js');
  return open(path, options);
}

/**
 * A function that another environment of this process opened, by what its `share` gave. Registers
 * that are mapped (of vfio-user all), memory and vectors can be used here; the rest is its home's.
 * Errors: DEVICE_GONE.
 */
export async function attachFunction(shared: unknown): Promise<PciFunction> {
  if ((shared as { transport?: unknown }).transport === 'vfio-user') {
    const { attachVfioUser } = await import('./vfio-user-attached.js');
    return attachVfioUser(shared);
  }
  const { attachVfio } = await import('./vfio-attached.js');
  return attachVfio(shared);
}

/**
 * In a guest: maps the memory of an ivshmem device, its own region writable, another domain's for
 * reading. Errors: NO_SUCH_DEVICE, PERMISSION_DENIED, ADDRESS_TAKEN, IMPORT_FAILED,
 * ADMISSION_REFUSED.
 */
export async function mapIvshmem(address: string, place: RegionPlace): Promise<Segment> {
  const { mapRegion } = await import('./ivshmem-map.js');
  return mapRegion(hostMachine(), address, place);
}
