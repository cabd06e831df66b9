// A device in memory that fails, or takes its time, as its faults say.

import { wrapFault } from '../../lib/drivers/fault/index.js';
import { BlockDevice, type Backend } from '../../lib/hpdi/index.js';

/** The same memory, by another device each time, whose end does not end it. */
export function withFaults(ram: Backend, options: [string, string][]): BlockDevice {
  const inner = Object.create(ram) as Backend;
  inner.close = async () => {};
  return new BlockDevice(options.length === 0 ? inner : wrapFault(inner, new Map(options)));
}
