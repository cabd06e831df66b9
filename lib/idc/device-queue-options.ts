// What a queue of a device in another domain is made of, and what it counts.

import type { DeviceInfo, QueueCounters } from '../hpdi/index.js';
import type { DeviceQueue } from './device-queue.js';
import type { OwnMemory } from './device-slots.js';
import type { QueueTable } from './device-table.js';

/**
 * What a queue found: `dead`: the server's process ends; `ended`: it has closed this channel,
 * nothing of which is in flight; `misbehaved`: it did what no honest one does.
 */
export type CutReason = 'dead' | 'ended' | 'misbehaved';

export interface DeviceQueueOptions {
  readonly table: QueueTable;
  /** Claimed for this queue. */
  readonly row: number;
  readonly depth: number;
  readonly info: DeviceInfo;
  readonly memory: OwnMemory;
  /**
   * Takes what the server told of its memory; false: it has not told of this. Null where another
   * thread takes it, in its own time.
   */
  readonly settle: ((address: number, bytes: number) => boolean) | null;
  /** Told after the queue has let go of the channel. */
  readonly onCut: (reason: CutReason) => void;
  /** Whether the thread is there that can open another channel. */
  readonly isHomeAlive: () => boolean;
  /** Whether another server is waited for when this one is gone. */
  readonly reconnects: boolean;
  readonly onClose: (queue: DeviceQueue) => void;
}

export interface DeviceQueueCounters extends QueueCounters {
  /** READs whose data was copied out of the server's memory; bytes of it. */
  readonly copies: number;
  readonly copiedBytes: number;
}
