// The fault wrapper: any device made to misbehave, on purpose and by seed (`fault.*` keys of a
// URI).

import type { Backend } from '../../hpdi/index.js';
import { FaultDevice, type FaultControl } from './device.js';
import { parseFaultOptions } from './options.js';

export { FAULT_KEYS } from './options.js';
export type { FaultControl, FaultCounters } from './device.js';

/** Throws what wrapFault would for options with impossible values. */
export function checkFault(options: ReadonlyMap<string, string>): void {
  parseFaultOptions(options);
}

/** Wraps a device; `options` are the keys without their `fault.` prefix. */
export function wrapFault(inner: Backend, options: ReadonlyMap<string, string>): Backend {
  return new FaultDevice(inner, parseFaultOptions(options));
}

/**
 * The control of a device under faults, also beneath further wrappers; undefined for any other.
 */
export function faultControl(backend: Backend): FaultControl | undefined {
  let at: Backend | undefined = backend;
  while (at !== undefined && !(at instanceof FaultDevice)) {
    at = (at as { readonly inner?: Backend }).inner;
  }
  return at;
}
