// The same function from another environment of the process.

import type { PciFunction } from './function.js';

export function attachFunction(shared: unknown): PciFunction {
  throw new TypeError(`no transport is known for ${String(shared)}`);
}

export async function openVfio(address: string): Promise<PciFunction> {
  throw new TypeError(address);
}

export async function openVfioUser(address: string): Promise<PciFunction> {
  throw new TypeError(address);
}
