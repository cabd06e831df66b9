// What a queue is made of, and what it counts.

import type { DeviceInfo, QueueCounters } from '../../hpdi/index.js';
import type { DmaSpace } from '../../pci/index.js';
import type { DoorbellOptions } from './doorbells.js';
import type { Injector } from './inject.js';
import type { PairTable } from './pairs.js';
import type { QueueInterrupt } from './queue-sleep.js';

export interface NvmeQueueOptions {
  readonly table: PairTable;
  readonly pair: number;
  readonly depth: number;
  readonly nsid: number;
  /** The namespace's row in the table. */
  readonly row: number;
  readonly info: DeviceInfo;
  readonly doorbells: DoorbellOptions;
  /** Where the submission ring lies when it is in the controller's memory buffer. */
  readonly ring: Uint32Array | null;
  readonly dma: DmaSpace;
  readonly interrupt: QueueInterrupt | null;
  readonly kind: 'private' | 'device';
  readonly sgl: boolean;
  readonly retries: number;
  readonly injector: Injector | null;
  /** Called now and then while nothing completes. False: the device's home has ended. */
  readonly onIdle: () => boolean;
  readonly onClose: () => void;
}

export interface NvmeCounters extends QueueCounters {
  submissions: number;
  completions: number;
  shadowDoorbells: number;
  idlePolls: number;
  retries: number;
  timeouts: number;
  resets: number;
}
