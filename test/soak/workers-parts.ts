// What the workers soak and its threads say to each other.

import type { DeviceHandle } from '../../lib/hpdi/index.js';

export type Task =
  | { kind: 'home'; uri: string }
  | { kind: 'client'; handle: DeviceHandle; region: number; seed: number };

export type Report =
  | { kind: 'handle'; handle: DeviceHandle }
  | { kind: 'working' }
  /** The home is dead, and the queue has said so of every operation since. */
  | { kind: 'gone' }
  | { kind: 'done' };

/** The part of the device that one client has for itself. */
export const REGION_BYTES = 2 ** 20;
export const THREADS_MAX = 4;
