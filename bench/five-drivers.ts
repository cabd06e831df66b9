// Devices for the hot loop, and the five drivers that must have gone through its call sites before
// anything is measured: an engine sees more than one driver in its life, and a call site that has
// seen one only is faster than it will ever be again.

import { join } from 'node:path';
import type { BlockDevice } from '../lib/hpdi/index.js';
import { PenstockError } from '../lib/errors.js';
import type { DmaBuffer } from '../lib/memory/index.js';
import { native } from '../lib/native.js';
import { open } from '../lib/open.js';
import { HotLoop, type Clock } from './hot-loop.js';
import { scratchFolder } from './scratch.js';

export const UNIT_BYTES = 4096;
const WARM_UP_OPERATIONS = 200_000;

export interface OpenLoop {
  readonly loop: HotLoop;
  readonly device: BlockDevice;
  close(): Promise<void>;
}

/** The five: a URI per name. Traces go to /dev/null, since one operation is 128 bytes of trace. */
export function fiveDrivers(parent?: string): Record<string, string> {
  const folder = scratchFolder(parent);
  return {
    null: 'null:1GiB',
    ram: 'ram:64MiB',
    file: `file:${join(folder, 'data')}?create=16MiB`,
    fault: 'null:1GiB?fault.seed=1',
    trace: 'null:1GiB?trace.to=/dev/null',
  };
}

export function tscClock(): Clock {
  const clock = native.tscClock();
  return { words: new Uint32Array(clock.words), read: clock.read };
}

/** Opens the device, a queue and a buffer for each operation in flight. */
export async function openLoop(uri: string, depth: number, clock: Clock): Promise<OpenLoop> {
  const device = await open(uri);
  const buffers: DmaBuffer[] = [];
  try {
    for (let tag = 0; tag < depth; tag++) buffers.push(device.memory.alloc(UNIT_BYTES));
    const queue = device.queue({ depth, split: false });
    const loop = new HotLoop(queue, {
      depth,
      unitBlocks: UNIT_BYTES / device.info.blockSize,
      blocks: device.info.blocks,
      addresses: buffers.map((buffer) => buffer.address),
      clock,
    });
    return {
      loop,
      device,
      close: async () => {
        await queue.close();
        for (const buffer of buffers) buffer.free();
        await closeDevice(device);
      },
    };
  } catch (error) {
    for (const buffer of buffers) buffer.free();
    await device.close();
    throw error;
  }
}

/** A trace is written between turns of the event loop; the hot loop takes none, so it has gaps. */
async function closeDevice(device: BlockDevice): Promise<void> {
  try {
    await device.close();
  } catch (error) {
    if (!(error instanceof PenstockError && error.code === 'TRACE_FAILED')) throw error;
  }
}

/** Drives all five through the one loop, in turn, until the optimiser has seen them all. */
export async function warmUp(clock: Clock, depth: number, parent?: string): Promise<void> {
  const loops: OpenLoop[] = [];
  try {
    for (const uri of Object.values(fiveDrivers(parent))) {
      loops.push(await openLoop(uri, depth, clock));
    }
    for (let turn = 0; turn < 3; turn++) {
      for (const { loop } of loops) loop.run(WARM_UP_OPERATIONS);
    }
  } finally {
    for (const loop of loops.reverse()) await loop.close();
  }
}

/** Runs `loop` for about `runtimeS` seconds and gives operations a second. */
export function measureIops(loop: HotLoop, runtimeS: number): number {
  const hertz = native.tscHertz();
  loop.reset();
  let slice = 100_000;
  while (loop.ticks < runtimeS * hertz) {
    loop.run(slice);
    // About 50 ms a slice: fast devices must not pay for draining the queue after each.
    slice = Math.ceil(Math.max(1000, (loop.operations / loop.ticks) * hertz * 0.05));
  }
  if (loop.failures > 0) throw new Error(`${loop.failures} operations failed`);
  return (loop.operations / loop.ticks) * hertz;
}
